#!/usr/bin/env python3
"""An example backup client for coriolis-ovm-exporter: Linux, Python 3.8 or newer, no other library.

It shows developers of backup products how to use the exporter. It makes two kinds of copies:

    full         an empty sparse file of the disk's size, plus the `data` chunks of a snapshot
    incremental  the copy of BASE, cut or extended to the disk's size, plus the chunks that
                 `compareTo=BASE` lists: bytes from the service for `data`, a hole for `zero`

<disk>.state.json beside each copy records which snapshot it is a copy of, and whether it is complete.
An interrupted incremental can be run again, because applying a chunk twice is harmless.

Exit status: 0 success; 1 the service, the network or the local disk failed; 2 wrong usage;
3 verify found a difference; 4 there is no complete copy of the base.
"""

import argparse
import ctypes
import getpass
import hashlib
import http.client
import json
import os
import ssl
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple
from urllib.parse import quote, urlencode, urlsplit

MIB = 1 << 20
BLOCK = 1 * MIB           # bytes held in memory at a time
PIECE = 16 * MIB          # bytes per request
READ_TIMEOUT = 60         # seconds without data from a disk
CALL_TIMEOUT = 900        # seconds for a response: a snapshot runs hooks, a comparison reads disks
DELAYS = (0, 1, 2, 4, 8)  # seconds before each retry; the first is for a closed idle connection
BUSY = (429, 502, 503, 504)
LOGIN = "/auth/login"
STATE = ".state.json"
USAGE, MISMATCH, NO_BASE = 2, 3, 4  # exit statuses
Json = Dict[str, Any]
warn = partial(print, file=sys.stderr)  # standard output has only results


class ClientError(Exception):
    """An error message for the user, and an exit status for the calling script."""

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class ServiceError(ClientError):
    """An unsuccessful response, with the service's error message if it sent one."""

    def __init__(self, status: int, reason: str, body: bytes, retry_after: str) -> None:
        try:
            said = dict(json.loads(body))
        except (ValueError, TypeError):
            said = {}
        self.status, self.code = status, said.get("code") or f"http_{status}"
        self.retry_after = int(retry_after) if retry_after.isdigit() else 0
        text = ": ".join(filter(None, (said.get("error") or reason, said.get("details"))))
        origin = ", request ".join(filter(None, (self.code, said.get("request_id"))))
        super().__init__(f"{text} ({origin})")


TRANSIENT = (ServiceError, OSError, http.client.HTTPException)  # errors for which a retry may help


