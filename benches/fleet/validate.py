"""Compare the simulation with one real service: the same requests, and the time that both need.

    sudo unshare --mount --propagation private python3 benches/fleet/validate.py [BINARY]
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, List, Tuple

from costs import MEASURED, MIB
from measure import BINARY, HOOKS, install_hook
from model import Fleet, Policy, percentile, simulate
from real import Service

AT_ONCE = Policy("all at once")


def until_admitted(ask: Callable[[], int], growth: float = 1.0) -> int:
    """Repeat a request after `Retry-After`, and each time after `growth` times as long. Returns how often it was
    refused."""
    pause, refused = 10.0, 0
    while (status := ask()) != 200:
        assert status == 429, status
        refused += 1
        time.sleep(pause)
        pause = min(growth * pause, 180.0)
    return refused


def together(works: List[Callable[[], int]]) -> Tuple[float, int]:
    """The time until all are done, and how many requests were refused."""
    refused: List[int] = []
    threads = [threading.Thread(target=lambda work=work: refused.append(work())) for work in works]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(works)
    return time.monotonic() - began, sum(refused)


def compare(what: str, predicted: float, measured: float, unit: str = " s") -> None:
    digits = 1 if unit else 0
    difference = f"{(predicted / measured - 1) * 100:+.0f} %" if measured else ""
    print(f"| {what} | {predicted:.{digits}f}{unit} | {measured:.{digits}f}{unit} | {difference} |", flush=True)


def creations(binary: Path) -> None:
    """80 creations at once of a host with 2 slots and a queue of 64, each with a hook of a second."""
    with Service(binary, config=HOOKS) as service:
        install_hook(service, 1)
        vms = [service.define(number, extents=100) for number in range(80)]

        def create(vm: str) -> int:
            def ask() -> int:
                with service.connect() as client:
                    return client.ask("POST", f"/vms/{vm}/snapshots?chunks=false", {}).status

            return until_admitted(ask)

        took, refused = together([lambda vm=vm: create(vm) for vm in vms])  # type: ignore[misc]
    fleet = Fleet(
        hosts=1, hosts_per_pool=1, storages_per_pool=1, vms_per_host=80, extents=100, spread_of_extents=0.0,
        quiesce=(1.0, 1.0), thaw=0.01, changed=0.0,
    )  # fmt: skip
    result = simulate(fleet, AT_ONCE)
    compare("80 creations at once, 2 slots, a hook of 1 s: the last is complete after", max(result.created_at), took)
    compare("… refused with 429", result.refused, refused, "")


def clones(binary: Path) -> None:
    """8 VMs of 20,000 extents, 4 creations at a time."""
    with Service(binary, config=HOOKS, policy="snapshot_concurrency = 4", gib=16) as service:
        install_hook(service, 0)
        vms = [service.define(number, extents=20_000) for number in range(8)]
        freezes: List[Any] = []

        def create(vm: str) -> int:
            with service.connect() as client:
                freezes.append(service.snapshot(client, vm)["freeze_ms"] / 1e3)
            return 0

        took, _ = together([lambda vm=vm: create(vm) for vm in vms])  # type: ignore[misc]
    fleet = Fleet(
        hosts=1, hosts_per_pool=1, storages_per_pool=1, vms_per_host=8, extents=20_000, spread_of_extents=0.0,
        quiesce=(0.0, 0.0), thaw=0.01, changed=0.0, costs=replace(MEASURED, creation_slots=4),
    )  # fmt: skip
    result = simulate(fleet, AT_ONCE)
    compare("8 VMs of 20,000 extents, 4 slots: the last is complete after", max(result.created_at), took)
    compare("… the median freeze", percentile(result.freezes, 0.5), percentile(freezes, 0.5))


def downloads(binary: Path, growth: float = 1.0) -> None:
    """16 disks of 64 MiB at 50 MiB/s, 4 at a time, and a wait of at most 3 s."""
    policy = 'export_concurrency = 4\nexport_wait = "3s"'
    with Service(binary, policy=policy, config='[export]\nmax_rate = "50MiB"\n') as service:
        paths = []
        with service.connect() as client:
            for number in range(16):
                vm = service.define(number, mib=64)
                snapshot = service.snapshot(client, vm)
                paths.append(f"/vms/{vm}/snapshots/{snapshot['id']}/disks/{snapshot['disks'][0]['name']}")

        def download(path: str) -> int:
            def ask() -> int:
                with service.connect() as client:
                    return client.drain(path)[0]

            return until_admitted(ask, growth)

        took, refused = together([lambda path=path: download(path) for path in paths])  # type: ignore[misc]
    fleet = Fleet(
        hosts=1, hosts_per_pool=1, storages_per_pool=1, vms_per_host=16, extents=1, spread_of_extents=0.0,
        used=64 * MIB, spread_of_used=0.0, changed=1.0, quiesce=(0.0, 0.0), thaw=0.0, storage_read=50 * MIB,
        costs=replace(MEASURED, export_slots=4, export_wait=3.0, creation_slots=16),
    )  # fmt: skip
    result = simulate(fleet, replace(AT_ONCE, growth=growth))
    again = "the same time each time" if growth == 1 else "twice as long each time"
    compare(f"16 downloads of 64 MiB at 50 MiB/s, 4 slots, 3 s of waiting; {again}", max(result.completed_at), took)
    compare("… refused with 429", result.refused, refused, "")


def doubling(binary: Path) -> None:
    """The same with clients that wait twice as long each time."""
    downloads(binary, 2.0)


def main() -> None:
    binary = Path(sys.argv[1]) if len(sys.argv) > 1 else BINARY
    if os.geteuid() != 0:
        sys.exit("this mounts XFS: run it as root")
    print("| | simulated | measured | difference |\n|---|--:|--:|--:|")
    for work in (creations, clones, downloads, doubling):
        work(binary)


if __name__ == "__main__":
    main()
