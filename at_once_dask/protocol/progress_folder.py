"""The folder of a worker's progress files: worker, nanny and driver find it by the same rule."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TextIO

from at_once_dask.errors import AtOnceError
from at_once_dask.protocol import progress_file
from at_once_dask.protocol.progress_file import Progress, ProgressFile

# What lies beside the progress files; no partition's ids begin so.
_STACK, _HERE, _WRITTEN, _TAKEN_BACK, _OUTCOME = "stack", "here", "written", "taken", "outcome-"
_BESIDE = "beside"

_JOB = "job"  # beside the folders of the workers


class ProgressFolder:
    """The folder of the progress files of one run on one host; those of one worker among them.

    Worker, nanny and driver find it by what Dask says of the worker: it lies beside the worker's
    own directory.

    Parameters
    ----------
    base : str
        Dask's scratch space on this host.
    run, worker : str
        The run's id, the worker's address.
    """

    def __init__(self, base: str, run: str, worker: str) -> None:
        self._of_run = os.path.join(base, f"at_once_dask-{run}")
        name = "".join(c if c.isalnum() else "_" for c in worker)
        self.folder = os.path.join(self._of_run, name)

    def create(self, id: str, start: int, n: int) -> ProgressFile:
        """The file of partition `id`; AtOnceError where none can be written."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            return ProgressFile(start, n, self._path(id))
        except OSError as error:
            raise AtOnceError(
                f"a worker cannot note how far it is: {error}; see that there is space in"
                f" {os.path.dirname(self._of_run)} and that it can be written, and run the same"
                " again"
            ) from error

    @property
    def stack(self) -> str:
        """Path of the file for the worker's last stack."""
        return self._path(_STACK)

    @property
    def job(self) -> str:
        """Path of the file for what is large in a job, which the workers of this host share."""
        return os.path.join(self._of_run, _JOB)

    def open(self) -> None:
        """Make it known that this worker writes into this folder."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.close(os.open(self._here, os.O_WRONLY | os.O_CREAT, 0o600))

    def is_open(self) -> bool:
        """Whether the worker's files can be seen from here."""
        return os.path.exists(self._here)

    @property
    def _here(self) -> str:
        return self._path(_HERE)

    def open_beside(self) -> int:
        """A descriptor of the file with how many tasks of others the worker works on."""
        return os.open(self._path(_BESIDE), os.O_WRONLY | os.O_CREAT, 0o600)

    def beside(self) -> int:
        """How many tasks of others the worker works on, or did when it died."""
        with contextlib.suppress(OSError, ValueError), open(self._path(_BESIDE), "rb") as file:
            return int(file.read())
        return 0

    def open_stack(self) -> TextIO:
        return open(self.stack, "a", encoding="utf-8", errors="replace")

    def read_stack(self) -> str:
        with contextlib.suppress(OSError):
            with open(self.stack, encoding="utf-8", errors="replace") as file:
                return file.read()
        return ""

    def written(self, number: int) -> str:
        """Path of the file with what was written to this file descriptor."""
        return self._path(f"{_WRITTEN}{number}")

    def contents(self) -> dict[str, bytes]:
        """All progress files of the worker, whole, by partition id."""
        found = {}
        for id, path in self._paths():
            with contextlib.suppress(OSError), open(path, "rb") as file:
                found[id] = file.read()
        return found

    def running(self) -> Iterator[tuple[str, int, float]]:
        """Each partition that goes on: its id, the position it has come to, and since when."""
        for id, path in self._paths():
            with contextlib.suppress(Exception):  # as at a look
                found = progress_file.at_it_since(path)
                if found is not None:
                    yield id, *found

    def look(self, id: str) -> Progress | None:
        """How far partition `id` is, without its records; None when it has not started.

        Made to be called while the worker writes: it may be a moment old, and raises nothing.
        """
        with contextlib.suppress(Exception):  # it is gone, or one half of it is older
            return progress_file.look(self._path(id))
        return None

    def leave(self, id: str, outcome: bytes) -> bool:
        """Leave what came of partition `id` for the driver; False where there is no space."""
        path = self._path(_OUTCOME + id)
        try:
            with open(path, "xb") as file:
                file.write(outcome)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            return False
        return True

    def fetch(self, id: str) -> bytes | None:
        """The outcome left of partition `id`, which is not kept any longer; None without one."""
        path = self._path(_OUTCOME + id)
        try:
            with open(path, "rb") as file:
                outcome = file.read()
            os.unlink(path)
        except OSError:
            return None
        return outcome

    def unstarted(self, id: str) -> int | None:
        """How many inputs of partition `id` have not started, and may; None before it has."""
        return progress_file.unstarted(self._path(id))

    def take_back(self, id: str, start: int, share: float = 1.0) -> int | None:
        """Take back this share of what has not started of a partition; its new limit, or None.

        For the driver, on the worker's own host; as `Lease.take_back` does it in the worker. It
        needs no answer from there, and so none that an input keeps from answering. What has not
        started at all is taken back whole.
        """
        try:
            return progress_file.take_back(self._path(id), share)
        except FileNotFoundError:
            return start if self._keep_from_starting(id) else None

    def _keep_from_starting(self, id: str) -> bool:
        """Put a file in its place, whole at once; False where the worker was faster."""
        marker = self._path(_TAKEN_BACK)
        with contextlib.suppress(OSError):
            if not os.path.exists(marker):
                with open(marker, "wb") as file:
                    file.write(progress_file.TAKEN_BACK)
            os.link(marker, self._path(id))
            return True
        return False

    def forget(self, ids: tuple[str, ...]) -> None:
        """These partitions were delivered."""
        for id in ids:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(id))

    def clear(self) -> None:
        """Remove the files of this worker, and the folder when it was the last."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            if os.listdir(self._of_run) == [_JOB]:
                os.unlink(self.job)
            os.rmdir(self._of_run)

    def _path(self, id: str) -> str:
        return os.path.join(self.folder, id)

    def _paths(self) -> list[tuple[str, str]]:
        """All progress files: their partitions' ids, and where they are."""
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        others = (_STACK, _HERE, _WRITTEN, _TAKEN_BACK, _OUTCOME, _BESIDE)
        return [(name, self._path(name)) for name in names if not name.startswith(others)]
