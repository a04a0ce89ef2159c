"""The inputs in the order of use: drawn as they are needed, in chunks; what waits to run again."""

from __future__ import annotations

import heapq
import math
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, groupby
from typing import Any

from toolz import partition_all

from at_once_dask.cluster.interrupts import Interrupts
from at_once_dask.protocol.failure import Failure
from at_once_dask.user_code import pickling

BACKOFF_SECONDS = 0.5  # before the second attempt; doubled for each further one
BACKOFF_LIMIT = 60.0
DRAW_SECONDS = 0.05  # what an iterator gives in this time is sent off
FIRST = 8  # inputs drawn to see whether there are any


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring inputs in the driver: those of a partition, or what came back of one.

    `singly`: to be pickled each alone, after unpickling them together failed on a worker.
    `again`: these ran before, in a process that died; what they give now must not get lost, and
    nobody else may take them along. `avoid`: the address of the host that they have failed on.
    """

    start: int
    inputs: list[Any]
    singly: bool = False
    again: bool = False
    avoid: str = ""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def stop(self) -> int:
        return self.start + len(self.inputs)

    def part(self, first: int, stop: int) -> Chunk:
        """The inputs at positions `first` to `stop`, without `stop`."""
        return replace(
            self, start=first, inputs=self.inputs[first - self.start : stop - self.start]
        )

    def split(self, n: int) -> list[Chunk]:
        """Chunks of `n` inputs, the last one perhaps of fewer."""
        parts = zip(count(self.start, n), partition_all(n, self.inputs), strict=False)
        return [replace(self, start=first, inputs=list(inputs)) for first, inputs in parts]

    def pack(self) -> tuple[bytes, ...]:
        """Pickled for the way to a worker; raises when an input cannot be pickled."""
        if self.singly:
            return tuple(pickling.dumps(inp) for inp in self.inputs)
        return (pickling.dumps(self.inputs),)


class Inputs:
    """Gives out chunks: first what came back, then what is drawn anew.

    Parameters
    ----------
    inputs : iterable
        Consumed lazily.
    total : int or None
        How many there are, where that is known.
    order : array of int or None
        For each position in the order of use the one in the list as given.
    interrupts : Interrupts, optional
        May break off an iterator that waits.

    Attributes
    ----------
    drawn : int
        How many inputs were drawn so far.
    error : BaseException or None
        What the iterable raised; that counts as its end.
    at_end : bool
        Whether all inputs were drawn.
    """

    def __init__(
        self,
        inputs: Iterable[Any],
        total: int | None = None,
        order: array[int] | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.total = total
        self.order = order
        self.drawn = 0
        self.error: BaseException | None = None
        self.at_end = False
        self._interrupts = Interrupts() if interrupts is None else interrupts
        self._inputs = inputs
        self._iterator: Iterator[Any] | None = None
        self._back: deque[Chunk] = deque()
        self._again: deque[Chunk] = deque()
        self._n_back = 0  # inputs in both: they may be chunks of one, and very many

    @property
    def left(self) -> int | None:
        """How many inputs are still to be given out, where that is known."""
        if self.total is None:
            return None
        return max(0, self.total - self.drawn) + self._n_back

    def is_empty(self) -> bool:
        """Whether nothing is left to give out; draws a few inputs to find out."""
        if not self._back and not self._again:
            self.give_back(self._draw(FIRST))
        return not self._back and not self._again

    def has_again(self) -> bool:
        """Whether some are to run a second time."""
        return bool(self._again)

    def take(self, n: int) -> Chunk | None:
        """The next inputs, `n` at most; None at the end."""
        if not self._back:
            return self._draw(n) or None
        chunk = self._cut(self._back, n)
        # Of what is only just being made nothing waits for more.
        wanted = self.total is not None and len(chunk) < n and not chunk.singly
        if wanted and chunk.stop == self.drawn:
            more = self._draw(n - len(chunk)).inputs
            chunk = replace(chunk, inputs=[*chunk.inputs, *more])
        return chunk

    def take_again(self, n: int) -> Chunk:
        """The next of those that run a second time, `n` at most."""
        return self._cut(self._again, n)

    def give_back(self, chunk: Chunk) -> None:
        """Take `chunk` back, to be given out again before anything new."""
        if chunk:
            (self._again if chunk.again else self._back).append(chunk)
            self._n_back += len(chunk)

    def _cut(self, chunks: deque[Chunk], n: int) -> Chunk:
        """The first `n` inputs of the first chunk; the rest of it stays."""
        chunk = chunks.popleft()
        if len(chunk) > n:
            chunks.appendleft(chunk.part(chunk.start + n, chunk.stop))
            chunk = chunk.part(chunk.start, chunk.start + n)
        self._n_back -= len(chunk)
        return chunk

    def indices(self, chunk: Chunk) -> array[int] | None:
        """The positions of `chunk` in the list as given, where they differ."""
        return None if self.order is None else self.order[chunk.start : chunk.stop]

    def _draw(self, n: int) -> Chunk:
        """Draw `n` inputs, or as many as come in a short time: a slow iterator starves nobody."""
        inputs: list[Any] = []
        with self._interrupts.at_once():
            try:
                self._draw_into(inputs, n)
            except BaseException as error:
                if self._interrupts.is_behind(error):
                    raise
                self.error = error
                self.at_end = True
                self._iterator = iter(())
        self.drawn += len(inputs)
        return Chunk(self.drawn - len(inputs), inputs)

    def _draw_into(self, inputs: list[Any], n: int) -> None:
        end = time.monotonic() + DRAW_SECONDS
        if self._iterator is None:
            self._iterator = iter(self._inputs)
        for inp in self._iterator:
            inputs.append(inp)
            if len(inputs) == n or time.monotonic() > end:
                return
        self.at_end = True


class Retries:
    """Which inputs wait for a further attempt, and how many attempts each has had.

    Parameters
    ----------
    most : int
        Further attempts for an input that failed.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._failed: dict[int, int] = {}  # attempts that failed, by position
        self._losses: Counter[int] = Counter()  # by position
        self._waiting: list[tuple[float, int, Chunk]] = []  # a heap: due, position, inputs

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def attempt(self, position: int) -> int:
        """Which attempt the next one is, from 1."""
        return 1 + self._failed.get(position, 0)

    @property
    def attempts(self) -> int:
        """How many attempts each input gets."""
        return 1 + self._most

    def count(self, failure: Failure) -> bool:
        """Count this failure; whether its input has failed for good."""
        failure.attempts = self._failed[failure.position] = self.attempt(failure.position)
        return failure.attempts > self._most or failure.final

    def wait(self, inputs: Mapping[int, Any], now: float, host: str = "") -> None:
        """Run these of one partition, by position, again after a while: exponential, with jitter.

        They failed on `host`, and get another one, where there is one.

        Neighbours stay together, who failed equally often: a million failures are no million
        partitions.
        """
        place = count()
        for _, some in groupby(sorted(inputs), lambda p: (p - next(place), self._failed[p])):
            positions = list(some)
            first, attempts = positions[0], self._failed[positions[0]]
            backoff = min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2 ** (attempts - 1))
            due = now + backoff * random.uniform(0.5, 1.5)
            again = [inputs[position] for position in positions]
            self.postpone(Chunk(first, again, singly=True, avoid=host), due)

    def postpone(self, chunk: Chunk, due: float) -> None:
        """Run these again from `due` on."""
        heapq.heappush(self._waiting, (due, chunk.start, chunk))

    def due(self, now: float) -> Iterator[Chunk]:
        """The inputs that have waited long enough."""
        while self._waiting and self._waiting[0][0] <= now:
            yield heapq.heappop(self._waiting)[2]

    def seconds(self, now: float) -> float:
        """Until the next one is due; infinite when none waits."""
        return self._waiting[0][0] - now if self._waiting else math.inf

    def lost(self, position: int) -> int:
        """Count that an input lost its worker, and is not to blame; how often in a row that was."""
        self._losses[position] += 1
        return self._losses[position]

    def handled(self, start: int, stop: int) -> None:
        """These inputs were handled: what they lost before does not count any more."""
        if self._losses:
            for position in range(start, stop):
                self._losses.pop(position, None)


def inputs_of(
    inp_list: Iterable[Any],
    n: int | None,
    do_shuffle: bool,
    random_state: Any,
    interrupts: Interrupts,
) -> Inputs:
    """The inputs of a list of `n`, where that is known; shuffled, all of it is drawn here."""
    if not do_shuffle:
        return Inputs(inp_list, n, interrupts=interrupts)
    drawn = Inputs(inp_list, interrupts=interrupts)
    copy = [inp for chunk in iter(partial(drawn.take, 1_000), None) for inp in chunk.inputs]
    order = array("i" if len(copy) < 2**31 else "q", range(len(copy)))
    random.Random(random_state).shuffle(order)
    shuffled = Inputs((copy[index] for index in order), len(copy), order, interrupts)
    shuffled.error = drawn.error
    return shuffled
