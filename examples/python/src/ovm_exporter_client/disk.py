"""Reads the bytes of one version of a disk."""

from typing import TYPE_CHECKING, Iterator, Optional, Tuple

import requests

from .errors import ClientError
from .retries import TRANSIENT, Attempts

if TYPE_CHECKING:
    from .client import Client

BLOCK = 1 << 20    # bytes held in memory at a time
READ_TIMEOUT = 60  # seconds without data


class DiskReader:
    """A disk of a snapshot. Every response has to be of the version that the `etag` names."""

    def __init__(self, client: "Client", path: str, size: Optional[int], etag: Optional[str]) -> None:
        """A `size` or `etag` of None is taken from the first response of each `read`."""
        self._client, self._path, self._size, self._etag = client, path, size, etag

    @property
    def size(self) -> int:
        """The size of the disk in bytes."""
        assert self._size is not None
        return self._size

    @property
    def etag(self) -> str:
        """The strong ETag of the version."""
        assert self._etag is not None
        return self._etag

    def read(self, start: int, end: int) -> Iterator[Tuple[int, bytes]]:
        """Yield (offset, bytes) from `start` to `end`, and continue after a broken connection where it broke.

        It fails after several attempts in a row without a whole block.
        """
        at, size, etag, attempts = start, self._size, self._etag, Attempts(self._client.host)
        while at < end:
            try:
                wanted = {"Range": f"bytes={at}-{end - 1}"}
                if etag is not None:
                    wanted["If-Range"] = etag
                with self._client.send("GET", self._path, headers=wanted, timeout=READ_TIMEOUT) as answer:
                    size, etag = self._check(answer, at, end, size, etag)
                    for block in answer.iter_content(BLOCK):
                        if at + len(block) > end:
                            raise ClientError(f"{self._path}: more bytes than requested")
                        yield at, block
                        at += len(block)
                        if len(block) == BLOCK:
                            attempts.progressed()
                if at < end:
                    raise requests.ConnectionError(f"the connection broke {end - at} bytes before the end")
            except TRANSIENT as error:
                attempts.failed(error)

    def _check(self, answer: requests.Response, at: int, end: int, size: Optional[int],
               etag: Optional[str]) -> Tuple[int, Optional[str]]:
        """Check that a response has the requested range of this version; return the disk's size and its ETag."""
        names = ("Content-Range", "Content-Length", "ETag")
        content_range, length, tag = (answer.headers.get(name, "") for name in names)
        total = content_range.rpartition("/")[2]
        total = str(size) if size is not None else total
        expected = (206, f"bytes {at}-{end - 1}/{total}", str(end - at), tag if etag is None else etag)
        received = (answer.status_code, content_range, length, tag)
        if received != expected or not total.isdigit():  # a 200 would be the whole disk, in another version
            raise ClientError(f"{self._path} has changed: expected {expected}, received {received}")
        return int(total), tag or None
