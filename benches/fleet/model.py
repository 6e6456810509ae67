"""The night of a backup product with many hosts: pools, storages, VMs, and what each backup does."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, Callable, Generator, List, Tuple

from costs import GIB, MEASURED, MIB, Costs
from engine import Engine, Pipe, Process, Slots, Wait, cut, halt, transfer

HOUR = 3600.0
SWEEP = 60.0  # seconds between two rounds of the sweeper

# A process that says whether there is a snapshot now.
Creation = Generator[Wait, Any, bool]


@dataclass(frozen=True)
class Policy:
    """How the product plans the night."""

    name: str
    # Creations start at random times of this span, in seconds from the beginning of the window.
    spread: float = 0.0
    # Creations of one storage at a time, over all hosts. 0: any number.
    slots_of_storage: int = 0
    # Whether the services count these, with locks in the storage, instead of the product.
    by_services: bool = False
    # Whether the host that runs the guest creates the snapshot. Otherwise any host of the pool does.
    on_own_host: bool = True
    # A refused client waits as long as `Retry-After`, then each time this many times as long, at most 3 minutes.
    growth: float = 1.0
    # And up to this share of that time more, at random.
    jitter: float = 0.0
    # Whether older snapshots expire, instead of being deleted by the product after the backup.
    expires: bool = False
    # Downloads of one host at a time. 0: the product does not limit them.
    downloads: int = 0


@dataclass(frozen=True)
class Fleet:
    """What is backed up, and with what."""

    hosts: int = 10
    hosts_per_pool: int = 20
    storages_per_pool: int = 2
    vms_per_host: int = 20
    used: float = 100 * GIB  # bytes of data of a VM, the mean
    spread_of_used: float = 0.5  # half to one and a half of that
    changed: float = 0.03  # of them between two nights
    full: float = 0.0  # the share of VMs whose backup is full tonight
    extents: int = 20_000  # of a VM, the median
    spread_of_extents: float = 1.0  # sigma of the log-normal distribution
    quiesce: Tuple[float, float] = (0.5, 3.0)  # seconds until the guest is quiesced
    thaw: float = 0.1
    host_nic: float = 1250e6  # bytes a second: 10 Gbit/s
    host_cores: float = 2.0  # that backups may use
    storage_read: float = 1024 * MIB
    hosts_per_mover: int = 100
    mover_nic: float = 1250e6
    mover_streams: int = 32
    window: float = 8 * HOUR
    costs: Costs = MEASURED


@dataclass(frozen=True)
class Death:
    """A host stops without a word."""

    at: float
    host: int


@dataclass
class Vm:
    number: int
    host: "Host"
    storage: "Storage"
    extents: int
    bytes: float
    quiesce: float
    last_host: "Host"


class Host:
    def __init__(self, engine: Engine, fleet: Fleet, policy: Policy, number: int, pool: "Pool") -> None:
        costs = fleet.costs
        self.number = number
        self.pool = pool
        self.is_alive = True
        self.creations = Slots(engine, costs.creation_slots, costs.creation_queue)
        self.exports = Slots(engine, costs.export_slots, costs.export_queue)
        self.downloads = Slots(engine, policy.downloads) if policy.downloads else None
        self.nic = Pipe(f"host {number}: network", fleet.host_nic)
        self.cpu = Pipe(f"host {number}: processors", fleet.host_cores / costs.cpu_per_byte, costs.stream_rate)
        # Its clones in all storages, which end with it.
        self.clones = Pipe(f"host {number}: clones", float("inf"))


class Storage:
    def __init__(self, engine: Engine, fleet: Fleet, name: str, slots: int) -> None:
        self.name = name
        self.read = Pipe(f"{name}: reads", fleet.storage_read)
        # One second of work for each second that a clone takes alone.
        at_once = fleet.costs.clones_at_once
        self.clones = Pipe(f"{name}: clones", lambda clones: 1.0 if clones == 1 else at_once, each=1.0)
        self.slots = Slots(engine, slots) if slots else None
        self.frozen = 0
        self.peak_frozen = 0
        self.snapshots = 0
        self.peak_snapshots = 0

    def keep(self, snapshots: int) -> None:
        self.snapshots += snapshots
        self.peak_snapshots = max(self.peak_snapshots, self.snapshots)

    def freeze(self) -> None:
        self.frozen += 1
        self.peak_frozen = max(self.peak_frozen, self.frozen)


class Pool:
    """Hosts with one cluster file system: the death of one stops the metadata of all."""

    def __init__(self) -> None:
        self.hosts: List[Host] = []
        self.storages: List[Storage] = []
        self.halted_until = 0.0


class Mover:
    """A machine of the product that receives data."""

    def __init__(self, engine: Engine, fleet: Fleet, number: int) -> None:
        self.nic = Pipe(f"mover {number}: network", fleet.mover_nic)
        self.streams = Slots(engine, fleet.mover_streams)


@dataclass
class Result:
    """What came out. Times are seconds from the beginning of the window."""

    vms: int = 0
    freezes: List[float] = field(default_factory=list)
    created_at: List[float] = field(default_factory=list)
    completed_at: List[float] = field(default_factory=list)
    deleted_at: List[float] = field(default_factory=list)
    refused: int = 0
    timeouts: int = 0  # creations whose clones took longer than `hooks.timeout`
    lost_requests: int = 0  # answers that a dead host did not give
    bytes: float = 0.0
    peak_frozen: int = 0  # guests of one storage that were frozen at the same time
    peak_snapshots: int = 0  # of one storage
    busiest: List[Tuple[str, float]] = field(default_factory=list)  # pipes and their share of the window

    def late(self, window: float) -> int:
        """VMs whose backup is not complete at the end of the window."""
        return self.vms - sum(1 for time in self.completed_at if time <= window)


def once(call: Callable[[], None]) -> Callable[[], None]:
    """Calls it the first time only."""
    calls = [call]
    return lambda: calls.pop()() if calls else None


def percentile(values: List[float], share: float) -> float:
    """0 if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Night:
    """One night of a fleet."""

    def __init__(self, fleet: Fleet, policy: Policy, seed: int = 1, deaths: Tuple[Death, ...] = ()) -> None:
        self.engine = Engine()
        self.fleet = fleet
        self.policy = policy
        self.costs = fleet.costs
        self.result = Result()
        self.pools: List[Pool] = []
        self.hosts: List[Host] = []
        self.movers = [
            Mover(self.engine, fleet, number) for number in range(max(1, -(-fleet.hosts // fleet.hosts_per_mover)))
        ]
        self._random = random.Random(seed)
        self._build()
        self.vms = [self._vm(number) for number in range(fleet.hosts * fleet.vms_per_host)]
        self._deaths = deaths

    def _build(self) -> None:
        for number in range(self.fleet.hosts):
            if number % self.fleet.hosts_per_pool == 0:
                pool = Pool()
                self.pools.append(pool)
                for storage in range(self.fleet.storages_per_pool):
                    name = f"storage {len(self.pools) - 1}.{storage}"
                    pool.storages.append(Storage(self.engine, self.fleet, name, self.policy.slots_of_storage))
            host = Host(self.engine, self.fleet, self.policy, number, self.pools[-1])
            self.pools[-1].hosts.append(host)
            self.hosts.append(host)

    def _vm(self, number: int) -> Vm:
        fleet = self.fleet
        host = self.hosts[number // fleet.vms_per_host]
        storage = host.pool.storages[number % len(host.pool.storages)]
        extents = int(self._random.lognormvariate(0.0, fleet.spread_of_extents) * fleet.extents)
        used = fleet.used * self._random.uniform(1 - fleet.spread_of_used, 1 + fleet.spread_of_used)
        is_full = self._random.random() < fleet.full
        last = self._random.choice(host.pool.hosts)
        quiesce = self._random.uniform(*fleet.quiesce)
        return Vm(number, host, storage, extents, used if is_full else used * fleet.changed, quiesce, last)

    def run(self) -> Result:
        self.result.vms = len(self.vms)
        for vm in self.vms:
            vm.storage.keep(1)  # the base
        # In turn from all hosts.
        for vm in sorted(self.vms, key=lambda vm: (vm.number % self.fleet.vms_per_host, vm.number)):
            self.engine.start(self._backup(vm))
        for death in self._deaths:
            self.engine.at(death.at, lambda death=death: self._die(death))  # type: ignore[misc]
        self.engine.run()
        storages = [storage for pool in self.pools for storage in pool.storages]
        self.result.peak_frozen = max(storage.peak_frozen for storage in storages)
        self.result.peak_snapshots = max(storage.peak_snapshots for storage in storages)
        pipes = [pipe for storage in storages for pipe in (storage.read, storage.clones)]
        pipes += [pipe for host in self.hosts for pipe in (host.nic, host.cpu)]
        pipes += [mover.nic for mover in self.movers]
        busy = [(pipe.name, pipe.busy / self.fleet.window) for pipe in pipes]
        self.result.busiest = sorted(busy, key=lambda pipe: -pipe[1])
        return self.result

    # --- The death of a host

    def _die(self, death: Death) -> None:
        host = self.hosts[death.host]
        host.is_alive = False
        pipes = [storage.clones for storage in host.pool.storages]
        host.pool.halted_until = self.engine.now + self.costs.death
        halt(pipes, True)
        cut(host.nic)
        cut(host.clones)
        self.engine.at(host.pool.halted_until, lambda: halt(pipes, False))

    def _living(self, vm: Vm) -> Host:
        """The host that a request for this VM goes to."""
        hosts = [host for host in vm.host.pool.hosts if host.is_alive]
        if self.policy.on_own_host and vm.host.is_alive:
            return vm.host
        return hosts[self._random.randrange(len(hosts))]

    # --- A backup

    def _backup(self, vm: Vm) -> Process:
        yield self.engine.sleep(self._random.uniform(0.0, self.policy.spread))
        attempt = 0
        while not (yield from self._create(vm)):
            yield self._pause(attempt)
            attempt += 1
        vm.storage.keep(1)
        self.result.created_at.append(self.engine.now)
        created = self.engine.now
        yield self.engine.sleep(self.costs.compare_base + vm.extents * self.costs.compare_per_extent)
        yield from self._download(vm)
        if self.policy.expires:
            self.result.completed_at.append(self.engine.now)
            # The sweeper runs once a minute, and keeps a base for a while after the new snapshot.
            grace = created + self.costs.superseded_grace
            yield self.engine.until(math.ceil(max(grace, self.engine.now) / SWEEP) * SWEEP)
        yield from self._metadata(vm, self.costs.delete)
        vm.storage.keep(-1)
        self.result.deleted_at.append(self.engine.now)
        if not self.policy.expires:
            self.result.completed_at.append(self.engine.now)

    def _create(self, vm: Vm) -> Creation:
        """Whether there is a snapshot now."""
        if self.policy.by_services:
            return (yield from self._create_at(self._living(vm), vm))
        return (yield from self._with_storage_slot(vm, 0.0, lambda: self._create_at(self._living(vm), vm)))

    def _with_storage_slot(self, vm: Vm, cost: float, create: Callable[[], Creation]) -> Creation:
        slots = vm.storage.slots
        if not slots:
            return (yield from create())
        yield slots.take()
        yield from self._metadata(vm, cost)
        did_create = yield from create()
        slots.free()
        return did_create

    def _create_at(self, host: Host, vm: Vm) -> Creation:
        has_slot = yield host.creations.take()
        if not has_slot:
            self.result.refused += 1
            return False
        # A slow creation gives up its slot, and goes on.
        free = once(host.creations.free)
        self.engine.at(self.engine.now + self.costs.slow_creation, free)
        if self.policy.by_services:
            create = self._with_storage_slot(vm, self.costs.hand_over, lambda: self._create_in_slot(host, vm))
        else:
            create = self._create_in_slot(host, vm)
        did_create = yield from create
        free()
        return did_create

    def _pause(self, attempt: int) -> Wait:
        """The time until the next attempt."""
        pause = min(self.costs.retry_after * self.policy.growth**attempt, 180.0)
        return self.engine.sleep(pause * (1 + self._random.uniform(0.0, self.policy.jitter)))

    def _lose(self, host: Host) -> bool:
        """Whether the answer is lost with its host."""
        self.result.lost_requests += 0 if host.is_alive else 1
        return not host.is_alive

    def _create_in_slot(self, host: Host, vm: Vm) -> Creation:
        costs, engine = self.costs, self.engine
        if vm.last_host is not host:
            yield from self._metadata(vm, costs.hand_over)
            vm.last_host = host
        # Half of the rest before the freeze, half after it.
        rest = (costs.create_base + vm.extents * costs.create_per_extent) / 2
        yield from self._metadata(vm, rest)
        yield engine.sleep(vm.quiesce)
        if self._lose(host):
            return False
        storage, frozen_at = vm.storage, engine.now
        storage.freeze()
        thaw = once(lambda: self._thaw(storage, frozen_at))
        # After this, the service thaws the guest. The clones are removed when they are complete.
        engine.at(frozen_at + costs.hooks_timeout + self.fleet.thaw, lambda: thaw() if host.is_alive else None)
        remote = 0.0 if host is vm.host else costs.remote_clone
        work = remote + costs.clone_base + vm.extents * costs.clone_per_extent
        yield transfer(engine, work, [storage.clones, host.clones])
        if self._lose(host):
            if vm.host is host:
                # The guest has died with its host.
                storage.frozen -= 1
            else:
                # A survivor thaws it as soon as it gets the lock, and removes the clones.
                yield engine.until(host.pool.halted_until)
                thaw()
            return False
        if engine.now - frozen_at > costs.hooks_timeout:
            self.result.timeouts += 1
            return False
        yield engine.sleep(self.fleet.thaw)
        thaw()
        yield from self._metadata(vm, rest)
        return True

    def _thaw(self, storage: Storage, frozen_at: float) -> None:
        storage.frozen -= 1
        self.result.freezes.append(self.engine.now - frozen_at)

    def _metadata(self, vm: Vm, seconds: float) -> Generator[Wait, Any, None]:
        """A change of files, which waits while the pool notices a death."""
        yield self.engine.until(vm.host.pool.halted_until)
        yield self.engine.sleep(seconds)

    def _download(self, vm: Vm) -> Generator[Wait, Any, None]:
        mover = self.movers[vm.host.number % len(self.movers)]
        yield mover.streams.take()
        left, attempt = vm.bytes, 0
        while True:
            host = self._living(vm)
            if host.downloads:
                yield host.downloads.take()
            was_admitted = yield host.exports.take(self.costs.export_wait)
            if was_admitted:
                left = yield transfer(self.engine, left, [vm.storage.read, host.nic, host.cpu, mover.nic])
                host.exports.free()
            else:
                self.result.refused += 1
            if host.downloads:
                host.downloads.free()
            if left <= 0:
                break
            if was_admitted:
                # The host died. Another one serves the rest.
                self.result.lost_requests += 1
            else:
                yield self._pause(attempt)
                attempt += 1
        self.result.bytes += vm.bytes
        mover.streams.free()


def simulate(fleet: Fleet, policy: Policy, seed: int = 1, deaths: Tuple[Death, ...] = ()) -> Result:
    return Night(fleet, policy, seed, deaths).run()
