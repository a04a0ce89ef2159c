"""Exit codes of child processes: who reads them, and until when."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.popen_forkserver
import multiprocessing.spawn

import at_once_dask
from at_once_dask.worker import processes


def test_exit_codes_are_right_until_the_last_who_wants_it_so() -> None:
    """A guard of a borrowed cluster may come before the own cluster, and leave before it."""
    at_once_dask.close()
    popen = multiprocessing.popen_forkserver.Popen
    assert popen.poll is processes._read_exit_code
    with contextlib.ExitStack() as second:
        with processes.exit_codes_read_once():
            second.enter_context(processes.exit_codes_read_once())
        assert popen.poll is processes._poll
    assert popen.poll is processes._read_exit_code
