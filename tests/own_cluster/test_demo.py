"""The demonstration on real files: ``python -m at_once_dask``."""

from __future__ import annotations

import dis
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType

import pytest
from distributed import Client

import at_once_dask
from at_once_dask.__main__ import json_path, main

Done = subprocess.CompletedProcess[str]

ROOT = Path(at_once_dask.__file__).parents[1]
COUNTS = re.compile(
    r"^([\d,]+) files in [\d.]+ s: ([\d,]+) skipped, ([\d,]+) processed, ([\d,]+) failed$", re.M
)
WARN = "default:invalid:DeprecationWarning"  # as later versions of Python do by default
OURS = re.compile(
    r"(Dask dashboard|This run): http://\S+|(map|reduce): [\d,]+ processed, .*"
    r"|(first|new) failure: DoesNotParse in process at .*"
)

# Inputs, imports, and the numbers of functions, classes and lines: the oracle adds these up.
GOOD: dict[str, tuple[bytes, list[str], list[int]]] = {
    "plain.py": (b"import os, sys\nimport os.path as path\n", ["os", "sys"], [0, 0, 2]),
    "from_.py": (b"from xml.etree import ElementTree\n", ["xml"], [0, 0, 1]),
    "near.py": (b"from . import os\nfrom .sys import path\nfrom .. import re\n", [], [0, 0, 3]),
    "late.py": (b"def f():\n import re\n async def g(): import ast\n", ["re", "ast"], [2, 0, 3]),
    "method.py": (b"import re\nclass A:\n  def a(self): lambda: 0\n", ["re"], [1, 1, 3]),
    "latin.py": ("# coding: latin-1\nimport os\nä = 1".encode("latin-1"), ["os"], [0, 0, 3]),
    "bom.py": (b"\xef\xbb\xbfimport sys\r\n", ["sys"], [0, 0, 1]),
    "warns.py": (b"import os\n'\\d', 1if 1else 2\n1 is 1\n", ["os"], [0, 0, 3]),
    "empty.py": (b"", [], [0, 0, 0]),
    "folder.py/below.py": (b"import sys, b1\n", ["sys", "b1"], [0, 0, 1]),
    "a b/ünï.py": (b"import os\n", ["os"], [0, 0, 1]),
    "site-packages/many.py": (
        b"".join(b"import a%d\n" % number for number in range(30)),
        [f"a{number}" for number in range(30)],
        [0, 0, 30],
    ),
}
NO_TEXT = os.fsdecode(b"caf\xe9.py")  # a name that is not UTF-8
BROKEN = {
    "broken/bracket.py": (b"x = (\n", "SyntaxError: '(' was never closed (bracket.py, line 1)"),
    "broken/null.py": (b"x = 1\0\n", "null bytes"),
    "broken/coding.py": (b"# coding: nope\n", "SyntaxError: unknown encoding: nope"),
    "broken/deep.py": (b"+".join([b"1"] * 100_000), "RecursionError: "),
    NO_TEXT: (b"print 1\n", "SyntaxError: Missing parentheses"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sources = {name: good[0] for name, good in GOOD.items()}
    sources |= {name: broken[0] for name, broken in BROKEN.items()}
    for name, source in sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(source)
    (folder / "notes.txt").write_text("import nothing")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "made" / "here"


@pytest.fixture(scope="module")
def first(corpus: Path, out: Path) -> Done:
    return demo(corpus, out)


@pytest.fixture(scope="module")
def second(first: Done, corpus: Path, out: Path) -> Done:
    return demo(corpus, out)


def demo(folder: Path, out: Path) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "at_once_dask", folder, "--out", out],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": WARN},
    )


def test_files_that_do_not_parse_are_no_reason_to_fail(first: Done, second: Done) -> None:
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr


def test_the_table_is_the_oracles(first: Done) -> None:
    expected = oracle((imports, [1, *numbers]) for _, imports, numbers in GOOD.values())

    assert table(first.stdout) == expected[:20]
    assert len(expected) > 20, "the cut is not tested"


