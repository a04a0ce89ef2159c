"""What is raised, as people meet it: in a script, under pytest, at a prompt and in a notebook."""

from __future__ import annotations

import html
import os
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from distributed import Client
from helpers import typed
from nbclient import NotebookClient
from runs import ledger_of, report_of

import at_once_dask
from at_once_dask.protocol.failure import Failure
from at_once_dask.report import report
from at_once_dask.user_code import notebook

ROOT = str(Path(at_once_dask.__file__).parents[1])
run: Any = at_once_dask.run
INNER = re.compile(r"at_once_dask/(?!errors\.py)[\w/]+\.py")


def explode(inp: object) -> None:
    raise ValueError(inp)


def names(error: BaseException) -> list[str]:
    """The functions in the traceback, the outermost first."""
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# ----- tracebacks


def test_of_our_frames_one_is_left_which_debuggers_hide(cluster: Client) -> None:
    here = "test_of_our_frames_one_is_left_which_debuggers_hide"
    calls: list[Any] = [
        lambda: run([1], None, explode, progress=False),
        lambda: run("text", None, explode),
        lambda: run([1], None, explode, unknown=1),
        lambda: run([1], None, explode, verify=True),
        lambda: at_once_dask.plan("text", None),
        lambda: at_once_dask.start(0),
    ]
    for call in calls:
        with pytest.raises(at_once_dask.AtOnceError) as caught:
            call()
        assert names(caught.value) == [here, "<lambda>", "called"]
        assert caught.value.__traceback__ is not None
        *_, (last, _) = traceback.walk_tb(caught.value.__traceback__)
        assert last.f_locals["__tracebackhide__"]


def test_what_the_list_raises_keeps_its_frames(cluster: Client) -> None:
    def deeper() -> None:
        raise at_once_dask.AtOnceError("of the list") from KeyError("why")

    def inputs() -> Iterator[int]:
        yield 1
        deeper()

    with pytest.raises(at_once_dask.AtOnceError, match="of the list") as caught:
        run(inputs(), None, str, progress=False)

    assert names(caught.value)[-2:] == ["inputs", "deeper"]
    assert isinstance(caught.value.__cause__, KeyError)
    assert caught.value.__context__ is None


# ----- the next step at a prompt


def failure(position: int) -> Failure:
    """Of ten inputs eight end their worker: to run that again would end the person's session."""
    kind = "exception" if position in (6, 8) else "crash"
    return Failure(position, "process", kind, "E", "no", "", kind)


@pytest.mark.parametrize(
    ("debugger", "failing", "expected"),
    [
        ("%debug", failure, "Look into it: at_once_dask.last_report().replay(6), then %debug"),
        (None, failure, "Next: fix the cause and run the same again."),
        ("%debug", lambda n: failure(0), "Next: fix the cause and run the same again."),
    ],
)
def test_a_failure_can_be_looked_into(
    monkeypatch: pytest.MonkeyPatch,
    debugger: str | None,
    failing: Callable[[int], Failure],
    expected: str,
) -> None:
    told = report_of(ledger_of(10, failure=failing))
    monkeypatch.setattr(notebook, "debugger", lambda: debugger)
    monkeypatch.setattr(report, "latest", told)
    error = at_once_dask.RunFailed(told, None)
    assert str(error).splitlines()[-1] == expected
    monkeypatch.setattr(report, "latest", report_of(ledger_of(1)))
    assert "Look into it" not in str(error), "last_report() is another one by now"


@pytest.mark.thorough
def test_at_pythons_own_prompt(folder: Path) -> None:
    lines = [
        "import at_once_dask",
        'client = at_once_dask.start(1, dashboard_address="127.0.0.1:0")',
        "at_once_dask.run([5, 0], None, lambda n: 1 / n, progress=False)",
        "exit()",
    ]
    _, err = typed(lines, folder, os.environ | {"PYTHONPATH": ROOT})
    assert "Look into it: at_once_dask.last_report().replay(1), then import pdb; pdb.pm()" in err
    assert not INNER.search(err), err


# ----- in a notebook

