#!/usr/bin/env python3
"""Receives the events of coriolis-ovm-exporter over HTTPS, checks their signatures, and prints each new one as a line
of JSON. It needs only Python's standard library.

The signatures are those of Standard Webhooks (https://www.standardwebhooks.com), so its libraries check them too.

    receiver.py --port 8443 --certificate server.pem --key server.key --secret-file secret
"""

import argparse
import base64
import collections
import hashlib
import hmac
import http.server
import json
import queue
import ssl
import sys
import threading
import time

# An older or newer event may be one that an attacker repeats.
TOLERANCE = 300
MAX_BODY = 1 << 20
# So many ids are remembered: an event that is delivered twice has the same one.
MAX_IDS = 10_000
TIMEOUT = 30
# So many events wait for `take`. Of more, the service keeps the rest: it sends them again later.
MAX_WAITING = 1000


class BadSignature(Exception):
    """The request is not from the service."""


def verify(secrets, headers, body, now=None):
    """Returns the id of the event. `secrets` are texts that begin with whsec_; one of them has to fit."""
    event_id, sent_at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not event_id or not sent_at.isdecimal():
        raise BadSignature("a header is missing")
    if abs((time.time() if now is None else now) - int(sent_at)) > TOLERANCE:
        raise BadSignature("it is too old, or the clocks differ")
    signed = b".".join([event_id.encode(), sent_at.encode(), body])
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        for signature in headers.get("webhook-signature", "").split():
            if hmac.compare_digest(signature.encode(), expected.encode()):
                return event_id
    raise BadSignature("no signature fits")


class Handler(http.server.BaseHTTPRequestHandler):
    """Checks requests, and puts each event into the queue once. It answers before anything is done with the event,
    because the service waits for the answer and would send the event again."""

    timeout = TIMEOUT
    protocol_version = "HTTP/1.1"
    # The service opens a connection for each event. Without this, each answer waits 40 ms for the other side's
    # acknowledgement of the TLS handshake.
    disable_nagle_algorithm = True
    secrets: list = []
    known_ids: collections.OrderedDict = collections.OrderedDict()
    waiting: queue.Queue = queue.Queue(MAX_WAITING)
    lock = threading.Lock()

    def do_POST(self):
        length = self.headers.get("content-length") or ""
        if not length.isdecimal() or not 0 < int(length) <= MAX_BODY:
            # The body stays unread, so no other request can follow it.
            self.close_connection = True
            self.answer(413)
            return
        body = self.rfile.read(int(length))
        try:
            event_id = verify(self.secrets, self.headers, body)
            event = json.loads(body)
        except (BadSignature, ValueError) as error:
            self.log_error("refused: %s", error)
            self.answer(401)
            return
        self.answer(204 if self.put(event_id, event) else 503)

    def put(self, event_id, event):
        """Puts a new event into the queue. Returns whether there was room."""
        with self.lock:
            if event_id not in self.known_ids:
                try:
                    self.waiting.put_nowait(event)
                except queue.Full:
                    return False
                # Remembered only now: an event that found no room has to come again.
                self.known_ids[event_id] = True
                if len(self.known_ids) > MAX_IDS:
                    self.known_ids.popitem(last=False)
        return True

    @staticmethod
    def take(event):
        """Does something with a new event: send a mail, open an incident. This may be slow. The service does not send the
        event again: if it must not be lost when this program ends, `put` has to write it into a file."""
        # In one piece, because the threads of requests write too.
        print(json.dumps(event) + "\n", end="", flush=True)

    @classmethod
    def take_all(cls):
        """Takes the events of the queue, one after the other, for ever."""
        while True:
            try:
                cls.take(cls.waiting.get())
            except Exception as error:  # The next event is taken in any case.
                print(f"an event was lost: {error!r}\n", end="", file=sys.stderr, flush=True)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True, help="PEM, with the certificates of its issuers")
    parser.add_argument("--key", required=True, help="PEM")
    parser.add_argument("--secret-file", required=True, help="a secret a line, as in the config of the service")
    return parser


def serve(options, handler):
    with open(options.secret_file, encoding="ascii") as lines:
        handler.secrets = [line.strip() for line in lines if line.strip()]
    if not handler.secrets:
        sys.exit(f"{options.secret_file} has no secret")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(options.certificate, options.key)
    server = http.server.ThreadingHTTPServer((options.bind, options.port), handler)
    # A client that connects and sends nothing must not keep others from connecting: the thread of the request does it.
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    threading.Thread(target=handler.take_all, daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    try:
        serve(arguments().parse_args(), Handler)
    except KeyboardInterrupt:
        pass
