"""One input in a worker: check it, process it, and catch everything that can go wrong."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from types import GeneratorType
from typing import Any

from at_once_dask.protocol.failure import Failure, from_answer, from_exception
from at_once_dask.protocol.lease import Lease
from at_once_dask.protocol.progress_file import Crumb
from at_once_dask.protocol.sameness import same_pairs
from at_once_dask.protocol.status import (
    CHECK,
    FAILED,
    PENDING,
    PROCESS,
    PROCESSED,
    SKIPPED,
    VERIFY,
    stage,
)
from at_once_dask.reduction.map_side import Pairs
from at_once_dask.user_code import main_module, pickling
from at_once_dask.user_code.text import safe_repr

PAIR_HINT = "return [is_done, value], for example `return [path.exists(), None]`"
VALUE_HINT = (
    "in a map-reduce run return [is_done, value], for example `return [path.exists(),"
    " json.loads(path.read_text()) if path.exists() else None]`"
)
FLAG_HINT = "is_done is True or False, as in `return [path.exists(), None]`"
PAIRS_HINT = (
    "in a map-reduce run return a mapping or (key, value) pairs, for example "
    "`return {key: value}` or `return [(key, value)]`"
)


class Item:
    """The input on its way through the chain: check, filter, process.

    `offset` is its place in the partition; `state` tells what became of it; `value` is the input's
    pairs, or its Failure. Of the partition, `compare` says whether what an input gives is still to
    be compared with what `check_inp` says then, `compared` whether it was, `difference` and `note`
    what came of it; `returned` is the first value that was dropped: its input's position, its repr.
    """

    __slots__ = (
        *("compare", "compared", "difference", "inp", "note", "offset", "returned"),
        *("start", "state", "states", "value"),
    )

    def __init__(self, lease: Lease) -> None:
        self.start = lease.start
        self.states = lease.states
        self.offset = 0
        self.inp: Any = None
        self.state = PENDING
        self.value: Any = None
        self.compare = self.compared = False
        self.difference: Failure | None = None
        self.note: str | None = None
        self.returned: tuple[int, str] | None = None

    @property
    def position(self) -> int:
        """In the order of use."""
        return self.start + self.offset

    def at(self, state: int) -> None:
        """Leave a crumb: this is what is being done with it."""
        self.states[self.offset] = state

    def fail(self, error: BaseException) -> None:
        """It has failed, at the stage it is in."""
        name = stage(self.states[self.offset])
        self.state = FAILED
        if isinstance(error, Answer):
            self.value = from_answer(self.position, name, str(error))
            self.value.final = isinstance(error, AnotherAnswer)
        else:
            self.value = from_exception(self.position, name, error)
            if isinstance(error, NameError) and main_module.is_left(error.name):
                self.value.message += f"; {main_module.stayed_behind(str(error.name))}"


class Answer(Exception):
    """A function returned what it may not return; the text says what to return instead."""


class AnotherAnswer(Answer):
    """`check_inp` gives another value than `process_inp` did.

    A further attempt would find the input done, and take that value.
    """


class Steps:
    """The user's two functions, guarded: the mapped and filtered functions of the bag.

    Parameters
    ----------
    check_inp, process_inp
        As given to ``run``; ``None`` as `check_inp` means that nothing is done yet.
        ``None`` as `process_inp`: only check (``plan``).
    reducing : bool
        Whether the values are wanted.
    verify : bool
        Whether `check_inp` must say done afterwards.
    """

    def __init__(
        self,
        check_inp: Callable[[Any], Any] | None,
        process_inp: Callable[[Any], Any] | None,
        reducing: bool,
        verify: bool = False,
    ) -> None:
        self.check_inp = check_inp
        self.process_inp = process_inp
        self.reducing = reducing
        self.verify = verify

    def __dask_tokenize__(self) -> object:
        """Dask would pickle the functions, and all they carry along, to name its tasks."""
        return id(self)

    def check(self, item: Item) -> Item:
        """Mapped: is this input done, and with which value?"""
        if item.state != PENDING:
            return item
        try:
            self._check(item)
        except BaseException as error:
            item.fail(error)
        return item

    def matters(self, item: Item) -> bool:
        """The filter: what is pending, what failed, and what is done when its value counts."""
        return item.state != SKIPPED or self.reducing

    def process(self, item: Item) -> Item:
        """Mapped: process what is pending; everything else passes through."""
        if item.state != PENDING or self.process_inp is None:
            return item
        try:
            self._process(item)
        except BaseException as error:
            item.fail(error)
        return item

    def replay(self, inp: Any) -> Any:
        """Both for one input, in the open: what goes wrong is raised, for a debugger to land in."""
        lease = Lease("replay", 0)
        lease.enter(Crumb(0, 1))
        item = Item(lease)
        item.inp = inp
        if self.check_inp is not None:
            self._check(item)
        if item.state == PENDING and self.process_inp is not None:
            item.compare = self.reducing and self.check_inp is not None
            self._process(item)
        if item.difference is not None:
            raise AnotherAnswer(item.difference.message)
        pairs: Pairs | None = item.value
        return None if pairs is None else list(zip(*pairs, strict=True))

    def _check(self, item: Item) -> None:
        assert self.check_inp is not None
        item.states[item.offset] = CHECK  # as `at`, which costs a call
        is_done, value = read_answer(self.check_inp(item.inp), self.reducing)
        if is_done:
            if self.reducing:
                item.value = self._done_value(value)
            item.state = SKIPPED
            item.at(SKIPPED)

    def _process(self, item: Item) -> None:
        assert self.process_inp is not None
        item.states[item.offset] = PROCESS
        result = self.process_inp(item.inp)
        if result is not None:
            if self.reducing:
                item.value = read_pairs(result, "process_inp")
            else:
                refuse_lazy(result)
                if item.returned is None:
                    item.returned = item.position, safe_repr(result)
        if self.verify or (self.reducing and result is None):
            self._ask_again(item, result)
        elif item.compare:
            self._compare(item)
        item.state = PROCESSED

    def _done_value(self, value: Any) -> Pairs:
        if value is None:
            raise Answer(
                "check_inp returned [True, None]: in a map-reduce run a done input counts with its"
                " value; return [True, value], with the value that process_inp would give"
            )
        return read_pairs(value, "check_inp")

    def _ask_again(self, item: Item, result: Any) -> None:
        """After `process_inp`: done now? And, where that gave nothing, with which value?"""
        wanted = self.reducing and result is None
        if self.check_inp is None:
            raise Answer(
                f"process_inp returned None and there is no check_inp to ask; {PAIRS_HINT}"
            )
        item.at(VERIFY if self.verify else CHECK)
        is_done, value = read_answer(self.check_inp(item.inp), self.reducing)
        if not is_done:
            if not self.verify:
                item.at(PROCESS)  # that is where the value is missing
            what = "process_inp returned None, and" if wanted else "process_inp returned, but"
            hint = f", or {PAIRS_HINT}" if wanted else ""
            raise Answer(
                f"{what} check_inp still says that the input is not done; save the result where"
                f" check_inp finds it{hint}"
            )
        if wanted:
            item.value = self._done_value(value)
        elif self.reducing:
            self._refuse_another(item, self._done_value(value))

    def _compare(self, item: Item) -> None:
        """After a resume the value that `check_inp` gives counts: is it the same?

        Nobody has asked for it: what `check_inp` raises here fails nothing. And what is different
        fails one input of the run, not one in each worker: the driver chooses.
        """
        item.compare = False
        try:
            is_done, value = read_answer(self.check_inp(item.inp), self.reducing)  # type: ignore[misc]
            later = self._done_value(value) if is_done and value is not None else None
        except Exception:
            return
        if is_done and value is None:
            item.note = (
                "check_inp returns [True, None] after process_inp has returned a value: a resumed"
                f" run would fail for what is done; {VALUE_HINT}"
            )
        if later is not None:
            item.compared = True
            try:
                self._refuse_another(item, later)
            except AnotherAnswer as error:
                item.difference = from_answer(item.position, "verify", str(error))
                item.difference.final = True

    def _refuse_another(self, item: Item, later: Pairs) -> None:
        if not same_pairs(zip(*item.value, strict=True), zip(*later, strict=True)):
            made, found = (
                " ".join(safe_repr(list(zip(*pairs, strict=True)), 60).split())
                for pairs in (item.value, later)
            )
            raise AnotherAnswer(
                f"process_inp returned {made}, and check_inp then gives {found} (JSON makes text of"
                " keys, and lists of tuples), so a resumed run would give another result; save the"
                " value in process_inp and return None, then each value comes from check_inp"
            )


def read_answer(answer: Any, reducing: bool = True) -> tuple[bool, Any]:
    """The answer of `check_inp`, or an Answer that says what to return.

    >>> read_answer([1, "value"])
    (True, 'value')
    """
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        refuse_awaitable(answer, "check_inp")
        if not reducing and _is_bool(answer):
            return bool(answer), None
        hint = VALUE_HINT if reducing else PAIR_HINT
        raise Answer(f"check_inp returned {safe_repr(answer)}; {_not_called(answer) or hint}")
    is_done, value = answer
    if is_done is True or is_done is False:
        return is_done, value
    if is_done is None or _is_bool(is_done) or (_is_whole(is_done) and is_done in (0, 1)):
        return bool(is_done), value
    raise Answer(
        f"check_inp returned {safe_repr(is_done)} as is_done; {_not_called(is_done) or FLAG_HINT}"
    )


def _not_called(answer: Any) -> str:
    """What to write where a method is named and not called; empty for all else."""
    if not callable(answer):
        return ""
    name = getattr(answer, "__name__", "is_done")
    owner = type(getattr(answer, "__self__", None)).__name__.lower()
    called = f"{'path' if 'path' in owner else 'it'}.{name}()"
    return f"that is a function that was not called; write `return [{called}, None]`"


def _is_bool(value: Any) -> bool:
    """Whether it is a bool, or NumPy's."""
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral)


