"""A wrong call: nothing is started, written or drawn from, and the text shows the right one."""

from __future__ import annotations

import functools
import operator
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from calls import (
    CALL,
    OTHER_CLIENT,
    check,
    check_logfile_text,
    fetch,
    nothing_started,
    pairs,
    plan,
    process,
    refused,
    run,
    start,
)

import at_once_dask
from at_once_dask.api import Keywords
from at_once_dask.cluster import connect
from at_once_dask.options import _CHECKS, Options


async def fetch_many(inp: Any) -> Any:
    yield {"n": 1}


@pytest.fixture
def untouched(folder: Path) -> Iterator[None]:
    with nothing_started(folder):
        yield


def resize(path: str, size: int) -> None:
    pass


def by_size(inp: Any, *, size: int, scale: int) -> None:
    pass


def total(values: list[int]) -> int:
    return sum(values)


class Fetcher:
    async def __call__(self, inp: Any) -> None:
        pass

    async def fetch(self, inp: Any) -> None:
        pass


class Yielder:
    def __call__(self, inp: Any) -> Iterator[int]:
        yield 1


class DataFrame:
    """Of another library than pandas."""

    def __iter__(self) -> Iterator[str]:
        return iter(["column"])


RUN = CALL + ")"
ALL_OF_RUN = (
    CALL + ", do_shuffle=False, reduce_fn=None, *, combine_fn=None, on_error='raise',"
    " max_failures=None, retries=0, timeout=None, verify=False, inspect=False,"
    " report_path=None, client=None, progress=True, random_state=None)"
)
ALL_OF_PLAN = "plan(inp_list, check_inp, *, client=None, progress=True)"
LIST = "it takes a list or another iterable of inputs: "
CHECK = (
    "it takes a function or None: " + RUN + " with `def check_inp(inp): return [is_done, value]`"
)
PROCESS = "it takes a function: " + RUN + " with `def process_inp(inp): ...`"
REDUCE = "it takes a function or None: " + CALL + ", reduce_fn=sum)"
COMBINE = "it takes a function or None: " + CALL + ", combine_fn=operator.add)"
ASYNC = "which is async, and nobody would await it; wrap it: "
WRAPPED = ASYNC + "run(inp_list, check_inp, lambda inp: asyncio.run(process_inp(inp)))"
GENERATOR = "a generator; it must return its result instead of yielding it: "
MAP_ONLY = (
    "a generator: in a map-only run its body would never run; save the result instead of yielding"
    " it, or reduce what it yields: " + CALL + ", reduce_fn=list)"
)
CALLED = (
    "the list comes first: " + RUN + "; a function that makes the list is called:"
    " run(make_list(), check_inp, process_inp)"
)
FLAG = "it takes True or False: " + CALL
CHOICES = "it takes 'raise', 'return' or 'stop': " + CALL + ", on_error='return')"
SEED = (
    "it takes an int, float, str or bytes, as random.Random does: "
    + CALL
    + ", do_shuffle=True, random_state=1)"
)
MOST = (
    "it takes how many inputs may fail, or the share of them that may as a float between 0 and 1: "
    + CALL
    + ", max_failures=100) or "
    + CALL
    + ", max_failures=0.05)"
)
RETRIES = (
    "it takes how many further attempts an input gets, a whole number from 0: "
    + CALL
    + ", retries=2)"
)
TIMEOUT = (
    "it takes the seconds that one input may take, more than 0, or None for no limit: "
    + CALL
    + ", timeout=60)"
)
START = "call at_once_dask.start(n_workers=4) first, then "

Wrong = tuple[Callable[[], object], str]

