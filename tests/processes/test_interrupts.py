"""Ctrl-C, SIGTERM and the notebook's stop button: the run stops soon, whole, and can go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from helpers import poll_for
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from runs import ending_of
from scripts import (
    HANGING,
    MARK,
    SOON,
    Script,
    alive,
    end_with,
    environment,
    pause,
    seeded,
    started,
    told,
)

import at_once_dask
from at_once_dask.driver.dispatcher import GRACE_SECONDS

# ----- scripts

REPORTING = """
def tell(error):
    report = error.report
    parts = report.n_processed, report.n_skipped, report.n_failed, report.n_left
    print(json.dumps({
        "error": type(error).__name__,
        "last": report is at_once_dask.last_report(),
        "items": len(report.items),
        "inputs": report.n_inputs,
        "sum": sum(parts),
        "failed": report.n_failed,
        "left": report.n_left,
    }), flush=True)
"""

CAUGHT = f"""
{HANGING}
{REPORTING}
try:
    at_once_dask.run(inputs, None, process_inp, report_path="report.html", progress=False)
except BaseException as error:
    tell(error)
    raise
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)]
)
def test_it_ends_while_inputs_hang(folder: Path, number: int) -> None:
    """One in Python, one in C with the GIL held, both with processes; the report is written."""
    with started(CAUGHT, folder, "Python", "C") as script:
        script.wait_for_file("Python hangs", "C hangs")
        before = [" ".join(process.cmdline()) for process in script.alive()]
        assert sum("sleep 600" in command for command in before) == 4
        assert sum("forkserver" in command for command in before) == 3  # it, and two workers
        assert sum("watchdog" in command for command in before) == 1

        since = end_with(script, number)

        script.check_all_gone(since)
        told = json.loads(script.out[-1])
        assert told.pop("left") >= 2
        assert told == {
            "error": "KeyboardInterrupt" if number == signal.SIGINT else "SystemExit",
            "last": True,
            "items": 12,
            "inputs": 12,
            "sum": 12,
            "failed": 0,
        }
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
        assert ending_of(folder / "report.html") == f"Interrupted: {name}."
        if number == signal.SIGINT:
            assert script.process.returncode in (-signal.SIGINT, 130)
            check_one_interrupt(script)
        else:
            assert script.process.returncode == 143
            assert script.err == ""


SHOWN = f"""
{HANGING}
at_once_dask.run(inputs, lambda inp: [inp == "0", None], process_inp)
"""


def test_sigterm_says_how_far_the_run_came(folder: Path) -> None:
    """Of SystemExit Python prints nothing; a batch system's output has it all the same."""
    with started(SHOWN, folder, "Python") as script:
        script.wait_for_file("Python hangs")
        since = end_with(script, signal.SIGTERM)
        script.check_all_gone(since)
        assert script.process.returncode == 143
        *_, progress, ending, counts, log, step = script.err.splitlines()
        assert progress.startswith("map: ")
        assert ending == "Interrupted: SIGTERM."
        assert counts.startswith("11 inputs in ")
        assert log.startswith("Log: ")
        assert step.startswith("Next: run the same again to go on: the ")
        assert step.endswith(" done will be skipped.")


def check_one_interrupt(script: Script) -> None:
    """One traceback, of the script's line and at most one of ours, with what is to be known."""
    err = script.err
    assert err.startswith("Traceback"), err
    assert err.count("Traceback") == err.count("\nKeyboardInterrupt") == 1, err
    assert err.count('  File "') <= 2, err
    _, _, told = err.partition("\nKeyboardInterrupt: ")
    ending, counts, log, step = told.splitlines()
    assert ending == "Interrupted: Ctrl-C."
    assert re.match(r"\d+ inputs in \d+\.\d s: ", counts)
    assert log.startswith("Log: ")
    assert step.startswith("Next: run the same again to go on")


PLAIN = f"""
{HANGING}
at_once_dask.run(inputs, None, process_inp, progress=False)
"""


