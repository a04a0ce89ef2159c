"""What somebody meets who imports the package: nothing heavy, and no name hidden by a module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import at_once_dask

PACKAGE = Path(at_once_dask.__file__).parent


def test_no_module_hides_a_public_name() -> None:
    """Importing ``at_once_dask.log``, the module, would set the attribute ``log`` to it."""
    assert not modules() & {*at_once_dask.__all__, "run", "log", "logfile"}


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    """The first call does: while the workers' process imports the same."""
    heavy = {"bokeh", "pandas", "numpy", "dask", "distributed", "tornado", "tqdm"}
    code = f"import sys, at_once_dask; print({heavy} & sys.modules.keys())"

    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PACKAGE.parent,
    )

    assert done.stdout == "set()\n"


def modules() -> set[str]:
    """Of the package; a room counts as one."""
    return {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