INP_LIST: dict[str, Wrong] = {
    "process first": (
        lambda: run(process, check, [1]),
        f"inp_list is the function process; {CALLED}",
    ),
    "check first": (lambda: run(check, [1], process), f"inp_list is the function check; {CALLED}"),
    "not called": (
        lambda: run(functools.partial(range, 3), check, process),
        f"inp_list is the function range; {CALLED}",
    ),
    "a class": (lambda: run(list, check, process), f"inp_list is the function list; {CALLED}"),
    "str": (
        lambda: run("a.txt", check, process),
        f"inp_list is of type str; {LIST}run(['a.txt'], check_inp, process_inp)",
    ),
    "long str": (
        lambda: run("x" * 1000, check, process),
        f"inp_list is of type str; {LIST}run(['{'x' * 38}…], check_inp, process_inp)",
    ),
    "bytes": (
        lambda: run(b"a", check, process),
        f"inp_list is of type bytes; {LIST}run([b'a'], check_inp, process_inp)",
    ),
    "path": (
        lambda: run(Path("folder"), check, process),
        (
            f"inp_list is of type {type(Path()).__name__}; {LIST}"
            'run(sorted(path.glob("*")), check_inp, process_inp)'
        ),
    ),
    "dict": (
        lambda: run({"a": 1}, check, process),
        f"inp_list is of type dict; {LIST}run(list(d.items()), check_inp, process_inp)",
    ),
    "pandas": (
        lambda: run(pd.DataFrame({"a": [1]}), check, process),
        f'inp_list is of type DataFrame; {LIST}run(df.to_dict("records"), check_inp, process_inp)',
    ),
    "another DataFrame": (
        lambda: run(DataFrame(), check, process),
        f'inp_list is of type DataFrame; {LIST}run(df.to_dict("records"), check_inp, process_inp)',
    ),
    "int": (
        lambda: run(5, check, process),
        f"inp_list is 5; {LIST}run([...], check_inp, process_inp)",
    ),
    "None": (
        lambda: run(None, check, process),
        f"inp_list is None; {LIST}run([...], check_inp, process_inp)",
    ),
    "0-d array": (
        lambda: run(np.array(5), check, process),
        f"inp_list is array(5); {LIST}run([...], check_inp, process_inp)",
    ),
    "NumPy scalar": (
        lambda: run(np.int64(5), check, process),
        f"inp_list is {np.int64(5)!r}; {LIST}run([...], check_inp, process_inp)",
    ),
}

LIMITS: dict[str, Wrong] = {
    **{
        f"{name}={given!r}": (
            functools.partial(run, [1], check, process, **{name: given}),
            f"{name} is {given!r}; {takes}",
        )
        for name, takes, wrong in (
            ("max_failures", MOST, (-1, 1.0, 0.0, 2.5, float("nan"), True, "5")),
            ("retries", RETRIES, (-1, 1.0, True, None, "2")),
            ("timeout", TIMEOUT, (0, -1, float("inf"), float("nan"), True, "60")),
            ("verify", FLAG + ", verify=True)", (None, "yes", 2)),
            ("inspect", FLAG + ", inspect=True)", (None, "yes", 2)),
        )
        for given in wrong
    },
    "verify without check_inp": (
        lambda: run([1], None, process, verify=True),
        (
            "verify=True asks check_inp whether an input is done after process_inp, and check_inp"
            f" is None; write {CALL}, verify=True) with `def check_inp(inp): return [is_done,"
            " value]`, or leave verify out"
        ),
    ),
    "stop and max_failures": (
        lambda: run([1], check, process, on_error="stop", max_failures=3),
        (
            "on_error='stop' stops at the first failed input, so max_failures does nothing; leave"
            f" one of them out: {CALL}, max_failures=3)"
        ),
    ),
    "time_limit": (
        lambda: run([1], check, process, time_limit=3),
        f"run() has no argument 'time_limit'; write {CALL}, timeout=60)",
    ),
    "n_retries": (
        lambda: run([1], check, process, n_retries=3),
        f"run() has no argument 'n_retries'; write {CALL}, retries=2)",
    ),
}

