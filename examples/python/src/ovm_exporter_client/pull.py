"""Copies the disks of a snapshot into a directory, in full or as the changes since an older snapshot."""

import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, List, Optional, Tuple, Union

from .client import Client
from .copies import (
    Copy,
    LastPull,
    State,
    check_base,
    check_vm,
    last_pull,
    locked,
    record_pull,
    recorded_disks,
    write_zeros,
)
from .documents import SnapshotDisk
from .errors import USAGE, ClientError, ServiceError
from .retries import log
from .transfer import Span, Transfer, pieces

# Called with the disk's name, the bytes fetched so far, and the bytes to fetch. An exception from it ends the pull.
Progress = Callable[[str, int, int], None]


@dataclass
class DiskSummary:
    """What a pull did for a disk. Sizes are in bytes."""

    disk: str
    mode: str          # "full", "incremental" or "up to date"
    size: int
    listed: int        # covered by the chunks
    resumed: int = 0   # not fetched again, because an interrupted pull had fetched them
    fetched: int = 0
    punched: int = 0
    seconds: float = 0.0


def next_pull(client: Client, vm: str, directory: Union[str, Path], *,
              ttl: Optional[str] = None) -> Tuple[str, Optional[str]]:
    """Return the snapshot and the base of the next pull into a directory.

    They are those of an interrupted pull, if it can continue. Otherwise this takes a snapshot; the base is the
    snapshot of the last pull, or None for a full copy. With `ttl`, the service deletes the new snapshot some time
    later if the caller does not.
    """
    directory = Path(directory)
    check_vm(directory, vm)
    last, known = last_pull(directory), {one["id"] for one in client.get_snapshots(vm, chunks=False)}
    if last is not None and last.snapshot not in known:
        last = None
    if last is not None and not last.complete:
        return last.snapshot, last.base if last.base in known else None
    snapshot = client.create_snapshot(vm, ttl=ttl, chunks=False)["id"]
    return snapshot, last.snapshot if last is not None else None


def pull(client: Client, vm: str, snapshot: str, directory: Union[str, Path], base: Optional[str] = None, *,
         connections: int = 4, progress: Optional[Progress] = None) -> List[DiskSummary]:
    """Make the copies in a directory equal to a snapshot.

    Without `base`, all disks are copied in full, even if there are copies already. With `base`, the copies have to
    be those of that snapshot, and only the changes are fetched. All copies are checked before any is changed. If the
    service has lost the base, all disks are copied in full.

    If a pull was interrupted, the same call continues it.
    """
    directory = Path(directory)
    if connections < 1:
        raise ClientError("connections must be at least 1", USAGE)
    with locked(directory):
        check_vm(directory, vm)
        last = last_pull(directory)
        continues = last is not None and not last.complete and last.snapshot == snapshot
        disks, base = _list_disks(client, vm, snapshot, base)
        for disk in disks:
            if base is not None and _base_of(disk, base) is None:
                log.warning("%s: fetched in full: %s", disk["name"], disk.get("reason") or "no reason given")
            elif base is not None:
                check_base(Copy(directory, disk["name"]), snapshot, base)
        for gone in sorted(set(recorded_disks(directory)) - {disk["name"] for disk in disks}):
            log.warning("%s: no longer in the snapshot; its copy is unchanged", gone)
        running = LastPull(last.id if last and continues else uuid.uuid4().hex, vm, snapshot, base, False)
        record_pull(directory, running)
        done = []
        for disk in disks:
            copy = Copy(directory, disk["name"])
            state, disk_base = copy.state(), _base_of(disk, base)
            # A full copy is made even if there is one already, but only once in a pull.
            if state.complete and state.snapshot == snapshot and (disk_base or state.pull == running.id):
                done.append(_summary(disk, "up to date"))
            else:
                done.append(_pull_disk(client, running, disk, copy, disk_base, connections, progress))
        record_pull(directory, replace(running, complete=True))
        return done


def _list_disks(client: Client, vm: str, snapshot: str,
                base: Optional[str]) -> Tuple[List[SnapshotDisk], Optional[str]]:
    """Return the disks with their chunks, and the base: None if the service has lost it."""
    try:
        return client.get_snapshot(vm, snapshot, base, squash=True)["disks"], base
    except ServiceError as error:
        if base is None or error.code != "base_lost":
            raise
        log.warning("the base is lost, making a full copy instead: %s", error)
        return client.get_snapshot(vm, snapshot, squash=True)["disks"], None


def _base_of(disk: SnapshotDisk, base: Optional[str]) -> Optional[str]:
    """Return the base of one disk: a disk that the base does not have is copied in full."""
    return base if disk.get("mode") == "incremental" else None


def _pull_disk(client: Client, running: LastPull, disk: SnapshotDisk, copy: Copy, base: Optional[str],
               connections: int, progress: Optional[Progress]) -> DiskSummary:
    """Make the copy of one disk: from an empty file, or from the copy of `base`.

    A full copy goes to a separate file, which replaces the old copy when it is complete. An incremental works in
    place, so the record says "not complete" before the first byte changes.
    """
    began, name, size, snapshot = time.monotonic(), disk["name"], disk["size"], running.snapshot
    data = spans(disk, "data")
    zeros = spans(disk, "zero") if base else []  # a new file already reads as zeros
    reader = client.open_disk(running.vm, snapshot, name)
    if reader.size != size:
        raise ClientError(f"{name}: {reader.size} bytes, but {size} are listed")
    work = copy if base else copy.in_progress()
    start = State(snapshot, False, size, base, reader.etag, 0, running.id)
    done = work.done(start)

    total = sum(end - at for at, end in data)
    summary = _summary(disk, "incremental" if base else "full")
    summary.resumed = total - sum(end - at for at, end in pieces(data, done))

    def on_block(length: int) -> None:
        summary.fetched += length
        if progress:
            progress(name, summary.resumed + summary.fetched, total)

    def checkpoint(offset: int) -> None:
        work.record(replace(start, done=offset))

    on_block(0)
    checkpoint(done)
    handle = work.open(create=not base and done == 0)
    try:
        os.ftruncate(handle, size)
        for at, end in zeros:
            write_zeros(handle, at, end)
            summary.punched += end - at
        Transfer(reader, handle, pieces(data, done), done, on_block, checkpoint).run(connections)
        os.fsync(handle)
    finally:
        os.close(handle)
    if not base:
        copy.record(start)  # during the rename no other record would be correct
        copy.replace(work)
    copy.record(replace(start, complete=True))
    summary.seconds = round(time.monotonic() - began, 3)
    return summary


def _summary(disk: SnapshotDisk, mode: str) -> DiskSummary:
    return DiskSummary(disk["name"], mode, disk["size"], sum(chunk["length"] for chunk in disk["chunks"]))


def spans(disk: SnapshotDisk, kind: str) -> List[Span]:
    """Return (start, end) of a disk's chunks of one kind; adjacent chunks are joined.

    This checks the list before it is applied to the copy.
    """
    joined: List[Span] = []
    end = 0
    for chunk in disk["chunks"]:
        start, length, this = chunk["start"], chunk["length"], chunk.get("type", "data")
        if start < end or length <= 0 or start + length > disk["size"] or this not in ("data", "zero"):
            raise ClientError(f"chunk {chunk} is out of order, outside the disk or of an unknown type")
        end = start + length
        if this == kind:
            joined.append((joined.pop()[0] if joined and joined[-1][1] == start else start, end))
    return joined
