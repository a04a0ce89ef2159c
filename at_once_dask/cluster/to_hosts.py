"""Brings what is large in a job to each host of a borrowed cluster, before its workers get work."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client

from at_once_dask.errors import AtOnceError
from at_once_dask.protocol.events import WorkerMet
from at_once_dask.protocol.task import host_of
from at_once_dask.worker import host_job

PREPARE_SECONDS = 10.0  # for hosts to take what is large, before the run goes on without the slow


class ToHosts:
    """Which workers have all that they need; their hosts get what is large, once.

    Parameters
    ----------
    client : distributed.Client
    run : str

    Attributes
    ----------
    parts : sequence of bytes or memoryview
        What is to be brought; empty where nothing is.
    ready : dict of str to str
        By address, the directory of the process: it stays so as long as that lives.
    error : AtOnceError or None
        Why it cannot be brought.
    """

    def __init__(self, client: Client, run: str) -> None:
        self.parts: Sequence[bytes | memoryview] = ()
        self.ready: dict[str, str] = {}
        self.error: AtOnceError | None = None
        self._going_on: set[asyncio.Future[None]] = set()
        self._client = client
        self._run = run
        self._locks: defaultdict[tuple[str | None, str], asyncio.Lock]
        self._locks = defaultdict(asyncio.Lock)  # by host, and folder there

    async def prepare_all(self, met: list[WorkerMet]) -> None:
        """Wait until these workers are ready; slow ones join later."""
        for one in met:
            self.prepare_soon(one)
        if self._going_on:
            await asyncio.wait(set(self._going_on), timeout=PREPARE_SECONDS)

    def prepare_soon(self, one: WorkerMet) -> None:
        """Make this one ready, in a while; on the event loop."""
        preparation = asyncio.ensure_future(self._prepare(one))
        self._going_on.add(preparation)
        preparation.add_done_callback(self._going_on.discard)

    async def _prepare(self, one: WorkerMet) -> None:
        try:
            await self._bring(one.worker, one.directory)
        except (OSError, KeyError, ValueError):  # it is gone again
            return
        except AtOnceError as error:
            self.error = error
            return
        self.ready[one.worker] = one.directory

    async def _bring(self, address: str, directory: str) -> None:
        """See that the file is there which this worker will open."""
        if not self.parts:
            return
        scratch = os.path.dirname(directory)
        async with self._locks[host_of(address), scratch]:
            if await self._there(host_job.is_there, address):
                return
            try:
                await self._there(host_job.put, address, list(map(bytes, self.parts)))
            except OSError as error:
                if error.errno is None:  # it is no disk that is full, but a worker that is gone
                    raise
                raise AtOnceError(
                    f"what the functions take along cannot be put into a file on the host of"
                    f" {address}: {error}; see that there is space in {scratch}, and run the"
                    " same again"
                ) from error

    async def _there(self, function: Callable[..., Any], address: str, *more: Any) -> Any:
        """Call `function` in the worker."""
        answers = await self._client.run(
            function, self._run, *more, workers=[address], on_error="raise"
        )
        return answers[address]
