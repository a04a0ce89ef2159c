"""Pickled for the way: the functions of a run, and chunks as large as fit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from at_once_dask.driver.inputs import Chunk, Inputs
from at_once_dask.driver.partition_size import PAYLOAD_BYTES, PartitionSizer
from at_once_dask.options import Options
from at_once_dask.protocol.failure import Failure, from_exception
from at_once_dask.protocol.task import Job
from at_once_dask.user_code import pickling, unsendable
from at_once_dask.user_code.modules import by_value
from at_once_dask.worker.steps import Steps

WEIGHED = 8  # inputs; the size of larger partitions is looked at before they are pickled

# What to pass in the place of inputs that people try, by the name of their type.
_INSTEAD = {
    "DirEntry": "entry.path instead of the entry: [entry.path for entry in os.scandir(folder)]",
    "generator": "what it gives: [list(part) for part in parts]",
    "TextIOWrapper": "file.name instead of the file, and open it in process_inp",
    "Row": "tuple(row) instead of the row",
    "Match": "match.groupdict() instead of the match",
    "_Element": "its text, as etree.tostring(element) makes it",
    "function": "a name, and look the function up in process_inp",
}
_INSTEAD |= dict.fromkeys(
    ("BufferedReader", "BufferedWriter", "FileIO", "ZipExtFile"), _INSTEAD["TextIOWrapper"]
)
_INSTEAD_OF_ANY = "what it is made of (a path, an id, a row's values), and make it in process_inp"


class Packer:
    """Cuts and pickles chunks; what does not fit goes back to the inputs.

    Parameters
    ----------
    inputs : Inputs
    sizer : PartitionSizer
    refuse : callable
        Called with the failure and the input, for each one that cannot be pickled.
    """

    def __init__(
        self, inputs: Inputs, sizer: PartitionSizer, refuse: Callable[[Failure, Any], None]
    ) -> None:
        self._inputs = inputs
        self._sizer = sizer
        self._refuse = refuse

    def pack(self, chunk: Chunk) -> tuple[Chunk, tuple[bytes, ...]] | None:
        """As much of `chunk` as fits, and that pickled; None when it has to be sifted first."""
        chunk = self._weighed(chunk)
        try:
            packs = chunk.pack()
        except Exception:
            self._sift(chunk)
            return None
        size = sum(map(len, packs))
        self._sizer.packed(len(chunk), size)
        if size > PAYLOAD_BYTES and len(chunk) > 1:
            # Each small enough now: none is pickled whole again and again.
            chunk = self._first_of(chunk, max(1, len(chunk) * PAYLOAD_BYTES // size))
            packs = chunk.pack()
        return chunk, packs

    def _weighed(self, chunk: Chunk) -> Chunk:
        """As much of it as three of its inputs say that fits, before it is pickled whole.

        What all inputs share is pickled once: so it counts what the others add to the first.
        """
        if len(chunk) <= WEIGHED:
            return chunk
        some = [chunk.inputs[place] for place in (0, len(chunk) // 2, -1)]
        with contextlib.suppress(Exception):  # what cannot be pickled is found later
            alone = len(pickling.dumps(some[:1]))
            self._sizer.weigh((len(pickling.dumps(some)) - alone) / 2)
        return self._first_of(chunk, self._sizer.fits)

    def _first_of(self, chunk: Chunk, n: int) -> Chunk:
        if len(chunk) <= n:  # as a rule; to split it would take longer than to pickle it
            return chunk
        first, *others = chunk.split(n)
        for other in others:
            self._inputs.give_back(other)
        return first

    def _sift(self, chunk: Chunk) -> None:
        chunks, failures = sift(chunk)
        if not failures:  # they pickle alone, and not together: too deep, or too large
            self._inputs.give_back(replace(chunk, singly=True))
            return
        for good in chunks:
            self._inputs.give_back(good)
        for failure in failures:
            self._refuse(failure, chunk.inputs[failure.position - chunk.start])


def sift(chunk: Chunk) -> tuple[list[Chunk], list[Failure]]:
    """The parts of `chunk` that can be pickled, and a failure for each input that cannot."""
    chunks, failures, first = [], [], chunk.start
    for position, inp in enumerate(chunk.inputs, chunk.start):
        try:
            pickling.dumps(inp)
        except Exception as error:
            failures.append(from_exception(position, "send", error))
            failures[-1].message += f"; pass {_instead_of(inp)}"
            failures[-1].final = True
            chunks.append(chunk.part(first, position))
            first = position + 1
    chunks.append(chunk.part(first, chunk.stop))
    return chunks, failures


def _instead_of(inp: Any) -> str:
    return _INSTEAD.get(type(inp).__name__, _INSTEAD_OF_ANY)


class PackedJob:
    """The functions of a run, pickled; modules that workers cannot import cross by value meanwhile.

    Parameters
    ----------
    job : Job
    own : bool
        Whether the workers are of the own cluster.

    Attributes
    ----------
    pickled : bytes
    buffers : list of memoryview
        What of it is large, and not in the pickle.
    replay : callable
        Runs one input here.
    """

    def __init__(self, job: Job, own: bool) -> None:
        self._job = job
        self.replay = Steps.of(job).replay
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(by_value(own))
        try:
            made = unsendable.pickled(vars(job))
        except BaseException:
            self._undo.close()
            raise
        self.pickled, self.buffers = made.stream, made.buffers
        pickling.share(made.used | made.others if own else made.used)
        self._undo.callback(pickling.share, ())

    @classmethod
    def of(cls, options: Options, own: bool) -> PackedJob:
        job = Job(
            options.check_inp,
            options.process_inp,
            options.reduce_fn,
            options.combine_fn,
            options.verify,
        )
        return cls(job, own)

    def heaviest(self) -> str:
        """The reason why it is large, for people."""
        return unsendable.heaviest(vars(self._job))

    def close(self) -> None:
        self._undo.close()
