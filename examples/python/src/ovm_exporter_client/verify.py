"""Compares the copies in a directory with a snapshot, without moving the disks' bytes and without using records."""

import errno
import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import List, Optional, Union

from .client import Client
from .copies import Copy
from .documents import SnapshotDisk
from .errors import ClientError
from .pull import Progress
from .transfer import Span

BLOCK = 4 << 20  # bytes for each checksum
PART = 1 << 30   # bytes for each request; a broken request is repeated


@dataclass
class DiskCheck:
    """The result for a disk."""

    disk: str
    size: int
    local_size: Optional[int] = None  # None: there is no copy
    different: List[Span] = field(default_factory=list)  # (start, end) of blocks that differ; adjacent ones are joined

    @property
    def equal(self) -> bool:
        """Whether the copy equals the disk."""
        return self.local_size == self.size and not self.different

    def __str__(self) -> str:
        if self.local_size is None:
            return f"{self.disk}: there is no copy"
        found = [f"bytes {start} to {end - 1} differ" for start, end in self.different]
        if self.local_size != self.size:
            found.insert(0, f"the copy has {self.local_size} bytes, the snapshot {self.size}")
        return f"{self.disk}: {'; '.join(found) or 'equal'}"


def verify(client: Client, vm: str, snapshot: str, directory: Union[str, Path], *,
           progress: Optional[Progress] = None) -> List[DiskCheck]:
    """Compare all disks of a snapshot with their copies. The service reads its files, this reads the copies."""
    disks = client.get_snapshot(vm, snapshot, chunks=False)["disks"]
    return [_verify_disk(client, vm, snapshot, disk, Copy(Path(directory), disk["name"]).image, progress)
            for disk in disks]


def _verify_disk(client: Client, vm: str, snapshot: str, disk: SnapshotDisk, image: Path,
                 progress: Optional[Progress]) -> DiskCheck:
    check = DiskCheck(disk["name"], disk["size"])
    try:
        handle = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return check
    try:
        check.local_size = os.fstat(handle).st_size
        for start in range(0, check.size, PART):
            length = min(PART, check.size - start)
            theirs = client.get_checksum(vm, snapshot, check.disk, start=start, length=length, block_size=BLOCK)
            ranges = [(at, min(at + BLOCK, start + length)) for at in range(start, start + length, BLOCK)]
            if (theirs["start"], theirs["length"], len(theirs["blocks"])) != (start, length, len(ranges)):
                raise ClientError(f"{check.disk}: the checksums are not those of the requested range")
            for (at, end), digest in zip(ranges, theirs["blocks"]):
                if _digest(handle, at, end) != digest:
                    adjacent = check.different and check.different[-1][1] == at
                    check.different.append((check.different.pop()[0] if adjacent else at, end))
                if progress:
                    progress(check.disk, end, check.size)
    finally:
        os.close(handle)
    return check


def _digest(handle: int, start: int, end: int) -> str:
    """Return the checksum of a range of a file. If the file ends earlier, it is another one."""
    if end <= os.fstat(handle).st_size and _is_hole(handle, start, end):
        return _digest_of_zeros(end - start)
    return hashlib.sha256(os.pread(handle, end - start, start)).hexdigest()


def _is_hole(handle: int, start: int, end: int) -> bool:
    try:
        return os.lseek(handle, start, os.SEEK_DATA) >= end
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end of the file
            return True
        raise


@lru_cache(maxsize=4)
def _digest_of_zeros(length: int) -> str:
    return hashlib.sha256(bytes(length)).hexdigest()
