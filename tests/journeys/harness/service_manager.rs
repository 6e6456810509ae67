//! What a service manager hears: the messages on a notification socket.

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tempfile::TempDir;

use super::{Settings, eventually};

/// A notification socket.
pub struct ServiceManager {
    socket: UnixDatagram,
    dir: TempDir,
    heard: RefCell<Vec<String>>,
}

impl Default for ServiceManager {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { socket, dir, heard: RefCell::default() }
    }
}

impl ServiceManager {
    /// Lets the service use it. With a `watchdog`, the service has to send keep-alives within that time.
    pub fn set(&self, settings: &mut Settings, watchdog: Option<Duration>) {
        settings.environment.push(("NOTIFY_SOCKET".to_owned(), self.dir.path().join("notify").display().to_string()));
        let time = watchdog.map(|watchdog| ("WATCHDOG_USEC".to_owned(), watchdog.as_micros().to_string()));
        settings.environment.extend(time);
    }

    /// All messages so far, oldest first.
    pub fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 8192];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.heard.borrow_mut().push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        self.heard.borrow().clone()
    }

    /// Forgets the messages so far.
    pub fn forget(&self) {
        self.heard();
        self.heard.borrow_mut().clear();
    }

    /// The number of keep-alives so far.
    pub fn keep_alives(&self) -> usize {
        self.heard().iter().filter(|message| *message == "WATCHDOG=1").count()
    }

    /// The newest status line.
    pub fn status(&self) -> String {
        let heard = self.heard();
        let lines = heard.iter().flat_map(|message| message.lines());
        lines.filter_map(|line| line.strip_prefix("STATUS=")).next_back().unwrap_or_default().to_owned()
    }

    /// Waits until the newest status line contains `text`.
    pub fn wait_for_status(&self, text: &str) {
        let mut last = String::new();
        eventually(&format!("the status line has {text:?}"), || {
            last = self.status();
            last.contains(text)
        });
    }
}