FUNCTIONS: dict[str, Wrong] = {
    "check_inp a list": (lambda: run([1], [2], process), f"check_inp is [2]; {CHECK}"),
    "check_inp called": (
        lambda: run([1], check(1), process),
        f"check_inp is [False, None]; {CHECK}",
    ),
    "check_inp a bool": (lambda: run([1], True, process), f"check_inp is True; {CHECK}"),
    "process_inp None": (lambda: run([1], check, None), f"process_inp is None; {PROCESS}"),
    "process_inp a name": (lambda: run([1], check, "f"), f"process_inp is 'f'; {PROCESS}"),
    "process_inp a list": (lambda: run([1], check, [2]), f"process_inp is [2]; {PROCESS}"),
    "process_inp called": (
        lambda: run([1], check, process(1)),
        f"process_inp is {{'n': 1}}; {PROCESS}",
    ),
    "reduce_fn a name": (
        lambda: run([1], check, process, reduce_fn="sum"),
        f"reduce_fn is 'sum'; {REDUCE}",
    ),
    "combine_fn a number": (
        lambda: run([1], check, process, combine_fn=0),
        f"combine_fn is 0; {COMBINE}",
    ),
    "both": (
        lambda: run([1], check, process, reduce_fn=sum, combine_fn=max),
        "reduce_fn and combine_fn were both given; pass one of them: with "
        + CALL
        + ", reduce_fn=sum) it gets the list of a key's values, with combine_fn=operator.add in its"
        " place they are folded pairwise",
    ),
    "async": (
        lambda: run([1], check, fetch),
        f"process_inp is the function fetch, {WRAPPED}",
    ),
    "async partial": (
        lambda: run([1], check, functools.partial(functools.partial(fetch))),
        f"process_inp is the function fetch, {WRAPPED}",
    ),
    "async object": (
        lambda: run([1], check, Fetcher()),
        f"process_inp is the function Fetcher, {WRAPPED}",
    ),
    "async method": (
        lambda: run([1], check, Fetcher().fetch, reduce_fn=sum),
        f"process_inp is the function fetch, {WRAPPED}",
    ),
    "async generator": (
        lambda: run([1], check, fetch_many, reduce_fn=sum),
        f"process_inp is the function fetch_many, {WRAPPED}",
    ),
    "async check_inp": (
        lambda: run([1], fetch, process),
        (
            f"check_inp is the function fetch, {ASYNC}"
            "run(inp_list, lambda inp: asyncio.run(check_inp(inp)), process_inp)"
        ),
    ),
    "async reduce_fn": (
        lambda: run([1], check, process, reduce_fn=fetch),
        (
            f"reduce_fn is the function fetch, {ASYNC}{CALL},"
            " reduce_fn=lambda values: asyncio.run(reduce_fn(values)))"
        ),
    ),
    "async combine_fn": (
        lambda: run([1], check, process, combine_fn=fetch),
        (
            f"combine_fn is the function fetch, {ASYNC}{CALL},"
            " combine_fn=lambda a, b: asyncio.run(combine_fn(a, b)))"
        ),
    ),
    "generator": (
        lambda: run([1], check, pairs),
        f"process_inp is the function pairs, {MAP_ONLY}",
    ),
    "generator partial": (
        lambda: run([1], check, functools.partial(pairs)),
        f"process_inp is the function pairs, {MAP_ONLY}",
    ),
    "generator object": (
        lambda: run([1], check, Yielder()),
        f"process_inp is the function Yielder, {MAP_ONLY}",
    ),
    "generator check_inp": (
        lambda: run([1], pairs, process),
        (
            f"check_inp is the function pairs, {GENERATOR}{RUN}"
            " with `def check_inp(inp): return [is_done, value]`"
        ),
    ),
    "generator reduce_fn": (
        lambda: run([1], check, process, reduce_fn=pairs),
        f"reduce_fn is the function pairs, {GENERATOR}{CALL}, reduce_fn=sum)",
    ),
    "generator combine_fn": (
        lambda: run([1], check, process, combine_fn=pairs),
        f"combine_fn is the function pairs, {GENERATOR}{CALL}, combine_fn=operator.add)",
    ),
}

ONE_INPUT = "it gets one argument, the input"
ONE_LIST = "it gets one argument, the list of all values of a key"
TWO_VALUES = "it gets two arguments, values of a key, and returns one"

ARGUMENTS: dict[str, Wrong] = {
    "process_inp(path, size)": (
        lambda: run([("a", 1)], None, resize),
        (
            f"process_inp is the function resize, which takes (path, size); {ONE_INPUT}; where the"
            " inputs are tuples, write run(inp_list, check_inp, lambda inp: resize(*inp))"
        ),
    ),
    "check_inp of a plan": (
        lambda: plan([("a", 1)], lambda path, size: [False, None]),
        (
            f"check_inp is the function <lambda>, which takes (path, size); {ONE_INPUT}; where the"
            " inputs are tuples, write plan(inp_list, lambda inp: check_inp(*inp))"
        ),
    ),
    "process_inp()": (
        lambda: run([1], None, lambda: None),
        (
            f"process_inp is the function <lambda>, which takes nothing; {ONE_INPUT}: {RUN}"
            " with `def process_inp(inp): ...`"
        ),
    ),
    "process_inp(inp, *, size)": (
        lambda: run([1], None, functools.partial(by_size, scale=2)),
        (
            f"process_inp is the function by_size, which takes (inp, *, size); {ONE_INPUT}; write"
            " run(inp_list, check_inp, lambda inp: process_inp(inp, size=...))"
        ),
    ),
    "reduce_fn(key, values)": (
        lambda: run([1], None, process, reduce_fn=lambda key, values: sum(values)),
        (
            f"reduce_fn is the function <lambda>, which takes (key, values); {ONE_LIST}, and not"
            f" the key: {CALL}, reduce_fn=lambda values: ...)"
        ),
    ),
    "reduce_fn(a, b)": (
        lambda: run([1], None, process, reduce_fn=operator.add),
        (
            f"reduce_fn is the function add, which takes (a, b); {ONE_LIST}; to fold them pairwise,"
            f" write {CALL}, combine_fn=add)"
        ),
    ),
    "reduce_fn()": (
        lambda: run([1], None, process, reduce_fn=lambda: 1),
        (
            f"reduce_fn is the function <lambda>, which takes nothing; {ONE_LIST}: {CALL},"
            " reduce_fn=sum)"
        ),
    ),
    "combine_fn(values)": (
        lambda: run([1], None, process, combine_fn=total),
        (
            f"combine_fn is the function total, which takes (values); {TWO_VALUES}; what takes the"
            f" list of all values is {CALL}, reduce_fn=total)"
        ),
    ),
    "combine_fn(a, b, c)": (
        lambda: run([1], None, process, combine_fn=lambda a, b, c: a),
        (
            f"combine_fn is the function <lambda>, which takes (a, b, c); {TWO_VALUES}: {CALL},"
            " combine_fn=operator.add)"
        ),
    ),
}

