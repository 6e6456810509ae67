#!/usr/bin/env python3
"""A stand-in for Oracle VM Manager, for the demo: one user, one path, over TLS.

The exporter uses the manager only to check credentials: it reads the list of repository ids with Basic
authentication. This program answers that request like the real manager.
"""

import argparse
import base64
import hmac
import os
import ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY_IDS = "/ovm/core/wsapi/rest/Repository/id"


class Manager(ThreadingHTTPServer):
    """The server, with the only `Authorization` header that it accepts."""

    daemon_threads = True
    authorization = b""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No traceback for a client that disconnects or does not trust the certificate."""


class Handler(BaseHTTPRequestHandler):
    """One connection from the exporter."""

    server: Manager
    server_version = "demo-manager"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds; also limits the TLS handshake

    def do_GET(self) -> None:
        """Send 200 `[]` for the right credentials, 401 for others, 404 for other paths."""
        given = self.headers.get("Authorization", "").encode("latin-1")
        if self.path != REPOSITORY_IDS:
            self.answer(404, b'{"error": "no such path"}')
        elif hmac.compare_digest(given, self.server.authorization):
            self.answer(200, b"[]")
        else:
            self.answer(401, b'{"error": "wrong user or password"}', {"WWW-Authenticate": 'Basic realm="manager"'})

    def answer(self, status: int, body: bytes, headers: Any = ()) -> None:
        """Send JSON with a Content-Length, so that the connection can be reused."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the terminal is for the demo."""


def main() -> None:
    """Listen on the loopback interface, report the port, and serve until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for Oracle VM Manager, for the demo.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free port")
    parser.add_argument("--cert", required=True, help="PEM file of the server's certificate")
    parser.add_argument("--key", required=True, help="PEM file of its key")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True, help="use a temporary one: other users of this host can see it")
    parser.add_argument("--port-file", type=Path, required=True, help="file for the port number, written once the port is open")
    args = parser.parse_args()

    manager = Manager(("127.0.0.1", args.port), Handler)
    manager.authorization = b"Basic " + base64.b64encode(f"{args.user}:{args.password}".encode())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(args.cert, args.key)
    # Each connection's thread does its own handshake, so that a slow client does not block the others.
    manager.socket = tls.wrap_socket(manager.socket, server_side=True, do_handshake_on_connect=False)

    # Rename the file into place, so that a reader never sees half a number.
    fresh = args.port_file.with_name(args.port_file.name + ".partial")
    fresh.write_text(f"{manager.server_port}\n")
    os.replace(fresh, args.port_file)
    try:
        manager.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
