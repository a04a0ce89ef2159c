"""What one bad input costs, with each of several tools.

The same 1,000 inputs of about a millisecond each go through every tool. One of them, in the
middle, raises an exception, ends its process, or hangs. For each tool and failure this counts:

- executed: inputs whose function ran to its end, by the files the function itself writes;
- delivered: inputs whose result the caller got in hand;
- named: whether what the caller got says which input was the bad one;
- repeated: inputs that were begun more than once, and how often the bad one was begun;
- seconds: from the call to the tool's being closed; imports are done before.

Each cell runs in a new interpreter. After 30 seconds its processes are killed: "never ends".

    python -m pip install -e '.[bench]'
    python benchmarks/crashes.py

prints the table and writes it to benchmarks/results/, as JSON and as Markdown.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import psutil

INPUTS = range(1000)
BAD = 500
WORK_SECONDS = 0.001
FAILURES = {
    "raises": "raises ValueError",
    "exits": "calls os._exit(3)",
    "hangs": "sleeps for an hour",
}

# What a tool is told when the bad input hangs, and only then.
INPUT_SECONDS = 2  # where it has a time limit for one input or one result
WHOLE_SECONDS = 10  # where it has one for the whole only; undisturbed, a second or two is enough

LIMIT_SECONDS = 30
MARK = "CRASHES_BENCHMARK_CELL"  # in the environment of a cell's processes, wherever they went
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Work:
    """The function that goes through the tools; it returns its input."""

    failure: str
    folder: Path

    def __call__(self, inp: int) -> int:
        append(self.folder / "begun", f"{inp}\n")
        if inp == BAD:
            self.fail()
        compute()
        append(self.folder / "executed", f"{inp}\n")
        return inp

    def fail(self) -> None:
        if self.failure == "raises":
            raise ValueError("cannot be read")  # a message that names no input, as most do
        if self.failure == "exits":
            os._exit(3)
        if self.failure == "hangs":
            time.sleep(3600)


def compute() -> None:
    """Keep a core busy for a millisecond: asleep, more inputs than cores could go on at once."""
    end = time.perf_counter() + WORK_SECONDS
    while time.perf_counter() < end:
        pass


def append(path: Path, line: str) -> None:
    """Append in one write: lines of processes that write at once must not mix or get lost."""
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


class Caller:
    """What the caller of a tool gets, written down as it comes: its process may be killed."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.error: BaseException | None = None
        self._path = work.folder / "caller"

    def note(self, what: str, value: object) -> None:
        append(self._path, json.dumps([what, value]) + "\n")

    def got(self, results: Iterable[int]) -> None:
        self.note("delivered", list(results))

    def blame(self, inputs: Iterable[int], how: str = "yes") -> None:
        """Any of `inputs` may be the bad one, says the tool; `how` is kept if it is but one."""
        self.note("blamed", list(inputs))
        self.note("how", how)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """The caller catches what the tool raises, and goes on with closing it."""
        try:
            yield
        except Exception as error:
            self.error = error
            self.note("error", type(error).__name__)

    def limit(self, seconds: float) -> float | None:
        return seconds if self.work.failure == "hangs" else None


# The tools. Each is imported where it is used: a cell has no modules of the others.


def pool_map(caller: Caller) -> None:
    with multiprocessing.Pool() as pool, caller.catching():
        caller.got(pool.map_async(caller.work, INPUTS).get(caller.limit(WHOLE_SECONDS)))


def pool_imap_unordered(caller: Caller) -> None:
    """Calling next() goes on after an exception, where a for loop would end."""
    with multiprocessing.Pool() as pool:
        results = pool.imap_unordered(caller.work, INPUTS, chunksize=1)
        for _ in INPUTS:
            with caller.catching():
                caller.got([results.next(caller.limit(INPUT_SECONDS))])


def executor(caller: Caller) -> None:
    with concurrent.futures.ProcessPoolExecutor() as pool:
        inputs = {pool.submit(caller.work, inp): inp for inp in INPUTS}
        with caller.catching():
            limit = caller.limit(WHOLE_SECONDS)
            for future in concurrent.futures.as_completed(inputs, timeout=limit):
                with caller.catching():
                    caller.got([future.result()])
        caller.blame(
            inp for future, inp in inputs.items() if not future.done() or future.exception()
        )


def joblib_parallel(caller: Caller) -> None:
    from joblib import Parallel, delayed

    with caller.catching():
        parallel = Parallel(n_jobs=-1, timeout=caller.limit(INPUT_SECONDS))
        caller.got(parallel(delayed(caller.work)(inp) for inp in INPUTS))


def mpire_map(caller: Caller) -> None:
    from mpire import WorkerPool

    with WorkerPool() as pool, caller.catching():
        caller.got(pool.map(caller.work, INPUTS, task_timeout=caller.limit(INPUT_SECONDS)))
    if caller.error is not None:
        # The exception is the function's own; the input is in the text of its cause.
        found = re.search(r"^Arg 0: (\d+)$", str(caller.error.__cause__), re.MULTILINE)
        caller.blame([int(found[1])] if found else [], "in the text")


