"""The JSON documents of the API. docs/openapi.json of the service describes the fields.

A document may have more fields than these classes list, and lacks fields that the service does not know.
"""

from typing import Any, Dict, List, Optional, TypedDict

Json = Dict[str, Any]


class VmDisk(TypedDict, total=False):
    """A disk of a VM."""

    name: str
    path: str
    device_name: str
    mode: str
    snapshot_compatible: bool
    size: int
    friendly_name: str
    repository: str
    incompatible_reason: str


class Vm(TypedDict, total=False):
    """A virtual machine. `snapshots` are ids, oldest first."""

    friendly_name: str
    name: str
    uuid: str
    disks: List[VmDisk]
    snapshot_compatible: bool
    runs_here: Optional[bool]
    snapshots: List[str]
    status: str
    reason: str


class Chunk(TypedDict, total=False):
    """A range of a disk. Its `type` is `data` or `zero`."""

    start: int
    length: int
    type: str
    physical_start: int


class SnapshotDisk(TypedDict, total=False):
    """A disk of a snapshot."""

    name: str
    size: int
    parent_path: str
    path: str
    repo_mountpoint: str
    snapshot_id: str
    chunks: List[Chunk]
    data_bytes: int
    zero_bytes: int
    refine: int
    candidate_bytes: int
    unverified_bytes: int
    mode: str
    reason: str
    status: str
    status_reason: str


class Snapshot(TypedDict, total=False):
    """A snapshot of a VM."""

    id: str
    vm_id: str
    created_at: str
    created_by: str
    consistency: str
    consistency_reason: str
    freeze_ms: int
    hooks: List[Json]
    compare_to: str
    expires_at: str
    leased_until: str
    disks: List[SnapshotDisk]


class Checksum(TypedDict, total=False):
    """The checksum of a disk, or of a part of it."""

    algorithm: str
    start: int
    length: int
    block_size: int
    blocks: List[str]
    checksum: str


class Repository(TypedDict, total=False):
    """A repository of the host."""

    id: str
    alias: Optional[str]
    mount_point: Optional[str]
    filesystem: Optional[str]
    manager_uuid: Optional[str]
    version: Optional[str]
    reflink: bool
    total_bytes: Optional[int]
    free_bytes: Optional[int]
    status: str
    reason: str


class Capabilities(TypedDict, total=False):
    """What the service can do."""

    version: str
    features: List[str]
    checksum_algorithms: List[str]
    limits: Json
