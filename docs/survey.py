"""A run with something to see in it: how well do the files of Python's own library compress?

`docs/screenshots.py` makes the pictures in README and manual of it. There are four mistakes in
`process_inp`, each of a kind that happens.
"""

import ast
import ctypes
import json
import lzma
import re
import sysconfig
from pathlib import Path

import at_once_dask

LIBRARY = Path(sysconfig.get_path("stdlib"))
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
FRAME = re.compile(r"(\*+)+/")

results = Path("results")
results.mkdir(exist_ok=True)


def result_path(name):
    return results / (name.replace("/", ".") + ".json")


def check_inp(name):
    return [result_path(name).exists(), None]


def process_inp(name):
    data = (LIBRARY / name).read_bytes()
    print(f"{len(data):,} bytes")
    text = data.decode("ascii")
    frames = FRAME.findall(text)
    ratio = len(lzma.compress(data, preset=9)) / len(data)
    usage = ctypes.CDLL(None).strlen(usage_of(text)) if "def main(" in text else 0
    with at_once_dask.atomic_write(result_path(name)) as file:
        json.dump({"ratio": ratio, "frames": len(frames), "usage": usage}, file)


def usage_of(text):
    docstring = ast.get_docstring(ast.parse(text))
    return docstring.encode() if docstring else None


def names():
    paths = [path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py")]
    return sorted(str(path) for path in paths if not LEFT_OUT.intersection(path.parts))


at_once_dask.run(names()[:100], check_inp, process_inp, timeout=5, on_error="return")
at_once_dask.run(
    names(), check_inp, process_inp, timeout=5, on_error="return", report_path="report.html"
)
