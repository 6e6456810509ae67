//! A TCP proxy that cuts, delays and damages what the service sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// What the proxy does with the bytes of the service.
#[derive(Default)]
pub struct Trouble {
    /// Break each connection after this many bytes, in turn by closing it and by flipping a bit; 0: never.
    pub break_after: AtomicU64,
    /// Accept no connection.
    pub refuse: AtomicBool,
    /// All bytes that the service sent so far.
    pub passed: AtomicU64,
    pub connections: AtomicU64,
}

pub struct Proxy {
    pub port: u16,
    pub trouble: Arc<Trouble>,
    ends: Arc<AtomicBool>,
}

impl Proxy {
    /// Passes connections on to `target`, a port of this host.
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (trouble, ends) = (Arc::<Trouble>::default(), Arc::<AtomicBool>::default());
        let (shared, end) = (Arc::clone(&trouble), Arc::clone(&ends));
        thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), false) = (client, shared.refuse.load(Ordering::Relaxed)) else { continue };
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let number = shared.connections.fetch_add(1, Ordering::Relaxed);
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || copy(from, to, |_| true));
                let trouble = Arc::clone(&shared);
                let mut passed = 0;
                thread::spawn(move || copy(server, client, |bytes| trouble.pass(number, bytes, &mut passed)));
            }
        });
        Self { port, trouble, ends }
    }

    pub fn passed(&self) -> u64 {
        self.trouble.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Trouble {
    /// Changes the next bytes of a connection. Returns whether the connection goes on.
    fn pass(&self, number: u64, bytes: &mut [u8], passed: &mut u64) -> bool {
        let before = *passed;
        *passed += bytes.len() as u64;
        self.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let after = self.break_after.load(Ordering::Relaxed);
        if after <= before || after > *passed {
            return true;
        }
        bytes[(after - before - 1) as usize] ^= 1;
        !number.is_multiple_of(2)
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&mut [u8]) -> bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read) = from.read(&mut buffer) {
        if read == 0 || !pass(&mut buffer[..read]) || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