def test_counts(first: Done, second: Done) -> None:
    n_good, n_broken = len(GOOD), len(BROKEN)

    assert counts(first.stdout) == (n_good + n_broken, 0, n_good, n_broken)
    assert counts(second.stdout) == (n_good + n_broken, n_good, 0, n_broken)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_cause(name: str, corpus: Path, first: Done) -> None:
    shown = str(corpus / name).encode(errors="backslashreplace").decode()

    [line] = [line for line in first.stdout.splitlines() if line.startswith(f"  {shown}: ")]

    assert BROKEN[name][1] in line


def test_a_second_start_prints_the_same(first: Done, second: Done) -> None:
    """The line of the counts aside."""
    assert COUNTS.sub("", second.stdout) == COUNTS.sub("", first.stdout)


def test_nothing_on_stderr_but_the_link_and_the_progress(first: Done, second: Done) -> None:
    for line in [*first.stderr.splitlines(), *second.stderr.splitlines()]:
        assert OURS.fullmatch(line), line


def test_results_and_log_are_in_out(first: Done, corpus: Path, out: Path) -> None:
    _, imports, numbers = GOOD["method.py"]

    files = {path for path in out.rglob("*") if path.is_file()}

    log = out / "log.jsonl"
    assert files == {json_path(corpus / name, out) for name in GOOD} | {log}
    assert list(json.loads(json_path(corpus / "method.py", out).read_text()).values()) == [
        imports,
        *numbers,
    ]
    assert f"Log: {log}\n" in first.stdout
    assert len(at_once_dask.read_log(log)) >= len(BROKEN)


def test_any_other_failure_counts(
    first: Done, cluster: Client, corpus: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link that leads nowhere cannot be read; other files may all be, by root."""
    gone = corpus / "gone.py"
    gone.symlink_to(corpus / "nowhere.py")
    try:
        code = main([str(corpus), "--out", str(out)])
    finally:
        gone.unlink()

    printed = capsys.readouterr().out
    assert code == 1
    assert counts(printed)[1:] == (len(GOOD), 0, len(BROKEN) + 1)
    assert f"Failed otherwise (1):\n  {gone}: FileNotFoundError: " in printed
    assert table(printed) == table(first.stdout)


def test_of_the_standard_library(
    cluster: Client, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A package of it, against what Python itself would import when it runs the code."""
    package = Path(sysconfig.get_path("stdlib"), "email")
    paths = list(package.rglob("*.py"))

    code = main([str(package), "--out", str(folder / "out")])

    printed = capsys.readouterr().out
    expected = oracle((imports_of(path), [1]) for path in paths)
    assert code == 0
    assert counts(printed) == (len(paths), 0, len(paths), 0)
    assert [row[:2] for row in table(printed)] == expected[:20]


def test_ctrl_c_says_what_is_done(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = at_once_dask.run([], None, print)

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(at_once_dask, "run", interrupted)

    assert main([str(corpus)]) == 130
    assert capsys.readouterr().err == f"{done}\n"


def oracle(files: Iterable[tuple[Iterable[str], list[int]]]) -> list[list[str | int]]:
    """The rows of the table, all of them."""
    sums: dict[str, list[int]] = {}
    for imports, numbers in files:
        for module in imports:
            before = sums.get(module, [0] * len(numbers))
            sums[module] = [a + b for a, b in zip(before, numbers, strict=True)]
    return [[name, *sums[name]] for name in sorted(sums, key=lambda name: (-sums[name][0], name))]


def table(stdout: str) -> list[list[str | int]]:
    """The rows of the printed table."""
    _, header, *lines = stdout.partition("\n\n")[0].splitlines()
    assert header.split() == ["module", "files", "functions", "classes", "lines"]
    rows = [line.replace(",", "").split() for line in lines]
    return [[name, *map(int, numbers)] for name, *numbers in rows]


def counts(stdout: str) -> tuple[int, ...]:
    """Files, skipped, processed and failed."""
    [found] = COUNTS.findall(stdout)
    return tuple(int(number.replace(",", "")) for number in found)


def imports_of(path: Path) -> set[str]:
    """By the compiled code."""
    codes: list[CodeType] = [compile(path.read_bytes(), path, "exec")]
    modules = set()
    for code in codes:
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]
        steps = list(dis.get_instructions(code))
        for level, _, step in zip(steps, steps[1:], steps[2:], strict=False):
            if step.opname == "IMPORT_NAME" and level.argval == 0:
                modules.add(step.argval.partition(".")[0])
    return modules