OTHERS: dict[str, Wrong] = {
    "do_shuffle a function": (
        lambda: run([1], check, process, sum),
        "do_shuffle is the function sum; it takes True or False, and reduce_fn comes behind it: "
        + CALL
        + ", reduce_fn=sum)",
    ),
    "do_shuffle 2": (
        lambda: run([1], check, process, 2),
        f"do_shuffle is 2; {FLAG}, do_shuffle=True)",
    ),
    "do_shuffle a word": (
        lambda: run([1], check, process, do_shuffle="yes"),
        f"do_shuffle is 'yes'; {FLAG}, do_shuffle=True)",
    ),
    "do_shuffle None": (
        lambda: run([1], check, process, None),
        f"do_shuffle is None; {FLAG}, do_shuffle=True)",
    ),
    "do_shuffle an array": (
        lambda: run([1], check, process, np.array([1, 0])),
        f"do_shuffle is array([1, 0]); {FLAG}, do_shuffle=True)",
    ),
    "do_shuffle NA": (
        lambda: run([1], check, process, pd.NA),
        f"do_shuffle is <NA>; {FLAG}, do_shuffle=True)",
    ),
    "on_error a word": (
        lambda: run([1], check, process, on_error="ignore"),
        f"on_error is 'ignore'; {CHOICES}",
    ),
    "on_error None": (
        lambda: run([1], check, process, on_error=None),
        f"on_error is None; {CHOICES}",
    ),
    "on_error a list": (
        lambda: run([1], check, process, on_error=["raise"]),
        f"on_error is ['raise']; {CHOICES}",
    ),
    "progress a word": (
        lambda: run([1], check, process, progress="bar"),
        f"progress is 'bar'; {FLAG}, progress=False)",
    ),
    "progress None": (
        lambda: run([1], check, process, progress=None),
        f"progress is None; {FLAG}, progress=False)",
    ),
    "random_state alone": (
        lambda: run([1], check, process, random_state=7),
        "random_state=7 does nothing without do_shuffle; write "
        + CALL
        + ", do_shuffle=True, random_state=7)",
    ),
    "random_state 0 alone": (
        lambda: run([1], check, process, False, random_state=0),
        "random_state=0 does nothing without do_shuffle; write "
        + CALL
        + ", do_shuffle=True, random_state=0)",
    ),
    "random_state a list": (
        lambda: run([1], check, process, True, random_state=[1]),
        f"random_state is [1]; {SEED}",
    ),
    "random_state a Generator": (
        lambda: run([1], check, process, True, random_state=np.int64(1)),
        f"random_state is {np.int64(1)!r}; {SEED}",
    ),
}

NO_CHECK = (
    "write run(inp_list, None, {0}) when nothing can be done already, else run(inp_list, check_inp,"
    " {0}) with `def check_inp(inp): return [is_done, value]`"
)

