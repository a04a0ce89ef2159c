"""`atomic_write` and `atomic_path`: the whole file under its name, or what was there before."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import poll_for

import at_once_dask
from at_once_dask import atomic_path, atomic_write


def leftovers(folder: Path) -> list[Path]:
    """What an interrupted write left behind."""
    return [found for made in folder.glob(".*.part") for found in made.iterdir()]


@pytest.mark.parametrize(
    ("mode", "open_kwargs", "content", "expected"),
    [
        ("w", {"encoding": "utf-8"}, "é\n", "é\n".encode()),
        ("wt", {"encoding": "latin-1"}, "é\n", b"\xe9\n"),
        ("w", {"encoding": "utf-16-le"}, "a", b"a\0"),
        ("w", {"newline": "\r\n"}, "a\nb\n", b"a\r\nb\r\n"),
        ("w", {"encoding": "ascii", "errors": "replace"}, "é", b"?"),
        ("w", {}, "", b""),
        ("wb", {}, b"\0\xff", b"\0\xff"),
        ("bw", {"buffering": 0}, b"unbuffered", b"unbuffered"),
        ("x", {}, "new", b"new"),
        ("xb", {}, b"new", b"new"),
        ("wb", {}, b"x" * 5_000_000, b"x" * 5_000_000),
    ],
)
def test_writes_like_open(
    folder: Path, mode: str, open_kwargs: dict[str, Any], content: Any, expected: bytes
) -> None:
    with atomic_write(folder / "file", mode, **open_kwargs) as file:
        file.write(content)
    assert (folder / "file").read_bytes() == expected
    assert not leftovers(folder)


@pytest.mark.parametrize("kind", [str, os.fsencode, Path, lambda path: Path(path).absolute()])
def test_any_kind_of_path(folder: Path, kind: Callable[[str], Any]) -> None:
    with atomic_write(kind("file")) as file:
        file.write("here")
    assert (folder / "file").read_text() == "here"


def test_the_file_appears_when_the_block_ends(folder: Path) -> None:
    with atomic_write(folder / "new") as file:
        file.write("content")
        file.flush()
        assert not (folder / "new").exists()
    assert (folder / "new").read_text() == "content"


def test_until_then_the_old_one_is_there(folder: Path) -> None:
    (folder / "old").write_text("old")
    with atomic_write(folder / "old") as file:
        file.write("new")
        file.flush()
        assert (folder / "old").read_text() == "old"
    assert (folder / "old").read_text() == "new"


def write_and_raise(path: Path, error: BaseException, mode: str = "w") -> None:
    with atomic_write(path, mode) as file:
        file.write("half")
        file.flush()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("mode", ["w", "x"])
def test_a_block_that_raises_leaves_nothing(
    folder: Path, error: type[BaseException], mode: str
) -> None:
    with pytest.raises(error, match="mine"):
        write_and_raise(folder / "file", error("mine"), mode)
    assert list(folder.iterdir()) == []


def test_a_block_that_raises_leaves_the_old_file(folder: Path) -> None:
    (folder / "file").write_text("old")
    with pytest.raises(ValueError, match="mine"):
        write_and_raise(folder / "file", ValueError("mine"))
    assert (folder / "file").read_text() == "old"
    assert not leftovers(folder)


def test_a_text_that_cannot_be_encoded_leaves_nothing(folder: Path) -> None:
    with pytest.raises(UnicodeEncodeError), atomic_write("file", encoding="ascii") as file:
        file.write("half " * 100_000 + "é")
    assert list(folder.iterdir()) == []


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"), atomic_write("file", "wb") as file:
            file.write(b"x" * 2000)  # stays in the buffer until the file is closed
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert list(folder.iterdir()) == []


ROOT = str(Path(at_once_dask.__file__).parents[1])

DYING = """
import os, signal
from pathlib import Path
from at_once_dask import atomic_path, atomic_write

