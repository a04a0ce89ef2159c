"""What lies in files of the host, and what crosses as a copy for each worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from at_once_dask.protocol import host_files
from at_once_dask.protocol.host_files import SHARED_BYTES, HostFiles
from at_once_dask.protocol.shared_file import Copies, OnHost, Parts, spans_of, write

LARGE: list[bytes | memoryview] = [b"pickled", memoryview(bytes(SHARED_BYTES))]


def test_a_large_job_is_shared_and_counts_so(tmp_path: Path) -> None:
    notes: list[str] = []
    files = HostFiles(str(tmp_path), "run", notes.append)
    job = files.job(LARGE)
    assert isinstance(job, Parts)
    assert [bytes(part) for part in job.open()] == LARGE
    assert files.shared == len(b"pickled") + SHARED_BYTES
    files.close()
    assert notes == []


def test_where_it_cannot_be_shared_each_worker_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is said, and what a worker may hold is not raised."""

    def no_space(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_files, "SharedFile", no_space)
    notes: list[str] = []
    files = HostFiles(str(tmp_path), "run", notes.append)
    assert isinstance(files.job(LARGE), Copies)
    assert files.shared == 0
    (note,) = notes
    assert note.startswith("each worker gets a copy of the 1.00 MiB that the functions take along")
    assert note.endswith(f"see that there is space in {tmp_path}")


@pytest.mark.parametrize("scratch", [True, False])
def test_a_small_job_crosses(tmp_path: Path, scratch: bool) -> None:
    files = HostFiles(str(tmp_path) if scratch else None, "run", print)
    assert files.job([b"pickled"]) == Copies((b"pickled",))
    assert (files.shared, files.to_bring) == (0, ())


def test_a_large_job_is_to_be_brought_to_hosts_that_are_not_the_drivers(tmp_path: Path) -> None:
    """Whoever puts it into a file there puts it where those who open it look."""
    files = HostFiles(None, "run", print)
    job = files.job(LARGE)
    assert isinstance(job, OnHost)
    assert files.to_bring == LARGE
    with (tmp_path / "job").open("wb") as file:
        write(file.fileno(), LARGE, spans_of(LARGE))
    opened = job.at(str(tmp_path / "job")).open()
    assert [bytes(part) for part in opened] == LARGE
    assert files.shared == 0
