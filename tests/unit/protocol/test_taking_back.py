"""Work stealing by the progress file: what a driver takes back there without a message."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import poll_for

import at_once_dask
from at_once_dask.protocol.progress_file import TakenBackError
from at_once_dask.protocol.progress_folder import ProgressFolder

N = 100


@pytest.fixture
def of_worker(folder: Path) -> ProgressFolder:
    return ProgressFolder(str(folder), "run", "tls://127.0.0.1:1234")


def test_half_of_what_has_not_started(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", 50, N)
    assert all(file.begin(position) for position in range(50, 60))
    assert of_worker.unstarted("p") == 90
    assert of_worker.take_back("p", 50, share=0.5) == 105
    assert of_worker.unstarted("p") == 45
    assert of_worker.take_back("p", 50, share=0.5) == 82
    assert [file.begin(position) for position in (60, 81, 82)] == [True, True, False]
    assert (of_worker.unstarted("p"), file.stop) == (0, 82)


def test_all_of_it(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", 50, N)
    assert of_worker.take_back("p", 50) == 51
    assert of_worker.unstarted("p") == 0
    assert [file.begin(50), file.begin(51)] == [True, False]


def test_the_last_that_has_not_started(of_worker: ProgressFolder) -> None:
    of_worker.create("p", 0, 2)
    assert of_worker.take_back("p", 0, share=0.5) == 1


def test_a_limit_is_never_raised(of_worker: ProgressFolder) -> None:
    """What was given back may be running elsewhere."""
    file = of_worker.create("p", 0, N)
    assert of_worker.take_back("p", 0) == 1
    assert not file.begin(1)
    assert of_worker.take_back("p", 0) is None
    assert file.limit == 1


def test_what_has_ended_gives_nothing_back(of_worker: ProgressFolder) -> None:
    file = of_worker.create("p", 0, 1)
    assert file.begin(0)
    file.end(1)
    assert of_worker.unstarted("p") == 0
    assert of_worker.take_back("p", 0) is None


def test_what_has_not_started_is_kept_from_starting(of_worker: ProgressFolder) -> None:
    of_worker.open()
    assert of_worker.unstarted("p") is None
    assert of_worker.take_back("p", 7, share=0.5) == 7
    with pytest.raises(TakenBackError):
        of_worker.create("p", 7, N)
    assert (of_worker.contents().get("p", b"")[:8], list(of_worker.running())) == (bytes(8), [])
    of_worker.forget(("p",))
    assert of_worker.create("p", 7, N).begin(7)


@pytest.mark.parametrize("size", [0, 10, 63, 64])
def test_what_is_just_being_made_is_left_alone(of_worker: ProgressFolder, size: int) -> None:
    Path(of_worker.folder).mkdir(parents=True)
    Path(of_worker.folder, "p").write_bytes(bytes(size))
    assert of_worker.unstarted("p") == 0
    assert of_worker.take_back("p", 0) is None


def test_an_outcome_is_left_and_fetched_once(of_worker: ProgressFolder) -> None:
    of_worker.create("p", 0, 1)
    assert of_worker.fetch("p") is None
    assert of_worker.leave("p", b"what came of it")
    assert list(of_worker.contents()) == ["p"]
    assert [of_worker.fetch("p"), of_worker.fetch("p")] == [b"what came of it", None]


def test_where_no_outcome_can_be_left_none_is(of_worker: ProgressFolder) -> None:
    assert not of_worker.leave("p", b"what came of it")  # the folder is not there


# Claims all inputs of one partition after the other, as fast as it can, and says where it stopped.
_WORKER = """
import sys
from at_once_dask.protocol.progress_file import TakenBackError
from at_once_dask.protocol.progress_folder import ProgressFolder

folder = ProgressFolder(sys.argv[1], "run", "w")
for number in range(int(sys.argv[2])):
    try:
        file = folder.create(f"p{number}", 10, 20_000)
    except TakenBackError:
        print(10, 0, flush=True)
        continue
    begun = sum(1 for _ in file.claims(lambda: None))
    print(file.stop, begun, flush=True)
"""


def test_begun_or_taken_back_but_never_both_in_two_processes(folder: Path) -> None:
    n_partitions, seen = 200, ProgressFolder(str(folder), "run", "w")
    environment = os.environ | {"PYTHONPATH": str(Path(at_once_dask.__file__).parents[1])}
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(folder), str(n_partitions)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    chance = random.Random(0)
    limits = {}
    poll_for(lambda: os.path.exists(seen.folder), "the worker does not start")
    for number in range(n_partitions):
        taken = [
            seen.take_back(f"p{number}", 10, share=chance.choice((0.5, 1.0)))
            for _ in range(chance.randrange(4))
        ]
        limits[number] = min([limit for limit in taken if limit is not None], default=20_010)
    out, _ = worker.communicate(timeout=60)
    ends = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(ends) == n_partitions
    for number, (stop, begun) in enumerate(ends):
        assert stop == 10 + begun <= limits[number]
    assert any(10 < stop < 20_010 for stop, _ in ends)  # some were met on their way
