"""Tests of the simulation: `python3 -m unittest discover benches/fleet`."""

from __future__ import annotations

import contextlib
import io
import unittest
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, List

import simulate as simulate_module
from costs import GIB, MEASURED, MIB
from engine import Engine, Pipe, Process, Slots, cut, halt, transfer
from model import HOUR, Death, Fleet, Night, Policy, Result, percentile, simulate

AT_ONCE = Policy("all at once")
TWO = Policy("two for each storage", slots_of_storage=2)


class EngineTests(unittest.TestCase):
    def setUp(self) -> None:
        self.engine = Engine()
        self.log: List[Any] = []

    def test_a_flow_alone_takes_its_amount_divided_by_the_smallest_capacity(self) -> None:
        self.send(100.0, [Pipe("wide", 50.0), Pipe("narrow", 10.0)])
        self.engine.run()
        self.assertEqual(self.log, [(10.0, 0.0)])

    def test_flows_share_a_pipe_and_the_rest_gets_more_when_one_ends(self) -> None:
        pipe = Pipe("pipe", 10.0)
        self.send(50.0, [pipe])
        self.send(100.0, [pipe])
        self.engine.run()
        # Both get 5 until the first has its 50; then the other has the whole pipe for its last 50.
        self.assertEqual([round(time, 9) for time, _ in self.log], [10.0, 15.0])
        self.assertAlmostEqual(pipe.carried, 150.0)
        self.assertAlmostEqual(pipe.busy, 15.0)
        self.assertEqual(pipe.peak_flows, 2)

    def test_a_flow_gets_no_more_than_the_limit_of_each(self) -> None:
        self.send(10.0, [Pipe("pipe", 100.0, each=1.0)])
        self.engine.run()
        self.assertEqual(self.log, [(10.0, 0.0)])

    def test_a_halted_pipe_moves_nothing_until_it_goes_on(self) -> None:
        pipe = Pipe("pipe", 10.0)
        self.send(100.0, [pipe])
        self.engine.at(4.0, lambda: halt([pipe], True))
        self.engine.at(24.0, lambda: halt([pipe], False))
        self.engine.run()
        self.assertEqual(self.log, [(30.0, 0.0)])

    def test_a_cut_flow_says_what_is_left(self) -> None:
        pipe = Pipe("pipe", 10.0)
        self.send(100.0, [pipe])
        self.engine.at(4.0, lambda: cut(pipe))
        self.engine.run()
        self.assertEqual(self.log, [(4.0, 60.0)])
        self.assertAlmostEqual(pipe.carried, 40.0)

    def test_slots_are_granted_in_the_order_of_arrival_and_never_more_than_the_limit(self) -> None:
        slots = Slots(self.engine, 2)
        for name in range(5):
            self.engine.start(self.work(slots, name, 1.0))
        self.engine.run()
        self.assertEqual(self.log, [(1.0, 0), (1.0, 1), (2.0, 2), (2.0, 3), (3.0, 4)])
        self.assertEqual((slots.peak, slots.running, slots.peak_waiting), (2, 0, 3))

    def test_a_full_queue_refuses_at_once_and_patience_ends(self) -> None:
        slots = Slots(self.engine, 1, max_waiting=1)
        for name in range(3):
            self.engine.start(self.work(slots, name, 10.0, patience=4.0))
        self.engine.run()
        self.assertEqual(self.log, [(0.0, "refused", 2), (4.0, "refused", 1), (10.0, 0)])
        self.assertEqual((slots.refused, slots.running), (2, 0))

    def send(self, amount: float, pipes: List[Pipe]) -> None:
        def flow() -> Process:
            left = yield transfer(self.engine, amount, pipes)
            self.log.append((self.engine.now, left))

        self.engine.start(flow())

    def work(self, slots: Slots, name: int, seconds: float, patience: Any = None) -> Process:
        has_slot = yield slots.take(patience)
        if not has_slot:
            self.log.append((self.engine.now, "refused", name))
            return
        yield self.engine.sleep(seconds)
        slots.free()
        self.log.append((self.engine.now, name))


