"""100,000 inputs, one in a hundred bad in one of a dozen ways, in one run: what holds?

Inputs of about a millisecond each go through one call of `run`, as a map-reduce. One in a hundred,
drawn at random, raises, ends its process, hangs, eats up the memory, or gives a value that cannot
be pickled. Then everything is counted:

- every input is accounted for, and exactly the bad ones have failed, each as what it was;
- the reduction equals that of a loop in plain Python over the good ones, values and keys in order;
- no input ran more than twice, and none that ends its process more than once: each notes in a file
  that it began;
- each failure is in the log once, and nothing was printed;
- the driver's memory stays flat; its file descriptors (some connections aside), threads, processes,
  listening ports and temporary files are as many after the run as before it, and close() leaves
  none of them.

    python benchmarks/soak.py --inputs 100000 --seed 1

prints a summary and writes it to benchmarks/results/, as JSON and as Markdown. The exit code is 1
when something does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import multiprocessing.util
import os
import platform
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import psutil

import at_once_dask

INPUTS = 100_000
WARM_UP = 400  # inputs of the small run before
BAD_SHARE = 0.01
RARE_SHARE = 0.00005  # of each kind that takes seconds
WORK_SECONDS = 0.001
KEYS = 100
TIMEOUT = 2.0
MEMORY_LIMIT = "700 MB"
MEMORY_STEP = b"x" * 20_000_000
MEMORY_STEPS = 100  # far past the limit; then it was not ended for it
TARGET_SECONDS = 15 * 60
SAMPLE_SECONDS = 1.0
SETTLE_SECONDS = 15.0  # for what ends by itself after a run or close()
START_SHARE = 0.1  # of the samples: the start, in which memory may grow
# Dask keeps connections for the next time, now more of them and now fewer. One descriptor lost for
# each death would be hundreds.
SLACK = {"descriptors": 20}
FLAT_SHARE, FLAT_BYTES = 0.1, 20 * 2**20  # growth up to the larger one is flat
EXAMPLES = 5  # of what does not hold
RESULTS = Path(__file__).parent / "results"

Input = tuple[int, str | None]  # its number, and the kind of failure it is


# The ways to fail.


class Unpicklable(Exception):
    """Cannot be sent."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("this exception cannot be pickled")


def raise_value_error() -> None:
    raise ValueError("cannot be read")


def raise_system_exit() -> None:
    raise SystemExit(3)


def raise_unpicklable() -> None:
    raise Unpicklable


def return_unpicklable() -> object:
    return threading.Lock()


def exit_process() -> None:
    os._exit(3)


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1)  # a signal may take a moment


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def eat_memory() -> None:
    hoard = []
    for _ in range(MEMORY_STEPS):
        hoard.append(MEMORY_STEP + b"x")
        time.sleep(0.01)  # or the kernel may be asked for more than there is before anybody looks


def hang() -> None:
    while True:
        time.sleep(0.01)


def hang_in_c() -> None:
    ctypes.PyDLL(None).sleep(3600)  # a PyDLL keeps the GIL


@dataclass(frozen=True)
class Kind:
    """A way to fail, and what the report must say of it.

    `weight` is its share among the failures, None for one that takes seconds and is rare.
    """

    fail: Callable[[], object]
    weight: int | None
    kind: str
    error: str
    stage: str = "process"

    @property
    def expected(self) -> tuple[str, str, str]:
        return self.kind, self.error, self.stage


KINDS = {
    "exception": Kind(raise_value_error, 15, "exception", "ValueError"),
    "SystemExit": Kind(raise_system_exit, 10, "exception", "SystemExit"),
    "unpicklable exception": Kind(raise_unpicklable, 10, "exception", "Unpicklable"),
    "unpicklable value": Kind(return_unpicklable, 15, "exception", "TypeError", "collect"),
    "os._exit(3)": Kind(exit_process, 13, "crash", "exit 3"),
    "SIGKILL": Kind(kill_process, 13, "crash", "SIGKILL"),
    "segfault": Kind(segfault, 12, "crash", "SIGSEGV"),
    "abort": Kind(abort, 12, "crash", "SIGABRT"),
    "memory": Kind(eat_memory, None, "memory", "MemoryError"),
    "hang in Python": Kind(hang, None, "timeout", "TimeoutError"),
    "hang in C": Kind(hang_in_c, None, "timeout", "TimeoutError"),
}


# The run.


@dataclass(frozen=True)
class Work:
    """The function of the run: notes that it began, then works for a millisecond, or fails."""

    begun: str  # path of a file

    def __call__(self, inp: Input) -> dict[int, object]:
        number, kind = inp
        # In one write: lines of processes that write at once must not mix or get lost.
        file = os.open(self.begun, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(file, b"%d\n" % number)
        os.close(file)
        end = time.perf_counter() + WORK_SECONDS
        while time.perf_counter() < end:  # asleep, more inputs than cores could go on at once
            pass
        value = number if kind is None else KINDS[kind].fail()
        return {number % KEYS: value}


def digest(values: list[int]) -> tuple[int, int, int]:
    """How many, their sum, and a number that another order of them would change."""
    return len(values), sum(values), zlib.crc32(repr(values).encode())


def oracle(inputs: Sequence[Input]) -> dict[int, tuple[int, int, int]]:
    groups: dict[int, list[int]] = {}
    for number, kind in inputs:
        if kind is None:
            groups.setdefault(number % KEYS, []).append(number)
    return {key: digest(values) for key, values in groups.items()}


def make_inputs(n: int, seed: int) -> list[Input]:
    """`n` inputs; of each kind of failure there is one at least."""
    dice = random.Random(seed)
    rare = [name for name, kind in KINDS.items() if kind.weight is None]
    common = {name: kind.weight for name, kind in KINDS.items() if kind.weight is not None}
    names = rare * max(1, round(n * RARE_SHARE)) + list(common)
    more = max(0, round(n * BAD_SHARE) - len(names))
    names += dice.choices(list(common), list(common.values()), k=more)
    dice.shuffle(names)
    inputs: list[Input] = [(number, None) for number in range(n)]
    for number, name in zip(dice.sample(range(n), len(names)), names, strict=True):
        inputs[number] = number, name
    return inputs


def run(inputs: list[Input], folder: Path) -> Any:
    return at_once_dask.run(
        inputs,
        None,
        Work(str(folder / "begun")),
        reduce_fn=digest,
        on_error="return",
        timeout=TIMEOUT,
        progress=False,
    )


# What the driver holds.


@dataclass(frozen=True)
class Held:
    """What this process holds, and its children with it.

    Attributes
    ----------
    descriptors, threads : int
        Of this process.
    helpers_descriptors : int
        Of its children that live as long as the cluster: fork server, resource tracker, watchdog.
    processes : int
        Below this one, at any depth.
    ports : int
        That it or one of these listens on.
    files : int
        Temporary files and folders, those of the cluster among them.
    """

    descriptors: int
    threads: int
    helpers_descriptors: int
    processes: int
    ports: int
    files: int

    @classmethod
    def now(cls, temporary: Path) -> Held:
        me = psutil.Process()
        children = me.children(recursive=True)
        return cls(
            descriptors=me.num_fds(),
            threads=me.num_threads(),
            helpers_descriptors=sum(of(psutil.Process.num_fds, p) or 0 for p in me.children()),
            processes=len(children),
            ports=sum(len(of(listening, process) or ()) for process in [me, *children]),
            files=sum(1 for _ in temporary.rglob("*")),
        )


def of(ask: Callable[[psutil.Process], Any], process: psutil.Process) -> Any:
    """What `process` answers; None when it is gone."""
    with contextlib.suppress(psutil.Error):
        return ask(process)
    return None


def listening(process: psutil.Process) -> list[int]:
    connections = process.net_connections(kind="tcp")
    return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]


def settled(temporary: Path, wanted: Held) -> Held:
    """What is held now, or as soon as that is `wanted`."""
    end = time.monotonic() + SETTLE_SECONDS
    while (held := Held.now(temporary)) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    return held


@dataclass(frozen=True)
class Sample:
    seconds: float
    rss: int
    held: Held


class Watch:
    """Looks at this process every second, from a thread of its own."""

    def __init__(self, temporary: Path) -> None:
        self.samples: list[Sample] = []
        self._temporary = temporary
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch")

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        begin = time.monotonic()
        while not self._over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError, psutil.Error):  # a file or process just went
                rss = psutil.Process().memory_info().rss
                held = Held.now(self._temporary)
                self.samples.append(Sample(time.monotonic() - begin, rss, held))


@contextlib.contextmanager
def printed_into(path: Path) -> Iterator[None]:
    """What this process and those it starts print goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in enumerate(kept, 1):
            os.dup2(before, descriptor)
            os.close(before)


# What must hold.


@dataclass
class Soak:
    """What was found."""

    n: int
    seed: int
    workers: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)  # inputs, by what became of them
    kinds: dict[str, int] = field(default_factory=dict)  # bad inputs, by kind
    runs: dict[int, int] = field(default_factory=dict)  # how many inputs ran how often
    rss: dict[str, float] = field(default_factory=dict)  # MiB
    before: Held | None = None
    largest: Held | None = None  # of each the largest number at any time during the run
    after: Held | None = None
    closed: Held | None = None
    printed: dict[str, int] = field(default_factory=dict)  # lines, numbers aside
    wrong: dict[str, list[str]] = field(default_factory=dict)  # by check; the checks without any

    @property
    def holds(self) -> bool:
        return not any(self.wrong.values())

    def must_hold(self, what: str, wrong: Sequence[object]) -> None:
        """A check: all that speaks against it."""
        more = [f"and {len(wrong) - EXAMPLES} more"] if len(wrong) > EXAMPLES else []
        self.wrong[what] = [str(one) for one in wrong[:EXAMPLES]] + more


def check_report(soak: Soak, inputs: Sequence[Input], result: Any) -> None:
    report = result.report
    soak.counts = {
        "inputs": report.n_inputs,
        "processed": report.n_processed,
        "failed": report.n_failed,
        "skipped": report.n_skipped,
        "left": report.n_left,
        "keys failed": report.n_keys_failed,
    }
    accounted = report.n_processed + report.n_failed == report.n_inputs == len(inputs)
    soak.must_hold("every input is accounted for", [] if accounted else [soak.counts])
    failed = {
        int(index): (row.kind, row.error, row.stage)
        for index, row in zip(report.failures.index, report.failures.itertuples(), strict=True)
    }
    expected = {number: KINDS[kind].expected for number, kind in inputs if kind is not None}
    soak.must_hold(
        "exactly the bad inputs have failed",
        [
            f"input {number}: {failed.get(number, 'has not failed')}"
            for number in sorted(failed.keys() ^ expected.keys())
        ]
        + ["one twice"] * (report.n_failed - len(failed)),
    )
    different = [
        f"input {number}, {inputs[number][1]}: {failed[number]}"
        for number in sorted(failed.keys() & expected.keys())
        if failed[number] != expected[number]
    ]
    soak.must_hold("each failure is what it was", different)
    check_result(soak, inputs, result)


def check_result(soak: Soak, inputs: Sequence[Input], result: Any) -> None:
    wanted = oracle(inputs)
    different = [
        f"key {key}: {result.get(key)} instead of {wanted.get(key)}"
        for key in sorted(wanted.keys() | result.keys())
        if result.get(key) != wanted.get(key)
    ]
    if not different and list(result) != list(wanted):
        different = ["the order of the keys"]
    soak.must_hold("the reduction is that of a loop in plain Python", different)


def check_begun(soak: Soak, inputs: Sequence[Input], begun: str) -> None:
    times = Counter(map(int, begun.split()))
    soak.runs = dict(sorted(Counter(times[number] for number, _ in inputs).items()))
    soak.must_hold(
        "every input ran, and none more than twice",
        [f"input {n}: {times[n]} times" for n, _ in inputs if not 1 <= times[n] <= 2],
    )
    deadly = {name for name, kind in KINDS.items() if kind.kind != "exception"}
    soak.must_hold(
        "no input that ends its process ran more than once",
        [
            f"input {n}, {kind}: {times[n]} times"
            for n, kind in inputs
            if kind in deadly and times[n] != 1
        ],
    )


def check_log(soak: Soak, inputs: Sequence[Input], run: str) -> None:
    log = at_once_dask.read_log(run=run)
    times = Counter(map(int, log.loc[log["level"] == "ERROR", "index"].dropna()))
    expected = Counter(number for number, kind in inputs if kind is not None)
    soak.must_hold(
        "each failure is in the log once",
        [
            f"input {number}: {times[number]} times instead of {expected[number]}"
            for number in sorted(times.keys() | expected.keys())
            if times[number] != expected[number]
        ],
    )


def check_memory(soak: Soak, samples: Sequence[Sample]) -> None:
    rss = [sample.rss for sample in samples[int(len(samples) * START_SHARE) :]]
    if len(rss) < 4:
        sys.exit("too few inputs to see anything of the memory; use --inputs 2000 or more")
    quarter = len(rss) // 4
    first, last = statistics.median(rss[:quarter]), statistics.median(rss[-quarter:])
    soak.rss = {
        "first quarter": round(first / 2**20, 1),
        "last quarter": round(last / 2**20, 1),
        "largest": round(max(sample.rss for sample in samples) / 2**20, 1),
    }
    is_flat = last - first <= max(first * FLAT_SHARE, FLAT_BYTES)
    soak.must_hold("the driver's memory is flat", [] if is_flat else [soak.rss])


def check_held(soak: Soak, what: str, held: Held, wanted: Held) -> None:
    then = asdict(wanted)
    soak.must_hold(
        what,
        [
            f"{name}: {now} instead of {then[name]}"
            for name, now in asdict(held).items()
            if abs(now - then[name]) > SLACK.get(name, 0)
        ],
    )


def check_closed(soak: Soak, temporary: Path) -> None:
    """Nothing is left but multiprocessing's fork server and resource tracker."""
    stay = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        soak.closed = Held.now(temporary)
        left = [
            command
            for process in psutil.Process().children(recursive=True)
            if (command := " ".join(of(psutil.Process.cmdline, process) or ()))
            and (process.ppid() != os.getpid() or not any(name in command for name in stay))
        ]
        left += [path.name for path in temporary.iterdir()]
        left += [f"port {port}" for port in listening(psutil.Process())]
        # Dask starts one once in a process, and keeps it.
        left += [t.name for t in threading.enumerate()[1:] if "Dask-Offload" not in t.name]
        if not left or time.monotonic() > end:
            break
        time.sleep(0.1)
    soak.must_hold("close() leaves nothing", left)


def check_printed(soak: Soak, text: str) -> None:
    lines = Counter(re.sub(r"0x[0-9a-f]+|\d+", "N", line) for line in text.splitlines())
    soak.printed = dict(lines.most_common())
    soak.must_hold("nothing is printed", [f"{count} x {line}" for line, count in lines.items()])


# The whole.


def soaked(n: int, seed: int) -> Soak:
    """Do it, in folders of its own."""
    soak = Soak(n, seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, temporary = Path(name), Path(name, "temporary")
        temporary.mkdir()
        multiprocessing.util.get_temp_dir()  # its own one is made now, elsewhere, and stays
        # All that is left there is known to be ours. Processes that are started get it, too.
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        at_once_dask.logfile = str(folder / "log.jsonl")
        try:
            with printed_into(folder / "printed"):
                fill(soak, folder, temporary)
        finally:
            text = (folder / "printed").read_text("utf-8", "replace")
            sys.stderr.write(text)
        check_printed(soak, text)
    return soak


def fill(soak: Soak, folder: Path, temporary: Path) -> None:
    inputs = make_inputs(soak.n, soak.seed)
    soak.kinds = dict(Counter(kind for _, kind in inputs if kind is not None).most_common())
    # The dashboard's usual port may be taken.
    client = at_once_dask.start(memory_limit=MEMORY_LIMIT, dashboard_address="127.0.0.1:0")
    try:
        soak.workers = len(client.nthreads())
        run(make_inputs(WARM_UP, soak.seed), folder)
        client.wait_for_workers(soak.workers)
        soak.before = at_rest(temporary)
        (folder / "begun").unlink()
        with Watch(temporary) as watch:
            begin = time.monotonic()
            result = run(inputs, folder)
            soak.seconds = round(time.monotonic() - begin, 1)
        soak.after = settled(temporary, soak.before)
    finally:
        del client
        at_once_dask.close()
    check_report(soak, inputs, result)
    check_begun(soak, inputs, (folder / "begun").read_text("ascii"))
    check_log(soak, inputs, result.report.run)
    check_memory(soak, watch.samples)
    soak.largest = Held(
        *(max(column) for column in zip(*(numbers(s.held) for s in watch.samples), strict=True))
    )
    check_held(soak, "after the run as much is held as before", soak.after, soak.before)
    check_closed(soak, temporary)
    in_time = soak.seconds <= TARGET_SECONDS
    soak.must_hold("it takes 15 minutes at most", [] if in_time else [f"{soak.seconds} s"])


def at_rest(temporary: Path) -> Held:
    """What is held when that has not changed for two seconds."""
    held, since = Held.now(temporary), time.monotonic()
    while time.monotonic() < since + 2:
        time.sleep(0.1)
        now = Held.now(temporary)
        if now != held:
            held, since = now, time.monotonic()
    return held


def numbers(held: Held) -> list[int]:
    return list(asdict(held).values())


# What is told.


def versions() -> dict[str, str]:
    names = ("at_once_dask", "dask", "distributed")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def as_json(soak: Soak) -> str:
    about = {
        "date": today(),
        "versions": versions(),
        "cores": os.cpu_count(),
        "holds": soak.holds,
        **asdict(soak),
    }
    return json.dumps(about, indent=2) + "\n"


def facts(soak: Soak) -> list[tuple[str, str]]:
    kinds = [f"{count} {kind}" for kind, count in soak.kinds.items()]
    runs = [f"{count:,} ran {times} x" for times, count in soak.runs.items()]
    return [
        ("inputs", f"{soak.n:,}, seed {soak.seed}"),
        ("bad", f"{sum(soak.kinds.values()):,}: {', '.join(kinds)}"),
        ("workers", f"{soak.workers}"),
        ("seconds", f"{soak.seconds:,}"),
        ("outcome", ", ".join(f"{count:,} {name}" for name, count in soak.counts.items())),
        ("executions", ", ".join(runs)),
        ("driver's memory, MiB", ", ".join(f"{name} {mib}" for name, mib in soak.rss.items())),
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    lines = [head, ["---"] * len(head), *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def held_rows(soak: Soak) -> list[list[str]]:
    columns = [soak.before, soak.largest, soak.after, soak.closed]
    names = asdict(soak.before).keys() if soak.before else ()
    return [
        ["held", "before", "largest meanwhile", "after", "after close()"],
        *(
            [name.replace("_", " "), *(str(getattr(column, name)) for column in columns)]
            for name in names
        ),
    ]


def verdicts(soak: Soak) -> list[str]:
    return [
        f"{'FAILS' if wrong else 'holds'}: {what}{': ' * bool(wrong)}{'; '.join(wrong)}"
        for what, wrong in soak.wrong.items()
    ]


def as_markdown(soak: Soak) -> str:
    told = ", ".join(f"{name} {number}" for name, number in versions().items())
    checks = "\n".join(f"- {verdict}" for verdict in verdicts(soak))
    return f"""# A soak: many failures of every kind in one run

Made on {today()} by `python benchmarks/soak.py --inputs {soak.n} --seed {soak.seed}`
with {told}, on {os.cpu_count()} cores.
Inputs of about {WORK_SECONDS * 1000:g} ms, one in {1 / BAD_SHARE:g} bad, with timeout={TIMEOUT:g}
and memory_limit="{MEMORY_LIMIT}".

{table([("what", "figure"), *facts(soak)])}

{table(held_rows(soak))}

Held by the driver; descriptors of helpers are those of fork server, resource tracker and watchdog,
and the first two of these stay until the driver ends. A thread of the benchmark's own looks on
meanwhile.

{checks}
"""


def as_text(soak: Soak) -> str:
    lines = [f"{name}: {figure}" for name, figure in facts(soak)]
    lines += [": ".join([row[0], ", ".join(row[1:])]) for row in held_rows(soak)]
    return "\n".join([*lines, *verdicts(soak)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    # Hundreds of core dumps would fill the disk; the workers inherit this.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    soak = soaked(given.inputs, given.seed)
    print(as_text(soak))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(as_json(soak), "utf-8")
    (RESULTS / "soak.md").write_text(as_markdown(soak), "utf-8")
    sys.exit(not soak.holds)


if __name__ == "__main__":
    main()
