"""The command line of the client.

Exit status: 0 success; 1 the service, the network or the local disk failed; 2 wrong usage; 3 verify found a
difference; 4 there is no complete copy of the base; 130 interrupted. After an interruption, the same `full` or
`incremental` continues.
"""

import argparse
import getpass
import json
import os
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

from .client import Client
from .errors import FAILED, MISMATCH, USAGE, ClientError
from .pull import DiskSummary, pull
from .verify import verify

MIB = 1 << 20
PROGRAM = "ovm-exporter-client"
warn = partial(print, file=sys.stderr)  # standard output has only results


class Meter:
    """Shows the progress on the terminal, a few times each second."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, disk: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown >= 0.2 or done == total:
            self._shown = now
            end = "\n" if done == total else ""
            warn(f"\r{disk}: {done / MIB:,.0f} of {total / MIB:,.0f} MiB", end=end, flush=True)


def meter() -> Optional[Meter]:
    """Return a new meter if standard error is a terminal."""
    return Meter() if sys.stderr.isatty() else None


def full(client: Client, args: argparse.Namespace) -> None:
    """Copy every disk of a snapshot, even if there are copies already."""
    show(pull(client, args.vm, args.snapshot, args.dir, connections=args.connections, progress=meter()), args.json)


def incremental(client: Client, args: argparse.Namespace) -> None:
    """Update the copies of BASE to SNAPSHOT."""
    show(pull(client, args.vm, args.snapshot, args.dir, args.base, connections=args.connections, progress=meter()),
         args.json)


def show(done: List[DiskSummary], as_json: bool) -> None:
    """Print the results: one JSON document for scripts, or a line per disk."""
    if as_json:
        return print(json.dumps({"disks": [asdict(disk) for disk in done]}))
    for disk in done:
        amounts = ", ".join(f"{key} {getattr(disk, key) / MIB:,.2f} MiB"
                            for key in ("size", "listed", "resumed", "fetched", "punched"))
        print(f"{disk.disk}: {disk.mode}, {amounts}, {disk.seconds:.2f} s")


def check(client: Client, args: argparse.Namespace) -> None:
    """Compare every byte of a snapshot with the copies."""
    results = verify(client, args.vm, args.snapshot, args.dir, progress=meter())
    if args.json:
        print(json.dumps({"disks": [{**asdict(result), "equal": result.equal} for result in results]}))
    else:
        for result in results:
            print(result)
    if not all(result.equal for result in results):
        raise ClientError("the copy differs from the snapshot", MISMATCH)


def vms(client: Client, _: argparse.Namespace) -> None:
    """Print a table of the virtual machines, with the reason if one cannot be snapshotted."""
    found = client.get_vms()
    print(f"{'NAME':32}  {'FRIENDLY NAME':20}  DISKS  SNAPSHOTS  STATE")
    for vm in found:
        state = "ok" if vm["snapshot_compatible"] else vm.get("reason") or "no snapshots possible"
        print(f"{vm['name']:32}  {vm['friendly_name']:20}  {len(vm['disks']):5}  {len(vm['snapshots']):9}  {state}")


def snapshots(client: Client, args: argparse.Namespace) -> None:
    """Print a table of a virtual machine's snapshots, oldest first."""
    found = client.get_snapshots(args.vm, chunks=False)
    print(f"{'ID':36}  {'CREATED':30}  CONSISTENCY  DISKS  SIZE")
    for one in found:
        print(f"{one['id']:36}  {one['created_at']:30}  {one['consistency']:11}  {len(one['disks']):5}  "
              f"{sum(disk['size'] for disk in one['disks']) / MIB:,.0f} MiB")


