"""The local copies of a VM's disks: sparse raw images, and records of which snapshot each is a copy of.

    <disk>                      the image
    <disk>.state.json           its record
    <disk>.partial              a full copy in progress, with a record of its own
    .pull.json                  the last pull into the directory

Records are replaced atomically, and describe only bytes that are on stable storage.
"""

import contextlib
import ctypes
import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Type, TypeVar, Union

from .errors import NO_BASE, USAGE, ClientError

STATE = ".state.json"
PARTIAL = ".partial"
PULL = ".pull.json"  # not a possible name of a disk's copy, because it starts with a dot
ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class State:
    """The record of an image.

    If it is not complete, a pull from `base` (None: from an empty file) to `snapshot` was interrupted. Then all
    bytes below `done` are those of the snapshot, in the version that the `etag` names.
    """

    snapshot: str = ""
    complete: bool = False
    size: int = 0
    base: Optional[str] = None
    etag: str = ""
    done: int = 0
    pull: str = ""  # id of the pull that made it


@dataclass(frozen=True)
class LastPull:
    """The record of a directory: the last pull, and whether it has completed all disks."""

    id: str
    vm: str
    snapshot: str
    base: Optional[str]
    complete: bool


Record = TypeVar("Record", State, LastPull)


class Copy:
    """A disk's local image and its record."""

    def __init__(self, directory: Path, disk: str) -> None:
        # The service chooses this name, and it becomes a path here.
        if "/" in disk or "\0" in disk or disk[:1] in ("", ".") or disk.endswith((PARTIAL, STATE)):
            raise ClientError(f"the disk name {disk!r} is not a safe file name")
        self._at(directory / disk)

    def _at(self, image: Path) -> None:
        self.image, self._record = image, image.with_name(image.name + STATE)

    def in_progress(self) -> "Copy":
        """The separate file of a full copy in progress."""
        other = Copy.__new__(Copy)
        other._at(self.image.with_name(self.image.name + PARTIAL))
        return other

    def state(self) -> State:
        """Return the record, or an empty one if it is missing or does not describe the image."""
        state = _read(self._record, State)
        try:
            if state is not None and (not state.complete or self.image.stat().st_size == state.size):
                return state
        except FileNotFoundError:
            pass
        return State()

    def done(self, wanted: State) -> int:
        """Return up to which offset an interrupted pull, if it is the `wanted` one, has completed the image."""
        state = self.state()
        same = (state.snapshot, state.base, state.size, state.etag) == (
            wanted.snapshot, wanted.base, wanted.size, wanted.etag)
        try:
            return state.done if same and not state.complete and self.image.stat().st_size == wanted.size else 0
        except FileNotFoundError:
            return 0

    def record(self, state: State) -> None:
        """Replace the record; it is on stable storage when this returns."""
        _write(self._record, state)

    def open(self, create: bool) -> int:
        """Open the image for reading and writing; with `create`, as a new empty file."""
        return os.open(self.image, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0), 0o600)

    def replace(self, finished: "Copy") -> None:
        """Put the image of a finished copy into the place of this one, and remove its record."""
        os.replace(finished.image, self.image)
        _sync_directory(self.image.parent)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(finished._record)


def recorded_disks(directory: Path) -> Iterator[str]:
    """Yield the names of the disks that have a record."""
    for record in sorted(directory.glob("*" + STATE)):
        name = record.name[:-len(STATE)]
        if not name.endswith(PARTIAL):
            yield name


def last_pull(directory: Union[str, Path]) -> Optional[LastPull]:
    """Return the last pull into a directory, if there was one."""
    return _read(Path(directory) / PULL, LastPull)


def record_pull(directory: Path, pull: LastPull) -> None:
    """Replace the record of the directory."""
    _write(directory / PULL, pull)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Create the directory if necessary, and let only one pull work in it. Its files are as secret as the disks."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"another pull works in {directory}: wait for its end") from None
        yield
    finally:
        os.close(handle)


def check_vm(directory: Path, vm: str) -> None:
    """Refuse a directory with the copies of another VM."""
    last = last_pull(directory)
    if last is not None and last.vm != vm:
        raise ClientError(f"{directory} has the copies of the VM {last.vm}: use a directory for each VM", USAGE)


def check_base(copy: Copy, snapshot: str, base: str) -> None:
    """Refuse a copy from which the changes since `base` do not lead to `snapshot`."""
    state = copy.state()
    usable = state.complete and state.snapshot in (base, snapshot)
    interrupted = not state.complete and (state.snapshot, state.base) == (snapshot, base)
    if not usable and not interrupted:
        raise ClientError(f"no complete copy of {base} in {copy.image}: make a full copy instead", NO_BASE)


def write_all(handle: int, data: bytes, offset: int) -> None:
    """Write a block at an offset."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def write_zeros(handle: int, start: int, end: int) -> None:
    """Make a range read as zeros: punch a hole, or write zeros if the file system has no holes."""
    keep_size, punch = 0x01, 0x02  # linux/falloc.h
    libc = ctypes.CDLL(None)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate  # always a 64-bit off_t
    if fallocate(handle, keep_size | punch, ctypes.c_int64(start), ctypes.c_int64(end - start)) != 0:
        for at in range(start, end, len(ZEROS)):
            write_all(handle, ZEROS[:end - at], at)


def _read(path: Path, kind: Type[Record]) -> Optional[Record]:
    """Return the record in a file. An unusable one is as none, because then a full copy is the way on."""
    try:
        content: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{field.name: content[field.name] for field in fields(kind) if field.name in content})
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(path: Path, record: Any) -> None:
    fresh = path.with_name(path.name + PARTIAL)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(record), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
