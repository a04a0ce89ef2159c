"""What is shipped: one list of dependencies, one version, a wheel that works by itself."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import Parser
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

import at_once_dask

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
AT_CONDA_FORGE = {"dask[distributed]": ("dask", "distributed")}  # where the names are others

SCRIPT = """
import sys
from pathlib import Path

import at_once_dask

print("once")
weight = 2

def count_letters(word):
    return [(letter, weight) for letter in word]

print(at_once_dask.run(["ab", "b"], None, count_letters, reduce_fn=sum))
at_once_dask.last_report().to_html("report.html")
print(Path(at_once_dask.__file__).is_relative_to(sys.prefix))
"""
STDOUT = """\
once
{'a': 2, 'b': 4}
True
"""


def test_environment_yml_names_the_dependencies_of_pyproject_toml() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))

    wanted = bounds(PROJECT["dependencies"])
    wanted |= {"python": PROJECT["requires-python"], "pip": ""}

    assert bounds(environment["dependencies"]) == wanted


@pytest.mark.thorough
def test_the_version_stands_in_one_place(wheel: Path) -> None:
    metadata = Parser().parsestr(read(wheel, f"{dist_info()}/METADATA"))

    assert metadata["Version"] == at_once_dask.__version__
    assert "version" not in PROJECT


def test_the_changelog_begins_with_this_version() -> None:
    first = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]

    assert first.startswith(f"[{at_once_dask.__version__}]")


@pytest.mark.thorough
def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    package = {name for name in names if not name.startswith(dist_info())}

    assert package == files_below("at_once_dask")
    assert "at_once_dask/py.typed" in package
    assert f"{dist_info()}/licenses/LICENSE" in names


@pytest.mark.thorough
def test_the_sdist_has_what_its_tests_need_and_no_environment(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    wanted = {"CHANGELOG.md", "LICENSE", "README.md", "environment.yml", "pyproject.toml"}

    assert wanted | files_below("at_once_dask") | files_below("tests") <= names
    assert not [name for name in names if name.startswith((".ci/", ".git/", ".venv", "dist/"))]


def test_what_is_imported_is_a_dependency() -> None:
    """Or Python's own. The slow test below has nothing else installed."""
    dependencies = {
        re.split(r"[^\w-]", requirement)[0].replace("-", "_")
        for requirement in PROJECT["dependencies"]
    } | {"distributed", "markupsafe"}  # Dask's, and jinja2's
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "at_once_dask").rglob("*.py")
        for name in imports_of(ast.parse(path.read_text("utf-8")))
    }
    optional = {"IPython", "ipykernel", "jupyter_server_proxy"}  # there when they are needed
    assert imported - sys.stdlib_module_names - dependencies - optional == {"at_once_dask"}


def imports_of(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize(
    "alone",
    [pytest.param(False, marks=pytest.mark.thorough), pytest.param(True, marks=pytest.mark.slow)],
)
def test_run_works_from_the_wheel(wheel: Path, tmp_path: Path, alone: bool) -> None:
    """Alone: pip installs what the wheel says that it needs, and nothing else is there."""
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-compile"]
    if not alone:
        pip.append("--no-deps")
        (folder,) = (tmp_path / "venv").glob("lib/python*/site-packages")
        (folder / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*pip, "--quiet", str(wheel)], check=True)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")

    done = subprocess.run(
        [python, script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )

    assert done.stdout == STDOUT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


def bounds(requirements: Iterable[str]) -> dict[str, str]:
    """What each package must be, by its name on conda-forge."""
    found = {}
    for requirement in map(Requirement, requirements):
        listed = str(requirement).removesuffix(str(requirement.specifier))
        for name in AT_CONDA_FORGE.get(listed, (listed,)):
            found[name] = str(requirement.specifier)
    return found


def dist_info() -> str:
    return f"at_once_dask-{at_once_dask.__version__}.dist-info"


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name).decode()


def files_below(folder: str) -> set[str]:
    """Files of the source tree, as paths from its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
