"""Who did it: what becomes of the partitions of a worker that died.

For each partition that the dead worker held there is its crumb, or none. From these follow, in
this order, what had been done and need not be done again, who is guilty, and what runs once more:

- Inputs that were passed count as the crumb says. In a map-reduce their values died with the
  process, unless they were put into the crumb: these inputs run `again`.
- One input that was running is guilty. Of several, in a worker with several threads, it is not
  known which one it was: all run `again`, each alone; whoever dies alone is guilty.
- What was not begun goes back as if nothing had happened.
- Where there is no crumb to read, all may have run and any may be guilty: all run `again`, alone.

What runs `again` has its process for itself and leaves what it gives in its crumb. So nothing runs
a third time, however many die.
"""

from __future__ import annotations

import signal
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from dask.utils import format_bytes

from at_once_dask.driver.inputs import Chunk
from at_once_dask.protocol.failure import Failure
from at_once_dask.protocol.progress_file import Trace
from at_once_dask.protocol.status import COMBINE, FAILED, LEFT, OPEN, is_final, stage
from at_once_dask.protocol.task import Outcome
from at_once_dask.user_code.text import cut_start
from at_once_dask.worker.last_stack import NOWHERE, Stack

LAST_WORDS_LIMIT = 500  # characters


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
    traces : dict of str to Trace, or None
        What its crumbs tell, by partition; None where they could not be read.
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
    """

    worker: str
    at: float = 0.0
    epoch: float = 0.0
    exit: int | None = None
    traces: Mapping[str, Trace] | None = None
    overdue: tuple[str, int] | None = None
    timeout: float | None = None
    memory: int | None = None
    stack: Stack = NOWHERE
    last_words: str = ""

    def running(self) -> list[str]:
        """The partitions that were being worked on."""
        return [id for id, trace in (self.traces or {}).items() if trace.running]

    def guilty(self) -> tuple[str, int] | None:
        """The partition and position that ended the process, when that is certain."""
        running = self.running()
        if self.traces is None or not running:
            return None
        if self.overdue is not None:
            # It may have gone on to the next input before the end reached it: that is innocent.
            id, position = self.overdue
            if id not in running or self.traces[id].current != position:
                return None
        elif len(running) > 1:
            return None
        else:
            id = running[0]
        trace = self.traces[id]
        if trace.closing or trace.state == COMBINE or (trace.state == OPEN and trace.n > 1):
            return None  # a key's fault, not the input's; or any input's of the partition
        return id, trace.current

    def combining(self) -> bool:
        """Whether it may have died in `combine_fn`."""
        traces = (self.traces or {}).values()
        return any(trace.running and trace.state == COMBINE for trace in traces)


@dataclass(frozen=True)
class Settled:
    """What follows for one partition.

    Attributes
    ----------
    outcomes : list of (int, Outcome)
        What had been done, with the guilty input as a failure: position of the first, and outcome.
    chunks : list of Chunk
        What is still to be done.
    """

    outcomes: list[tuple[int, Outcome]]
    chunks: list[Chunk]


def settle(id: str, chunk: Chunk, death: Death, reducing: bool, valued: bool) -> Settled:
    """What becomes of partition `id`, of which `chunk` is not yet taken back.

    Parameters
    ----------
    id, chunk, death
    reducing : bool
        Whether it is of the reduction: its inputs are keys.
    valued : bool
        Whether inputs give values that are lost with the process.
    """
    if death.traces is None:
        return _without_traces(chunk, death, reducing)
    trace = death.traces.get(id)
    if trace is None or not trace.n:
        return Settled([], [chunk])
    if trace.running and trace.state == OPEN and trace.n > 1:
        return Settled([], [replace(chunk, singly=True)])
    guilty = death.guilty()
    fates = [
        _fate(trace, position, guilty == (id, position), valued)
        for position in range(chunk.start, chunk.stop)
    ]
    settled = Settled([], [])
    stop = chunk.start
    for fate, run in groupby(fates):
        start, stop = stop, stop + len(list(run))
        part = chunk.part(start, stop)
        if fate == "done":
            settled.outcomes.append((part.start, _recovered(trace, part, death)))
        elif fate == "guilty":
            settled.outcomes.append((part.start, _blamed(trace, part, death, reducing)))
        elif fate == "again":
            settled.chunks.extend(_careful(part))
        elif fate == "suspect":
            settled.chunks.extend(_careful(part, alone=True))
        else:
            settled.chunks.append(part)
    return settled


def _fate(trace: Trace, position: int, is_guilty: bool, valued: bool) -> str:
    """Of one input: done, guilty, again, suspect or untouched."""
    if is_guilty:
        return "guilty"
    began = trace.current if trace.stop < 0 else trace.stop - 1
    if position > began:
        return "untouched"
    state = trace.states[position - trace.start]
    if not is_final(state):
        # Of the keys before the current one only parts were folded.
        return "suspect" if position == trace.current else "untouched"
    if state == LEFT:  # claimed, and no more
        return "untouched"
    if state == FAILED:
        return "done" if position in trace.failures else "again"
    return "done" if not valued or position in trace.values else "again"


def _careful(chunk: Chunk, alone: bool = False) -> Iterator[Chunk]:
    again = replace(chunk, singly=True, again=True)
    return iter(again.split(1) if alone else [again])


def _recovered(trace: Trace, part: Chunk, death: Death) -> Outcome:
    first, last = part.start - trace.start, part.stop - trace.start
    marks = trace.marks[first : last + 1]
    if not marks[-1]:
        marks[-1] = death.at
    return Outcome(
        stop=part.stop,
        worker=death.worker,
        states=bytearray(trace.states[first:last]),
        marks=marks,
        epoch=death.epoch,
        failures=[trace.failures[p] for p in range(part.start, part.stop) if p in trace.failures],
        apart=[(p, trace.values[p]) for p in range(part.start, part.stop) if p in trace.values],
    )


def _blamed(trace: Trace, part: Chunk, death: Death, reducing: bool) -> Outcome:
    offset = part.start - trace.start
    began = trace.marks[offset]
    where = "reduce" if reducing else stage(trace.states[offset])
    failure = describe(death, part.start, where, death.at - began)
    return Outcome(
        stop=part.stop,
        worker=death.worker,
        states=bytearray([FAILED]),
        marks=array("d", [began, death.at]),
        epoch=death.epoch,
        failures=[failure],
    )


def _without_traces(chunk: Chunk, death: Death, reducing: bool) -> Settled:
    """All may have run; one that ran alone, with its process for itself, is guilty."""
    if not (chunk.again and len(chunk) == 1):
        return Settled([], list(_careful(chunk, alone=True)))
    failure = describe(death, chunk.start, "reduce" if reducing else "process", 0.0)
    outcome = Outcome(
        stop=chunk.stop,
        worker=death.worker,
        states=bytearray([FAILED]),
        marks=array("d", [death.at, death.at]),
        epoch=death.epoch,
        failures=[failure],
    )
    return Settled([(chunk.start, outcome)], [])


def describe(death: Death, position: int, stage: str, seconds: float) -> Failure:
    """The failure of the input that a worker died of."""
    exit = exit_name(death.exit)
    if death.memory is not None:
        kind, error = "memory", "MemoryError"
        message = f"its worker was ended when it held {format_bytes(death.memory)} of memory"
    elif death.overdue is not None:
        kind, error = "timeout", "TimeoutError"
        message = f"longer than timeout={death.timeout:g} s; its worker was ended"
    else:
        kind, error = "crash", exit or "WorkerDied"
        message = f"its worker died: {exit}" if exit else "its worker died; nobody saw how"
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
        seconds=seconds,
        exit=exit,
    )


def exit_name(code: int | None) -> str | None:
    """Of an exit code as Python gives it; None where it is not known.

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
