"""The script's ``__main__`` in the workers: what speaks of its names finds them, wherever it runs.

The oracle is a plain loop: the same functions, called in the script's own process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

USES = """
from __future__ import annotations
import collections, enum, functools, multiprocessing, os, pickle, re, shelve, sys, threading, typing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
import pandas as pd
import at_once_dask

FACTOR = 3
WORDS = {"stop", "words"}
lock_that_nobody_uses = threading.Lock()

@dataclass(frozen=True)
class Result:
    n: int
    table: pd.DataFrame | None = None
    model: Model | None = None

class Colour(enum.Enum):
    RED = 1

Point = collections.namedtuple("Point", "x y")

def tokens(text):
    return [word for word in re.findall("[a-z]+", text) if word not in WORDS]

class Model:
    def __init__(self, cut):
        self.cut = cut

def triple(n):
    return n * FACTOR

def named(n):
    return triple(n) + 1

@functools.lru_cache(maxsize=None)
def loaded():
    return {"weight": FACTOR}

@functools.cache
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

@functools.singledispatch
def kind(value):
    return "other"

@kind.register
def _(value: int):
    return "int"

class Shape:
    def __init__(self, side):
        self.side = side
    @functools.cached_property
    def area(self):
        return self.side ** 2
    @staticmethod
    @functools.lru_cache
    def name():
        return "square"

    @functools.singledispatchmethod
    def kind(self, value):
        return "other"
    @kind.register
    def _(self, value: int):
        return "int"

@dataclass(frozen=True, slots=True)
class Slotted:
    n: int

class Base:
    known = {}
    def __init_subclass__(cls):
        Base.known[cls.__name__] = cls
    def name(self):
        return "base"

class Sub(Base):
    def name(self):
        return "sub of " + super().name()

class Planet(enum.Enum):
    EARTH = (5.976e24, 6.37814e6)
    TERRA = (5.976e24, 6.37814e6)
    def __init__(self, mass, radius):
        self.mass = mass

class Coord(bytes, enum.Enum):
    X = (0, "x axis")
    def __new__(cls, value, label):
        made = bytes.__new__(cls, value)
        made._value_ = value
        made.label = label
        return made

class Job:
    @dataclass
    class Item:
        n: int

class Person:
    partner: Person
Person.partner = Person()

LARGE = list(range(100_000))
class Far:
    def see(self, n):
        return LARGE[n]

def left_behind(n):
    import __main__
    return getattr(__main__, "Far")().see(n)

HANDLERS = {"triple": triple, "sub": Sub}

def saved_and_loaded(n):
    path = f"{os.getpid()}-{n}.pickle"
    with open(path, "wb") as file:
        pickle.dump([Result(n), Colour.RED, Point(n, 1)], file)
    with open(path, "rb") as file:
        result, colour, point = pickle.load(file)
    return isinstance(result, Result), result.n, colour is Colour.RED, point.x

def model_loaded(n):
    with open("model.pickle", "rb") as file:
        return pickle.load(file).cut("stop all the words now")

def on_a_shelf(n):
    with shelve.open(f"shelf-{os.getpid()}-{n}") as shelf:
        shelf["result"] = Result(n)
        return shelf["result"].n

def in_a_pool(n):
    with multiprocessing.Pool(2) as pool:
        return pool.map(triple, range(n))

def in_an_executor(n):
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(triple, range(n)))

def in_spawned_processes(n):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(named, range(n))

def in_a_forkserver(n):
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return [result.n for result in executor.map(Result, range(n))]

def cached(n):
    return loaded()["weight"], loaded.cache_info().misses, Shape(n).area, Shape.name()

def dispatched(n):
    return kind(n), kind("text")

def annotated(n):
    hints = typing.get_type_hints(Result)
    table = typing.get_args(hints["table"])[0]
    return sorted(hints), table.__name__, "Model" in str(hints["model"])

def through_main(n):
    import __main__
    return __main__.FACTOR, __main__.tokens("a word"), __main__.pd.__name__, __main__.__name__

def of_many_kinds(n):
    copies = pickle.loads(pickle.dumps([Slotted(n), Sub(), Person.partner, Shape]))
    slotted, sub, person, shape = copies
    return (
        slotted, hasattr(slotted, "__dict__"), sub.name(), Base.known["Sub"] is Sub, shape is Shape,
        type(person) is Person, typing.get_type_hints(Person)["partner"] is Person,
        Shape(n).kind(n), Shape(n).kind("n"), Planet.TERRA is Planet.EARTH, Planet.EARTH.mass,
        list(Planet.__members__), Coord.X.label, Coord(0) is Coord.X,
        repr(pickle.loads(pickle.dumps(Job.Item(n)))),
    )

def looked_up_in_data(n):
    import __main__
    return __main__.HANDLERS["triple"](n), __main__.HANDLERS["sub"] is __main__.Sub

def looked_up(n):
    return globals()["named"](n), getattr(sys.modules[Result.__module__], "Point")(1, n).y

USES = [
    saved_and_loaded, model_loaded, on_a_shelf, in_a_pool, in_an_executor, cached, fib, dispatched,
    annotated, through_main, looked_up, of_many_kinds, looked_up_in_data,
]
OTHER_PROCESSES = [in_spawned_processes, in_a_forkserver]  # these would run the script in a loop
EXPECTED = {
    "in_spawned_processes": [1, 4, 7], "in_a_forkserver": [0, 1, 2],
    "cached": (3, 1, 9, "square"), "fib": 2, "dispatched": ("int", "other"),
}