@pytest.mark.parametrize(
    "span",
    [
        0.02,
        pytest.param(GRACE_SECONDS, marks=pytest.mark.thorough),
        pytest.param(GRACE_SECONDS / 2, marks=pytest.mark.slow),
    ],
)
def test_further_ctrl_c_during_the_stop(folder: Path, span: float) -> None:
    """Inputs that hang keep the stop going for as long as they are given to end by themselves."""
    moments = sorted(seeded().uniform(0, span) for _ in range(2))
    with started(PLAIN, folder, "Python", "C") as script:
        script.wait_for_file("Python hangs", "C hangs")
        since = time.monotonic()
        script.press_ctrl_c()
        for moment in moments:
            pause(max(0.0, since + moment - time.monotonic()))
            script.press_ctrl_c()
        script.process.wait(SOON)
        script.check_all_gone(since)
        assert script.process.returncode in (-signal.SIGINT, 130)
        check_one_interrupt(script)


# Before its exit functions Python waits for threads: a Ctrl-C in that moment it tells by itself.
ENDING = f"""
{HANGING}
import atexit
atexit.register(lambda: open("ending", "w").close())
at_once_dask.run(inputs, None, process_inp, progress=False)
"""


@pytest.mark.thorough
def test_further_ctrl_c_while_the_script_ends(folder: Path) -> None:
    """What Python runs at exit takes the cluster down."""
    with started(ENDING, folder, "Python", "C") as script:
        script.wait_for_file("Python hangs", "C hangs")
        since = time.monotonic()
        script.press_ctrl_c()
        script.wait_for_file("ending")
        with contextlib.suppress(ProcessLookupError):
            script.press_ctrl_c()
        script.process.wait(SOON)
        script.check_all_gone(since)
        check_one_interrupt(script)


IMPORTING = f"""
import json
import os, signal, sys
import at_once_dask

{REPORTING}

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "at_once_dask.driver.dask_backend":
            os.kill(os.getpid(), signal.SIGINT)

assert "distributed" not in sys.modules
sys.meta_path.insert(0, Interrupting())
try:
    at_once_dask.run(range(10), None, print, progress=False)
except BaseException as error:
    tell(error)
    raise
"""


@pytest.mark.thorough
def test_ctrl_c_while_dask_is_imported(folder: Path) -> None:
    """The first call imports it; the run ends as it begins, with its report."""
    with started(IMPORTING, folder) as script:
        script.process.wait(30)
        check_one_interrupt(script)
        told = json.loads(script.out[-1])
        assert (told["error"], told["last"]) == ("KeyboardInterrupt", True)


# ----- and again

RESUMED = """
import json, os, time
from pathlib import Path
import at_once_dask

N = 600
folder = Path("out")
folder.mkdir()

def check_inp(n):
    try:
        return [True, json.loads((folder / f"{n}.json").read_text())["value"]]
    except FileNotFoundError:
        return [False, None]

def process_inp(n):
    with open("begun", "a") as file:
        file.write(f"{time.monotonic()}\\n")
    slow = Path(f"slow-{n}")
    if n % 200 == 99 and not slow.exists():
        slow.touch()
        time.sleep(1.5)
    time.sleep(0.008)
    with at_once_dask.atomic_write(folder / f"{n}.json") as file:
        json.dump({"padding": "x" * 20_000, "value": {"sum": n, n % 3: 1}}, file)

client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
result = None
while result is None:
    try:
        print("run", time.monotonic(), flush=True)
        result = at_once_dask.run(range(N), check_inp, process_inp, reduce_fn=sum, progress=False)
    except KeyboardInterrupt as error:
        report = error.report
        done = report.n_processed + report.n_skipped
        print("interrupted", done + report.n_left, report.n_inputs, report.n_failed, flush=True)
assert at_once_dask.start(2, dashboard_address="127.0.0.1:0") is client
print(json.dumps(result), flush=True)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("n_times", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_again_in_the_same_process(folder: Path, n_times: int) -> None:
    """At any moment; the next run begins at once, the last one is complete and right."""
    rng = seeded()
    with started(RESUMED, folder) as script:
        for n in range(n_times):
            wait_for_lines(script, "run", n + 1)
            pause(rng.uniform(0, 0.5))
            before = time.monotonic()
            script.press_ctrl_c()
            wait_for_lines(script, "interrupted", n + 1)
            assert time.monotonic() - before < SOON
        script.process.wait(60)
        script.check_all_gone(time.monotonic())
        assert script.err == ""
        assert lines(script, "interrupted") == [["600", "600", "0"]] * n_times
        assert json.loads(script.out[-1]) == {"sum": sum(range(600)), "0": 200, "1": 200, "2": 200}
        check_files(folder / "out", 600)
        begun = sorted(map(float, (folder / "begun").read_text().split()))
        assert max(delays([float(line[0]) for line in lines(script, "run")], begun)) < 3


def lines(script: Script, word: str) -> list[list[str]]:
    """What stands behind `word` in the lines that begin with it."""
    return [line.split()[1:] for line in script.out if line.startswith(word)]


def wait_for_lines(script: Script, word: str, n: int) -> None:
    script.wait_for(lambda: len(lines(script, word)) >= n, f"{n} times: {word}")


def check_files(folder: Path, n: int) -> None:
    """`n` outputs, each of them whole."""
    values = [json.loads(path.read_text())["value"] for path in folder.glob("*.json")]
    assert sorted(value["sum"] for value in values) == list(range(n))
    assert all(value[str(value["sum"] % 3)] == 1 for value in values)


def delays(runs: list[float], begun: list[float]) -> Iterator[float]:
    """From the beginning of each run to its first input; 0 where it was interrupted before."""
    for run, end in zip(runs, [*runs[1:], float("inf")], strict=True):
        yield next((moment - run for moment in begun if run < moment < end), 0.0)


# ----- in a notebook

CELL = """
import ctypes, os, time
import at_once_dask

def process_inp(inp):
    if not os.path.exists("mended") and inp in ("Python", "C"):
        open(f"{inp} hangs", "w").close()
        time.sleep(600) if inp == "Python" else ctypes.PyDLL(None).sleep(600)
    return {"n": 1}

at_once_dask.start(2, dashboard_address="127.0.0.1:0")
result = at_once_dask.run(["a", "Python", "C", "b"], None, process_inp, reduce_fn=sum)
print(dict(result))
"""


@contextlib.contextmanager
def kernel(folder: Path, token: str) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A notebook's kernel, and the notebook's end of the wire."""
    manager = KernelManager(kernel_name="python3")
    env = {**environment(), "PYTHONWARNINGS": "", MARK: token}  # Jupyter's warnings are not ours
    manager.start_kernel(cwd=str(folder), env=env)
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
        manager.cleanup_resources()
        for process in alive(token):
            process.kill()


def reply(client: BlockingKernelClient, message: str, timeout: float) -> dict[str, Any]:
    """What the kernel answers to this message."""
    end = time.monotonic() + timeout
    while True:
        answer = client.get_shell_msg(timeout=max(0.1, end - time.monotonic()))
        if answer["parent_header"]["msg_id"] == message:
            content: dict[str, Any] = answer["content"]
            return content


def printed(client: BlockingKernelClient, message: str) -> str:
    """What the cell has written to stdout, once it is done."""
    text = ""
    while True:
        told = client.get_iopub_msg(timeout=10)
        content = told["content"]
        if told["parent_header"].get("msg_id") != message:
            continue
        if told["msg_type"] == "stream" and content["name"] == "stdout":
            text += content["text"]
        if told["msg_type"] == "status" and content["execution_state"] == "idle":
            return text


def test_the_notebooks_stop_button(folder: Path) -> None:
    """The cell ends with KeyboardInterrupt; executed again, in the same kernel, it succeeds."""
    token = secrets.token_hex(8)
    with kernel(folder, token) as (manager, client):
        message = client.execute(CELL)
        for inp in "Python", "C":
            poll_for((folder / f"{inp} hangs").exists, f"the input {inp} has not begun")
        before = time.monotonic()
        manager.interrupt_kernel()
        answer = reply(client, message, SOON)
        assert time.monotonic() - before < SOON
        assert (answer["status"], answer.get("ename")) == ("error", "KeyboardInterrupt")

        (folder / "mended").touch()
        message = client.execute(CELL)
        answer = reply(client, message, 30)
        assert answer["status"] == "ok", answer
        assert printed(client, message) == "{'n': 4}\n"
        message = client.execute(
            "r = at_once_dask.last_report(); assert r.ok and r.n_processed == 4"
        )
        assert reply(client, message, 30)["status"] == "ok"
    poll_for(lambda: not alive(token), "processes are left", lambda: told(alive(token)))


# ----- an iterator that blocks

BLOCKED = f"""
import json, os, sys, threading
import at_once_dask

{REPORTING}

def process_inp(inp):
    pass

how, n, shuffled = sys.argv[1:]
receiver, sender = os.pipe()
event = threading.Event()

def inputs():
    yield from range(int(n))
    open("blocked", "w").close()
    if how == "pipe":
        os.read(receiver, 1)
    else:
        event.wait()

at_once_dask.start(2, dashboard_address="127.0.0.1:0")
try:
    at_once_dask.run(inputs(), None, process_inp, shuffled == "shuffled", progress=False)
except BaseException as error:
    tell(error)
    raise
"""


@pytest.mark.parametrize(
    ("how", "n", "shuffled"),
    [
        ("pipe", 0, "in order"),
        pytest.param("event", 20, "shuffled", marks=pytest.mark.thorough),
        pytest.param("pipe", 20, "in order", marks=pytest.mark.slow),
        pytest.param("event", 0, "shuffled", marks=pytest.mark.slow),
    ],
)
def test_an_iterator_blocks(folder: Path, how: str, n: int, shuffled: str) -> None:
    """In ``next()``, before the first input and later."""
    with started(BLOCKED, folder, how, str(n), shuffled) as script:
        script.wait_for_file("blocked")
        since = end_with(script, signal.SIGINT)
        script.check_all_gone(since)
        check_one_interrupt(script)
        told = json.loads(script.out[-1])
        assert (told["error"], told["last"]) == ("KeyboardInterrupt", True)
        assert told["sum"] == told["inputs"] == told["items"]


@pytest.mark.thorough
def test_sigterm_while_an_iterator_blocks(folder: Path) -> None:
    with started(BLOCKED, folder, "event", "20", "in order") as script:
        script.wait_for_file("blocked")
        since = end_with(script, signal.SIGTERM)
        script.check_all_gone(since)
        assert script.process.returncode == 143
        assert json.loads(script.out[-1])["error"] == "SystemExit"
        assert script.err == ""


# ----- whose signals these are

BOTH = (signal.SIGINT, signal.SIGTERM)
Handlers = list[Any]


def handlers() -> Handlers:
    return [signal.getsignal(number) for number in BOTH]


@pytest.fixture
def own_handlers() -> Iterator[list[int]]:
    """A user's own: the list of what they were called with."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = [signal.signal(number, note) for number in BOTH]
    yield came
    for number, handler in zip(BOTH, before, strict=True):
        signal.signal(number, handler)


def looking(seen: list[Handlers]) -> Iterator[int]:
    """Inputs; while they are drawn, it is seen who handles the signals."""
    for n in range(10):
        seen.append(handlers())
        yield n


def do_nothing(inp: object) -> None:
    """The smallest `process_inp`."""


def fail(inp: object) -> None:
    raise ValueError(inp)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", BOTH)
def test_own_handlers_are_left_alone(own_handlers: list[int], number: int) -> None:
    before, seen = handlers(), []  # type: tuple[Handlers, list[Handlers]]
    driver = os.getpid()

    def send(inp: int) -> None:
        if inp == 3:
            os.kill(driver, number)

    report = at_once_dask.run(looking(seen), None, send, progress=False)

    assert report.ok
    assert report.n_processed == 10
    assert own_handlers == [number]
    assert seen == [before] * 10
    assert handlers() == before


@pytest.mark.thorough
@pytest.mark.usefixtures("cluster", "own_handlers")
def test_an_own_handler_may_raise() -> None:
    """Many programs end by ``sys.exit()`` in their own handler."""
    driver = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(3)

    def send_and_hang(inp: int) -> None:
        if inp == 3:
            os.kill(driver, signal.SIGTERM)
            time.sleep(600)

    signal.signal(signal.SIGTERM, leave)
    before = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        at_once_dask.run(range(10), None, send_and_hang, progress=False)
    assert time.monotonic() - before < SOON
    report = at_once_dask.last_report()
    assert getattr(caught.value, "report", None) is report
    assert report is not None
    assert report.n_processed + report.n_left == report.n_inputs == 10
    assert signal.getsignal(signal.SIGTERM) is leave
    assert at_once_dask.run(range(10), None, do_nothing, progress=False).ok


@pytest.mark.usefixtures("cluster", "own_handlers")
def test_an_own_handler_may_raise_while_an_iterator_blocks() -> None:
    """Then nobody waits for what was drawn, as for the end of a list that raises."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(3)

    def blocked() -> Iterator[int]:
        yield from range(10)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    signal.signal(signal.SIGTERM, leave)
    before = time.monotonic()
    with pytest.raises(SystemExit) as caught:
        at_once_dask.run(blocked(), None, hang, progress=False)
    assert time.monotonic() - before < SOON
    assert str(getattr(caught.value, "report", None)).startswith("Interrupted: SystemExit(3).\n")


def hang(inp: object) -> None:
    time.sleep(600)


@pytest.mark.usefixtures("cluster")
def test_the_usual_handlers_are_back_afterwards() -> None:
    """However the run ended."""
    before, seen = handlers(), []  # type: tuple[Handlers, list[Handlers]]
    assert before == [signal.default_int_handler, signal.SIG_DFL]
    driver = os.getpid()

    def interrupt(inp: int) -> None:
        os.kill(driver, signal.SIGINT)

    at_once_dask.run(looking(seen), None, do_nothing, progress=False)
    assert handlers() == before
    assert before not in seen
    with pytest.raises(at_once_dask.RunFailed):
        at_once_dask.run([1], None, fail, progress=False)
    assert handlers() == before
    with pytest.raises(at_once_dask.InputError):
        at_once_dask.run("text", None, do_nothing, progress=False)
    assert handlers() == before
    with pytest.raises(KeyboardInterrupt):
        at_once_dask.run([1], None, interrupt, progress=False)
    assert handlers() == before


COLD = """
import os, signal, sys, threading
import at_once_dask

came = []
over = threading.Event()
own = signal.SIG_IGN if sys.argv[1] == "ignored" else lambda number, frame: came.append(number)
signal.signal(signal.SIGINT, own)
others = []

def press():
    while not over.wait(0.05):
        if signal.getsignal(signal.SIGINT) is not own:
            others.append(signal.getsignal(signal.SIGINT))
        os.kill(os.getpid(), signal.SIGINT)

thread = threading.Thread(target=press)
thread.start()
try:
    report = at_once_dask.run(range(10), None, lambda n: None, progress=False)
finally:
    over.set()
    thread.join()
print(report.ok, bool(came), others, flush=True)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("own", ["handled", pytest.param("ignored", marks=pytest.mark.slow)])
def test_own_handlers_are_left_alone_while_the_cluster_starts(folder: Path, own: str) -> None:
    with started(COLD, folder, own) as script:
        script.process.wait(30)
        script.check_all_gone(time.monotonic())
        assert script.err == ""
        assert script.out == [f"True {own == 'handled'} []"]


# ----- in another thread


@pytest.mark.usefixtures("cluster")
def test_in_another_thread() -> None:
    """Signals are the main thread's: nothing is done about them here."""
    before, seen = handlers(), []  # type: tuple[Handlers, list[Handlers]]
    reports: list[at_once_dask.Report] = []

    def run() -> None:
        reports.append(at_once_dask.run(looking(seen), None, do_nothing, progress=False))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert reports[0].n_processed == 10
    assert seen == [before] * 10
    assert handlers() == before


IN_THREAD = """
import threading
import at_once_dask

def run():
    print(dict(at_once_dask.run([1, 2], None, lambda n: {"n": n}, reduce_fn=sum, progress=False)))

thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.thorough
def test_a_script_that_runs_it_in_a_thread(folder: Path) -> None:
    with started(IN_THREAD, folder) as script:
        script.process.wait(30)
        script.check_all_gone(time.monotonic())
        assert script.err == ""
        assert script.out == ["{'n': 3}"]
        assert script.process.returncode == 0
