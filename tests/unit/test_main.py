"""The demonstration, before and after its run: what it reads, and how it prints."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from at_once_dask.__main__ import arguments, listed, main, python_files

FILES = ["a b/ünï.py", "broken/null.py", "folder.py/below.py", "plain.py", "site-packages/many.py"]


@pytest.fixture
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name in [*FILES, "notes.txt"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("import os\n")
    return folder


def test_site_packages_are_left_out_of_the_standard_library_only(
    corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(corpus)}.__getitem__)

    library, default = arguments([])
    whole, _ = arguments([str(corpus)])

    assert default == folder / "at_once_demo"
    assert set(whole) - set(library) == {corpus / "site-packages" / "many.py"}
    assert whole == sorted(corpus / name for name in FILES)


def test_a_folder_that_cannot_be_listed_is_an_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "secret").mkdir()
    (folder / "open.py").touch()
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)

    assert python_files(folder, leave_out=()) == [folder / "open.py", folder / "secret"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["missing"], "{folder}/missing is not a folder"),
        (["a.py"], "{folder}/a.py is not a folder"),
        (["bare"], "there is no .py file in {folder}/bare"),
        ([".", "--out", "a.py"], "--out cannot be made: [Errno 17] File exists: '{folder}/a.py'"),
    ],
    ids=["missing", "file", "bare", "out"],
)
def test_arguments_that_cannot_be_right(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.py").touch()
    (folder / "bare").mkdir()

    with pytest.raises(SystemExit) as exited:
        main(argv)

    last = capsys.readouterr().err.splitlines()[-1]
    assert exited.value.code == 2
    assert last == f"python -m at_once_dask: error: {message.format(folder=folder)}"


def test_long_lists_are_cut() -> None:
    lines = listed("Failed", [f"{number}.py" for number in range(1_021)])

    assert lines[:2] == ["Failed (1,021):", "  0.py"]
    assert lines[20:] == ["  19.py", "  and 1,001 more, see the log"]
    assert listed("Failed", []) == []