DEATHS = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(3),
}
for old in (True, False):
    for name, die in DEATHS.items():
        for mode, content in (("w", "half "), ("wb", b"half ")):
            folder = Path(f"{name}-{mode}-{old}")
            folder.mkdir()
            if old:
                (folder / "file").write_text("old")
            pid = os.fork()
            if not pid:
                with atomic_write(folder / "file", mode) as file:
                    file.write(content * 10_000)
                    file.flush()
                    die()
            print(folder, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_that_dies_in_the_block(folder: Path) -> None:
    done = script(DYING)
    codes = dict(line.split() for line in done.communicate()[0].splitlines())
    assert len(codes) == 12
    for name, code in codes.items():
        death, _, old = name.split("-")
        assert int(code) == {"SIGKILL": -9, "SIGTERM": -15, "exit": 3}[death]
        file = folder / name / "file"
        assert (file.read_text() if file.exists() else None) == ("old" if old == "True" else None)
        assert len(leftovers(folder / name)) == 1

        with atomic_write(file) as again:  # what was left is not in the way
            again.write("whole")
        assert file.read_text() == "whole"


def script(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_killed_at_any_time(folder: Path) -> None:
    """Each version is one letter over and over; whoever looks finds one of them whole."""
    code = """
import itertools
from at_once_dask import atomic_path, atomic_write
for letter in itertools.cycle("abc"):
    with atomic_write("file") as file:
        for _ in range(50):
            file.write(letter * 1000)
            file.flush()
"""
    with script(code) as process:
        try:
            poll_for((folder / "file").exists, "no file was written")
            for _ in range(200):
                check_whole(folder / "file", 50_000)
        finally:
            process.kill()
    check_whole(folder / "file", 50_000)


def check_whole(path: Path, length: int) -> None:
    content = path.read_text()
    assert len(content) == length
    assert len(set(content)) == 1


def test_concurrent_writers_give_one_whole_file(folder: Path) -> None:
    barrier = threading.Barrier(8)

    def write(letter: str) -> None:
        with atomic_write(folder / "file") as file:
            file.write(letter * 50_000)
            barrier.wait(10)  # all have it open
            file.write(letter * 50_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_whole(folder / "file", 100_000)
    assert os.listdir(folder) == ["file"]


def test_exclusive_does_not_touch_what_is_there(folder: Path) -> None:
    (folder / "file").write_text("old")
    text = "it exists already; delete it, or use mode 'w'"
    with pytest.raises(FileExistsError, match=text), atomic_write(folder / "file", "x"):
        pytest.fail("the block must not run")
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder) == ["file"]


def test_exclusive_does_not_touch_what_came_meanwhile(folder: Path) -> None:
    with pytest.raises(FileExistsError) as raised, atomic_write(folder / "file", "x"):
        (folder / "file").write_text("quick")
    assert raised.value.filename == str(folder / "file")
    assert (folder / "file").read_text() == "quick"
    assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize(
    "mode", ["r", "a", "r+", "w+", "wx", "ww", "wbt", "", "wU", None, 3, ["w"]]
)
def test_other_modes_are_refused(folder: Path, mode: Any) -> None:
    (folder / "file").write_text("old")
    with pytest.raises(at_once_dask.InputError) as refused, atomic_write("file", mode):
        pytest.fail("the block must not run")
    assert str(refused.value) == (
        f"atomic_write takes mode 'w', 'wb', 'x' or 'xb', not {mode!r}; read the old file first"
        " and write all of it: with atomic_write(path, 'w') as file: ..."
    )
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize("path", [None, 3, ["file"]])
def test_what_is_no_path_is_refused(folder: Path, path: Any) -> None:
    with pytest.raises(at_once_dask.InputError) as refused, atomic_write(path):
        pytest.fail("the block must not run")
    assert str(refused.value) == (
        f"path is {path!r}; it takes the path of a file:"
        ' with atomic_write("result.txt") as file: ...'
    )


@pytest.mark.parametrize("path", [".", "", os.devnull])
@pytest.mark.parametrize("mode", ["w", "x"])
def test_folders_and_devices_are_not_replaced(folder: Path, path: str, mode: str) -> None:
    """A rename would replace ``/dev/null`` itself, where one may."""
    text = "no file and will not be replaced"
    with pytest.raises(at_once_dask.InputError, match=text), atomic_write(path, mode):
        pytest.fail("the block must not run")
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize(
    ("open_kwargs", "error"),
    [
        ({"encoding": "nonsense"}, LookupError),
        ({"newline": "x"}, ValueError),
        ({"buffering": 0}, ValueError),
        ({"no_such": 1}, TypeError),
    ],
)
def test_arguments_that_open_refuses_leave_nothing(
    folder: Path, open_kwargs: dict[str, Any], error: type[Exception]
) -> None:
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(error), atomic_write("file", **open_kwargs):
        pytest.fail("the block must not run")
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    previous = os.umask(0o022)
    yield os.umask
    os.umask(previous)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002, 0o077, 0])
