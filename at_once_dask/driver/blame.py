"""Who did it: what becomes of the partitions of a worker that died.

For each partition that the dead worker held there is its progress file, or none. These say, in this
order, what had been done and need not be done again, who is guilty, and what runs once more:

- Inputs that were passed count as the progress file says. In a map-reduce their values died with
  the process, unless they were put into the progress file: these inputs run `again`.
- One input that was running is guilty. Of several, in a worker with several threads, the one whose
  thread wrote the last stack is; where there is none, all run `again`, each alone; whoever dies
  alone is guilty.
- Nobody is guilty where the worker was told to go, or its machine is lost: its nanny is gone, too.
  What it held runs elsewhere. An input that has lost its worker so five times in a row has failed.
- Where tasks of others ran beside ours in the same process, one of them may be guilty: the input
  runs `again`, and is blamed at the fifth death.
- Without a nanny nobody can tell a crash from a lost machine: an input runs `again`, alone, and is
  blamed when it has lost its worker alone for the second time.
- What had not started goes back as if nothing had happened.
- Where there is no progress file to read, all may have run and any may be guilty: all run `again`,
  alone.

What runs `again` has its process for itself and leaves what it gives in its progress file. So
deaths of own workers make nothing run a third time, however many die.
"""

from __future__ import annotations

import signal
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from dask.utils import format_bytes

from at_once_dask.driver.inputs import Chunk
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import Progress
from at_once_dask.protocol.status import COMBINE, FAILED, LEFT, OPEN, is_final, stage
from at_once_dask.protocol.task import MapOutcome, Outcome, ReduceOutcome
from at_once_dask.user_code.text import cut_start
from at_once_dask.worker.last_stack import NOWHERE, Stack

LAST_WORDS_LIMIT = 500  # characters
LOSSES = 5  # in a row that an input takes, for which nobody can be blamed; then it has failed
SEARCHED = 2  # losses of an input among others; then each of them runs alone
ALONE = 2  # losses of an input alone, in workers without a nanny; then it is guilty

Count = Callable[[int], int]  # how often in a row an input has lost its worker, now included


@dataclass(frozen=True)
class Death:
    """The end of a worker process, as far as it is known.

    Attributes
    ----------
    worker : str
        The address.
    at : float
        When (``time.monotonic`` of its host), and `epoch`, that clock's zero since 1970-01-01 UTC.
    epoch : float
    exit : int or None
        The exit code, minus the number of a signal; None where nobody could tell.
    progress : dict of str to Progress, or None
        What its progress files say, by partition; None where they could not be read.
    overdue : (str, int) or None
        Partition and position that it was ended for, past the time limit.
    timeout : float or None
        That limit, in seconds.
    memory : int or None
        What it held, in bytes, when it was ended for that.
    stack : Stack
        Where it was when it died.
    last_words : str
        What was written to its file descriptors last.
    directory : str
        That of the process, where more than one may have had the address; else empty.
    departed : bool
        Whether no input can be behind it: it was told to go, or its machine is lost.
    beside : int
        How many tasks of others were being worked on in the same process.
    host : str
        The name of its host, or its network address.
    """

    worker: str
    at: float = 0.0
    epoch: float = 0.0
    exit: int | None = None
    progress: Mapping[str, Progress] | None = None
    overdue: tuple[str, int] | None = None
    timeout: float | None = None
    memory: int | None = None
    stack: Stack = NOWHERE
    last_words: str = ""
    directory: str = ""
    departed: bool = False
    beside: int = 0
    host: str = ""

    def running(self) -> list[str]:
        """The partitions that were being worked on."""
        return [id for id, found in (self.progress or {}).items() if found.running]

    def guilty(self) -> tuple[str, int] | None:
        """The partition and position that ended the process, when that is certain."""
        running = self.running()
        if self.progress is None or not running or self.departed:
            return None
        ended = [id for id in running if self.progress[id].thread == self.stack.thread]
        if self.overdue is not None:
            # It may have gone on to the next input before the end reached it: that is innocent.
            id, position = self.overdue
            if id not in running or self.progress[id].current != position:
                return None
        elif ended:
            id = ended[0]
        elif len(running) > 1 or self.beside or self.exit is None:
            return None
        else:
            id = running[0]
        found = self.progress[id]
        if found.closing or found.state == COMBINE or (found.state == OPEN and found.n > 1):
            return None  # a key's fault, not the input's; or any input's of the partition
        return id, found.current

    def combining(self) -> bool:
        """Whether it may have died in `combine_fn`."""
        found = (self.progress or {}).values()
        return any(one.running and one.state == COMBINE for one in found)


