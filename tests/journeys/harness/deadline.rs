//! A test that hangs ends the run with its name. Otherwise the run would hang too, and nothing would tell in which test.

use std::io::Write;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::for_a_while;

/// Three times as long as the longest test, the guest with OCFS2.
const LIMIT: Duration = Duration::from_secs(25 * 60);

/// The tests that run, each on a thread of its own.
static RUNNING: Mutex<Vec<Running>> = Mutex::new(Vec::new());

struct Running {
    thread: ThreadId,
    name: String,
    start: Instant,
}

/// Ends with the thread of its test.
struct Registration;

/// Starts the time of the test that runs on this thread.
pub fn begin() {
    static WATCH: Once = Once::new();
    thread_local!(static REGISTRATION: Registration = const { Registration });
    let current = thread::current();
    let name = current.name().unwrap_or("without a name").to_owned();
    let mut running = running();
    running.retain(|test| test.thread != current.id());
    running.push(Running { thread: current.id(), name, start: Instant::now() });
    drop(running);
    REGISTRATION.with(|_| ());
    WATCH.call_once(|| drop(thread::spawn(watch)));
}

impl Drop for Registration {
    fn drop(&mut self) {
        running().retain(|test| test.thread != thread::current().id());
    }
}

fn running() -> MutexGuard<'static, Vec<Running>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch() {
    loop {
        for_a_while(Duration::from_secs(10));
        let hung = running().iter().find(|test| test.start.elapsed() > LIMIT).map(|test| test.name.clone());
        if let Some(name) = hung {
            // Not with `eprintln!`: the test runner may keep that output to itself.
            let processes = Command::new("ps").args(["-e", "--forest", "-o", "pid,stat,wchan:20,etime,args"]).output();
            let processes = processes.map(|output| output.stdout).unwrap_or_default();
            let message = format!("HUNG {name}: it runs for more than {LIMIT:?}. The processes:\n");
            let _ = std::io::stderr().write_all(&[message.as_bytes(), &processes].concat());
            std::process::exit(101);
        }
    }
}