SIGNATURES: dict[str, Wrong] = {
    "nothing": (
        lambda: run(),
        f"run(): missing a required argument: 'inp_list'; it takes {ALL_OF_RUN}",
    ),
    "no process_inp": (
        lambda: run([1], check),
        f"run(): missing a required argument: 'process_inp'; {NO_CHECK.format('check')}",
    ),
    "process_inp in the place of check_inp": (
        lambda: run([1], process, progress=False),
        f"run(): missing a required argument: 'process_inp'; {NO_CHECK.format('process')}",
    ),
    "a function without a name": (
        lambda: run([1], lambda inp: 1),
        f"run(): missing a required argument: 'process_inp'; {NO_CHECK.format('process_inp')}",
    ),
    "no check_inp": (
        lambda: run([1], process_inp=process),
        f"run(): missing a required argument: 'check_inp'; {NO_CHECK.format('process_inp')}",
    ),
    "the list alone": (
        lambda: run([1]),
        f"run(): missing a required argument: 'check_inp'; {NO_CHECK.format('process_inp')}",
    ),
    "check_inp by name, no process_inp": (
        lambda: run([1], check_inp=check),
        f"run(): missing a required argument: 'process_inp'; write {RUN}",
    ),
    "too many": (
        lambda: run([1], check, process, False, None, max),
        f"run(): too many positional arguments; it takes {ALL_OF_RUN}",
    ),
    "twice": (
        lambda: run([1], check, process, inp_list=[1]),
        f"run(): multiple values for argument 'inp_list'; it takes {ALL_OF_RUN}",
    ),
    "n_workers": (
        lambda: run([1], check, process, n_workers=4),
        f"run() has no argument 'n_workers'; {START}{RUN}",
    ),
    "n_jobs": (
        lambda: run([1], check, process, n_jobs=-1),
        f"run() has no argument 'n_jobs'; {START}{RUN}",
    ),
    "memory_limit": (
        lambda: run([1], check, process, memory_limit="1 GiB"),
        (
            "run() has no argument 'memory_limit'; call"
            f' at_once_dask.start(memory_limit="4 GiB") first, then {RUN}'
        ),
    ),
    "dashboard_address": (
        lambda: run([1], check, process, dashboard_address=":1"),
        (
            "run() has no argument 'dashboard_address'; call"
            f' at_once_dask.start(dashboard_address="127.0.0.1:8787") first, then {RUN}'
        ),
    ),
    "chunksize": (
        lambda: run([1], check, process, chunksize=10),
        "run() has no argument 'chunksize'; leave it out, partitions follow the measured speed: "
        + RUN,
    ),
    "logfile": (
        lambda: run([1], check, process, logfile="my.log"),
        (
            "run() has no argument 'logfile'; assign"
            f' at_once_dask.logfile = "log.jsonl" first, then {RUN}'
        ),
    ),
    "shuffle": (
        lambda: run([1], check, process, shuffle=True),
        f"run() has no argument 'shuffle'; write {CALL}, do_shuffle=True)",
    ),
    "seed": (
        lambda: run([1], check, process, seed=1),
        f"run() has no argument 'seed'; write {CALL}, do_shuffle=True, random_state=1)",
    ),
    "capture_output": (
        lambda: run([1], check, process, capture_output=False),
        (
            "run() has no argument 'capture_output'; assign at_once_dask.capture_output = False"
            f" first, then {RUN}"
        ),
    ),
    "misspelt": (
        lambda: run([1], check, process, on_errors="return"),
        f"run() has no argument 'on_errors'; did you mean 'on_error'? It takes {ALL_OF_RUN}",
    ),
    "misspelt and missing": (
        lambda: run([1], check, proces_inp=process),
        f"run() has no argument 'proces_inp'; did you mean 'process_inp'? It takes {ALL_OF_RUN}",
    ),
    "unheard of": (
        lambda: run([1], check, process, zzz=1),
        f"run() has no argument 'zzz'; it takes {ALL_OF_RUN}",
    ),
}

