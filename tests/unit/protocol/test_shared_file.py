"""A file without a name that processes share: what is in it, and what is private."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from at_once_dask.protocol.shared_file import Copies, Parts, SharedFile

PARTS: list[bytes | memoryview] = [
    b"",
    b"first",
    bytes(range(256)) * 100,
    memoryview(bytearray(b"third")),
]


def opened(parts: Parts | Copies) -> list[bytes]:
    crossed: Parts | Copies = pickle.loads(pickle.dumps(parts))
    return [bytes(part) for part in crossed.open()]


def little(size: int) -> Any:
    return SimpleNamespace(available=2 * size)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_is_put_in_comes_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "disk":
        monkeypatch.setattr(psutil, "virtual_memory", lambda: little(100))
    file = SharedFile(PARTS, str(folder))
    assert opened(file.parts) == [bytes(part) for part in PARTS]
    assert list(folder.iterdir()) == []
    file.close()
    with pytest.raises(FileNotFoundError):
        file.parts.open()


def test_what_is_written_stays_private(folder: Path) -> None:
    file = SharedFile(PARTS, str(folder))
    (_, mine, *_), others = file.parts.open(), file.parts.open()
    mine[:2] = b"FI"
    assert (bytes(mine), bytes(others[1])) == (b"FIrst", b"first")
    file.close()
    assert bytes(others[1]) == b"first"  # who has it open keeps it


def test_copies_can_be_written_to_as_well() -> None:
    (copy,) = Copies((b"first",)).open()
    copy[:2] = b"FI"
    assert bytes(copy) == b"FIrst"


def test_another_process_opens_it(folder: Path) -> None:
    file = SharedFile(PARTS, str(folder))
    code = f"print(open({file.parts.path!r}, 'rb').read({len(PARTS[2])} + 4096)[4096:4101])"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    file.close()
    assert done.stdout == b"b'\\x00\\x01\\x02\\x03\\x04'\n"


def test_where_there_is_no_space_nothing_stays_open(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        SharedFile(PARTS, str(folder))
    assert os.listdir("/proc/self/fd") == before
