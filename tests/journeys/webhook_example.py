"""Checks examples/webhooks/receiver.py, of which nothing is replaced but what it does with an event: while that hangs, it
answers, and when its queue is full, it says so.

    webhook_example.py CERTIFICATE KEY CA PORT
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import pathlib
import queue
import ssl
import sys
import tempfile
import threading
import time

from webhook_receiver import receiver

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Handler(receiver.Handler):
    """A receiver with room for one event."""

    waiting = queue.Queue(1)
    taken = queue.Queue()
    may_go_on = threading.Semaphore(0)

    @staticmethod
    def take(event):
        Handler.taken.put(event["id"])
        Handler.may_go_on.acquire()
        if event["id"] == "a":
            raise RuntimeError("the mail server is down")


def connect(ca, port):
    context = ssl.create_default_context(cafile=ca)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)


def send(connection, event_id):
    """Sends an event; returns the status of the answer."""
    body, now = json.dumps({"id": event_id}).encode(), str(int(time.time()))
    signed = b".".join([event_id.encode(), now.encode(), body])
    signature = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": event_id, "webhook-timestamp": now, "webhook-signature": signature}
    connection.request("POST", "/", body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def check(ca, port):
    connection = connect(ca, port)
    assert send(connection, "a") == 204
    assert Handler.taken.get(timeout=60) == "a"
    # That hangs now. There is room for one more.
    statuses = [send(connection, event_id) for event_id in ["b", "c", "b", "a"]]
    assert statuses == [204, 503, 204, 204], statuses
    # The event that found no room comes again.
    Handler.may_go_on.release()
    assert Handler.taken.get(timeout=60) == "b"
    assert send(connection, "c") == 204
    Handler.may_go_on.release(2)
    assert Handler.taken.get(timeout=60) == "c"
    for length in ["x", "0", str(receiver.MAX_BODY + 1)]:
        connection = connect(ca, port)
        connection.putrequest("POST", "/")
        connection.putheader("content-length", length)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("connection")) == (413, "close"), (length, answer.status)
        connection.close()


def main():
    certificate, key, ca, port = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        secrets = pathlib.Path(folder) / "secret"
        secrets.write_text(SECRET, encoding="ascii")
        options = argparse.Namespace(
            bind="127.0.0.1", port=int(port), certificate=certificate, key=key, secret_file=str(secrets)
        )
        threading.Thread(target=receiver.serve, args=(options, Handler), daemon=True).start()
        end = time.time() + 60
        while True:
            try:
                connect(ca, int(port)).connect()
                break
            except ConnectionRefusedError:
                assert time.time() < end, "the receiver does not listen"
                time.sleep(0.02)
        check(ca, int(port))


if __name__ == "__main__":
    main()
