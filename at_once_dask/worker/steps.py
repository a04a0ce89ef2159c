"""One input in a worker: check it, process it, and catch everything that can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from at_once_dask.protocol.failure import Failure, from_answer, from_exception
from at_once_dask.protocol.function_results import (
    PAIRS_HINT,
    VALUE_HINT,
    DifferentValue,
    InvalidReturn,
    Pairs,
    read_answer,
    read_pairs,
    refuse_lazy,
    same_pairs,
)
from at_once_dask.protocol.progress_file import ProgressFile
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
from at_once_dask.protocol.task import Job
from at_once_dask.user_code import main_module
from at_once_dask.user_code.text import safe_repr


class Item:
    """The input on its way through the chain: check, filter, process.

    `offset` is its place in the partition; `state` says what became of it; `value` is the input's
    pairs, or its Failure. Of the partition, `compare` says whether what an input gives is still to
    be compared with what `check_inp` says then, `compared` whether it was, `difference` and `note`
    what came of it; `returned` is the first value that was dropped: its input's position, its repr.
    """

    __slots__ = (
        *("compare", "compared", "difference", "inp", "note", "offset", "returned"),
        *("start", "state", "states", "value"),
    )

    def __init__(self, progress: ProgressFile) -> None:
        self.start = progress.start
        self.states = progress.states
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
        """Leave a progress file: this is what is being done with it."""
        self.states[self.offset] = state

    def fail(self, error: BaseException) -> None:
        """It has failed, at the stage it is in."""
        name = stage(self.states[self.offset])
        self.state = FAILED
        if isinstance(error, InvalidReturn):
            self.value = from_answer(self.position, name, str(error))
            self.value.final = isinstance(error, DifferentValue)
        else:
            self.value = from_exception(self.position, name, error)
            if isinstance(error, NameError) and main_module.is_left(error.name):
                self.value.message += f"; {main_module.stayed_behind(str(error.name))}"


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

    @classmethod
    def of(cls, job: Job) -> Steps:
        return cls(job.check_inp, job.process_inp, job.reducing, job.verify)

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
        item = Item(ProgressFile(0, 1))
        item.inp = inp
        if self.check_inp is not None:
            self._check(item)
        if item.state == PENDING and self.process_inp is not None:
            item.compare = self.reducing and self.check_inp is not None
            self._process(item)
        if item.difference is not None:
            raise DifferentValue(item.difference.message)
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
            raise InvalidReturn(
                "check_inp returned [True, None]: in a map-reduce run a done input counts with its"
                " value; return [True, value], with the value that process_inp would give"
            )
        return read_pairs(value, "check_inp")

    def _ask_again(self, item: Item, result: Any) -> None:
        """After `process_inp`: done now? And, where that gave nothing, with which value?"""
        wanted = self.reducing and result is None
        if self.check_inp is None:
            raise InvalidReturn(
                f"process_inp returned None and there is no check_inp to ask; {PAIRS_HINT}"
            )
        item.at(VERIFY if self.verify else CHECK)
        is_done, value = read_answer(self.check_inp(item.inp), self.reducing)
        if not is_done:
            if not self.verify:
                item.at(PROCESS)  # that is where the value is missing
            what = "process_inp returned None, and" if wanted else "process_inp returned, but"
            hint = f", or {PAIRS_HINT}" if wanted else ""
            raise InvalidReturn(
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
            except DifferentValue as error:
                item.difference = from_answer(item.position, "verify", str(error))
                item.difference.final = True

    def _refuse_another(self, item: Item, later: Pairs) -> None:
        if not same_pairs(zip(*item.value, strict=True), zip(*later, strict=True)):
            made, found = (
                " ".join(safe_repr(list(zip(*pairs, strict=True)), 60).split())
                for pairs in (item.value, later)
            )
            raise DifferentValue(
                f"process_inp returned {made}, and check_inp then gives {found} (JSON makes text of"
                " keys, and lists of tuples), so a resumed run would give another result; save the"
                " value in process_inp and return None, then each value comes from check_inp"
            )
