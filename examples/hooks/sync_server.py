#!/usr/bin/env python3
"""A sync server for a guest: it keeps an SQLite database still while the disks are cloned.

Run it in the guest, with a certificate that the exporter trusts (hooks.sync.ca_certificate) and the exporter's secret
(hooks.sync.secret). Add a tag to the VM's description: xo:notify-on-snapshot=https://guest:1727

    sync_server.py --database /srv/app.db --certificate cert.pem --key key.pem --secret-file secret

GET /sync takes the database's write lock, checkpoints its write-ahead log, and flushes everything to disk.
GET /post-sync releases the lock. If /post-sync does not come, the lock is released after --hold seconds.
"""

import argparse
import base64
import hmac
import http.server
import os
import socket
import sqlite3
import ssl
import sys
import threading
from pathlib import Path


class Database:
    """A database that can be locked against writes."""

    def __init__(self, path: str, hold: float) -> None:
        self.path = path
        self.hold = hold
        self.mutex = threading.Lock()
        self.held: sqlite3.Connection | None = None
        self.timer: threading.Timer | None = None

    def connect(self) -> sqlite3.Connection:
        # Wait for writers. Different threads use the connection, one at a time.
        return sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)

    def sync(self) -> None:
        with self.mutex:
            self.release()
            held = self.connect()
            try:
                held.execute("BEGIN IMMEDIATE")
                with self.connect() as other:
                    other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                other.close()
                os.sync()
            except BaseException:
                held.close()
                raise
            self.held = held
            self.timer = threading.Timer(self.hold, self.post_sync)
            self.timer.daemon = True
            self.timer.start()

    def post_sync(self) -> None:
        with self.mutex:
            self.release()

    def release(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.held is not None:
            self.held.close()  # rolls back: nothing was written
            self.held = None


class Handler(http.server.BaseHTTPRequestHandler):
    database: Database
    bearer: bytes
    timeout = 30

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self.bearer):
            return self.answer(401, "wrong secret")
        actions = {"/sync": self.database.sync, "/post-sync": self.database.post_sync}
        action = actions.get(self.path)
        if action is None:
            return self.answer(404, "GET /sync or /post-sync")
        try:
            action()
        except sqlite3.Error as error:
            return self.answer(503, str(error))
        return self.answer(200, "done")

    def answer(self, status: int, text: str) -> None:
        body = text.encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        # Each connection's thread does its own handshake, so that a slow client does not block the others.
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", required=True)
    parser.add_argument("--certificate", required=True, help="PEM, with the chain")
    parser.add_argument("--key", required=True, help="PEM")
    parser.add_argument("--secret-file", required=True, help="file with the secret; a newline at the end is ignored")
    parser.add_argument("--bind", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=1727)
    parser.add_argument("--hold", type=float, default=120, help="longest time to lock the database, in seconds")
    options = parser.parse_args()

    if not Path(options.database).is_file():
        parser.error(f"{options.database} does not exist")
    secret = Path(options.secret_file).read_bytes().rstrip(b"\r\n")
    if not secret:
        parser.error(f"{options.secret_file} is empty")
    Handler.bearer = b"Bearer " + base64.b64encode(secret)
    Handler.database = Database(options.database, options.hold)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(options.certificate, options.key)
    with Server((options.bind, options.port), tls) as server:
        print(f"listening on port {server.server_address[1]}", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