def purge(client: Client, args: argparse.Namespace) -> None:
    """Delete all snapshots of a virtual machine, and print them. The next backup is then a full one."""
    before = [one["id"] for one in client.get_snapshots(args.vm, chunks=False)]
    if not before:
        return print("there are none")
    if not args.yes:
        for one in before:
            print(f"would delete {one}")
        raise ClientError(f"nothing deleted; add --yes to delete {len(before)} snapshots of {args.vm}", USAGE)
    failed: Optional[Exception] = None
    try:
        client.delete_snapshots(args.vm)
    except ClientError as error:
        failed = error
    try:
        left = {one["id"] for one in client.get_snapshots(args.vm, chunks=False)}
        for one in before:
            print(f"{'kept' if one in left else 'deleted'} {one}")
    except ClientError as error:
        warn(f"{PROGRAM}: cannot list the remaining snapshots: {error}")
        failed = failed or error
    if failed:
        raise failed


def connect(args: argparse.Namespace) -> Client:
    """Return the client that the options and the environment describe. A password is never an argument."""
    if args.insecure:
        warn("WARNING: --insecure: an attacker on the network can read the password and change the disks")
        warnings.filterwarnings("ignore", message="Unverified HTTPS request")  # said once is enough
    token = os.environ.get("EXPORTER_TOKEN", "").strip() if args.command != "login" else ""
    if token:
        return Client(args.url, token, cacert=args.cacert, insecure=args.insecure)
    if not args.username:
        raise ClientError("no credentials: give --username, or a token in EXPORTER_TOKEN", USAGE)
    password = args.password_file.read_text().rstrip("\r\n") if args.password_file else (
        os.environ.get("EXPORTER_PASSWORD") or getpass.getpass(f"Password of {args.username}: "))
    return Client.login(args.url, args.username, password, cacert=args.cacert, insecure=args.insecure)


# name: (description, arguments, function)
COMMANDS: Dict[str, Tuple[str, str, Callable[[Client, argparse.Namespace], None]]] = {
    "login": ("print a token", "", lambda client, args: print(client.token)),
    "vms": ("list the virtual machines", "", vms),
    "snapshots": ("list a virtual machine's snapshots", "vm", snapshots),
    "snapshot": ("create a snapshot, print its id", "vm", lambda client, args: print(
        client.create_snapshot(args.vm, chunks=False)["id"])),
    "delete": ("delete a snapshot", "vm snapshot", lambda client, args: client.delete_snapshot(
        args.vm, args.snapshot)),
    "purge": ("delete all snapshots of a virtual machine, with --yes", "vm", purge),
    "full": ("copy a snapshot's disks into DIR", "vm snapshot dir", full),
    "incremental": ("update the copies in DIR from BASE to SNAPSHOT", "vm snapshot base dir", incremental),
    "verify": ("compare a snapshot with the copies in DIR", "vm snapshot dir", check),
}


def main() -> None:
    """Read the command line and run the command."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Backup client for coriolis-ovm-exporter.")
    parser.add_argument("--url", required=True, help="https://host:5544")
    parser.add_argument("--cacert", default=os.environ.get("EXPORTER_CACERT"),
                        help="PEM file of the CA of the service's certificate; default: EXPORTER_CACERT")
    parser.add_argument("--insecure", action="store_true", help="do not verify that certificate")
    parser.add_argument("--username", default=os.environ.get("EXPORTER_USERNAME"),
                        help="default: EXPORTER_USERNAME; not needed with EXPORTER_TOKEN")
    parser.add_argument("--password-file", type=Path, help="default: EXPORTER_PASSWORD, or a prompt")
    parser.add_argument("--json", action="store_true", help="results of full, incremental and verify as JSON")
    parser.add_argument("--connections", type=int, default=4, help="parallel downloads (default: 4)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, operands, _) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        for operand in operands.split():
            command.add_argument(operand, metavar=operand.upper(), type=Path if operand == "dir" else str)
        if name == "purge":
            command.add_argument("--yes", action="store_true", help="delete them; the default is to list them")
    args = parser.parse_args()
    try:
        COMMANDS[args.command][2](connect(args), args)
    except KeyError as error:
        sys.exit(f"{PROGRAM}: the service's response has no {error}")
    except (ClientError, OSError, ValueError) as error:
        warn(f"{PROGRAM}: {error}")
        sys.exit(getattr(error, "exit_status", FAILED))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