PLANS: dict[str, Wrong] = {
    "process_inp": (
        lambda: plan([1], check, process),
        f"plan(): too many positional arguments; it takes {ALL_OF_PLAN}",
    ),
    "no check_inp": (
        lambda: plan([1]),
        (
            "plan(): missing a required argument: 'check_inp'; write plan(inp_list, None) when"
            " nothing can be done already, else plan(inp_list, check_inp) with"
            " `def check_inp(inp): return [is_done, value]`"
        ),
    ),
    "swapped": (
        lambda: plan(check, [1]),
        (
            "inp_list is the function check; the list comes first: plan(inp_list, check_inp);"
            " a function that makes the list is called: plan(make_list(), check_inp)"
        ),
    ),
    "str": (
        lambda: plan("a", check),
        f"inp_list is of type str; {LIST}plan(['a'], check_inp)",
    ),
    "check_inp a list": (
        lambda: plan([1], [2]),
        (
            "check_inp is [2]; it takes a function or None: plan(inp_list, check_inp)"
            " with `def check_inp(inp): return [is_done, value]`"
        ),
    ),
    "async": (
        lambda: plan([1], fetch),
        (
            f"check_inp is the function fetch, {ASYNC}"
            "plan(inp_list, lambda inp: asyncio.run(check_inp(inp)))"
        ),
    ),
    "progress": (
        lambda: plan([1], check, progress=2),
        "progress is 2; it takes True or False: plan(inp_list, check_inp, progress=False)",
    ),
    "n_workers": (
        lambda: plan([1], check, n_workers=4),
        f"plan() has no argument 'n_workers'; {START}plan(inp_list, check_inp)",
    ),
    "reduce_fn": (
        lambda: plan([1], check, reduce_fn=sum),
        f"plan() has no argument 'reduce_fn'; it takes {ALL_OF_PLAN}",
    ),
}

N_WORKERS = "it takes a whole number from 1, as in start(n_workers=4), or None for one a core"
MEMORY = (
    'it takes bytes or text for each worker, as in start(memory_limit="4 GiB"), "auto", or None for'
    " no limit"
)
ADDRESS = 'it takes host:port, as in start(dashboard_address="127.0.0.1:8787")'

STARTS: dict[str, Wrong] = {
    **{
        f"n_workers {given!r}": (
            functools.partial(start, given),
            f"n_workers is {given!r}; {N_WORKERS}",
        )
        for given in (0, -1, 2.5, "4", True, [2])
    },
    **{
        f"memory_limit {given!r}": (
            functools.partial(start, memory_limit=given),
            f"memory_limit is {given!r}; {MEMORY}",
        )
        for given in ("lots", 0, -1, True, [1], float("nan"))
    },
    **{
        f"memory_limit {given!r}": (
            functools.partial(start, memory_limit=given),
            (
                f"memory_limit is {given!r}, which is {n_bytes} bytes for each worker, and none can"
                f' live with less than 50 MiB; did you mean start(memory_limit="{meant}")?'
            ),
        )
        for given, n_bytes, meant in (
            (4, "4", "4 GiB"),
            (1, "1", "1 GiB"),
            (2.5, "2.5", "2.5 GiB"),
            ("8", "8", "8 GiB"),
            (4096, "4,096", "4 GiB"),
            ("40 MB", "40,000,000", "4 GiB"),
        )
    },
    **{
        f"{word}": (
            functools.partial(start, **{word: 4}),
            f"start() has no argument {word!r}; call at_once_dask.start(n_workers=4)",
        )
        for word in ("n_jobs", "max_workers")
    },
    **{
        f"dashboard_address {given!r}": (
            functools.partial(start, dashboard_address=given),
            f"dashboard_address is {given!r}; {ADDRESS}",
        )
        for given in (8787, "8787", "127.0.0.1", "127.0.0.1:99999", "127.0.0.1:http", None)
    },
}

WRONG = {
    f"{table}: {name}": wrong
    for table, rows in {
        "inp_list": INP_LIST,
        "functions": FUNCTIONS,
        "arguments": ARGUMENTS,
        "others": OTHERS,
        "limits": LIMITS,
        "signature": SIGNATURES,
        "plan": PLANS,
        "start": STARTS,
    }.items()
    for name, wrong in rows.items()
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call(untouched: None, name: str) -> None:
    call, expected = WRONG[name]
    text = refused(call)
    assert text == expected
    assert re.search(r"(run|plan|start)\(", text), "no corrected call"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: start(threads_per_worker=2), "threads_per_worker"),
        (lambda: start(2, "4 GiB"), "too many positional arguments"),
        (lambda: start(n_worker=2), "did you mean 'n_workers'"),
    ],
)
def test_arguments_that_start_does_not_have(
    untouched: None, call: Callable[[], object], words: str
) -> None:
    text = refused(call)
    assert words in text
    assert "start(n_workers=None, *, memory_limit='auto'" in text


