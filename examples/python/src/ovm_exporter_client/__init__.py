"""A client of coriolis-ovm-exporter.

`Client` has the API's routes. `pull` copies the disks of a snapshot into sparse raw files, in full or as the changes
since an older snapshot. `verify` compares the copies with the snapshot.
"""

from .client import Client
from .copies import LastPull, last_pull
from .disk import DiskReader
from .errors import ClientError, ServiceError, Unreachable
from .pull import DiskSummary, Progress, next_pull, pull
from .verify import DiskCheck, verify

__all__ = [
    "Client", "ClientError", "DiskCheck", "DiskReader", "DiskSummary", "LastPull", "Progress", "ServiceError",
    "Unreachable", "last_pull", "next_pull", "pull", "verify",
]
