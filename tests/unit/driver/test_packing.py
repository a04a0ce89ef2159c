"""Chunks become packs of a bounded size; what cannot be pickled is sifted out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from at_once_dask.driver.inputs import Chunk, Inputs
from at_once_dask.driver.packing import Packer, sift
from at_once_dask.driver.partition_size import PAYLOAD_BYTES, PartitionSizer
from at_once_dask.protocol.failure import Failure
from at_once_dask.user_code import pickling

LOCK = threading.Lock()


class Packed:
    """A packer, and what became of what it was given."""

    def __init__(self) -> None:
        self.inputs = Inputs(())
        self.refused: list[tuple[Failure, Any]] = []
        self.packer = Packer(self.inputs, PartitionSizer(), self.refuse)

    def refuse(self, failure: Failure, inp: Any) -> None:
        self.refused.append((failure, inp))

    def given_back(self) -> list[Chunk]:
        return list(iter(lambda: self.inputs.take(10**9), None))


@pytest.fixture
def packed() -> Packed:
    return Packed()


def test_what_fits_goes_whole(packed: Packed) -> None:
    chunk = Chunk(5, list("abcdefghijklm"))
    assert packed.packer.pack(chunk) == (chunk, (pickling.dumps(chunk.inputs),))
    assert packed.given_back() == []


def test_what_goes_singly_is_pickled_each_alone(packed: Packed) -> None:
    chunk = Chunk(5, ["a", "b"], singly=True)
    assert packed.packer.pack(chunk) == (chunk, (pickling.dumps("a"), pickling.dumps("b")))


def test_what_three_inputs_say_is_too_large_is_cut_before_it_is_pickled(packed: Packed) -> None:
    """Twenty inputs of a MiB: eight would be 8 MiB and a bit, so seven go."""
    chunk = Chunk(0, [bytes([n]) * 2**20 for n in range(20)])
    found = packed.packer.pack(chunk)
    assert found is not None
    assert (found[0].start, found[0].stop) == (0, 7)
    assert sum(map(len, found[1])) <= PAYLOAD_BYTES
    assert [(rest.start, rest.stop) for rest in packed.given_back()] == [(7, 14), (14, 20)]


def test_a_few_large_ones_are_cut_when_their_pack_is_too_large(packed: Packed) -> None:
    """Too few to weigh: their pack of 12 MiB holds four, of which two fit into 8 MiB."""
    chunk = Chunk(0, [bytes([n]) * (3 * 2**20) for n in range(4)])
    found = packed.packer.pack(chunk)
    assert found is not None
    assert [len(found[0]), len(pickling.loads(found[1][0]))] == [2, 2]
    assert [(rest.start, rest.stop) for rest in packed.given_back()] == [(2, 4)]


def test_one_alone_may_be_as_large_as_it_likes(packed: Packed) -> None:
    chunk = Chunk(0, [bytes(9 * 2**20)])
    found = packed.packer.pack(chunk)
    assert found is not None
    assert found[0] == chunk
    assert packed.given_back() == []


def test_what_all_share_counts_once(packed: Packed) -> None:
    shared = bytes(9 * 2**20)
    chunk = Chunk(0, [(shared, n) for n in range(2)])
    found = packed.packer.pack(chunk)
    assert found is not None
    many = Chunk(0, [(shared, n) for n in range(1_000)])
    assert Packed().packer._weighed(many) == many


# ----- what cannot be pickled


def test_what_cannot_be_pickled_is_refused_and_the_others_go_on(packed: Packed) -> None:
    chunk = Chunk(5, ["a", LOCK, "c", "d", LOCK])
    assert packed.packer.pack(chunk) is None
    assert [(failure.position, failure.stage, inp) for failure, inp in packed.refused] == [
        (6, "send", LOCK),
        (9, "send", LOCK),
    ]
    assert packed.given_back() == [Chunk(5, ["a"]), Chunk(7, ["c", "d"])]


def test_what_pickles_alone_and_not_together_goes_singly(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps = pickling.dumps

    def one_by_one(obj: Any) -> bytes:
        if isinstance(obj, list):
            raise RecursionError
        return dumps(obj)

    monkeypatch.setattr(pickling, "dumps", one_by_one)
    assert packed.packer.pack(Chunk(3, ["a", "b"])) is None
    assert packed.refused == []
    assert packed.given_back() == [Chunk(3, ["a", "b"], singly=True)]


def test_sifting_keeps_what_is_good_in_as_few_chunks_as_can_be() -> None:
    chunks, failures = sift(Chunk(0, [LOCK, "b", "c", LOCK]))
    assert [(chunk.start, chunk.inputs) for chunk in chunks if chunk] == [(1, ["b", "c"])]
    assert [failure.position for failure in failures] == [0, 3]


def test_the_failure_says_what_to_pass_instead() -> None:
    with open("file", "w") as file:
        _, (failure,) = sift(Chunk(0, [file]))
    assert failure.message.endswith(
        "; pass file.name instead of the file, and open it in process_inp"
    )
    _, (failure,) = sift(Chunk(0, [LOCK]))
    assert "; pass what it is made of (a path, an id, a row's values)" in failure.message
