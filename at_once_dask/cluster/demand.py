"""Shows the scheduler of a borrowed cluster what is left to do, so that it asks for workers.

A cluster that adapts looks at the tasks that its scheduler knows, and a run has only two for each
thread there. So what is left is shown by tasks that never run: they need a resource that no worker
has, and the scheduler counts each as half a second of work (its ``unknown-task-duration``).
"""

from __future__ import annotations

import time

from distributed import Client, Future

TASK_SECONDS = 0.5  # that the scheduler expects of a task it has never seen
MOST = 2_000  # tasks: with Dask's target of 5 s a worker they ask for 200 workers
STEP = 1.25  # less often than by this factor the number is not changed
SETTLED_SECONDS = 0.3  # a run that is over sooner never asks
PAUSE_SECONDS = 0.3  # between two changes


class Demand:
    """The tasks that stand for what is left; a worker more is always asked for where none is there.

    Parameters
    ----------
    client : distributed.Client
    label : str
        What the tasks of the run are called.
    """

    def __init__(self, client: Client, label: str) -> None:
        self._client = client
        self._label = f"left-of-{label}"
        self._next = time.monotonic() + SETTLED_SECONDS
        self._made = 0
        self._shown: list[Future[None]] = []

    def show(self, seconds: float | None, n_workers: int) -> None:
        """So many seconds of work are left; None: nobody knows, so twice the workers are wanted."""
        now = time.monotonic()
        if now < self._next and (n_workers or self._shown):
            return
        self._next = now + PAUSE_SECONDS
        if self._shown and self._shown[0].cancelled():  # the connection was lost
            self._shown = []
        if seconds is None:
            seconds = 10.0 * max(1, n_workers)
        wanted = min(MOST, int(seconds / TASK_SECONDS))
        shown = len(self._shown)
        if not shown / STEP <= wanted <= shown * STEP or (wanted == 0) != (shown == 0):
            self._change(wanted)

    def end(self) -> None:
        self._change(0)

    def _change(self, wanted: int) -> None:
        more = wanted - len(self._shown)
        if more < 0:
            gone, self._shown = self._shown[wanted:], self._shown[:wanted]
            for future in gone:
                future.release()
        elif more:
            numbers = range(self._made, self._made + more)
            self._made += more
            self._shown += self._client.map(
                _never, numbers, key=[(self._label, n) for n in numbers], resources={self._label: 1}
            )


def _never(number: int) -> None:
    """No worker has what it needs."""
