"""Files of this host by which large things reach own workers: a message is a copy for each worker.

The job, when it is large; large inputs, each partition's until its outcome is here; and a folder in
which workers leave large values, and the driver finds them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

from dask.utils import format_bytes

from at_once_dask.protocol.shared_file import Copies, OnHost, Parts, SharedFile, spans_of
from at_once_dask.protocol.task import Partition

SHARED_BYTES = 2**20  # of a job or a partition, from which on it lies in a file


class HostFiles:
    """The files of one run.

    Parameters
    ----------
    scratch : str or None
        A folder that the driver and all workers see; None: all of it crosses by message.
    run : str
    warn : callable
        Called with what somebody should know.

    Attributes
    ----------
    values : str or None
        The folder for large values.
    shared : int
        Bytes that all own workers hold together, for as long as the run lasts.
    to_bring : sequence of bytes or memoryview
        The parts of a job that each host of a borrowed cluster is to get.
    """

    def __init__(self, scratch: str | None, run: str, warn: Callable[[str], None]) -> None:
        self._scratch = scratch
        self._is_borrowed = scratch is None
        self._run = run
        self._warn = warn
        self._job: SharedFile | None = None
        self._inputs: dict[str, SharedFile] = {}  # by partition id
        self.values: str | None = None
        self.shared = 0
        self.to_bring: Sequence[bytes | memoryview] = ()

    def open(self) -> None:
        """Make the folder; where there is no space, or somebody has tidied up, all crosses."""
        if self._scratch is not None:
            folder = os.path.join(self._scratch, f"values-{self._run}")
            try:
                os.mkdir(folder, mode=0o700)
            except OSError:
                self._scratch = None
            else:
                self.values = folder

    def job(self, parts: Sequence[bytes | memoryview]) -> Parts | Copies | OnHost:
        """A job in the form in which workers open it."""
        n_bytes = sum(memoryview(part).nbytes for part in parts)
        if self._is_borrowed and n_bytes >= SHARED_BYTES:
            self.to_bring = parts
            return OnHost(spans_of(parts))
        if self._scratch is not None and n_bytes >= SHARED_BYTES:
            try:
                self._job = SharedFile(parts, self._scratch)
            except OSError as error:
                self._warn(
                    f"each worker gets a copy of the {format_bytes(n_bytes)} that the functions"
                    f" take along, for they cannot be put into a file: {error}; see that there is"
                    f" space in {self._scratch}"
                )
            else:
                self.shared = n_bytes
                return self._job.parts
        return Copies(tuple(map(bytes, parts)))

    def inputs(self, partition: Partition) -> Partition:
        """`partition`, with its inputs in a file where they are large."""
        if self._scratch is None or sum(map(len, partition.packs)) < SHARED_BYTES:
            return partition
        try:
            file = SharedFile(partition.packs, self._scratch)
        except OSError:  # there is no space
            return partition
        self._inputs[partition.id] = file
        return replace(partition, packs=(), filed=file.parts)

    def landed(self, id: str) -> None:
        """The inputs of this partition are wanted no more."""
        file = self._inputs.pop(id, None)
        if file is not None:
            file.close()

    def keep_values(self) -> str | None:
        """The folder with large values, which is the caller's from now on; None without any."""
        if self.values is None or not os.listdir(self.values):
            return None
        kept, self.values = self.values, None
        return kept

    def close(self) -> None:
        for id in list(self._inputs):
            self.landed(id)
        if self._job is not None:
            self._job.close()
        if self.values is not None:
            shutil.rmtree(self.values, ignore_errors=True)
