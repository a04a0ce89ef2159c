"""What lies in files of the host, and what crosses as a copy for each worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from at_once_dask.protocol import host_files
from at_once_dask.protocol.host_files import SHARED_BYTES, HostFiles
from at_once_dask.protocol.shared_file import Copies, Parts

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
def test_a_small_job_crosses_and_so_does_any_to_another_host(tmp_path: Path, scratch: bool) -> None:
    files = HostFiles(str(tmp_path) if scratch else None, "run", print)
    assert files.job([b"pickled"] if scratch else LARGE) == Copies(
        (b"pickled",) if scratch else tuple(map(bytes, LARGE))
    )
    assert files.shared == 0
