#!/usr/bin/env python3
"""A stand-in for Oracle VM Manager, for the demo: it knows one user, and one address over TLS.

The exporter asks a manager one thing only, whether credentials are good, by reading the list of
repository ids with Basic authentication. This answers that as the real one does.
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
    """The server, with the one `Authorization` header that it takes."""

    daemon_threads = True
    authorization = b""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or does not trust the certificate, is not worth a traceback."""


class Handler(BaseHTTPRequestHandler):
    """One connection of the exporter."""

    server: Manager
    server_version = "demo-manager"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds; also ends a TLS handshake that never comes

    def do_GET(self) -> None:
        """200 `[]` for the right credentials, 401 for others, 404 for every other address."""
        given = self.headers.get("Authorization", "").encode("latin-1")
        if self.path != REPOSITORY_IDS:
            self.answer(404, b'{"error": "no such address"}')
        elif hmac.compare_digest(given, self.server.authorization):
            self.answer(200, b"[]")
        else:
            self.answer(401, b'{"error": "wrong user or password"}', {"WWW-Authenticate": 'Basic realm="manager"'})

    def answer(self, status: int, body: bytes, headers: Any = ()) -> None:
        """A JSON answer of known length, after which the connection can be used again."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet: the demo's terminal is for the demo."""


def main() -> None:
    """Listen on the loopback interface, say on which port, and serve until killed."""
    parser = argparse.ArgumentParser(description="A stand-in for Oracle VM Manager, for the demo.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--cert", required=True, help="PEM file of the server's certificate")
    parser.add_argument("--key", required=True, help="PEM file of its key")
    parser.add_argument("--user", required=True)
    parser.add_argument("--password", required=True, help="a throw-away one: other users of this host can see it")
    parser.add_argument("--port-file", type=Path, required=True, help="where the port is written once it is open")
    args = parser.parse_args()

    manager = Manager(("127.0.0.1", args.port), Handler)
    manager.authorization = b"Basic " + base64.b64encode(f"{args.user}:{args.password}".encode())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(args.cert, args.key)
    # The handshake belongs to the connection's own thread: a slow one must not keep others out.
    manager.socket = tls.wrap_socket(manager.socket, server_side=True, do_handshake_on_connect=False)

    # Renamed into place, so that whoever waits for the file never reads half a number.
    fresh = args.port_file.with_name(args.port_file.name + ".partial")
    fresh.write_text(f"{manager.server_port}\n")
    os.replace(fresh, args.port_file)
    try:
        manager.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