@pytest.mark.parametrize("mode", ["w", "x"])
def test_a_new_file_follows_the_umask(
    folder: Path, umask: Callable[[int], int], mask: int, mode: str
) -> None:
    umask(mask)
    with atomic_write(folder / "file", mode) as file:
        file.write("new")
    assert permissions(folder / "file") == 0o666 & ~mask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444, 0o755])
def test_an_old_file_keeps_its_permissions(folder: Path, kept: int) -> None:
    (folder / "file").write_text("old")
    (folder / "file").chmod(kept)
    with atomic_write(folder / "file") as file:
        (unfinished,) = leftovers(folder)
        assert permissions(unfinished) == kept  # nobody else may read it in the meantime either
        file.write("new")
    assert (folder / "file").read_text() == "new"
    assert permissions(folder / "file") == kept


def test_the_umask_is_never_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the process: another thread's file would get the wrong permissions."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("set"))
    with atomic_write("file") as file:
        file.write("new")


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(folder: Path, exists: bool) -> None:
    (folder / "far").mkdir()
    target = folder / "far" / "target"
    if exists:
        target.write_text("old")
    (folder / "link").symlink_to(Path("far") / "target")
    with atomic_write(folder / "link") as file:
        file.write("new")
        assert len(leftovers(folder / "far")) == 1  # a rename does not cross file systems
    assert (folder / "link").is_symlink()
    assert target.read_text() == "new"
    assert not target.is_symlink()
    assert not leftovers(folder / "far")


def test_a_relative_path_counts_from_where_the_block_began(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    with atomic_write("file") as file:
        file.write("here")
        os.chdir(folder / "elsewhere")
    assert (folder / "file").read_text() == "here"
    assert not (folder / "elsewhere" / "file").exists()


@pytest.mark.parametrize("how", [atomic_write, atomic_path])
def test_a_folder_that_does_not_exist(folder: Path, how: Callable[[Path], Any]) -> None:
    path = folder / "no such folder" / "file"
    text = r"path.parent.mkdir\(parents=True, exist_ok=True\)"
    with pytest.raises(FileNotFoundError, match=text) as raised, how(path):
        pytest.fail("the block must not run")
    assert raised.value.filename == str(path)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a.tar.gz", "é" * 120 + ".parquet", "." + "a" * 250])
def test_the_temporary_file_has_the_name(folder: Path, name: str) -> None:
    with atomic_write(name) as file:
        (unfinished,) = leftovers(folder)
        assert unfinished == Path(file.name)
        assert unfinished.name == name
        assert list(folder.glob(f"*{Path(name).suffix}")) != [unfinished]  # nobody's glob finds it


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "漢" * 85, ".hidden", "a b\n'c"])
def test_any_name_that_a_file_can_have(folder: Path, name: str) -> None:
    with atomic_write(folder / name) as file:
        file.write("here")
    assert os.listdir(folder) == [name]