@dataclass(frozen=True)
class Settled:
    """The consequences for one partition.

    Attributes
    ----------
    outcomes : list of (int, Outcome)
        What had been done, with the guilty input as a failure: position of the first, and outcome.
    chunks : list of Chunk
        What is still to be done.
    repeated : int
        How many inputs of that may have run already.
    """

    outcomes: list[tuple[int, Outcome]]
    chunks: list[Chunk]
    repeated: int = 0


@dataclass(frozen=True)
class Case:
    """One partition that a dead worker held.

    Attributes
    ----------
    id : str
    chunk : Chunk
        The part of it that is not yet taken back.
    reducing : bool
        Whether it is of the reduction: its inputs are keys.
    valued : bool
        Whether inputs give values that are lost with the process.
    count : callable
        Counts a loss of the input at a position; how many there were in a row.
    started : bool
        Whether it was its turn, where no progress file tells.
    """

    id: str
    chunk: Chunk
    reducing: bool
    valued: bool
    count: Count
    started: bool = True

    @property
    def is_alone(self) -> bool:
        """Whether it was one input, with its process for itself."""
        return self.chunk.again and len(self.chunk) == 1


def settle(case: Case, death: Death) -> Settled:
    """Decide what becomes of a partition."""
    if death.progress is None:
        return _without_progress(case, death)
    id, chunk = case.id, case.chunk
    progress = death.progress.get(id)
    if progress is None or not progress.n:
        return Settled([], [chunk])
    if progress.running and progress.state == OPEN and progress.n > 1 and not death.departed:
        return Settled([], [replace(chunk, singly=True)])
    guilty = death.guilty()
    fates = [
        _fate(progress, position, guilty == (id, position), case.valued)
        for position in range(chunk.start, chunk.stop)
    ]
    settled = Settled([], [])
    stop = chunk.start
    for fate, run in groupby(fates):
        start, stop = stop, stop + len(list(run))
        part = chunk.part(start, stop)
        if fate == "done":
            outcome = _recovered(progress, part, death, case.reducing)
            settled.outcomes.append((part.start, outcome))
        elif fate == "guilty":
            settled.outcomes.append((part.start, _blamed(progress, part, death, case.reducing)))
        elif fate == "again":
            settled.chunks.extend(_careful(part))
        elif fate == "suspect":
            _suspect(settled, replace(case, chunk=part), death, progress)
        else:
            settled.chunks.append(part)
    return replace(settled, repeated=fates.count("again") + fates.count("suspect"))


def _suspect(settled: Settled, case: Case, death: Death, progress: Progress) -> None:
    """One input that was running, and may be guilty: it runs again, or has failed."""
    if _has_failed(case, death):
        settled.outcomes.append(
            (case.chunk.start, _blamed(progress, case.chunk, death, case.reducing))
        )
    elif death.departed:
        settled.chunks.append(case.chunk)
    else:
        settled.chunks.extend(_careful(case.chunk, alone=True))


def _has_failed(case: Case, death: Death) -> bool:
    """Whether this loss is one too many for the one input of the case."""
    if death.departed or death.beside:
        return case.count(case.chunk.start) >= LOSSES
    if death.exit is None:
        return case.is_alone and case.count(case.chunk.start) >= ALONE
    return False


def _fate(progress: Progress, position: int, is_guilty: bool, valued: bool) -> str:
    """Decide what becomes of one input: done, guilty, again, suspect or untouched."""
    if is_guilty:
        return "guilty"
    began = progress.current if progress.stop < 0 else progress.stop - 1
    if position > began:
        return "untouched"
    state = progress.states[position - progress.start]
    if not is_final(state):
        # Of the keys before the current one only parts were folded.
        return "suspect" if position == progress.current else "untouched"
    if state == LEFT:  # claimed, and no more
        return "untouched"
    if state == FAILED:
        return "done" if position in progress.failures else "again"
    return "done" if not valued or position in progress.values else "again"


