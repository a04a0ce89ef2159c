"""Names of inputs, made by their own repr in the thread of the run."""

from __future__ import annotations

import time

from at_once_dask.live.activity import Names

HOSTILE = '<script>document.body.className = "taken"</script>"><img src=x onerror=document.title=1>'


class Evil:
    """An input whose repr would take over a page that did not escape it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        return f"{HOSTILE}{self.n}"


def test_a_name_is_made_once_and_not_all_at_a_time() -> None:
    names, made = Names(), []

    class Costly(Evil):
        def __repr__(self) -> str:
            made.append(self.n)
            assert names.of(self.n, self) is None  # somebody looks again meanwhile
            end = time.monotonic() + 0.03
            while time.monotonic() < end:
                pass
            return "costly"

    for n in range(10):
        names.of(n, Costly(n))
    names.make()
    assert 1 <= len(made) <= 2
    for _ in range(10):
        names.make()
    assert sorted(made) == list(range(10))
    assert names.of(9, Costly(9)) == "costly"
    names.of(10, Costly(10))
    names.forget_asked()
    names.make()
    assert 10 not in made


def test_names_are_bounded() -> None:
    names = Names()
    for n in range(3_000):
        assert names.of(n, Evil(n)) is None
        names.make()
        assert names.of(n, Evil(n)) == f"{HOSTILE}{n}"
    assert len(names._made) <= 1_000