class NightTests(unittest.TestCase):
    def test_the_same_seed_gives_the_same_night_and_another_seed_another(self) -> None:
        one, same, other = (simulate(Fleet(hosts=8), TWO, seed) for seed in (5, 5, 6))
        self.assertEqual(astuple(one), astuple(same))
        self.assertNotEqual(astuple(one), astuple(other))

    def test_each_byte_of_each_vm_passes_each_pipe_once(self) -> None:
        for deaths in ((), (Death(40.0, 1),)):
            night = Night(Fleet(hosts=6, hosts_per_pool=3), AT_ONCE, deaths=deaths)
            result = night.run()
            expected = sum(vm.bytes for vm in night.vms)
            storages = [storage.read.carried for pool in night.pools for storage in pool.storages]
            for carried in (
                storages, [host.nic.carried for host in night.hosts], [host.cpu.carried for host in night.hosts],
                [mover.nic.carried for mover in night.movers], [result.bytes],
            ):  # fmt: skip
                self.assertAlmostEqual(sum(carried) / expected, 1.0, places=9)
            self.assertEqual(len(result.completed_at), 6 * 20)
            self.assertEqual(result.late(8 * HOUR), 0)

    def test_nothing_exceeds_its_limit(self) -> None:
        night = Night(Fleet(hosts=6, hosts_per_pool=3, full=0.2), TWO)
        night.run()
        for host in night.hosts:
            self.assertLessEqual(host.creations.peak, MEASURED.creation_slots)
            self.assertLessEqual(host.creations.peak_waiting, MEASURED.creation_queue)
            self.assertLessEqual(host.exports.peak, MEASURED.export_slots)
            self.assertEqual((host.creations.running, host.exports.running), (0, 0))
        pipes = [(host.nic, night.fleet.host_nic) for host in night.hosts]
        pipes += [(mover.nic, night.fleet.mover_nic) for mover in night.movers]
        for storage in (storage for pool in night.pools for storage in pool.storages):
            pipes += [(storage.read, night.fleet.storage_read), (storage.clones, 1.0)]
            self.assertLessEqual(storage.peak_frozen, 2)
            self.assertEqual(storage.frozen, 0)
        for pipe, capacity in pipes:
            self.assertLessEqual(pipe.peak_rate, capacity * (1 + 1e-9), pipe.name)
            self.assertFalse(pipe.flows)
        for mover in night.movers:
            self.assertLessEqual(mover.streams.peak, night.fleet.mover_streams)

    def test_a_host_refuses_what_its_queue_does_not_hold_and_the_client_comes_again(self) -> None:
        room = MEASURED.creation_slots + MEASURED.creation_queue
        fits, more = (self.one_host(vms) for vms in (room, room + 10))
        self.assertEqual(fits.refused, 0)
        self.assertGreaterEqual(more.refused, 10)
        self.assertEqual(len(more.created_at), room + 10)

    def test_one_host_creates_in_as_many_rounds_as_its_slots_need(self) -> None:
        # 10 VMs, 2 slots, a second for the hook and 0.021 s for the rest.
        costs = replace(MEASURED, clones_at_once=1.0, hand_over=0.0)
        fleet = Fleet(
            hosts=1, hosts_per_pool=1, storages_per_pool=1, vms_per_host=10, extents=0, quiesce=(1.0, 1.0), thaw=0.0,
            changed=0.0, costs=costs,
        )  # fmt: skip
        each = 1.0 + costs.create_base + 2 * costs.clone_base
        self.assertAlmostEqual(max(simulate(fleet, AT_ONCE).created_at), 5 * each, places=6)

    def test_clones_that_take_too_long_fail_and_the_guest_is_thawed_at_the_time_out(self) -> None:
        extents = int(2 * MEASURED.hooks_timeout / MEASURED.clone_per_extent)
        fleet = Fleet(hosts=1, hosts_per_pool=1, vms_per_host=1, extents=extents, spread_of_extents=0.0)
        night = Night(fleet, TWO)
        night.engine.start(night._backup(night.vms[0]))
        night.engine.run(end=300.0)
        self.assertGreaterEqual(night.result.timeouts, 1)
        self.assertAlmostEqual(max(night.result.freezes), MEASURED.hooks_timeout + fleet.thaw, places=6)
        self.assertEqual(night.result.created_at, [])

    def test_slots_of_a_storage_keep_guests_from_freezing_each_other(self) -> None:
        fleet = Fleet(hosts=20)
        many, few = simulate(fleet, AT_ONCE), simulate(fleet, TWO)
        self.assertGreater(many.peak_frozen, 10)
        self.assertEqual(few.peak_frozen, 2)
        self.assertEqual(simulate(fleet, replace(TWO, by_services=True)).peak_frozen, 2)
        self.assertGreater(percentile(many.freezes, 0.5), 5 * percentile(few.freezes, 0.5))

    def test_a_death_halts_the_pool_and_loses_no_vm(self) -> None:
        fleet = Fleet(hosts=40)
        calm, struck = (simulate(fleet, AT_ONCE, deaths=deaths) for deaths in ((), (Death(30.0, 3),)))
        self.assertEqual(len(struck.completed_at), len(calm.completed_at))
        self.assertGreater(struck.lost_requests, 0)
        self.assertGreater(struck.timeouts, calm.timeouts)
        # No guest waits longer than the hooks' time-out or, on the dead host, than its death takes to be noticed.
        self.assertLessEqual(max(struck.freezes), max(MEASURED.hooks_timeout, MEASURED.death) + fleet.thaw + 1e-6)

    def test_expired_snapshots_go_with_the_sweeper_and_each_vm_keeps_one(self) -> None:
        for policy in (TWO, replace(TWO, expires=True)):
            night = Night(Fleet(hosts=4), policy)
            result = night.run()
            storages = [storage for pool in night.pools for storage in pool.storages]
            self.assertEqual(sum(storage.snapshots for storage in storages), 4 * 20)
            self.assertGreater(result.peak_snapshots, 40)
            self.assertLessEqual(result.peak_snapshots, 2 * 40)
            if policy.expires:
                self.assertGreaterEqual(min(result.deleted_at), min(result.created_at) + MEASURED.superseded_grace)
                self.assertTrue(all(time % 60 < 1 for time in result.deleted_at))

    def test_the_time_grows_with_the_bytes_when_the_storage_is_the_narrowest(self) -> None:
        fleet = Fleet(hosts=10, storages_per_pool=1, storage_read=100 * MIB, spread_of_used=0.0, changed=0.1)
        once, twice = (simulate(replace(fleet, used=used), TWO) for used in (100 * GIB, 200 * GIB))
        self.assertAlmostEqual(max(twice.completed_at) / max(once.completed_at), 2.0, delta=0.05)
        self.assertAlmostEqual(max(once.completed_at), 200 * 10 * GIB / (100 * MIB), delta=0.01 * 20_000)

    @staticmethod
    def one_host(vms: int) -> Result:
        return simulate(Fleet(hosts=1, hosts_per_pool=1, vms_per_host=vms, changed=0.0), AT_ONCE)


class DocumentTests(unittest.TestCase):
    def test_the_document_has_the_figures_of_the_simulation(self) -> None:
        document = (Path(__file__).parents[2] / "docs/scale.md").read_text().splitlines()
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            simulate_module.policies([10], 1)
            simulate_module.loads([10], 1)
            simulate_module.refusals(1)
            simulate_module.deletions(1)
            simulate_module.deaths(1)
            simulate_module.looking([10, 100, 1000])
        rows = [line for line in output.getvalue().splitlines() if line.startswith("| ")]
        self.assertGreater(len(rows), 25)
        missing = [row for row in rows if row not in document]
        self.assertEqual(missing, [], "copy the output of `make scale` into docs/scale.md")


if __name__ == "__main__":
    unittest.main()
