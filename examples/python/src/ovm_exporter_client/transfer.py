"""Fetches ranges of a disk into a file, over several connections."""

import os
import threading
import time
from typing import Callable, Iterable, List, Optional, Set, Tuple

from .copies import write_all
from .disk import DiskReader

PIECE = 16 << 20          # bytes per request
CHECKPOINT_INTERVAL = 5.0  # seconds; an interruption by SIGKILL loses at most this much work

Span = Tuple[int, int]


def pieces(spans: Iterable[Span], done: int) -> Iterable[Span]:
    """Cut ranges into requests, and leave out everything below `done`."""
    for start, end in spans:
        for at in range(max(start, done), end, PIECE):
            yield at, min(at + PIECE, end)


class Transfer:
    """Fetches pieces in order. Everything below `done` is on stable storage when it is passed to `checkpoint`."""

    def __init__(self, disk: DiskReader, handle: int, wanted: Iterable[Span], done: int,
                 on_block: Callable[[int], None], checkpoint: Callable[[int], None]) -> None:
        self._disk, self._handle, self._wanted = disk, handle, iter(wanted)
        self._on_block, self._record = on_block, checkpoint
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._active: Set[int] = set()  # where the pieces start that are being fetched
        self._next = done               # all pieces below it are handed out
        self._saved_at = time.monotonic()
        self._error: Optional[BaseException] = None

    def run(self, connections: int) -> None:
        """Fetch all pieces. After an error, save what is complete."""
        others: List[threading.Thread] = [
            threading.Thread(target=self._work, daemon=True) for _ in range(connections - 1)]
        try:
            for thread in others:
                thread.start()
            self._work()
            for thread in others:
                thread.join()
        except BaseException as error:  # such as KeyboardInterrupt in this thread
            self._fail(error)
            raise
        finally:
            for thread in others:
                if thread.ident is not None:
                    thread.join()
            self._save()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    piece = None if self._error else next(self._wanted, None)
                    if piece is None:
                        return
                    start, end = piece
                    self._active.add(start)
                    self._next = end
                for at, block in self._disk.read(start, end):
                    write_all(self._handle, block, at)
                    with self._lock:
                        if self._error:
                            return
                        self._on_block(len(block))
                with self._lock:
                    self._active.remove(start)
                if time.monotonic() - self._saved_at >= CHECKPOINT_INTERVAL:
                    self._save()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error

    def _save(self) -> None:
        """Bring the completed pieces to stable storage, then record them."""
        if not self._saving.acquire(blocking=False):
            return  # another thread is saving
        try:
            with self._lock:
                done = min(self._active, default=self._next)
            os.fdatasync(self._handle)
            self._record(done)
            self._saved_at = time.monotonic()
        finally:
            self._saving.release()