def test_a_file_that_is_closed_in_the_block_is_whole(folder: Path) -> None:
    """Some writers close the file that they were given."""
    with atomic_write("file", "wb") as file:
        file.write(b"whole")
        file.close()
    assert (folder / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_a_path_to_write_to(folder: Path, old: str | None, kind: Callable[[str], Any]) -> None:
    target = folder / "a.tar.gz"
    if old is not None:
        target.write_text(old)
        target.chmod(0o640)
    with atomic_path(kind("a.tar.gz")) as temporary:
        assert temporary.parent.parent == folder
        assert temporary.suffixes[-2:] == [".tar", ".gz"]
        assert not temporary.exists()  # some programs do not write to what exists
        temporary.write_text("new")
        assert (target.read_text() if target.exists() else None) == old
    assert target.read_text() == "new"
    assert old is None or permissions(target) == 0o640
    assert os.listdir(folder) == ["a.tar.gz"]


def test_libraries_know_what_to_write_by_the_path(folder: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]})
    with atomic_path("a.csv.gz") as temporary:
        frame.to_csv(temporary, index=False)
    with gzip.open("a.csv.gz", "rt") as file:
        assert file.read() == "a\n1\n2\n"
    with atomic_path("a.npy") as temporary:
        np.save(temporary, np.arange(3))
    assert np.load("a.npy").tolist() == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_a_path_whose_block_raises_leaves_nothing(folder: Path, error: type[BaseException]) -> None:
    (folder / "file").write_text("old")
    with pytest.raises(error, match="mine"), atomic_path("file") as temporary:
        temporary.write_text("half")
        temporary.with_name(f"{temporary.name}-journal").write_text("of SQLite")
        raise error("mine")
    assert (folder / "file").read_text() == "old"
    assert os.listdir(folder) == ["file"]


def write_no_file(temporary: Path) -> None:
    pass


def write_a_folder(temporary: Path) -> None:
    temporary.mkdir()
    (temporary / "part").write_text("1")


def write_with_another_ending(temporary: Path) -> None:
    np.save(temporary, np.arange(3))


NO_FILE = (FileNotFoundError, "has written no file; .* as temporary: image.save")
A_FOLDER = (IsADirectoryError, "has written a folder, .* rename it when it is whole: os.rename")


@pytest.mark.parametrize(
    ("write", "error"),
    [
        (write_no_file, NO_FILE),
        (write_a_folder, A_FOLDER),
        (write_with_another_ending, NO_FILE),
    ],
)
def test_a_block_that_writes_no_file(
    folder: Path, write: Callable[[Path], None], error: tuple[type[OSError], str]
) -> None:
    (folder / "a.dat").write_text("old")
    with pytest.raises(error[0], match=error[1]) as raised:
        with atomic_path("a.dat") as temporary:
            write(temporary)
    assert raised.value.filename == "a.dat"
    assert (folder / "a.dat").read_text() == "old"
    assert os.listdir(folder) == ["a.dat"]


def test_a_path_behind_a_link(folder: Path) -> None:
    (folder / "far").mkdir()
    (folder / "link.txt").symlink_to(Path("far") / "target.txt")
    with atomic_path("link.txt") as temporary:
        assert temporary.parent.parent == folder / "far"
        temporary.write_text("new")
    assert (folder / "link.txt").is_symlink()
    assert (folder / "far" / "target.txt").read_text() == "new"


@pytest.mark.parametrize("path", [None, 3, ".", "", os.devnull])
def test_paths_of_no_file_are_refused(folder: Path, path: Any) -> None:
    text = r"with atomic_path\(.*\) as temporary: \.\.\."
    with pytest.raises(at_once_dask.InputError, match=text), atomic_path(path):
        pytest.fail("the block must not run")