def test_a_dashboard_port_that_is_taken(untouched: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused(lambda: start(1, dashboard_address=f"127.0.0.1:{port}"))
    assert text == (
        f"dashboard_address '127.0.0.1:{port}' is taken; close what listens there, or let any port"
        ' be used with start(dashboard_address="127.0.0.1:0")'
    )


# --- clients


@pytest.mark.parametrize("given", ["tcp://127.0.0.1:8786", 8786, True])
@pytest.mark.parametrize(
    "how", [lambda c: run([1], check, process, client=c), lambda c: plan([1], check, client=c)]
)
def test_a_client_that_is_none(untouched: None, given: Any, how: Callable[[Any], object]) -> None:
    assert refused(lambda: how(given)) == f"client is {given!r}{OTHER_CLIENT}"


def test_texts_about_clients_show_the_call(untouched: None) -> None:
    text = refused(lambda: run([1], check, process, client=1))
    assert CALL + ", client=" in text


# --- what is only seen when the call is made


UNPICKLABLE = (
    "{} uses `lock`, which cannot be sent to the workers: TypeError: cannot pickle '_thread.lock'"
    " object; make `lock` inside the function (a file, lock or connection: once a worker with"
    " `@functools.cache def get_lock(): ...`), and call run(inp_list, check_inp, process_inp) again"
)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda bad: {"process_inp": bad},
        lambda bad: {"process_inp": process, "check_inp": bad},
        lambda bad: {"process_inp": process, "reduce_fn": bad},
        lambda bad: {"process_inp": process, "combine_fn": bad},
    ],
    ids=["process_inp", "check_inp", "reduce_fn", "combine_fn"],
)
def test_functions_that_cannot_be_pickled(
    untouched: None, arguments: Callable[[Any], dict[str, Any]]
) -> None:
    lock = threading.Lock()

    def bad(*args: Any) -> None:
        lock.acquire()

    given = arguments(bad)
    name = next(name for name, function in given.items() if function is bad)
    call = {"check_inp": None} | given
    assert refused(lambda: run([1], **call)) == UNPICKLABLE.format(name)


def test_a_plan_whose_check_inp_cannot_be_pickled(untouched: None) -> None:
    lock = threading.Lock()
    text = refused(lambda: plan([1], lambda inp: [lock.locked(), None]))
    assert text == UNPICKLABLE.format("check_inp")