class Service:
    """The exporter over one keep-alive connection. It does not follow redirects: they could leak the token."""

    def __init__(self, url: str, tls: ssl.SSLContext, token: Optional[str], credentials: Optional[Json]) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ClientError(f"--url must look like https://host:5544, not {url!r}", USAGE)
        self._connection = http.client.HTTPSConnection(parts.hostname, parts.port or 5544, context=tls, timeout=30)
        self._base = parts.path.rstrip("/") + "/api/v1"
        self._token, self._credentials = token, credentials

    def login(self) -> str:
        """Exchange the credentials for a token."""
        if self._credentials is None:
            raise ClientError("no credentials: give --username, or a token in EXPORTER_TOKEN", USAGE)
        self._token = str(self.call("POST", LOGIN, self._credentials)["token"])
        return self._token

    def call(self, method: str, path: str, body: Optional[Json] = None) -> Any:
        """Return the JSON of a response, or the headers of a HEAD. Do not repeat a POST: it may have succeeded."""
        failures = 0
        while True:
            try:
                answer = self._exchange(method, path, CALL_TIMEOUT, body)
                content = answer.read() or b"null"
                return answer.headers if method == "HEAD" else json.loads(content)
            except TRANSIENT as error:
                failures += 1 if method != "POST" else len(DELAYS) + 1
                self._wait_or_raise(error, failures)
            except json.JSONDecodeError as error:
                raise ClientError(f"the response to {method} {path} is not JSON: {error}") from error

    def version_of(self, disk: str, size: int) -> str:
        """Return the ETag that every response for this disk must have."""
        headers = self.call("HEAD", disk)
        if headers["Content-Length"] != str(size):
            raise ClientError(f"{disk}: {headers['Content-Length']} bytes, but {size} are listed")
        if not (headers["ETag"] or "").startswith('"'):  # If-Range needs a strong tag
            raise ClientError(f"{disk}: no strong ETag, so bytes of two versions could mix")
        return str(headers["ETag"])

    def stream(self, disk: str, start: int, end: int, size: int, etag: str) -> Iterator[Tuple[int, memoryview]]:
        """Yield (offset, bytes) from `start` to `end`; resume after a broken connection.

        It fails after several attempts in a row without a whole new block. The buffer is reused: do not keep it.
        """
        buffer, at, failures = memoryview(bytearray(min(BLOCK, end - start))), start, 0
        while at < end:
            try:
                wanted = {"Range": f"bytes={at}-{end - 1}", "If-Range": etag}
                answer = self._exchange("GET", disk, READ_TIMEOUT, headers=wanted)
                expected = (206, f"bytes {at}-{end - 1}/{size}", str(end - at), etag)
                sent = (answer.status, *map(answer.getheader, ("Content-Range", "Content-Length", "ETag")))
                if sent != expected:  # a 200 would be the whole disk, in another version
                    raise ClientError(f"{disk} has changed: expected {expected}, received {sent}")
                while at < end:
                    got = answer.readinto(buffer[:end - at])
                    if not got:
                        raise http.client.IncompleteRead(b"", end - at)
                    yield at, buffer[:got]
                    at, failures = at + got, 0 if got == len(buffer) else failures
                answer.read()  # nothing remains; this frees the connection for the next request
            except TRANSIENT as error:
                failures += 1
                self._wait_or_raise(error, failures)

    def _exchange(self, method: str, path: str, timeout: float, body: Optional[Json] = None,
                  headers: Optional[Dict[str, str]] = None, again: bool = True) -> http.client.HTTPResponse:
        """Send one request, and log in first if necessary. Return a 2xx response with its body unread."""
        sent = dict(headers or {}, **{"Content-Type": "application/json"} if body else {})
        if path != LOGIN:
            sent["Authorization"] = f"Bearer {self._token or self.login()}"
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.settimeout(timeout)
        self._connection.request(method, self._base + path, json.dumps(body) if body else None, sent)
        answer = self._connection.getresponse()
        if 200 <= answer.status < 300:
            return answer
        refusal = ServiceError(answer.status, answer.reason, answer.read(), answer.getheader("Retry-After", ""))
        if answer.status == 401 and path != LOGIN and self._credentials and again:
            self._token = None  # the token may expire during a long transfer
            return self._exchange(method, path, timeout, body, headers, again=False)
        raise refusal

    def _wait_or_raise(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt, or raise the error if a retry would not help."""
        self._connection.close()
        refused = isinstance(error, ServiceError) and error.status not in BUSY
        if refused or failures > len(DELAYS) or isinstance(error, ssl.SSLCertVerificationError):
            raise error if isinstance(error, ServiceError) else ClientError(f"{self._connection.host}: {error}")
        time.sleep(max(DELAYS[failures - 1], min(getattr(error, "retry_after", 0), 60)))


def route(*components: str, **query: str) -> str:
    """Return a path below /vms. Each component is quoted, so that no name can reach another resource."""
    path = "/vms" + "".join("/" + quote(component, safe="") for component in components)
    return path + ("?" + urlencode(query) if query else "")


def spans(disk: Json, kind: str) -> List[Tuple[int, int]]:
    """Return (start, end) of a disk's chunks of one kind; adjacent chunks are joined.

    This checks the list before it is applied to the copy.
    """
    joined: List[Tuple[int, int]] = []
    end = 0
    for chunk in disk["chunks"]:
        start, length, this = chunk["start"], chunk["length"], chunk.get("type", "data")
        if start < end or length <= 0 or start + length > disk["size"] or this not in ("data", "zero"):
            raise ClientError(f"chunk {chunk} is out of order, outside the disk or of an unknown type")
        end = start + length
        if this == kind:
            joined.append((joined.pop()[0] if joined and joined[-1][1] == start else start, end))
    return joined


def punch_hole(file: BinaryIO, start: int, end: int) -> None:
    """Make a range read as zeros: punch a hole, or write zeros if the file system has no holes."""
    keep_size, punch = 0x01, 0x02  # linux/falloc.h
    libc = ctypes.CDLL(None)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate  # always a 64-bit off_t
    if fallocate(file.fileno(), keep_size | punch, ctypes.c_int64(start), ctypes.c_int64(end - start)) != 0:
        file.seek(start)
        for at in range(start, end, BLOCK):
            file.write(bytes(min(BLOCK, end - at)))


class Copy:
    """A disk's local image, and the record of its snapshot and whether it is complete."""

    def __init__(self, directory: Path, disk: str) -> None:
        # The service chooses this name, and it becomes a path here.
        if "/" in disk or "\0" in disk or disk[:1] in ("", ".") or disk.endswith((".partial", STATE)):
            raise ClientError(f"the disk name {disk!r} is not a safe file name")
        self.image, self.partial = directory / disk, directory / f"{disk}.partial"
        self._state = directory / (disk + STATE)

    def state(self) -> Tuple[str, bool, Optional[str]]:
        """Return the recorded (snapshot, complete, base), or ("", False, None) if the record is unusable."""
        try:
            state = json.loads(self._state.read_text())
            if not state["complete"] or self.image.stat().st_size == state["size"]:
                return state["snapshot"], state["complete"], state["base"]
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            pass
        return "", False, None

    def record(self, snapshot: str, complete: bool, size: int, base: Optional[str]) -> None:
        """Replace the record atomically; it is on stable storage when this returns."""
        fresh = self._state.with_name(self._state.name + ".partial")
        with open(fresh, "w", encoding="utf-8") as file:
            json.dump({"snapshot": snapshot, "complete": complete, "size": size, "base": base}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._state)
        directory = os.open(self._state.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def fetch(service: Service, args: argparse.Namespace, disk: Json, base: Optional[str] = None) -> Json:
    """Make the copy of one disk: from an empty file, or from the copy of `base`.

    A full copy goes to a separate file, which replaces the old copy when it is complete. An incremental
    works in place, so the record says "not complete" before the first byte changes.
    """
    copy, size, began = Copy(args.dir, disk["name"]), disk["size"], time.monotonic()
    summary = {"disk": disk["name"], "mode": "incremental" if base else "full", "size": size,
               "listed": sum(chunk["length"] for chunk in disk["chunks"]), "fetched": 0, "punched": 0, "seconds": 0.0}
    if base and copy.state()[:2] == (args.snapshot, True):
        return {**summary, "mode": "up to date"}
    path = route(args.vm, "snapshots", args.snapshot, "disks", disk["name"])
    data, zeros = spans(disk, "data"), spans(disk, "zero") if base else []  # a new file already reads as zeros
    etag = service.version_of(path, size)
    if base:
        copy.record(args.snapshot, False, size, base)
    args.dir.mkdir(parents=True, exist_ok=True)
    with open(copy.image if base else copy.partial, "r+b" if base else "w+b") as file:
        file.truncate(size)
        for start, end in zeros:
            punch_hole(file, start, end)
            summary["punched"] += end - start
        for start, end in data:
            for piece in range(start, end, PIECE):
                for at, block in service.stream(path, piece, min(piece + PIECE, end), size, etag):
                    file.seek(at)
                    summary["fetched"] += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if not base:
        copy.record(args.snapshot, False, size, None)  # during the rename no other record would be correct
        os.replace(copy.partial, copy.image)
    copy.record(args.snapshot, True, size, base)
    return {**summary, "seconds": round(time.monotonic() - began, 3)}


def full(service: Service, args: argparse.Namespace) -> None:
    """Copy every disk of a snapshot, even if there are copies already."""
    disks = service.call("GET", route(args.vm, "snapshots", args.snapshot))["disks"]
    show([fetch(service, args, disk) for disk in disks], args.json)


def incremental(service: Service, args: argparse.Namespace) -> None:
    """Update the copies of BASE to SNAPSHOT. Check all of them before changing any."""
    try:
        disks = service.call("GET", route(args.vm, "snapshots", args.snapshot, compareTo=args.base))["disks"]
    except ServiceError as error:
        if error.code != "base_lost":
            raise
        warn(f"the base is lost, making a full copy instead: {error}")
        return full(service, args)
    for disk in disks:
        snapshot, complete, base = Copy(args.dir, disk["name"]).state()
        if disk["mode"] != "incremental":
            warn(f"{disk['name']}: fetched in full: {disk.get('reason') or 'no reason given'}")
        elif (snapshot, complete) not in ((args.base, True), (args.snapshot, True)) and (
                (snapshot, base) != (args.snapshot, args.base)):  # started earlier and not finished
            raise ClientError(f"no complete copy of {args.base} in {args.dir / disk['name']}: run full instead", NO_BASE)
    for gone in {state.name[:-len(STATE)] for state in args.dir.glob("*" + STATE)} - {d["name"] for d in disks}:
        warn(f"{gone}: no longer in the snapshot; its copy is unchanged")
    show([fetch(service, args, disk, args.base if disk["mode"] == "incremental" else None)
          for disk in disks], args.json)


def show(done: List[Json], as_json: bool) -> None:
    """Print the results: one JSON document for scripts, or a line per disk."""
    if as_json:
        return print(json.dumps({"disks": done}))
    for disk in done:
        amounts = (f"{key} {disk[key] / MIB:,.2f} MiB" for key in ("size", "listed", "fetched", "punched"))
        print(f"{disk['disk']}: {disk['mode']},", ", ".join(amounts) + f", {disk['seconds']:.2f} s")


def verify(service: Service, args: argparse.Namespace) -> None:
    """Compare every byte of a snapshot with the copy, without using maps or records."""
    differs = False
    for disk in service.call("GET", route(args.vm, "snapshots", args.snapshot, chunks="false"))["disks"]:
        path, size = route(args.vm, "snapshots", args.snapshot, "disks", disk["name"]), disk["size"]
        theirs, ours = hashlib.sha256(), hashlib.sha256()
        for _, block in service.stream(path, 0, size, size, service.version_of(path, size)):
            theirs.update(block)
        with open(Copy(args.dir, disk["name"]).image, "rb") as file:
            for local in iter(lambda: file.read(BLOCK), b""):
                ours.update(local)
        differs |= theirs.digest() != ours.digest()
        print(f"{disk['name']}: service {theirs.hexdigest()}, local {ours.hexdigest()}")
    if differs:
        raise ClientError("the copy differs from the snapshot", MISMATCH)


def vms(service: Service, _: argparse.Namespace) -> None:
    """Print a table of the virtual machines, with the reason if one cannot be snapshotted."""
    found = service.call("GET", route())
    print(f"{'NAME':32}  {'FRIENDLY NAME':20}  DISKS  SNAPSHOTS  STATE")
    for vm in found:
        state = "ok" if vm["snapshot_compatible"] else vm.get("reason") or "no snapshots possible"
        print(f"{vm['name']:32}  {vm['friendly_name']:20}  {len(vm['disks']):5}  {len(vm['snapshots']):9}  {state}")


def snapshots(service: Service, args: argparse.Namespace) -> None:
    """Print a table of a virtual machine's snapshots, oldest first."""
    found = service.call("GET", route(args.vm, "snapshots", chunks="false"))
    print(f"{'ID':36}  {'CREATED':30}  CONSISTENCY  DISKS  SIZE")
    for one in found:
        print(f"{one['id']:36}  {one['created_at']:30}  {one['consistency']:11}  {len(one['disks']):5}  "
              f"{sum(disk['size'] for disk in one['disks']) / MIB:,.0f} MiB")


def purge(service: Service, args: argparse.Namespace) -> None:
    """Delete all snapshots of a virtual machine, and print them. The next backup is then a full one."""
    before = [one["id"] for one in service.call("GET", route(args.vm, "snapshots", chunks="false"))]
    if not before:
        return print("there are none")
    if not args.yes:
        for one in before:
            print(f"would delete {one}")
        raise ClientError(f"nothing deleted; add --yes to delete {len(before)} snapshots of {args.vm}", USAGE)
    failed: Optional[Exception] = None
    try:
        service.call("DELETE", route(args.vm, "snapshots"))
    except (ClientError, KeyError) as error:
        failed = error
    try:
        left = {one["id"] for one in service.call("GET", route(args.vm, "snapshots", chunks="false"))}
        for one in before:
            print(f"{'kept' if one in left else 'deleted'} {one}")
    except (ClientError, KeyError) as error:
        warn(f"exporter_client: cannot list the remaining snapshots: {error}")
        failed = failed or error
    if failed:
        raise failed


def connect(args: argparse.Namespace) -> Service:
    """Return the service that the options and the environment name."""
    tls = ssl.create_default_context(cafile=args.cacert)
    if args.insecure:
        warn("WARNING: --insecure: an attacker on the network can read the password and change the disks")
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    token = os.environ.get("EXPORTER_TOKEN", "").strip() if args.command != "login" else ""
    if token or not args.username:
        return Service(args.url, tls, token or None, None)
    password = args.password_file.read_text().rstrip("\r\n") if args.password_file else (
        os.environ.get("EXPORTER_PASSWORD") or getpass.getpass(f"Password of {args.username}: "))
    return Service(args.url, tls, None, {"username": args.username, "password": password})


# name: (description, arguments, function)
COMMANDS: Dict[str, Tuple[str, str, Callable[[Service, argparse.Namespace], None]]] = {
    "login": ("print a token", "", lambda service, args: print(service.login())),
    "vms": ("list the virtual machines", "", vms),
    "snapshots": ("list a virtual machine's snapshots", "vm", snapshots),
    "snapshot": ("create a snapshot, print its id", "vm", lambda service, args: print(
        service.call("POST", route(args.vm, "snapshots"))["id"])),
    "delete": ("delete a snapshot", "vm snapshot", lambda service, args: service.call(
        "DELETE", route(args.vm, "snapshots", args.snapshot))),
    "purge": ("delete all snapshots of a virtual machine, with --yes", "vm", purge),
    "full": ("copy a snapshot's disks into DIR", "vm snapshot dir", full),
    "incremental": ("update the copies in DIR from BASE to SNAPSHOT", "vm snapshot base dir", incremental),
    "verify": ("compare a snapshot with the copies in DIR", "vm snapshot dir", verify),
}


def main() -> None:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(description="Example backup client for coriolis-ovm-exporter.")
    parser.add_argument("--url", required=True, help="https://host:5544")
    parser.add_argument("--cacert", help="PEM file of the CA of the service's certificate")
    parser.add_argument("--insecure", action="store_true", help="do not verify that certificate")
    parser.add_argument("--username", help="not needed with EXPORTER_TOKEN")
    parser.add_argument("--password-file", type=Path, help="default: EXPORTER_PASSWORD, or a prompt")
    parser.add_argument("--json", action="store_true", help="summaries of full and incremental as JSON")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, operands, _) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        for operand in operands.split():
            command.add_argument(operand, metavar=operand.upper(), type=Path if operand == "dir" else str)
        if name == "purge":
            command.add_argument("--yes", action="store_true", help="delete them; the default is to list them")
    args = parser.parse_args()
    os.umask(0o077)  # copies are as confidential as the disks
    try:
        COMMANDS[args.command][2](connect(args), args)
    except KeyError as error:
        sys.exit(f"exporter_client: the service's response has no {error}")
    except (ClientError, OSError, ValueError) as error:
        warn(f"exporter_client: {error}")
        sys.exit(getattr(error, "exit_status", 1))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