def _careful(chunk: Chunk, alone: bool = False) -> Iterator[Chunk]:
    again = replace(chunk, singly=True, again=True)
    return iter(again.split(1) if alone else [again])


def _recovered(progress: Progress, part: Chunk, death: Death, reducing: bool) -> Outcome:
    first, last = part.start - progress.start, part.stop - progress.start
    marks = progress.marks[first : last + 1]
    if not marks[-1]:
        marks[-1] = death.at
    positions = range(part.start, part.stop)
    common: dict[str, Any] = {
        "stop": part.stop,
        "worker": death.worker,
        "states": bytearray(progress.states[first:last]),
        "marks": marks,
        "epoch": death.epoch,
        "failures": [progress.failures[p] for p in positions if p in progress.failures],
    }
    kept = [(p, progress.values[p]) for p in positions if p in progress.values]
    return ReduceOutcome(**common, values=kept) if reducing else MapOutcome(**common, apart=kept)


def _blamed(progress: Progress, part: Chunk, death: Death, reducing: bool) -> Outcome:
    offset = part.start - progress.start
    where = "reduce" if reducing else stage(progress.states[offset])
    return _failed(part, death, where, progress.marks[offset], reducing)


def _without_progress(case: Case, death: Death) -> Settled:
    """All may have run; one that ran alone, with its process for itself, is guilty.

    Where nobody is, all are counted; when some were there twice, each runs alone: perhaps it is one
    of them that ends machines.
    """
    chunk = case.chunk
    if not case.started and (death.departed or death.exit is None):
        return Settled([], [chunk])
    if death.departed and len(chunk) > 1:
        is_lost_often = max(map(case.count, range(chunk.start, chunk.stop))) >= SEARCHED
        chunks = list(_careful(chunk, alone=True)) if is_lost_often else [chunk]
        return Settled([], chunks, len(chunk))
    knows_nobody = death.departed or death.beside or death.exit is None
    if _has_failed(case, death) if knows_nobody else case.is_alone:
        where = "reduce" if case.reducing else "process"
        outcome = _failed(chunk, death, where, death.at, case.reducing)
        return Settled([(chunk.start, outcome)], [])
    chunks = [chunk] if death.departed else list(_careful(chunk, alone=True))
    return Settled([], chunks, len(chunk))


def _failed(part: Chunk, death: Death, stage: str, since: float, reducing: bool) -> Outcome:
    """The one input of `part` failed by this death."""
    kind = ReduceOutcome if reducing else MapOutcome
    return kind(
        stop=part.stop,
        worker=death.worker,
        states=bytearray([FAILED]),
        marks=array("d", [since, death.at]),
        epoch=death.epoch,
        failures=[describe(death, part.start, stage, death.at - since)],
    )


_NOBODY = (
    "nobody saw how, for it had no nanny: that would have told whether it was lost with its machine"
)


def describe(death: Death, position: int, stage: str, seconds: float) -> Failure:
    """The failure of the input that a worker died of."""
    exit = exit_name(death.exit)
    if death.memory is not None:
        kind, error = "memory", "MemoryError"
        message = f"its worker was ended when it held {format_bytes(death.memory)} of memory"
    elif death.overdue is not None:
        kind, error = "timeout", "TimeoutError"
        message = f"longer than timeout={death.timeout:g} s; its worker was ended"
    elif death.departed:
        kind, error = "lost", "WorkerLost"
        message = (
            f"{LOSSES} times in a row its worker was told to go, or was lost with its machine,"
            " while it ran"
        )
    else:
        kind, error = "crash", exit or "WorkerDied"
        message = f"its worker died: {exit}" if exit else f"its worker died; {_NOBODY}"
        if death.beside:
            message += f"; {LOSSES} times in a row, each time beside a task of somebody else"
        if death.last_words:
            message += f"; it wrote: {cut_start(death.last_words, LAST_WORDS_LIMIT)}"
    return Failure(
        position=position,
        stage=stage,
        kind=kind,
        error=error,
        message=message,
        traceback=death.stack.text,
        where=death.stack.where,
        worker=death.worker,
        host=death.host,
        seconds=seconds,
        exit=exit,
    )


def exit_name(code: int | None) -> str | None:
    """The name of an exit code as Python gives it; None where it is not known.

    >>> exit_name(-11), exit_name(3)
    ('SIGSEGV', 'exit 3')
    """
    if code is None:
        return None
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
