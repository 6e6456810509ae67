"""A discrete-event simulation: a clock, processes, slots with a bounded queue, and shared bandwidth.

A process is a generator. It yields what it waits for: a function that takes `resume` and calls it later, with the
result of the `yield`. Events of the same time happen in the order in which they were planned, so that the same input
always gives the same result.
"""

from __future__ import annotations

import heapq
from typing import Any, Callable, Dict, Generator, List, Optional, Sequence, Tuple, Union

Resume = Callable[[Any], None]
Wait = Callable[[Resume], None]
Process = Generator[Wait, Any, Any]

# A flow with less than this is complete: what remains is an error of rounding.
NOTHING = 1e-6


class Engine:
    """The clock, in seconds, and what will happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._planned: List[Tuple[float, int, Callable[[], None]]] = []
        self._next = 0

    def at(self, time: float, call: Callable[[], None]) -> None:
        """Call at that time, or now if it has passed."""
        heapq.heappush(self._planned, (max(time, self.now), self._next, call))
        self._next += 1

    def start(self, process: Process) -> None:
        """Run a process from now on."""

        def resume(value: Any) -> None:
            try:
                wait = process.send(value)
            except StopIteration:
                return
            wait(resume)

        self.at(self.now, lambda: resume(None))

    def sleep(self, seconds: float) -> Wait:
        return lambda resume: self.at(self.now + seconds, lambda: resume(None))

    def until(self, time: float) -> Wait:
        return lambda resume: self.at(time, lambda: resume(None))

    def run(self, end: float = float("inf")) -> None:
        """Until nothing is planned, or until `end`."""
        while self._planned and self._planned[0][0] <= end:
            self.now, _, call = heapq.heappop(self._planned)
            call()
        if end != float("inf"):
            self.now = max(self.now, end)


class Slots:
    """Concurrency slots with a bounded queue, first come, first served."""

    def __init__(self, engine: Engine, limit: int, max_waiting: Optional[int] = None) -> None:
        self.limit = limit
        self.max_waiting = max_waiting
        self.running = 0
        self.peak = 0
        self.peak_waiting = 0
        self.refused = 0
        self._engine = engine
        self._waiting: Dict[int, Resume] = {}
        self._next = 0

    def take(self, patience: Optional[float] = None) -> Wait:
        """Wait for a slot. The result is False at once if the queue is full, or after `patience` seconds."""

        def wait(resume: Resume) -> None:
            if self.running < self.limit:
                self.running += 1
                self.peak = max(self.peak, self.running)
                self._engine.at(self._engine.now, lambda: resume(True))
                return
            if self.max_waiting is not None and len(self._waiting) >= self.max_waiting:
                self.refused += 1
                self._engine.at(self._engine.now, lambda: resume(False))
                return
            number = self._next
            self._next += 1
            self._waiting[number] = resume
            self.peak_waiting = max(self.peak_waiting, len(self._waiting))
            if patience is not None:
                self._engine.at(self._engine.now + patience, lambda: self._give_up(number))

        return wait

    def _give_up(self, number: int) -> None:
        resume = self._waiting.pop(number, None)
        if resume:
            self.refused += 1
            resume(False)

    def free(self) -> None:
        """Give the slot to the request that waits longest."""
        if not self._waiting:
            self.running -= 1
            return
        resume = self._waiting.pop(next(iter(self._waiting)))
        self._engine.at(self._engine.now, lambda: resume(True))


class Pipe:
    """Something of which flows get equal shares: a network card, a disk array, the processors of a host.

    `capacity` is in units a second, or a function of the number of flows. `each` is the most that one flow can get.
    """

    def __init__(
        self,
        name: str,
        capacity: Union[float, Callable[[int], float]],
        each: float = float("inf"),
    ) -> None:
        self.name = name
        self.flows: Dict["Flow", None] = {}
        self.carried = 0.0
        self.busy = 0.0
        self.peak_flows = 0
        self.peak_rate = 0.0
        self.is_halted = False
        self.share = 0.0  # of each flow
        self._capacity = capacity
        self._each = each
        self._since = 0.0

    def capacity(self) -> float:
        return self._capacity(len(self.flows)) if callable(self._capacity) else self._capacity

    def divide(self) -> None:
        """Find the share of each flow."""
        if self.is_halted or not self.flows:
            self.share = 0.0
        else:
            self.share = min(self._each, self.capacity() / len(self.flows))

    def count(self, now: float) -> None:
        """Add the time since the last change to the busy time."""
        if self.flows:
            self.busy += now - self._since
        self._since = now


class Flow:
    """An amount on its way through pipes. It gets the smallest of its shares: what a flow cannot use of a share is
    not given to the others."""

    def __init__(self, engine: Engine, amount: float, pipes: Sequence[Pipe], resume: Resume) -> None:
        self.left = amount
        self.rate = 0.0
        self._engine = engine
        self._pipes = pipes
        self._resume = resume
        self._updated = engine.now
        self._planned = float("inf")

    def settle(self) -> None:
        """Account for what has passed since the last change."""
        now = self._engine.now
        passed = min(self.left, self.rate * (now - self._updated))
        self._updated = now
        self.left -= passed
        for pipe in self._pipes:
            pipe.carried += passed

    def replan(self) -> None:
        """Follow a change of the pipes."""
        rate = min([pipe.share for pipe in self._pipes])
        if rate == self.rate:
            return
        self.settle()
        self.rate = rate
        self._plan()

    def _plan(self) -> None:
        if self.rate <= 0:
            return
        end = self._engine.now + max(0.0, self.left) / self.rate
        # An earlier look that is planned already will plan the next one.
        if end < self._planned:
            self._planned = end
            self._engine.at(end, lambda: self._look(end))

    def _look(self, planned: float) -> None:
        if planned != self._planned:
            return
        self._planned = float("inf")
        self.settle()
        if self.left > max(NOTHING, self.rate * 1e-9):
            self._plan()
            return
        # The rest is an error of rounding. It counts as carried.
        for pipe in self._pipes:
            pipe.carried += self.left
        self.left = 0.0
        self._leave()
        self._resume(0.0)

    def cut(self) -> None:
        """End it before it is complete."""
        self.settle()
        self._planned = float("inf")
        self._leave()
        left = self.left
        self._engine.at(self._engine.now, lambda: self._resume(left))

    def join(self) -> None:
        for pipe in self._pipes:
            pipe.count(self._engine.now)
            pipe.flows[self] = None
            pipe.peak_flows = max(pipe.peak_flows, len(pipe.flows))
        replan(self._pipes)

    def _leave(self) -> None:
        for pipe in self._pipes:
            pipe.count(self._engine.now)
            del pipe.flows[self]
        replan(self._pipes)


def replan(pipes: Sequence[Pipe]) -> None:
    """Give the flows of these pipes their new shares."""
    affected: Dict[Flow, None] = {}
    for pipe in pipes:
        pipe.divide()
        affected.update(pipe.flows)
    for flow in affected:
        flow.replan()
    for pipe in pipes:
        pipe.peak_rate = max(pipe.peak_rate, sum([flow.rate for flow in pipe.flows]))


def transfer(engine: Engine, amount: float, pipes: Sequence[Pipe]) -> Wait:
    """Send an amount through all of these pipes at once. The result is what is left, if the transfer was cut."""

    def wait(resume: Resume) -> None:
        if amount <= 0:
            engine.at(engine.now, lambda: resume(0.0))
            return
        Flow(engine, amount, pipes, resume).join()

    return wait


def halt(pipes: Sequence[Pipe], is_halted: bool) -> None:
    """Stop all flows of these pipes, or let them go on."""
    for pipe in pipes:
        pipe.is_halted = is_halted
    replan(pipes)


def cut(pipe: Pipe) -> None:
    """End all flows of a pipe."""
    for flow in list(pipe.flows):
        flow.cut()
