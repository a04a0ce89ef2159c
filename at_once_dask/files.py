"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import IO, Any

from at_once_dask.errors import InputError
from at_once_dask.failure import safe_repr

NAME_BYTES = 255  # of a file: no file system for Linux takes more

_MODES = ("w", "wt", "wb", "x", "xt", "xb", "tw", "bw", "tx", "bx")


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
        For a mode that does not write anew, and for what is no path of a file: a folder, a device.
    OSError
        As ``open`` does.

    Notes
    -----
    A new file gets the permissions that ``open`` would give it, an old one keeps its own; a
    symbolic link stays, and the file it leads to is replaced. After Python is killed, a file
    ``.NAME.*.part`` may be left in the folder.

    Examples
    --------
    >>> import at_once_dask
    >>> with at_once_dask.atomic_write(tmp_path / "sum.txt") as file:
    ...     _ = file.write("3")
    >>> (tmp_path / "sum.txt").read_text()
    '3'
    """
    if mode not in _MODES:
        raise InputError(
            f"atomic_write takes mode 'w', 'wb', 'x' or 'xb', not {mode!r}; read the old file"
            " first and write all of it: with atomic_write(path, 'w') as file: ..."
        )
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise InputError(
            f"path is {safe_repr(path)}; it takes the path of a file:"
            ' with atomic_write("result.txt") as file: ...'
        )
    target = os.path.realpath(os.fsdecode(path))
    permissions = _permissions(target)
    if permissions is not None and "x" in mode:
        raise _exists(target)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:50]}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, mode.replace("w", "x"), **open_kwargs) as file:
            if permissions is not None:  # before anything is in it that others may not read
                os.chmod(temporary, permissions)
            yield file
        _to_disk(temporary)
        _publish(temporary, target, exclusive="x" in mode)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def why_not(path: object) -> str | None:
    """Why `atomic_write` could not write this path, as part of a sentence; None when it could."""
    try:
        given = os.fsdecode(path) if isinstance(path, (str, os.PathLike)) else ""
        target = os.path.realpath(given)
        n_bytes = len(os.fsencode(os.path.basename(target)))
    except Exception:  # a zero byte, half of a surrogate pair, a broken __fspath__
        return "which is no path"
    if not given:
        return "which is no path"
    folder = os.path.dirname(target)
    if n_bytes > NAME_BYTES:
        return f"whose name is {n_bytes} bytes long, and {NAME_BYTES} are possible"
    if os.path.isdir(target):
        return "which is a folder"
    if os.path.exists(target) and not os.path.isfile(target):
        return "which is no file and will not be replaced"
    if not os.path.isdir(folder):
        return f"whose folder {safe_repr(folder)} does not exist"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"whose folder {safe_repr(folder)} may not be written to"
    return None


def _permissions(target: str) -> int | None:
    """Those of the file that is replaced; None when it is a new one."""
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        raise InputError(
            f"path is {target!r}, which is no file and will not be replaced; name the file in it:"
            ' with atomic_write(os.path.join(folder, "result.txt")) as file: ...'
        )
    return stat.S_IMODE(found)


def _to_disk(path: str) -> None:
    """Flush it to the disk; a renamed file may otherwise be empty after a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: str, target: str, exclusive: bool) -> None:
    if not exclusive:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # unlike a rename it fails when somebody was quicker
    except FileExistsError:
        raise _exists(target) from None
    os.unlink(temporary)


def _exists(target: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "it exists already; delete it, or use mode 'w'", target)