@pytest.mark.parametrize("given", [None, 3, "", b"log.jsonl", ["log.jsonl"]])
def test_a_logfile_that_is_no_path(
    untouched: None, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(at_once_dask, "logfile", given)
    expected = (
        f"at_once_dask.logfile is {given!r}; assign a path, for example"
        ' at_once_dask.logfile = "at_once_log.jsonl"'
    )
    assert refused(lambda: run([1], check, process)) == expected
    assert refused(lambda: plan([1], check)) == expected
    assert refused(lambda: at_once_dask.log("hello")) == expected


@pytest.mark.parametrize("given", [None, "no", 0, []])
def test_capture_output_is_true_or_false(
    untouched: None, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(at_once_dask, "capture_output", given)
    expected = (
        f"at_once_dask.capture_output is {given!r}; assign True or False, for example"
        " at_once_dask.capture_output = False"
    )
    assert refused(lambda: run([1], check, process)) == expected
    assert refused(lambda: plan([1], check)) == expected


@pytest.mark.parametrize("given", ["no such folder/log.jsonl", "."])
def test_a_logfile_that_cannot_be_written(
    untouched: None, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setattr(at_once_dask, "logfile", given)
    check_logfile_text(refused(lambda: run([1], check, process)), given)
    assert connect._own is None


NAME_IT = (
    "it takes the path of the HTML file to write, in a folder that exists:"
    f" {CALL}, report_path='report.html')"
)
PATHS = {
    3: "3, which is no path",
    "": "'', which is no path",
    b"report.html": "b'report.html', which is no path",
    "a\0b": r"'a\x00b', which is no path",
    ".": "'.', which is a folder",
    "/dev/null": "'/dev/null', which is no file and will not be replaced",
}


@pytest.mark.parametrize("given", PATHS)
def test_a_report_path_that_is_none(untouched: None, given: Any) -> None:
    expected = f"report_path is {PATHS[given]}; {NAME_IT}"
    assert refused(lambda: run([1], check, process, report_path=given)) == expected


def test_a_report_path_in_no_folder(untouched: None, folder: Path) -> None:
    given = folder / "no such folder" / "report.html"
    where = f"whose folder {str(given.parent)!r} does not exist"
    expected = f"report_path is {given!r}, {where}; {NAME_IT}"
    assert refused(lambda: run([1], check, process, report_path=given)) == expected


class PathOf:
    """A path that gives what it was given."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def __fspath__(self) -> Any:
        return self.given

    def __repr__(self) -> str:
        return f"PathOf({self.given!r})"


def test_a_report_path_whose_name_is_too_long(untouched: None) -> None:
    given = "é" * 128
    expected = f"report_path is {given!r}, whose name is 256 bytes long, and 255 are possible"
    text = refused(lambda: run([1], check, process, report_path=given))
    assert text == f"{expected}; {NAME_IT}"


def test_report_paths_of_bytes_and_of_nothing(folder: Path) -> None:
    run([], check, process, report_path=PathOf(b"report.html"))
    assert (folder / "report.html").exists()
    for given in (PathOf(3), PathOf(b""), PathOf("\ud800")):
        expected = f"report_path is {given!r}, which is no path; {NAME_IT}"
        call = functools.partial(run, [1], check, process, report_path=given)
        assert refused(call) == expected


def test_a_report_path_that_is_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once_dask, "logfile", "log.jsonl")
    (folder / "link").symlink_to("log.jsonl")
    text = refused(lambda: run([1], check, process, report_path="link"))
    assert text == (
        f"report_path is {str(folder / 'link')!r}, which is the log, at_once_dask.logfile; name"
        f' another file: {CALL}, report_path="report.html")'
    )
    assert not (folder / "log.jsonl").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_report_path_where_nobody_may_write(untouched: None) -> None:
    given = "/report.html"
    expected = f"report_path is {given!r}, whose folder '/' may not be written to; {NAME_IT}"
    assert refused(lambda: run([1], check, process, report_path=given)) == expected


LATE: dict[str, Callable[[Iterable[int]], object]] = {
    "do_shuffle": lambda inputs: run(inputs, check, process, sum),
    "keyword": lambda inputs: run(inputs, check, process, capture_output=True),
    "report_path": lambda inputs: run(inputs, check, process, report_path="no such folder/x"),
    "both": lambda inputs: run(inputs, check, process, True, sum, combine_fn=max),
    "client": lambda inputs: run(inputs, check, process, do_shuffle=True, client=3),
}


@pytest.mark.parametrize("name", LATE)
def test_nothing_is_drawn_from_the_list(untouched: None, name: str) -> None:
    inputs = iter(range(3))
    refused(lambda: LATE[name](inputs))
    assert list(inputs) == [0, 1, 2]


def unpicklable_run(inputs: Iterable[int], **run_kwargs: Any) -> None:
    lock = threading.Lock()
    run(inputs, None, lambda inp: lock.locked(), **run_kwargs)


def run_without_log(inputs: Iterable[int], **run_kwargs: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(at_once_dask, "logfile", None)
        run(inputs, None, process, **run_kwargs)


LATER: dict[str, Callable[[Iterable[int]], None]] = {
    "functions": unpicklable_run,
    "functions, shuffled": functools.partial(unpicklable_run, do_shuffle=True),
    "logfile, shuffled": functools.partial(run_without_log, do_shuffle=True),
}


def test_nothing_is_drawn_when_there_is_no_log(untouched: None) -> None:
    inputs = iter(range(3))
    refused(lambda: run_without_log(inputs))
    assert list(inputs) == [0, 1, 2]


@pytest.mark.parametrize("name", LATER)
def test_nothing_is_drawn_before_all_is_well(untouched: None, name: str) -> None:
    inputs = iter(range(3))
    refused(lambda: LATER[name](inputs))
    assert list(inputs) == [0, 1, 2]


def test_each_option_has_a_check_and_its_type_stands_in_the_overloads() -> None:
    """One that was forgotten would not be checked, or type checkers would refuse it."""
    names = [field.name for field in fields(Options)]
    assert list(_CHECKS) == names
    positional = ["inp_list", "check_inp", "process_inp", "do_shuffle", "reduce_fn", "combine_fn"]
    assert [*positional, *Keywords.__annotations__] == names


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.int64(3), 3),
        (np.uint8(3), 3),
        (np.float32(0.25), 0.25),
        (Fraction(1, 4), 0.25),
        (None, None),
    ],
)
def test_numbers_of_numpy_count_as_those_of_python(given: Any, plain: float | None) -> None:
    """The type of `max_failures` says whether it is a count or a share."""
    options = Options([1], check, process, max_failures=given, timeout=given).checked()
    for found in (options.max_failures, options.timeout):
        assert (type(found), found) == (type(plain), plain)
    retries: Any = np.int64(2)
    assert type(Options([1], check, process, retries=retries).checked().retries) is int
