"""The receiver of examples/webhooks that can misbehave and records its requests, for tests.

The file --behavior says what it does: good, a status, a status and the event that gets it, hang, or redirect.
"""

import importlib.util
import json
import pathlib
import sys
import time

EXAMPLE = pathlib.Path(__file__).parent.parent.parent / "examples/webhooks/receiver.py"


def example():
    spec = importlib.util.spec_from_file_location("receiver", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


receiver = example()


class Handler(receiver.Handler):
    behavior_file = None
    record_file = None

    def behavior(self):
        return pathlib.Path(self.behavior_file).read_text(encoding="ascii").split()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.rfile = FakeFile(body)
        event = json.loads(body)
        try:
            receiver.verify(self.secrets, self.headers, body)
            verified = True
        except receiver.BadSignature:
            verified = False
        word, *only = self.behavior()
        headers = {name.lower(): value for name, value in self.headers.items()}
        record = {"path": self.path, "verified": verified, "behavior": word, "headers": headers, "body": event}
        with self.lock, open(self.record_file, "a", encoding="ascii") as record_file:
            record_file.write(json.dumps(record) + "\n")
        if word == "good" or (only and event["event"] not in only):
            super().do_POST()
        elif word == "hang":
            end = time.time() + 600
            while self.behavior() == ["hang"] and time.time() < end:
                time.sleep(0.02)
        elif word == "redirect":
            self.send_response(307)
            self.send_header("location", "/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self.answer(int(word))
        self.close_connection = True


class FakeFile:
    """The body, which was read already."""

    def __init__(self, body):
        self.body = body

    def read(self, length):
        return self.body[:length]

    def close(self):
        pass


if __name__ == "__main__":
    parser = receiver.arguments()
    parser.add_argument("--behavior", required=True)
    parser.add_argument("--record", required=True)
    options = parser.parse_args()
    Handler.behavior_file, Handler.record_file = options.behavior, options.record
    sys.exit(receiver.serve(options, Handler))