def tried(function, n):
    try:
        return function(n)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def all_uses(n):
    return {use.__name__: tried(use, n) for use in USES + OTHER_PROCESSES}

if not os.path.exists("model.pickle"):
    with open("model.pickle", "wb") as file:
        pickle.dump(Model(tokens), file)
"""

CALL = """
def check(result):
    want = {use.__name__: [use(3)] for use in USES}
    want |= {name: [value] for name, value in EXPECTED.items()}
    return {k: (result.get(k), v) for k, v in want.items() if result.get(k) != v} or "all right"

result = at_once_dask.run([3], None, all_uses, reduce_fn=list, progress=False)
print(check(result))
report = at_once_dask.run([3], None, left_behind, on_error="return", progress=False)
print(report.failures["message"].iloc[0][:61])
@functools.cache
def fib(n):
    return "redefined"
def triple(n):
    return "redefined"
USES[USES.index(next(use for use in USES if use.__name__ == "fib"))] = fib
EXPECTED |= {"fib": "redefined", "in_spawned_processes": ["redefined1"] * 3}
def named(n):
    return triple(n) + "1"
result = at_once_dask.run([3], None, all_uses, reduce_fn=list, progress=False)
print(check(result))
"""

ALL_RIGHT = [
    "all right",
    "name 'LARGE' is not defined; LARGE stayed behind, for process",
    "all right",
]

OTHERS = """
import os, sys
import at_once_dask
large = list(range(100_000))
connection = open(os.devnull)
small = {"a": [1, 2]}

def says(n):
    import __main__
    return [(name, getattr(__main__, name, None) is not None) for name in ("large", "small")]

def asks(n):
    import __main__
    return __main__.connection

result = at_once_dask.run([1], None, says, reduce_fn=list, progress=False)
print(dict(result))
report = at_once_dask.run([1], None, asks, on_error="return", progress=False)
print(report.failures["message"].iloc[0])
"""


def python(folder: Path, *arguments: str, stdin: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=stdin,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return done.stdout.splitlines()


# As in a notebook, ``__main__`` has no file then; the four ways themselves are in test_scripts.
NO_FILE = [pytest.param(way, marks=pytest.mark.slow) for way in ("-c", "stdin")]


@pytest.mark.parametrize(
    "way", ["script", pytest.param("-m", marks=pytest.mark.thorough), *NO_FILE]
)
def test_what_names_things_of_main_finds_them(folder: Path, way: str) -> None:
    (folder / "job.py").write_text(USES + CALL)
    arguments = {"script": ["job.py"], "-m": ["-m", "job"], "-c": ["-c", USES + CALL]}
    stdin = USES + CALL if way == "stdin" else ""
    assert python(folder, *arguments.get(way, ["-"]), stdin=stdin) == ALL_RIGHT


@pytest.mark.thorough
def test_it_is_so_in_a_notebook(folder: Path) -> None:
    cells = [nbformat.v4.new_code_cell(USES), nbformat.v4.new_code_cell(CALL)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    printed = [out.text for cell in notebook.cells for out in cell.outputs if "text" in out]
    assert "".join(printed).splitlines() == ALL_RIGHT


@pytest.mark.thorough
def test_it_is_so_in_workers_that_replace_dead_ones(folder: Path) -> None:
    death = """
def deadly(n):
    if n < 2:
        os._exit(1)
    return all_uses(3)

result = at_once_dask.run(
    range(4), None, lambda n: deadly(n), reduce_fn=lambda values: values[-1], on_error="return",
    progress=False,
)
assert result.report.n_failed == 2, result.report.summary()
want = {use.__name__: use(3) for use in USES} | EXPECTED
print({k: (result.get(k), v) for k, v in want.items() if result.get(k) != v} or "all right")
"""
    (folder / "job.py").write_text(USES + death)
    assert python(folder, "job.py") == ALL_RIGHT[:1]


@pytest.mark.thorough
def test_it_is_so_on_a_borrowed_cluster(folder: Path) -> None:
    borrowed = """
if __name__ == "__main__":
    from distributed import Client, LocalCluster
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        with Client(cluster):
            result = at_once_dask.run([3], None, all_uses, reduce_fn=list, progress=False)
    want = {use.__name__: [use(3)] for use in USES}
    want |= {name: [value] for name, value in EXPECTED.items()}
    print({k: (result.get(k), v) for k, v in want.items() if result.get(k) != v} or "all right")
"""
    (folder / "job.py").write_text(USES + borrowed)
    assert python(folder, "job.py") == ALL_RIGHT[:1]


def test_of_what_no_function_uses_small_data_go_along(folder: Path) -> None:
    (folder / "job.py").write_text(OTHERS)
    which, message = python(folder, "job.py")
    assert which == "{'large': [False], 'small': [True]}"
    assert message == (
        "module '__main__' has no attribute 'connection': connection stayed behind, for process_inp"
        " does not use it, and it is large, or no plain data, or cannot be pickled; use it in"
        " process_inp, or pass it in the input"
    )