DEFINED = """
import os, threading, time
import at_once_dask

def fragile(n):
    if n == 13:
        raise ValueError("unlucky")

def slow(n):
    if n == 2:
        open("begun", "w").close()
        time.sleep(600)

def press():
    while not os.path.exists("begun"):
        time.sleep(0.01)
    os.kill(os.getpid(), 2)

def outer(n):
    return at_once_dask.run(range(n), None, fragile)

client = at_once_dask.start(2, dashboard_address="127.0.0.1:0")
"""
LOOKED = """
import sys
tb = sys.last_traceback.tb_next.tb_next
print(tb.tb_frame.f_code.co_name, tb.tb_next, get_ipython().InteractiveTB.tb is not None)
"""
STOPPED = """
threading.Thread(target=press).start()
at_once_dask.run(range(3), lambda n: [n == 0, None], slow)
"""
CELLS = (
    DEFINED,
    "one = 1\nreport = outer(\n    20)",
    LOOKED,
    "%tb",
    "at_once_dask.last_report().replay(13)",
    "at_once_dask.run('text', None, fragile)",
    STOPPED,
    "at_once_dask.close()",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """Of each cell; what Jupyter warns of is not ours."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    client = NotebookClient(notebook, timeout=60, kernel_name="python3", allow_errors=True)
    client.execute(cwd=str(folder), env=os.environ | {"PYTHONPATH": ROOT})
    return [cell.outputs for cell in notebook.cells]


def shown(output: Any) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", output.data["text/html"])).split())


def lines(output: Any) -> list[str]:
    assert output.output_type == "error"
    return "\n".join(output.traceback).splitlines()


def test_a_failed_run_shows_the_persons_lines_and_the_card(outputs: list[list[Any]]) -> None:
    progress, card, error = outputs[1]
    assert "1 failed" in progress.data["text/plain"]
    assert shown(card).startswith("Finished; 1 input failed. Run ")
    assert "ValueError in process at In[1]:6 in fragile , e.g. input 13 : unlucky" in shown(card)
    assert lines(error) == [
        "In[2]:2",
        "    report = outer(",
        "In[1]:19 in outer",
        "    return at_once_dask.run(range(n), None, fragile)",
        "",
        "RunFailed: Finished; 1 input failed.",
        "Look into it: at_once_dask.last_report().replay(13), then %debug",
    ]
    assert error.ename == "RunFailed"
    assert "1 x ValueError in process at In[1]:6 in fragile" in error.evalue


def test_the_debugger_lands_in_the_persons_frame(outputs: list[list[Any]]) -> None:
    (printed,) = outputs[2]
    assert printed.text == "outer None True\n"


def test_the_card_is_shown_once(outputs: list[list[Any]]) -> None:
    (error,) = outputs[3]
    assert any(line.startswith("  1 x ValueError in process at In[1]:6") for line in lines(error))


def test_a_wrong_call_is_its_text_and_its_line(outputs: list[list[Any]]) -> None:
    (error,) = outputs[5]
    place, line, empty, text = lines(error)
    assert (place, line, empty) == ("In[6]:1", "    at_once_dask.run('text', None, fragile)", "")
    assert text.startswith("InputError: inp_list is of type str; it takes ")


def test_the_stop_button_says_how_to_go_on(outputs: list[list[Any]]) -> None:
    progress, card, error = outputs[6]
    assert progress.data["text/plain"].startswith("map: 1 processed, 1 skipped, 0 failed, 1 left")
    assert shown(card).startswith("Interrupted: the stop button. Run ")
    assert "run the same again to go on: the 2 inputs that are done will be skipped." in shown(card)
    blank, line = lines(error)[-2:]
    assert not blank
    assert line.startswith("KeyboardInterrupt: Interrupted: the stop button. 3 inputs in ")
    assert line.endswith("1 left; the report is at_once_dask.last_report()")
    assert "the 2 inputs that are done will be skipped." in error.evalue


def test_nothing_of_ours_is_in_any_traceback(outputs: list[list[Any]]) -> None:
    errors = [o for cell in outputs for o in cell if o.output_type == "error"]
    assert len(errors) == 5
    assert not [error for error in errors if INNER.search("\n".join(error.traceback))]