def read_pairs(result: Any, who: str) -> Pairs:
    """The pairs of a mapping or an iterable of pairs, checked whole before any of them counts.

    >>> read_pairs({"a": 1}, "process_inp")
    Pairs(keys=['a'], values=[1])
    """
    refuse_awaitable(result, who)
    if isinstance(result, dict) and type(result).items is dict.items:
        pairs = Pairs(list(dict.keys(result)), list(dict.values(result)))
    elif isinstance(result, Mapping):
        pairs = _unzipped(result.items(), who)
    elif isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
        pairs = _unzipped(result, who)
    else:
        raise Answer(f"{who} returned {safe_repr(result)}; {PAIRS_HINT}")
    if not pickling.are_plain(pairs.keys):
        for key in pairs.keys:
            _check_key(key, who)
    return pairs


def refuse_lazy(result: Any) -> None:
    """Refuse what looks like work but has not run."""
    refuse_awaitable(result, "process_inp")
    if inspect.isgenerator(result):
        result.close()
        raise Answer(
            "process_inp returned a generator, whose body never ran; it must do its work and save"
            " it itself: call the function with the `yield` inside a loop, or use plain `return`"
        )


@lru_cache(maxsize=16)  # few: it keeps the types, and with them their modules
def _is_never_lazy(kind: type) -> bool:
    """Whether no object of this type can be awaited, drawn from or computed: asked once a type."""
    return not (issubclass(kind, (Awaitable, GeneratorType)) or hasattr(kind, "__dask_graph__"))


