"""What things cost. Each figure says where it comes from:

- measured: `benches/fleet/measure.py`, 2026-11-28, a loop-mounted XFS, 2 cores with other load
- benchmarks: docs/benchmarks.md
- limit: the default config, and constants of the service (docs/operations.md#limits)
- ocfs2: a two-node OCFS2 cluster under emulation, kernel 6.1, o2cb
- assumed: no measurement; the scenario's own
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = float(1 << 20)
GIB = float(1 << 30)


@dataclass(frozen=True)
class Costs:
    """Seconds, bytes, bytes a second."""

    # Creations.
    create_base: float = 0.010  # measured: all but the clones, 1 disk with 100 extents
    create_per_extent: float = 11e-6  # measured: before and after the freeze
    clone_base: float = 0.001  # measured: for each disk
    clone_per_extent: float = 20e-6  # measured: the guest's writes wait
    clones_at_once: float = 0.8  # measured: 0.5 to 1.0 of the rate of clones that are made one after the other
    delete: float = 0.004  # measured
    hand_over: float = 0.025  # ocfs2: a lock that another host held last
    remote_clone: float = 0.15  # ocfs2: 0.038 to 0.265, if the guest runs on another host

    # Comparisons and downloads.
    compare_base: float = 0.001  # measured
    compare_per_extent: float = 7e-6  # measured, benchmarks
    cpu_per_byte: float = 0.99 / GIB  # benchmarks: one stream, cold
    stream_rate: float = 696 * MIB  # benchmarks: one stream, cold

    # The service.
    creation_slots: int = 2  # limit
    creation_queue: int = 64  # limit
    export_slots: int = 12  # limit
    export_queue: int = 128  # limit
    export_wait: float = 30.0  # limit
    retry_after: float = 10.0  # limit
    hooks_timeout: float = 60.0  # limit
    slow_creation: float = 60.0  # limit: a creation gives up its slot
    superseded_grace: float = 3600.0  # limit

    # A pool.
    death: float = 66.0  # ocfs2: metadata calls hang, at the default threshold of 31; 15 s at 7
    manifest_cold: float = 0.026  # ocfs2: 1,000 manifests in 26 s


MEASURED = Costs()
