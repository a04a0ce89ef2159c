"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from at_once_dask.errors import InputError


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: str = "w", **open_kwargs: Any
) -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name whole, or not at all.

    Written under a temporary name in the same folder, flushed to the disk and renamed when the
    block ends; when the block raises, or the process dies, the old file, or none, is there. So a
    ``check_inp`` that looks whether the file exists never takes half a file for done.

    Parameters
    ----------
    path : path
        Its folder must exist.
    mode : {"w", "wb", "x", "xb", "wt", "xt"}
        As for ``open``; ``x`` raises FileExistsError where there is a file already.
    **open_kwargs
        Further arguments for ``open``, such as ``encoding``.

    Yields
    ------
    file object

    Raises
    ------
    InputError
        For a mode that does not write anew.
    OSError
        As ``open`` does.

    Notes
    -----
    After Python is killed, a file ``.NAME.*.part`` may be left in the folder.

    Examples
    --------
    >>> import at_once_dask
    >>> with at_once_dask.atomic_write(tmp_path / "sum.txt") as file:
    ...     _ = file.write("3")
    >>> (tmp_path / "sum.txt").read_text()
    '3'
    """
    if set(mode) - set("wxtb") or ("w" in mode) == ("x" in mode):
        raise InputError(
            f"atomic_write takes mode 'w', 'wb', 'x' or 'xb', not {mode!r}; read the old file"
            " first and write all of it: with atomic_write(path, 'w') as file: ..."
        )
    target = os.path.realpath(path)
    if "x" in mode and os.path.exists(target):
        raise FileExistsError(f"{os.fspath(path)!r} exists already; delete it, or use mode 'w'")
    folder, name = os.path.split(target)
    descriptor, temporary = tempfile.mkstemp(suffix=".part", prefix=f".{name[:100]}.", dir=folder)
    try:
        with open(descriptor, mode.replace("x", "w"), **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_of(target))
        _publish(temporary, target, exclusive="x" in mode)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _publish(temporary: str, target: str, exclusive: bool) -> None:
    if exclusive:
        os.link(temporary, target)  # unlike a rename it fails when somebody was quicker
        os.unlink(temporary)
    else:
        os.replace(temporary, target)


def _mode_of(target: str) -> int:
    """The permissions of the file that is replaced; for a new one what ``open`` would give it."""
    try:
        return os.stat(target).st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask
