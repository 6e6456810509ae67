//! A TCP proxy in front of the service that breaks connections when a test says so.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many bytes of the service to pass on before the connections are cut.
    budget: Option<u64>,
    /// Refuse new connections once the connections were cut.
    refuses_after_cut: bool,
    refuses: bool,
    holds: bool,
    cuts: usize,
    /// After how many bytes of the service each connection breaks; 0: it does not.
    break_each_after: u64,
    /// All bytes of the service so far.
    passed: u64,
    accepted: u64,
    refused: u64,
    connections: Vec<TcpStream>,
    ends: bool,
}

impl State {
    fn cut(&mut self) {
        for connection in self.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.budget = None;
        self.holds = false;
        self.refuses = self.refuses_after_cut;
        self.cuts += 1;
    }
}

impl Proxy {
    /// Passes connections on to this port of 127.0.0.1.
    pub fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = accepting.state.lock().unwrap();
                if state.ends {
                    return;
                }
                if state.refuses {
                    state.refused += 1;
                    continue;
                }
                let Ok(service) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for stream in [&client, &service] {
                    state.connections.push(stream.try_clone().unwrap());
                }
                let number = state.accepted;
                state.accepted += 1;
                let (from, onto) = (client.try_clone().unwrap(), service.try_clone().unwrap());
                thread::spawn(move || copy(from, onto, |_| true));
                let shared = Arc::clone(&accepting);
                let mut passed = 0;
                thread::spawn(move || {
                    copy(service, client, |bytes| {
                        shared.passes_or_breaks(number, bytes, &mut passed) && shared.may_pass(bytes.len())
                    });
                });
            }
        });
        Self { port, shared }
    }

    /// Cuts all connections after this many more bytes of the service, once.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.state.lock().unwrap().budget = Some(bytes);
    }

    /// As [`Self::cut_after`], and refuses all connections after that, until [`Self::accept`].
    pub fn end_after(&self, bytes: u64) {
        let mut state = self.shared.state.lock().unwrap();
        state.budget = Some(bytes);
        state.refuses_after_cut = true;
    }

    /// Accepts connections again.
    pub fn accept(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.refuses = false;
        state.refuses_after_cut = false;
    }

    /// Passes no more bytes of the service on, until [`Self::cut`].
    pub fn hold(&self) {
        self.shared.state.lock().unwrap().holds = true;
    }

    /// Cuts all connections now.
    pub fn cut(&self) {
        self.shared.state.lock().unwrap().cut();
        self.shared.changed.notify_all();
    }

    /// Cuts all connections now, and refuses others until [`Self::accept`].
    pub fn die(&self) {
        self.shared.state.lock().unwrap().refuses_after_cut = true;
        self.cut();
    }

    /// Breaks each connection after this many bytes of the service: every second one by a cut, the others by a bit that
    /// is flipped.
    pub fn break_each_after(&self, bytes: u64) {
        self.shared.state.lock().unwrap().break_each_after = bytes;
    }

    /// All bytes that the service has sent.
    pub fn passed(&self) -> u64 {
        self.shared.state.lock().unwrap().passed
    }

    /// All connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.state.lock().unwrap().accepted
    }

    /// All connections that were refused.
    pub fn refused(&self) -> u64 {
        self.shared.state.lock().unwrap().refused
    }

    /// How often the connections were cut.
    pub fn cuts(&self) -> usize {
        self.shared.state.lock().unwrap().cuts
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.cut();
        state.ends = true;
        drop(state);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the thread that accepts
    }
}

impl Shared {
    /// Counts the next bytes of a connection, and damages them if it is time. Returns whether the connection goes on.
    fn passes_or_breaks(&self, number: u64, bytes: &mut [u8], passed: &mut u64) -> bool {
        let mut state = self.state.lock().unwrap();
        let (before, after) = (*passed, state.break_each_after);
        *passed += bytes.len() as u64;
        state.passed += bytes.len() as u64;
        if after <= before || after > *passed {
            return true;
        }
        bytes[(after - before - 1) as usize] ^= 1;
        !number.is_multiple_of(2)
    }

    /// Waits while responses are held; returns whether to pass the next bytes on.
    fn may_pass(&self, length: usize) -> bool {
        let state = self.state.lock().unwrap();
        let cuts = state.cuts;
        let mut state = self.changed.wait_while(state, |state| state.holds && state.cuts == cuts).unwrap();
        if state.cuts != cuts {
            return false;
        }
        let Some(budget) = state.budget else { return true };
        state.budget = budget.checked_sub(length as u64);
        let passes = state.budget.is_some();
        if !passes {
            state.cut();
            self.changed.notify_all();
        }
        passes
    }
}

/// Copies until one side ends or `may_pass` refuses.
fn copy(mut from: TcpStream, mut onto: TcpStream, mut may_pass: impl FnMut(&mut [u8]) -> bool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !may_pass(&mut buffer[..length]) || onto.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    for stream in [from, onto] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