def refuse_awaitable(result: Any, who: str) -> None:
    try:
        if _is_never_lazy(type(result)):  # type: ignore[arg-type]
            return
    except TypeError:  # its type cannot be hashed: neither this nor `isinstance` can tell
        return
    if hasattr(type(result), "__dask_graph__"):  # some of them can be awaited too
        raise Answer(
            f"{who} returned a {type(result).__name__} of Dask, which nobody computes; call its"
            ' compute(scheduler="sync") in there'
        )
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns later that it was never awaited
        raise Answer(
            f"{who} returned an awaitable, which nobody awaits; use asyncio.run(...) in it"
        )


def _unzipped(result: Iterable[Any], who: str) -> Pairs:
    pairs = Pairs([], [])
    for pair in result:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Answer(f"{who} returned an iterable with {safe_repr(pair)} in it; {PAIRS_HINT}")
        key, value = pair
        pairs.keys.append(key)
        pairs.values.append(value)
    return pairs


def _check_key(key: Any, who: str) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise Answer(
            f"{who} returned the key {safe_repr(key)}, which is not hashable; use a tuple or a str"
        ) from error
    if not pickling.survives(key):
        raise Answer(
            f"{who} returned the key {safe_repr(key)}, which is not equal to itself (or not to its"
            " copy in another process), so its values could not be brought together; use a number,"
            " str, tuple, enum or frozen dataclass"
        )
