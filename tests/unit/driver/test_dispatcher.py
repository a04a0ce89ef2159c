"""The driver's loop: what it sends, what comes back, and what becomes of what does not.

No time passes but what the clock of a test is moved on.
"""

from __future__ import annotations

import threading
from array import array
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
from clock import Clock
from dispatching import Dispatched, ScriptedBackend, dispatching, done, worker
from inline_backend import InlineBackend
from inline_run import MakeBackend, run_inline

import at_once_dask
from at_once_dask.cluster.own import Worker
from at_once_dask.driver.backend import Broken, Delivered, Died, Event, Reclaimed
from at_once_dask.driver.blame import Death
from at_once_dask.driver.packing import PackedJob
from at_once_dask.driver.stop_rule import BARREN_DEATHS
from at_once_dask.errors import AtOnceError
from at_once_dask.logs.log_file import RunLog, open_run_log
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.status import FAILED, LEFT, PROCESS, PROCESSED
from at_once_dask.protocol.task import Job, MapOutcome, Partition


def nothing(inp: Any) -> None:
    """The smallest `process_inp`."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ----- partitions are worked on here; what is seen of the worker is as the test says


class Looks(InlineBackend):
    """Each look at the workers shows what `look` makes of the one there is."""

    def __init__(self, job: PackedJob, run_log: RunLog, clock: Clock) -> None:
        super().__init__(job, run_log)
        self.clock = clock
        self.looks = 0

    def workers(self) -> dict[str, Worker]:
        self.looks += 1
        there = super().workers()
        return {address: worker for address, w in there.items() if (worker := self.look(w))}

    def look(self, worker: Worker) -> Worker | None:
        return worker

    def next(self, timeout: float) -> Event | None:
        event = self.event()
        if event is None:
            self.clock.move(timeout)
        return event

    def event(self) -> Event | None:
        return super().next(0)

    def unreported_death(self, worker: str, directory: str) -> Death:
        raise AssertionError(f"{worker} lives, and is taken for dead")


def dispatched_by(kind: type[Looks], n: int = 40) -> tuple[Dispatched, str | None]:
    """`n` inputs, on such a backend; and why that stopped early."""
    clock = Clock()
    job = PackedJob(Job(None, nothing, None, None), own=True)
    with kind(job, open_run_log("run", "log.jsonl", captures=False), clock) as backend:
        this = dispatching(range(n), backend, clock)
        stopped = this.dispatcher.run()
    job.close()
    return this, stopped


def test_all_partitions_of_a_lost_worker_are_settled_at_once() -> None:
    """The first worker takes what is sent to it, and is gone; nobody ever reports it."""

    class Losing(Looks):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.lost: list[Partition] = []

        def workers(self) -> dict[str, Worker]:
            return super().workers() if len(self.lost) == 2 else {"gone": worker()}

        def send(self, worker: str, partition: Partition) -> None:
            if worker == "gone":
                self.lost.append(partition)
            else:
                super().send(worker, partition)

        def unreported_death(self, worker: str, directory: str) -> Death:
            assert worker == "gone"
            return Death(worker, directory=directory)

    this, stopped = dispatched_by(Losing)
    assert (stopped, this.statuses) == (None, ["processed"] * 40)


def test_looks_that_show_nobody_end_nothing() -> None:
    """Neither at the beginning nor while partitions are out."""

    class Blinking(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return worker if self.looks % 3 == 2 else None

        def event(self) -> Event | None:
            return super().event() if self.looks % 3 == 1 or self.looks > 40 else None

    this, stopped = dispatched_by(Blinking)
    assert (stopped, this.statuses) == (None, ["processed"] * 40)


def test_a_worker_that_answers_late_is_not_taken_for_dead() -> None:
    """It lives, and is met again for longer than news of a death may take."""

    class Late(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, nanny="its nanny", ready=not 2 < self.looks < 60)

        def event(self) -> Event | None:
            return super().event() if self.looks > 60 else None

    this, stopped = dispatched_by(Late)
    assert (stopped, this.statuses) == (None, ["processed"] * 40)


def test_workers_that_never_answer_are_not_waited_for_without_end() -> None:
    class Deaf(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, ready=False)

    this, stopped = dispatched_by(Deaf)
    assert stopped is not None
    assert stopped.startswith("no worker is left that starts")
    this.ledger.draw(40)
    assert this.statuses == ["left"] * 40


def test_a_run_with_all_handled_is_not_stopped() -> None:
    """The last input is done, and from then on no worker is ever seen."""

    class Leaving(Looks):
        def look(self, worker: Worker) -> Worker | None:
            return worker if self.looks == 1 else None

        def event(self) -> Event | None:
            event = super().event()
            self.clock.move(60)
            return event

    this, stopped = dispatched_by(Leaving, n=1)
    assert (stopped, this.statuses) == (None, ["processed"])


@pytest.mark.parametrize("how", [{"on_error": "stop"}, {"max_failures": 0}])
def test_a_failure_of_the_last_input_stops_nothing(how: dict[str, Any]) -> None:
    def fail(inp: int) -> None:
        raise ValueError(inp)

    with pytest.raises(at_once_dask.RunFailed) as failed:
        run_inline([1], None, fail, **how)
    assert not isinstance(failed.value, at_once_dask.RunStopped)
    assert (failed.value.report.n_failed, failed.value.report.n_left) == (1, 0)


def test_what_a_living_worker_loses_is_nobodys_fault() -> None:
    """Dask says three times that a partition will not come back, and its worker is there."""

    class Forgetting(Looks):
        losses = 0

        def event(self) -> Event | None:
            if self._waiting and self.losses < 3:
                self.losses += 1
                return Broken(self._waiting.popleft().id, CancelledError())
            return super().event()

    this, stopped = dispatched_by(Forgetting, n=1)
    assert (stopped, this.statuses) == (None, ["processed"])


LOST = "5 times in a row its worker was told to go, or was lost with its machine, while it ran"


def test_but_not_without_end() -> None:
    class Forgetful(Looks):
        def event(self) -> Event | None:
            if not self._waiting:
                return None
            return Broken(self._waiting.popleft().id, CancelledError())

    this, stopped = dispatched_by(Forgetful, n=1)
    assert (stopped, this.messages) == (None, [LOST])


def test_another_process_at_the_same_address_is_not_the_same_worker() -> None:
    class Replaced(Looks):
        inferred = 0

        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, directory="first" if self.looks == 1 else "second")

        def event(self) -> Event | None:
            if self.looks > 1 and not self.inferred:
                self._waiting.clear()  # what was sent to the first
            return super().event() if self.looks > 1 else None

        def unreported_death(self, worker: str, directory: str) -> Death:
            self.inferred += 1
            return Death(worker, progress={}, directory=directory)

    this, stopped = dispatched_by(Replaced)
    assert (stopped, this.statuses) == (None, ["processed"] * 40)


def test_deaths_that_nobody_saw_do_not_add_up() -> None:
    """Workers that are gone with their machines before they began anything say nothing of it."""

    class Dying(Looks):
        deaths = 0

        def look(self, worker: Worker) -> Worker | None:
            return replace(worker, directory=f"of process {self.deaths}")

        def event(self) -> Event | None:
            if self._waiting and self.deaths < 3 * BARREN_DEATHS:
                self.deaths += 1
                self._waiting.clear()
                return Died(Death("inline", progress={}))
            return super().event()

    this, stopped = dispatched_by(Dying)
    assert (stopped, this.statuses) == (None, ["processed"] * 40)


# ----- what is sent


@pytest.fixture
def sent() -> list[Partition]:
    """What goes to this process, which stands for two workers."""
    return []


@pytest.fixture
def noting(sent: list[Partition]) -> MakeBackend:
    class Noting(InlineBackend):
        def send(self, worker: str, partition: Partition) -> None:
            sent.append(partition)
            super().send(worker, partition)

    return lambda job, run_log: Noting(job, run_log, threads=2)


def test_what_all_inputs_share_does_not_count_for_each(
    noting: MakeBackend, sent: list[Partition]
) -> None:
    shared = bytes(9 * 2**20)
    report = run_inline([(shared, n) for n in range(2_000)], None, nothing, backend=noting)
    assert report.n_processed == 2_000
    assert len(sent) < 40


@pytest.mark.parametrize("large_first", [True, False])
def test_large_inputs_are_not_pickled_all_together(
    noting: MakeBackend, sent: list[Partition], large_first: bool
) -> None:
    inputs = [b"small"] * 200 + [bytes([n]) * 2**20 for n in range(60)]
    report = run_inline(sorted(inputs, key=len, reverse=large_first), None, nothing, backend=noting)
    assert report.n_processed == 260
    assert max(sum(map(len, partition.packs)) for partition in sent) < 10 * 2**20


def test_failures_that_are_allowed_cost_no_partition_each(
    noting: MakeBackend, sent: list[Partition]
) -> None:
    def work(n: int) -> None:
        if n % 2:
            raise ValueError(n)

    report = run_inline(
        range(4_000), None, work, max_failures=10_000, on_error="return", backend=noting
    )
    assert (report.n_failed, report.n_processed) == (2_000, 2_000)
    assert len(sent) < 40


# ----- all that comes back is as the test says


@pytest.fixture
def backend(clock: Clock) -> ScriptedBackend:
    return ScriptedBackend(clock)


def failure(position: int, **more: Any) -> Failure:
    return Failure(position, "process", "exception", "ValueError", "no", **more)


def outcome(partition: Partition, states: list[int], *failures: Failure) -> MapOutcome:
    """The first inputs of `partition` became this, a second each."""
    return MapOutcome(
        stop=partition.start + len(states),
        states=bytearray(states),
        marks=array("d", range(len(states) + 1)),
        failures=list(failures),
    )


def progress(partition: Partition, states: list[int], **more: Any) -> Progress:
    """The last one in `states` was the last to begin, each a second after the one before."""
    rest = partition.n - len(states)
    given: dict[str, Any] = {
        "start": partition.start,
        "n": partition.n,
        "current": partition.start + len(states) - 1,
        "stop": -1,
        "closing": False,
        "thread": 0,
        "marks": array("d", [*range(len(states)), *[0.0] * (rest + 1)]),
        "states": bytes([*states, *[LEFT] * rest]),
        "failures": {},
        "values": {},
    }
    return Progress(**given | more)


def test_a_short_list_is_handed_out_whole_two_partitions_a_thread(
    backend: ScriptedBackend, clock: Clock
) -> None:
    backend.living = {"w": worker(), "v": worker(threads=2)}
    backend.idle = ScriptedBackend.deliver
    this = dispatching("abcdef", backend, clock)
    assert this.dispatcher.run() is None
    assert backend.inputs == [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]
    assert sorted(address for address, _ in backend.sent) == ["v", "v", "v", "v", "w", "w"]
    assert this.statuses == ["processed"] * 6
    assert [partition.id for partition in backend.partitions] == [f"run-m{n}" for n in range(6)]


def test_what_a_partition_has_not_handled_is_sent_anew(
    backend: ScriptedBackend, clock: Clock
) -> None:
    def half(this: ScriptedBackend) -> None:
        *_, last = this.partitions
        if len(this.sent) == 2:
            first, second = this.partitions
            this.events.append(Delivered(first.id, done(first, 1)))
            this.events.append(Delivered(second.id, done(second)))
        else:
            this.events.append(Delivered(last.id, done(last)))

    backend.idle = half
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert backend.inputs == [["a", "b"], ["c", "d"], ["b"]]
    assert this.statuses == ["processed"] * 4
    # With the next partition a worker hears what was delivered: those progress files may go.
    assert [partition.delivered for partition in backend.partitions] == [(), (), ("run-m0",)]


def test_what_comes_back_twice_counts_once(backend: ScriptedBackend, clock: Clock) -> None:
    def twice(this: ScriptedBackend) -> None:
        (partition,) = this.partitions
        failed = outcome(partition, [FAILED], failure(0))
        this.events.extend([Delivered(partition.id, failed), Delivered(partition.id, failed)])

    backend.idle = twice
    this = dispatching("a", backend, clock)
    assert this.dispatcher.run() is None
    assert (this.statuses, this.messages) == (["failed"], ["no"])


def test_inputs_that_cannot_be_read_together_come_one_by_one(
    backend: ScriptedBackend, clock: Clock
) -> None:
    def unreadable(this: ScriptedBackend) -> None:
        for partition in this.partitions[-2:]:
            bad = MapOutcome(partition.start, unreadable=True)
            this.events.append(
                Delivered(partition.id, done(partition) if partition.singly else bad)
            )

    backend.idle = unreadable
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert [partition.singly for partition in backend.partitions] == [False, False, True, True]
    assert this.statuses == ["processed"] * 4


def test_what_failed_and_has_attempts_left_runs_again_after_a_while(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """The first attempt fails at 1000 s; the second one is sent 0.25 to 0.75 s later."""
    sent_at: list[float] = []

    def fail(this: ScriptedBackend) -> None:
        if len(this.sent) > len(sent_at):
            sent_at.append(clock.now)
            last = this.partitions[-1]
            this.events.append(Delivered(last.id, outcome(last, [FAILED], failure(0))))

    backend.idle = fail
    this = dispatching("a", backend, clock, retries=1)
    assert this.dispatcher.run() is None
    assert [(p.attempt, p.attempts) for p in backend.partitions] == [(1, 2), (2, 2)]
    assert 0.25 <= sent_at[1] - sent_at[0] <= 0.75
    assert this.statuses == ["failed"]
    assert [failed.failure.attempts for failed in this.ledger.failed] == [2]


def test_an_input_that_cannot_be_pickled_fails_alone(
    backend: ScriptedBackend, clock: Clock
) -> None:
    backend.idle = ScriptedBackend.deliver
    this = dispatching(["a", threading.Lock(), "c"], backend, clock)
    assert this.dispatcher.run() is None
    assert this.statuses == ["processed", "failed", "processed"]
    assert [(failed.failure.stage, failed.index) for failed in this.ledger.failed] == [("send", 1)]
    ((failure, _),) = this.logged
    assert failure.final  # it is tried once, whatever `retries` says


# ----- what breaks


def test_a_task_that_fails_as_a_whole_ends_the_run(backend: ScriptedBackend, clock: Clock) -> None:
    error = ImportError("no module named that")
    backend.events.append(Broken("run-m0", error))
    this = dispatching("abc", backend, clock)
    text = (
        "a partition failed as a whole: ImportError: no module named that; see that the functions"
    )
    with pytest.raises(AtOnceError, match=text) as raised:
        this.dispatcher.run()
    assert raised.value.__cause__ is error
    assert backend.ended == [{"w"}]  # the other one may still run
    assert this.dispatcher.in_flight() == []


def test_an_error_of_our_own_is_raised_as_it_is(backend: ScriptedBackend, clock: Clock) -> None:
    error = AtOnceError("the connection is lost")
    backend.events.append(Broken("run-m0", error))
    with pytest.raises(AtOnceError) as raised:
        dispatching("a", backend, clock).dispatcher.run()
    assert raised.value is error


def test_what_interrupts_ends_all_that_runs(backend: ScriptedBackend, clock: Clock) -> None:
    def interrupted() -> None:
        if backend.sent:
            raise KeyboardInterrupt

    this = dispatching("ab", backend, clock, interrupted=interrupted)
    with pytest.raises(KeyboardInterrupt):
        this.dispatcher.run()
    assert backend.ended == [{"w"}]


# ----- who dies


def test_a_death_is_settled_by_what_its_progress_says(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """One input was done, the next one is guilty; the third, and the other partition, go again."""

    def die(this: ScriptedBackend) -> None:
        if len(this.sent) == 2:
            first = this.partitions[0]
            left = {first.id: progress(first, [PROCESSED, PROCESS])}
            this.living = {"w": worker(directory="second")}
            this.events.append(Died(Death("w", at=9.0, exit=-11, progress=left)))
        else:
            this.deliver()

    backend.idle = die
    this = dispatching("abcdef", backend, clock)
    assert this.dispatcher.run() is None
    first, second, *again = backend.inputs
    assert (first, second) == (["a", "b", "c"], ["d", "e", "f"])
    assert sorted(chain(*again)) == ["c", "d", "e", "f"]
    assert this.statuses == ["processed", "failed", *["processed"] * 4]
    assert this.messages == ["its worker died: SIGSEGV"]
    assert [(failure.exit, inp) for failure, inp in this.logged] == [("SIGSEGV", "b")]
    assert backend.dropped == ["run-m0", "run-m1"]
    assert backend.inferred == {}  # its death was reported


def test_what_is_suspect_runs_alone_in_a_process_of_its_own(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """Two ran, one of them ended the worker: each runs again where no other thread is busy."""
    backend.living = {"w": worker(threads=2)}
    left: dict[str, Progress] = {}

    def die(this: ScriptedBackend) -> None:
        if not left:
            left.update({p.id: progress(p, [PROCESS]) for p in this.partitions})
            this.living = {"w": worker(threads=2, directory="second")}
            this.events.append(Died(Death("w", at=9.0, exit=-9, progress=left)))
        else:
            last = this.partitions[-1]
            this.events.append(Delivered(last.id, done(last)))

    backend.idle = die
    this = dispatching("ab", backend, clock)
    assert this.dispatcher.run() is None
    assert [(p.careful, p.singly) for p in backend.partitions] == [(False, False)] * 2 + [
        (True, True)
    ] * 2
    assert this.statuses == ["processed"] * 2


def test_of_a_worker_that_is_gone_nobody_hears_for_a_while_and_then_it_is_given_up(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """Without a nanny after 2.5 s; what it held goes to the one that is left."""
    backend.living = {"w": worker(), "v": worker()}
    gone_at: list[float] = []

    def vanish(this: ScriptedBackend) -> None:
        if not gone_at:
            this.living.pop("w")
            gone_at.append(clock.now)
        this.deliver("v")

    backend.idle = vanish
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert list(backend.inferred) == ["w"]
    assert 2.5 < backend.inferred["w"] - gone_at[0] < 5
    assert this.statuses == ["processed"] * 4


def test_one_that_vanished_while_another_process_came_to_its_address(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """Nobody reports its death. What it held goes again; what the new one holds stays there."""

    def replace(this: ScriptedBackend) -> None:
        this.living = {"w": worker(threads=2, directory="second")}
        if len(this.dropped) == 2:
            this.deliver()

    backend.idle = replace
    this = dispatching(range(100), backend, clock, on_error="stop")
    assert this.dispatcher.run() is None
    assert backend.dropped == ["run-m0", "run-m1"]
    sent = list(chain(*backend.inputs))
    assert backend.inputs[:4] == [list(range(n, n + 8)) for n in (0, 8, 16, 24)]
    assert {n: sent.count(n) for n in range(100)} == {n: 1 + (n < 16) for n in range(100)}
    assert this.statuses == ["processed"] * 100


def test_a_nanny_has_longer_to_report(backend: ScriptedBackend, clock: Clock) -> None:
    """Five seconds; the report comes in time, and nobody looks for what it left."""
    backend.living = {"w": worker(nanny="its nanny"), "v": worker(nanny="another")}
    gone_at: list[float] = []
    reported: list[Event] = []

    def vanish(this: ScriptedBackend) -> None:
        if not gone_at:
            this.living.pop("w")
            gone_at.append(clock.now)
        elif clock.now - gone_at[0] > 4 and not reported:
            reported.append(Died(Death("w", exit=-9, progress={})))
            this.events.extend(reported)
        this.deliver("v")

    backend.idle = vanish
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert backend.inferred == {}
    assert this.statuses == ["processed"] * 4


def test_workers_that_die_before_they_begin_anything_end_the_run(
    backend: ScriptedBackend, clock: Clock
) -> None:
    deaths: list[int] = []

    def die(this: ScriptedBackend) -> None:
        deaths.append(len(deaths))
        this.living = {"w": worker(directory=f"process {len(deaths)}")}
        this.events.append(Died(Death("w", exit=1, progress={})))

    backend.idle = die
    this = dispatching("ab", backend, clock)
    stopped = this.dispatcher.run()
    assert stopped is not None
    assert stopped.startswith("10 workers in a row died before they had started any input")
    assert len(deaths) == BARREN_DEATHS


def test_where_others_start_workers_it_waits_for_the_first_one(
    backend: ScriptedBackend, clock: Clock
) -> None:
    backend.living = {}
    backend.awaits = True
    waited: list[float] = []

    def come(this: ScriptedBackend) -> None:
        waited.append(dispatched.dispatcher.waits)
        if clock.now > 2_000:
            this.living = {"w": worker()}
        this.deliver()

    backend.idle = come
    dispatched = dispatching("ab", backend, clock)
    assert dispatched.dispatcher.run() is None
    assert dispatched.statuses == ["processed"] * 2
    assert 999 < max(waited) < 1_002
    assert dispatched.dispatcher.waits == 0


# ----- machines that come and go


def departed(worker: str, directory: str = "", **left: Progress) -> Died:
    return Died(Death(worker, at=9.0, departed=True, directory=directory, progress=left or None))


def test_what_a_lost_machine_held_runs_elsewhere_and_nobody_is_blamed(
    backend: ScriptedBackend, clock: Clock
) -> None:
    backend.living = {"w": worker(), "v": worker()}

    def lose(this: ScriptedBackend) -> None:
        if this.living.pop("w", None):
            this.events.append(departed("w"))
        this.deliver("v")

    backend.idle = lose
    this = dispatching("abcdefgh", backend, clock)
    assert this.dispatcher.run() is None
    assert this.statuses == ["processed"] * 8
    departures = this.dispatcher.deaths.departures
    assert (departures.workers, departures.inputs) == (1, 2)  # of two partitions one had begun
    assert clock.now - 1_000 < 1


def test_the_input_under_which_five_machines_are_lost_has_failed(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """Among its neighbours it is searched for; they have failed in nothing."""
    lost: list[str] = []

    def lose(this: ScriptedBackend) -> None:
        (there,) = this.living
        if any("c" in this.inputs_of(p) for address, p in this.sent if address == there):
            lost.append(there)
            this.living = {f"w{len(lost)}": worker()}
            this.events.append(departed(there))
        else:
            this.deliver(there)

    backend.idle = lose
    this = dispatching("abcdefgh", backend, clock)
    assert this.dispatcher.run() is None
    assert this.statuses == ["processed"] * 2 + ["failed"] + ["processed"] * 5
    assert (this.messages, len(lost)) == ([LOST], 5)
    assert [failure.kind for failure, _ in this.logged] == ["lost"]


def test_nothing_is_sent_while_the_connection_is_away(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """What was out comes back broken; it is sent anew when the connection is there again."""

    def lose(this: ScriptedBackend) -> None:
        if len(this.sent) == 2 and this.connected:
            this.connected = False
            this.events.extend(Broken(p.id, CancelledError(), here=True) for p in this.partitions)
        elif not this.connected and clock.now > 1_010:
            this.connected = True
        elif this.connected:
            this.deliver()

    backend.idle = lose
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert (len(backend.partitions), this.statuses) == (4, ["processed"] * 4)
    assert clock.now > 1_010


# ----- what is asked back


def test_what_a_busy_worker_has_not_begun_goes_to_one_that_is_idle(
    backend: ScriptedBackend, clock: Clock
) -> None:
    backend.living = {"w": worker(), "v": worker()}

    def steal(this: ScriptedBackend) -> None:
        """v is done with all it has; of each of its partitions w has begun the first input."""
        this.deliver("v")
        while this.asked:
            address, wanted, stopping = this.asked.pop()
            assert (address, stopping) == ("w", False)
            this.events.append(Reclaimed({id: start + 1 for id, start in wanted}))
            for id, _ in wanted:
                (partition,) = (p for p in this.partitions if p.id == id)
                this.events.append(Delivered(id, done(partition, 1)))

    backend.idle = steal
    this = dispatching("abcdefgh", backend, clock)
    assert this.dispatcher.run() is None
    assert this.statuses == ["processed"] * 8
    assert backend.inputs[:4] == [["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]]
    assert [address for address, _ in backend.sent[:4]] == ["w", "v", "w", "v"]
    assert sorted(chain(*backend.inputs[4:])) == ["b", "f"]


class Seen(ScriptedBackend):
    """One whose progress is seen here: w has started the first input of its first partition."""

    sees_progress = True

    def unstarted(self, worker: str, id: str) -> int | None:
        return self.sizes[id] - 1 if id == self.started.get(worker) else None

    def take_back(self, worker: str, id: str, start: int) -> int | None:
        self.taken.append(id)
        if id != self.started.get(worker):
            return start
        self.sizes[id] -= self.sizes[id] // 2
        return start + self.sizes[id]

    def send(self, worker: str, partition: Partition) -> None:
        super().send(worker, partition)
        self.sizes[partition.id] = partition.n
        self.started.setdefault(worker, partition.id)

    def __init__(self, clock: Clock, *workers: str) -> None:
        super().__init__(clock, *workers)
        self.taken: list[str] = []
        self.sizes: dict[str, int] = {}
        self.started: dict[str, str] = {}


def test_where_progress_is_seen_nobody_is_asked_and_an_idle_worker_gets_half(clock: Clock) -> None:
    """First what has not started at all, for that is the most; then half of what has."""
    backend = Seen(clock, "w", "v")

    def idle(this: ScriptedBackend) -> None:
        if len(this.sent) < 7:
            this.deliver("v")
            return
        for id, n in backend.sizes.items():
            (partition,) = (p for p in this.partitions if p.id == id)
            this.events.append(Delivered(id, done(partition, 0 if id == "run-m2" else n)))

    backend.idle = idle
    this = dispatching(range(40), backend, clock)
    assert this.dispatcher.run() is None
    assert this.statuses == ["processed"] * 40
    assert backend.asked == []
    assert [address for address, _ in backend.sent] == ["w", "v", "w", "v", "v", "v", "v"]
    assert [len(inputs) for inputs in backend.inputs] == [10, 10, 10, 10, 10, 5, 2]
    assert backend.taken[:2] == ["run-m2", "run-m0"]


def test_many_workers_have_all_started_before_any_gets_a_second_partition(clock: Clock) -> None:
    names = [f"w{n}" for n in range(20)]
    backend = ScriptedBackend(clock, *names)
    at = []

    def idle(this: ScriptedBackend) -> None:
        at.append((clock.now, len(this.sent)))
        if len(this.sent) == 40:
            this.deliver()

    backend.idle = idle
    this = dispatching(range(40), backend, clock)
    assert this.dispatcher.run() is None
    assert [address for address, _ in backend.sent] == names * 2
    assert at[0][1] == 20
    assert min(now for now, n_sent in at if n_sent == 40) >= at[0][0] + 0.5


def test_nothing_is_asked_back_that_was_just_sent(backend: ScriptedBackend, clock: Clock) -> None:
    """What is out for less than 0.05 s may be on its way."""
    backend.living = {"w": worker(), "v": worker()}

    def idle(this: ScriptedBackend) -> None:
        this.deliver("v")
        if not this.events and clock.now == 1_000:
            clock.move(0.049)
            this.events.append(Reclaimed({}))
        elif not this.events:
            this.deliver()

    backend.idle = idle
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert backend.asked == []


def test_what_a_paused_worker_has_not_begun_is_asked_back_as_if_the_run_stopped(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """It may never begin it; what was given back whole is dropped, and goes elsewhere."""
    backend.living = {"w": worker(), "v": worker()}

    answered: list[Any] = []

    def pause(this: ScriptedBackend) -> None:
        this.living["w"] = worker(paused=True)
        new = [wanted for _, wanted, stopping in this.asked if stopping][len(answered) :]
        this.events.extend(Reclaimed(dict(wanted)) for wanted in new)
        answered.extend(new)
        this.deliver("v")

    backend.idle = pause
    this = dispatching("abcd", backend, clock)
    assert this.dispatcher.run() is None
    assert {address for address, _, stopping in backend.asked if stopping} == {"w"}
    assert this.statuses == ["processed"] * 4
    assert len(backend.dropped) == 2


# ----- when a run stops


def stopping(backend: ScriptedBackend, clock: Clock) -> Dispatched:
    """The first of two partitions brings the failure that ends the run."""

    def fail(this: ScriptedBackend) -> None:
        if not any(stopping for _, _, stopping in this.asked) and not this.events:
            first = this.partitions[0]
            this.events.append(Delivered(first.id, outcome(first, [FAILED], failure(0))))

    backend.idle = fail
    return dispatching("abcd", backend, clock, on_error="stop")


def test_what_runs_when_a_run_stops_has_a_second_to_finish(
    backend: ScriptedBackend, clock: Clock
) -> None:
    this = stopping(backend, clock)
    assert this.dispatcher.run() == "an input failed, and on_error is 'stop'"
    assert clock.now == pytest.approx(1_001)
    assert backend.asked == [("w", [("run-m1", 2)], True)]
    assert backend.ended == [{"w"}]
    assert this.dispatcher.in_flight() == []
    assert this.statuses == ["failed", "left", "left", "left"]


def test_what_comes_in_that_second_counts_and_its_worker_lives_on(
    backend: ScriptedBackend, clock: Clock
) -> None:
    this = stopping(backend, clock)
    fail = backend.idle

    def finish(this: ScriptedBackend) -> None:
        fail(this)
        if any(stopping for _, _, stopping in this.asked):
            second = this.partitions[1]
            this.events.append(Reclaimed({second.id: 3}))
            this.events.append(Delivered(second.id, done(second, 1)))

    backend.idle = finish
    assert this.dispatcher.run() == "an input failed, and on_error is 'stop'"
    assert backend.ended == [set()]
    assert this.statuses == ["failed", "left", "processed", "left"]
    assert clock.now == 1_000


def test_a_worker_that_dies_in_that_second_takes_what_it_held_along(
    backend: ScriptedBackend, clock: Clock
) -> None:
    """Nobody is blamed any more: it is left for the next run."""
    this = stopping(backend, clock)
    fail = backend.idle

    def die(this: ScriptedBackend) -> None:
        fail(this)
        if any(stopping for _, _, stopping in this.asked):
            this.events.append(Died(Death("w", exit=-9)))

    backend.idle = die
    assert this.dispatcher.run() == "an input failed, and on_error is 'stop'"
    assert backend.ended == [set()]
    assert this.statuses == ["failed", "left", "left", "left"]


@pytest.mark.parametrize("error", [CancelledError(), ImportError("no module named that")])
def test_what_breaks_in_that_second_is_waited_for_no_more(
    backend: ScriptedBackend, clock: Clock, error: Exception
) -> None:
    """And ends nothing: the run has ended."""
    this = stopping(backend, clock)
    fail = backend.idle

    def break_down(this: ScriptedBackend) -> None:
        fail(this)
        if any(stopping for _, _, stopping in this.asked):
            this.events.append(Broken("run-m1", error))

    backend.idle = break_down
    assert this.dispatcher.run() == "an input failed, and on_error is 'stop'"
    assert clock.now == 1_000
    assert this.statuses == ["failed", "left", "left", "left"]
