"""What the fork server imports, so that a worker has it from the first moment."""

from __future__ import annotations

import gc

gc.disable()  # nothing that an import makes is garbage
try:
    import at_once_dask.worker  # noqa: F401

    # No collection looks at these objects again; and workers, which look, need no copies of them.
    gc.freeze()
finally:
    gc.enable()  # the fork server goes on without what it could not import
