"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from at_once_dask.errors import InputError
from at_once_dask.user_code.text import safe_repr

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
    symbolic link stays, and the file it leads to is replaced. Until it is whole the file has its
    name, by which libraries choose a format, in a folder of its own beside `path`, so that no
    ``glob("*.json")`` finds it. After Python is killed such a folder, ``.*.part``, may be left.

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
    exclusive = "x" in mode
    with _replacing(path, "with atomic_write({}) as file: ...", exclusive) as (temporary, kept):
        with open(temporary, mode.replace("w", "x"), **open_kwargs) as file:
            if kept is not None:  # before anything is in it that others may not read
                os.chmod(temporary, kept)
            yield file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; the file appears under its own name whole, or not at all.

    As `atomic_write`, for what takes a path and no file: a program such as ffmpeg,
    ``image.save(path)``, ``figure.savefig(path)``, ``frame.to_parquet(path)``.

    Parameters
    ----------
    path : path
        Its folder must exist.

    Yields
    ------
    pathlib.Path
        Of a file that is not there yet, with the same name, in a hidden folder beside `path`.

    Raises
    ------
    InputError
        For what is no path of a file: a folder, a device.
    FileNotFoundError
        When its folder does not exist, and when the block has written no file.
    IsADirectoryError
        When the block has written a folder.

    Notes
    -----
    As for `atomic_write`; an old file's permissions are given to the new one when it is whole.

    Examples
    --------
    >>> import at_once_dask
    >>> with at_once_dask.atomic_path(tmp_path / "sum.txt") as temporary:
    ...     _ = temporary.write_text("3")
    >>> (tmp_path / "sum.txt").read_text()
    '3'
    """
    with _replacing(path, "with atomic_path({}) as temporary: ...") as (temporary, kept):
        yield Path(temporary)
        if os.path.isdir(temporary):
            raise _folder_written(os.fsdecode(path))
        if not os.path.isfile(temporary):
            raise _nothing_written(os.fsdecode(path))
        if kept is not None:
            os.chmod(temporary, kept)


@contextlib.contextmanager
def _replacing(
    path: object, call: str, exclusive: bool = False
) -> Iterator[tuple[str, int | None]]:
    """Where to write what will be at `path`, and the permissions of what is there.

    `call` is shown where that is not possible.
    """
    if not isinstance(path, (str, bytes, os.PathLike)):
        example = call.format('"result.txt"')
        raise InputError(f"path is {safe_repr(path)}; it takes the path of a file: {example}")
    target = os.path.realpath(os.fsdecode(path))
    permissions = _permissions(target, call)
    if permissions is not None and exclusive:
        raise _exists(target)
    temporary = _beside(target)
    try:
        yield temporary, permissions
        _to_disk(temporary)
        _publish(temporary, target, exclusive)
    finally:
        shutil.rmtree(os.path.dirname(temporary), ignore_errors=True)


def _beside(target: str) -> str:
    """The same name in a new folder beside it: libraries and programs go by the ending."""
    folder, name = os.path.split(target)
    if not os.path.isdir(folder):
        text = (
            "its folder does not exist; make it first:"
            " path.parent.mkdir(parents=True, exist_ok=True)"
        )
        raise FileNotFoundError(errno.ENOENT, text, target)
    made = os.path.join(folder, f".{secrets.token_hex(8)}.part")
    os.mkdir(made, mode=0o700)
    return os.path.join(made, name)


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


def possible(name: str, refused: Callable[[str], object]) -> str:
    """An example of a path: of a file called so here, else at home, else among the temporary ones.

    `refused` tells of an absolute path whether it cannot be written: what follows an example must
    not fail again. The user's number is in the last name, for others may write there too.
    """
    return next((path for path in _places(name) if not refused(os.path.abspath(path))), name)


def _places(name: str) -> Iterator[str]:
    yield name
    yield os.path.join(os.path.expanduser("~"), name)
    stem, ending = os.path.splitext(name)
    with contextlib.suppress(OSError):
        yield os.path.join(tempfile.gettempdir(), f"{stem}-{os.getuid()}{ending}")


def _permissions(target: str, call: str) -> int | None:
    """The permissions of the file that is replaced; None when it is a new one."""
    try:
        found = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        example = call.format('os.path.join(folder, "result.txt")')
        raise InputError(
            f"path is {target!r}, which is no file and will not be replaced; name the file in it:"
            f" {example}"
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


def _nothing_written(path: str) -> FileNotFoundError:
    text = (
        "the block has written no file; write to the path that it is given, and see that nothing"
        " is added to its name: with atomic_path(path) as temporary: image.save(temporary)"
    )
    return FileNotFoundError(errno.ENOENT, text, path)


def _folder_written(path: str) -> IsADirectoryError:
    text = (
        "the block has written a folder, and atomic_path is for one file; write the folder under"
        " another name, and rename it when it is whole: os.rename(temporary_folder, folder)"
    )
    return IsADirectoryError(errno.EISDIR, text, path)


def _exists(target: str) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "it exists already; delete it, or use mode 'w'", target)
