"""Simulate the nights of 10, 100 and 1,000 hosts, and print the tables of docs/scale.md.

    python3 benches/fleet/simulate.py [--hosts 10,100,1000] [--seed 1]

It needs no root and no service. The same seed gives the same tables. costs.py has the costs, model.py the scenario.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Callable, List, Tuple

from costs import MEASURED, MIB, Costs
from model import HOUR, Death, Fleet, Policy, Result, percentile, simulate

AT_ONCE = Policy("all at once")
FEWER = Policy("all at once, `snapshot_concurrency = 1`")
JITTER = Policy("at random times of 2 h", spread=2 * HOUR)
ONE = Policy("one at a time for each storage", slots_of_storage=1)
TWO = Policy("two at a time for each storage", slots_of_storage=2)
ANYWHERE = Policy("the same, at any host of the pool", slots_of_storage=2, on_own_host=False)
SERVICES = Policy("all at once, if services counted two for each storage", slots_of_storage=2, by_services=True)

# The share of VMs with a full backup in the night.
LOADS = (
    ("incremental forever", 0.0),
    ("a full backup each week, a seventh each night", 1 / 7),
    ("all full in one night", 1.0),
)

# Measured: an idle host, and a VM with two snapshots.
STATUS_BYTES = 1_700
VM_BYTES = 617

Job = Tuple[Fleet, Policy, int, Tuple[Death, ...]]


def one(job: Job) -> Result:
    fleet, policy, seed, deaths = job
    return simulate(fleet, policy, seed, deaths)


def many(jobs: List[Job]) -> List[Result]:
    """In the order of the jobs."""
    with ProcessPoolExecutor() as processes:
        return list(processes.map(one, jobs))


def time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*names: str) -> None:
    print()
    row(*names)
    row(*("---" if not index else "--:" for index in range(len(names))))


def policies(hosts: List[int], seed: int) -> None:
    print("\n## Creations, by policy")
    header("hosts", "creations", "freeze: median", "99 %", "longest", "frozen at once", "failed", "last snapshot after")
    usual, single = MEASURED, replace(MEASURED, creation_slots=1)
    plans = [(policy, usual) for policy in (AT_ONCE, JITTER, ONE, TWO, ANYWHERE, SERVICES)]
    plans.insert(1, (FEWER, single))
    jobs = [(number, policy, costs) for number in hosts for policy, costs in plans]
    results = many([(Fleet(hosts=number, costs=costs), policy, seed, ()) for number, policy, costs in jobs])
    for (number, policy, _), result in zip(jobs, results):
        freezes = result.freezes
        row(
            f"{number:,}", policy.name, time(percentile(freezes, 0.5)), time(percentile(freezes, 0.99)),
            time(max(freezes)), result.peak_frozen, f"{result.timeouts:,}", time(max(result.created_at)),
        )  # fmt: skip


def loads(hosts: List[int], seed: int) -> None:
    print("\n## Bytes, by what is full")
    header("hosts", "backups", "TB", "complete after", "late VMs", "busiest", "busy")
    jobs = [(number, name, share) for number in hosts for name, share in LOADS]
    results = many([(Fleet(hosts=number, full=share), TWO, seed, ()) for number, _, share in jobs])
    for (number, name, _), result in zip(jobs, results):
        place, busy = result.busiest[0]
        row(
            f"{number:,}", name, f"{result.bytes / 1e12:,.1f}", time(max(result.completed_at)),
            f"{result.late(Fleet().window):,}", place, f"{min(busy, 1) * 100:.0f} %",
        )  # fmt: skip


def first(breaks: Callable[[int], bool], most: int) -> str:
    """The first number at which it breaks, if each larger one does too."""
    low, high = 0, 1
    while not breaks(high):
        low, high = high, 2 * high
        if high > most:
            return f"more than {low:,}"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return f"{high:,}"


def shared(seed: int) -> None:
    print("\n## Hosts of one storage")
    header("rate of clones at once (one: 1)", "creations", "median freeze over 2 s with", "a creation fails with")
    for rate, policy in ((0.5, AT_ONCE), (0.8, AT_ONCE), (1.0, AT_ONCE), (4.0, AT_ONCE), (0.5, TWO)):
        costs = replace(MEASURED, clones_at_once=rate)

        def night(hosts: int, policy: Policy = policy, costs: Costs = costs) -> Result:
            fleet = Fleet(hosts=hosts, hosts_per_pool=hosts, storages_per_pool=1, changed=0.0, costs=costs)
            return simulate(fleet, policy, seed)

        def slow(hosts: int, night: Callable[[int], Result] = night) -> bool:
            return percentile(night(hosts).freezes, 0.5) > 2.0

        def fails(hosts: int, night: Callable[[int], Result] = night) -> bool:
            return night(hosts).timeouts > 0

        row(f"{rate:g}", policy.name, first(slow, 64), first(fails, 64))


def limits(seed: int) -> None:
    print("\n## Where it breaks")
    header("VMs", "break at")

    def refuses(vms: int) -> bool:
        return simulate(Fleet(hosts=1, hosts_per_pool=1, vms_per_host=vms, changed=0.0), AT_ONCE, seed).refused > 0

    row("of one host, all creations requested at once: some are refused with 429", first(refuses, 1000))
    for name, share in LOADS:

        def late(vms: int, share: float = share) -> bool:
            fleet = Fleet(
                hosts=-(-vms // 20), hosts_per_pool=1000, storages_per_pool=1, storage_read=100 * MIB, full=share,
                vms_per_host=20 if vms >= 20 else vms, mover_streams=16,
            )  # fmt: skip
            return simulate(fleet, TWO, seed).late(fleet.window) > 0

        row(f"for each 100 MiB/s of the narrowest part, {name}: late", first(late, 4000))


def refusals(seed: int) -> None:
    print("\n## Refused downloads")
    header("a client that is refused", "refused", "complete after")
    # 200 VMs of a host, whose downloads are all requested at once.
    fleet = Fleet(
        hosts=1, hosts_per_pool=1, vms_per_host=200, storage_read=2048 * MIB, mover_streams=200, extents=0,
        quiesce=(0.0, 0.0), costs=replace(MEASURED, creation_queue=200),
    )  # fmt: skip
    for name, policy in (
        ("waits as long as `Retry-After`, then twice as long each time", replace(AT_ONCE, growth=2.0)),
        ("waits as long as `Retry-After` each time", AT_ONCE),
        ("… and up to as long more, at random", replace(AT_ONCE, jitter=1.0)),
        ("none: the product opens as many connections as there are slots", replace(AT_ONCE, downloads=12)),
    ):
        result = simulate(fleet, policy, seed)
        row(name, f"{result.refused:,}", time(max(result.completed_at)))


def deletions(seed: int) -> None:
    print("\n## Older snapshots")
    header("the older snapshot", "most snapshots of a storage", "the last is deleted after")
    for name, policy in (("is deleted after the backup", TWO), ("expires", replace(TWO, expires=True))):
        result = simulate(Fleet(hosts=20), policy, seed)
        row(name, result.peak_snapshots, time(max(result.deleted_at)))


def deaths(seed: int) -> None:
    print("\n## A host dies")
    header("the others wait", "creations", "guests frozen for 10 s or more", "longest freeze", "failed creations")
    for seconds in (66.0, 15.0):
        fleet = Fleet(hosts=20, costs=replace(MEASURED, death=seconds))
        for policy in (AT_ONCE, JITTER, TWO, ANYWHERE):
            calm, struck = (simulate(fleet, policy, seed, deaths) for deaths in ((), (Death(60.0, 3),)))
            frozen = [sum(1 for freeze in result.freezes if freeze >= 10) for result in (calm, struck)]
            row(
                time(seconds), policy.name, f"{frozen[1]} instead of {frozen[0]}", time(max(struck.freezes)),
                f"{struck.timeouts + struck.lost_requests} instead of {calm.timeouts}",
            )  # fmt: skip


def looking(hosts: List[int]) -> None:
    print("\n## Looking at all of them")
    header("hosts", "VMs", "`/status` of each every 10 s", "`/vms` of each pool", "cold scan", "manifests of others")
    fleet = Fleet()
    for number in hosts:
        vms = fleet.vms_per_host * min(number, fleet.hosts_per_pool)
        pools = -(-number // fleet.hosts_per_pool)
        row(
            f"{number:,}", f"{number * fleet.vms_per_host:,}",
            f"{number / 10:.0f} requests/s, {number * STATUS_BYTES / 1e4:.0f} kB/s",
            f"{pools} requests, {pools * vms * VM_BYTES / 1e6:.1f} MB",
            time(2 * vms * fleet.costs.manifest_cold), f"{time(vms * fleet.costs.manifest_cold)} a night",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the nights of a backup product with many hosts.")
    parser.add_argument("--hosts", default="10,100,1000", help="numbers of hosts, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    hosts = [int(number) for number in arguments.hosts.split(",")]
    policies(hosts, arguments.seed)
    loads(hosts, arguments.seed)
    shared(arguments.seed)
    limits(arguments.seed)
    refusals(arguments.seed)
    deletions(arguments.seed)
    deaths(arguments.seed)
    looking(hosts)


if __name__ == "__main__":
    main()
