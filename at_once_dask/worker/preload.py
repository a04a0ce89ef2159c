"""Imported by the fork server, so that a worker has it from the first moment."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings

_BECOME_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux


def is_fork_server() -> bool:
    """Whether it is that which imports this, and not somebody who looks at all modules."""
    return any("multiprocessing.forkserver" in argument for argument in sys.orig_argv)


def adopt_orphans() -> None:
    """Make orphans of the inputs' processes children of this process, not of process 1.

    Where that is Python, as in many containers, it reaps nothing, and zombies would add up. The
    fork server reaps what it does not know, too, but warns of it.
    """
    warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
    ctypes.CDLL(None).prctl(_BECOME_SUBREAPER, 1, 0, 0, 0)


gc.disable()  # nothing that an import makes is garbage
try:
    import at_once_dask.worker.plugin  # noqa: F401

    if is_fork_server():
        adopt_orphans()
        # In workers, where many start at once; nobody can do anything about it.
        warnings.filterwarnings("ignore", message="Creating scratch directories")
    # No collection looks at these objects again; and workers, which look, need no copies of them.
    gc.freeze()
finally:
    gc.enable()  # the fork server goes on without what it could not import