def dask_bag(caller: Caller) -> None:
    import dask.bag
    from distributed import Client, KilledWorker, LocalCluster

    bag = dask.bag.from_sequence(INPUTS).map(caller.work)
    with (
        # The dashboard's usual port may be taken, which would be warned of.
        LocalCluster(
            n_workers=os.cpu_count(), threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
        caller.catching(),
    ):
        caller.got(client.compute(bag).result(caller.limit(WHOLE_SECONDS)))
    if isinstance(caller.error, KilledWorker):
        size = len(INPUTS) // bag.npartitions
        _, partition = cast("tuple[str, int]", caller.error.task)
        caller.blame(INPUTS[partition * size : (partition + 1) * size])


def at_once_map(caller: Caller) -> None:
    """Results are not handed over here: delivered is what the report says is processed."""
    import at_once_dask

    with caller.catching():
        report = at_once_dask.run(
            INPUTS,
            None,
            caller.work,
            on_error="return",
            progress=False,
            timeout=caller.limit(INPUT_SECONDS),
        )
        items = report.items
        caller.got(items.index[items["status"] == "processed"].tolist())
        caller.blame(report.failures["input"])
    at_once_dask.close()


def at_once_reduce(caller: Caller) -> None:
    """A map-reduce that makes one list of all: the results themselves come to the caller."""
    import at_once_dask

    work = caller.work
    with caller.catching():
        result = at_once_dask.run(
            INPUTS,
            None,
            lambda inp: {"all": work(inp)},
            reduce_fn=list,
            on_error="return",
            progress=False,
            timeout=caller.limit(INPUT_SECONDS),
        )
        caller.got(result.get("all", []))
        caller.blame(result.report.failures["input"])
    at_once_dask.close()


@dataclass(frozen=True)
class Tool:
    """A row of the table: what runs, the modules it needs, and whose version is told."""

    name: str
    use: Callable[[Caller], None]
    module: str = "multiprocessing"
    distribution: str | None = None
    limit: str = ""


TOOLS = {
    "pool-map": Tool(
        "multiprocessing.Pool.map",
        pool_map,
        limit=f"`map_async(...).get({WHOLE_SECONDS})`, as `map` has no limit",
    ),
    "pool-imap": Tool(
        "multiprocessing.Pool.imap_unordered",
        pool_imap_unordered,
        limit=f"`next({INPUT_SECONDS})` on the iterator",
    ),
    "executor": Tool(
        "concurrent.futures.ProcessPoolExecutor",
        executor,
        limit=f"`as_completed(..., timeout={WHOLE_SECONDS})`",
    ),
    "joblib": Tool(
        "joblib.Parallel",
        joblib_parallel,
        "joblib",
        "joblib",
        limit=f"`Parallel(n_jobs=-1, timeout={INPUT_SECONDS})`",
    ),
    "mpire": Tool(
        "mpire.WorkerPool.map",
        mpire_map,
        "mpire",
        "mpire",
        limit=f"`map(..., task_timeout={INPUT_SECONDS})`",
    ),
    "dask-bag": Tool(
        "dask.bag on a LocalCluster",
        dask_bag,
        "distributed",
        "distributed",
        limit=f"`client.compute(bag).result({WHOLE_SECONDS})`",
    ),
    "at-once-map": Tool(
        "at_once_dask.run, map-only",
        at_once_map,
        "at_once_dask",
        "at_once_dask",
        limit=f"`run(..., timeout={INPUT_SECONDS})`",
    ),
    "at-once-reduce": Tool(
        "at_once_dask.run, reduce_fn=list",
        at_once_reduce,
        "at_once_dask",
        "at_once_dask",
        limit=f"`run(..., timeout={INPUT_SECONDS})`",
    ),
}


@dataclass(frozen=True)
class Cell:
    """What became of one failure with one tool."""

    failure: str
    tool: str
    executed: int
    delivered: int
    named: str
    repeated: int
    bad_begun: int
    errors: list[str]
    seconds: float | None  # None: it never ends

    @property
    def row(self) -> tuple[str, ...]:
        return (
            self.failure,
            self.tool,
            str(self.executed),
            str(self.delivered),
            self.named,
            str(self.repeated),
            str(self.bad_begun),
            ", ".join(self.errors) or "-",
            "never ends" if self.seconds is None else f"{self.seconds:.1f}",
        )


HEAD = (
    "bad input",
    "tool",
    "executed",
    "delivered",
    "named",
    "repeated",
    "bad one begun",
    "raised to the caller",
    "seconds",
)


def run_cell(key: str, failure: str) -> Cell:
    """Run a cell in an interpreter of its own, and count what it left."""
    with tempfile.TemporaryDirectory(prefix="crashes-") as name:
        folder = Path(name)
        ended = in_time([sys.executable, __file__, "--cell", key, failure, name], folder)
        return counted(key, failure, folder, ended)


def in_time(command: Sequence[str], folder: Path) -> bool:
    """Whether `command` ends by itself before the limit; nothing of it is left in any case."""
    mark = uuid.uuid4().hex
    # What tools tell a terminal goes to a file: a pipe would be held open by processes left over.
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        else:
            return True
        finally:
            kill_all(process.pid, mark)
            process.wait()


def kill_all(group: int, mark: str) -> None:
    """Kill the cell's process group, and then what has left it, until there is none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    while stragglers := [process for process in psutil.process_iter() if is_of(process, mark)]:
        for process in stragglers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stragglers, timeout=1)


def is_of(process: psutil.Process, mark: str) -> bool:
    """Whether `process` belongs to the cell with this mark; one that is dead already does not."""
    try:
        return process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def counted(key: str, failure: str, folder: Path, ended: bool) -> Cell:
    notes = [json.loads(line) for line in lines(folder / "caller")]
    begun = Counter(lines(folder / "begun"))
    said: dict[str, Any] = dict(notes)  # the last of each
    if ended and "seconds" not in said:
        raise RuntimeError(f"{key} {failure}:\n{(folder / 'output').read_text('utf-8', 'replace')}")
    return Cell(
        failure=FAILURES.get(failure, failure),
        tool=TOOLS[key].name,
        executed=len(set(lines(folder / "executed"))),
        delivered=len({inp for what, inps in notes if what == "delivered" for inp in inps}),
        named=named(said.get("blamed", []), said.get("how", "")),
        repeated=sum(count > 1 for count in begun.values()),
        bad_begun=begun[str(BAD)],
        errors=list(dict.fromkeys(name for what, name in notes if what == "error")),
        # A tool that was closed and then keeps the interpreter from ending has not ended.
        seconds=said["seconds"] if ended else None,
    )


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []


def named(blamed: Sequence[int], how: str) -> str:
    if BAD not in blamed:
        return "wrong one" if blamed else "no"
    return how if len(blamed) == 1 else f"one of {len(blamed)}"


def inside(key: str, failure: str, folder: Path) -> None:
    """What the interpreter of a cell does."""
    tool = TOOLS[key]
    importlib.import_module(tool.module)
    caller = Caller(Work(failure, folder))
    begin = time.perf_counter()
    tool.use(caller)
    caller.note("seconds", round(time.perf_counter() - begin, 2))


def versions() -> dict[str, str]:
    found = {tool.distribution for tool in TOOLS.values() if tool.distribution} | {"dask"}
    return {"python": platform.python_version()} | {name: version(name) for name in sorted(found)}


def as_json(cells: Sequence[Cell]) -> str:
    about = {
        "versions": versions(),
        "cores": os.cpu_count(),
        "inputs": len(INPUTS),
        "limit_seconds": LIMIT_SECONDS,
        "cells": [asdict(cell) for cell in cells],
    }
    return json.dumps(about, indent=2) + "\n"


def as_markdown(cells: Sequence[Cell]) -> str:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    rows = [HEAD, ("---",) * len(HEAD), *(cell.row for cell in cells)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    limits = "\n".join(f"- {tool.name}: {tool.limit}" for tool in TOOLS.values())
    return f"""# What one bad input costs

Made by `python benchmarks/crashes.py` with {told}, on {os.cpu_count()} cores.
{len(INPUTS):,} inputs of a millisecond each, of which number {BAD} is bad. Seconds are rough.

{table}

- **executed**: inputs that ran to their end. **delivered**: those whose result the caller got.
  A map-only run of at_once_dask hands over no results (its function saves them itself): there it
  is what the report says is processed.
- **named**: whether what the caller got says which input it was. "one of N": it is among N that
  are equally suspect. "in the text": to be parsed from the text of the exception's cause.
- **repeated**: inputs begun more than once; **bad one begun**: how often that one was.
- **never ends**: killed after {LIMIT_SECONDS} seconds.
- Input {BAD} is the first of its chunk in `Pool.map` and of its partition in `dask.bag`; the rest
  of these is not executed.
- Pools and executors are closed by `with`, as their documentation shows. The executor waits there
  for the input that hangs, though its caller has been told.

When the bad input hangs, and only then, the tools were given these limits:

{limits}
"""


def as_text(cells: Sequence[Cell]) -> str:
    rows = [HEAD, *(cell.row for cell in cells)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def benchmark() -> None:
    cells = []
    for failure in FAILURES:
        for key in TOOLS:
            print(f"{failure}: {TOOLS[key].name}", file=sys.stderr)
            cells.append(run_cell(key, failure))
    print(as_text(cells))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "crashes.json").write_text(as_json(cells), "utf-8")
    (RESULTS / "crashes.md").write_text(as_markdown(cells), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)  # how it starts itself
    cell = parser.parse_args().cell
    if cell is None:
        benchmark()
    else:
        inside(cell[0], cell[1], Path(cell[2]))


if __name__ == "__main__":
    main()
