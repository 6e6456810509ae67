"""Decides whether a failed request is sent again, and when."""

import logging
import random
import time
from typing import Any, Callable, TypeVar

import requests

from .errors import ClientError, ServiceError, Unreachable

log = logging.getLogger("ovm_exporter_client")

T = TypeVar("T")
DELAYS = (0, 1, 2, 4, 8)  # seconds before each retry; the first is for a closed idle connection
LONGEST_WAIT = 60         # seconds that the service may request in Retry-After
BUSY = (429, 502, 503, 504)
REFUSED = ("hook_failed", "clone_timeout")  # a retry would freeze the guest again
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
TRANSIENT = (ServiceError, *BROKEN)  # errors for which a retry may help


class Attempts:
    """The failures in a row of one request."""

    def __init__(self, host: str) -> None:
        self._host, self._failures = host, 0

    def progressed(self) -> None:
        """Count from zero again: the last attempt brought something new."""
        self._failures = 0

    def failed(self, error: Any) -> None:
        """Wait before the next attempt, or raise the error if a retry would not help."""
        self._failures += 1
        if self._failures > len(DELAYS) or not may_pass(error):
            if isinstance(error, ClientError):
                raise error
            raise Unreachable(f"{self._host}: {cause(error)}") from error
        requested = min(getattr(error, "retry_after", 0), LONGEST_WAIT)
        # Parallel connections should not all return at the same moment.
        wait = max(DELAYS[self._failures - 1] * random.uniform(1, 1.25), requested)
        log.info("%s: %s; trying again in %.0f s", self._host, cause(error), wait)
        time.sleep(wait)

    def run(self, attempt: Callable[[], T]) -> T:
        """Repeat `attempt` until it succeeds."""
        while True:
            try:
                return attempt()
            except TRANSIENT as error:
                self.failed(error)


def may_pass(error: Exception) -> bool:
    """Return whether the cause of an error may disappear by itself."""
    if isinstance(error, ServiceError):
        return error.status in BUSY and error.code not in REFUSED
    # A bad certificate stays bad. Other TLS errors are mostly broken connections.
    # The errors of both `ssl` and `urllib3` for a certificate are ValueErrors, and no others are.
    return not isinstance(cause(error), ValueError)


def cause(error: Exception) -> Exception:
    """Return the innermost error: the libraries wrap it in texts that are hard to read."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    return cause(inner) if isinstance(inner, Exception) else error
