"""Borrowed clusters whose machines come and go, beside client.map and dask.bag.

Each row is one scenario in a new interpreter, with a cluster of real processes of its own: adaptive
ones, `dask worker` processes that are lost with their nanny, workers that are retired, tasks of
others beside ours. Inputs are asleep, and write down when they begin and end.

- **ideal**: the seconds that would do if no worker ever waited. Where workers come and go, it is
  what those that were connected, counted ten times a second, could have done at best.
- **blamed**: innocent inputs that failed; of `dask.bag`, which names none, it is not known.
- **right**: whether the sum over all inputs is there, and right, and those that are really bad are
  among the failed ones.
- **again**: innocent inputs that were begun more than once.

    python -m pip install -e '.[bench]'
    python benchmarks/clusters.py
    python benchmarks/clusters.py --quick --scenario lost --scenario lost-map

takes half an hour, and writes benchmarks/results/clusters.json and clusters.md, in which the
scenarios named by --scenario take the place of what was there. With --quick a tenth of the inputs
is used, and nothing written; --long adds what takes minutes. Workers of other Pythons are those
named in the environment variable OTHER_PYTHONS (paths, as in PATH) or found as python3.X. Disks of
their own need root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cluster_loads
import cluster_scenarios
import machines
from cluster_loads import HEAD, Row
from cluster_scenarios import LONG, SCENARIOS, SkippedError
from crashes import MARK, kill_all
from dask_processes import by_value
from growth import RESULTS, about, as_table, made

import at_once_dask

LIMIT_SECONDS = 300.0  # then a scenario "never ends"
QUICK = 0.1
SENT = (machines, cluster_loads, cluster_scenarios)  # the workers cannot import them


def in_new_interpreter(name: str, scale: float) -> Row:
    """Nothing of it is left afterwards, whatever happens."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="clusters-") as folder:
        log, result = Path(folder, "log"), Path(folder, "result")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, __file__, "--cell", name, str(scale), str(result)],
                cwd=folder,
                env=os.environ | {MARK: mark, "DASK_TEMPORARY_DIRECTORY": folder},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            begun = machines.Attempts(Path(folder, "attempts")).begun()
            begins = f"{len(begun):,} inputs had been begun {begun.total():,} times"
            return Row(name, note=f"never ends: killed after {LIMIT_SECONDS:g} s; {begins}")
        finally:
            kill_all(process.pid, mark)
            process.wait()
        if not result.exists():
            last = log.read_text("utf-8", "replace").splitlines()[-1:]
            return Row(name, note=f"broken: {last[0] if last else process.returncode}")
        return Row(**json.loads(result.read_text()))


def inside(name: str, scale: float, result: Path) -> None:
    at_once_dask.logfile = str(Path.cwd() / "log.jsonl")
    with by_value(*SENT):
        try:
            found = SCENARIOS[name](scale)
        except SkippedError as skipped:
            found = Row(name, note=f"skipped: {skipped}")
    result.write_text(json.dumps(asdict(found)))


def merged(rows: dict[str, Row], facts: dict[str, Any]) -> dict[str, Any]:
    """With what other scenarios found before, each with its day."""
    path = RESULTS / "clusters.json"
    before = json.loads(path.read_text())["rows"] if path.exists() else {}
    new = {name: asdict(one) | {"date": facts["date"]} for name, one in rows.items()}
    found = before | new
    return {**facts, "rows": {name: found[name] for name in SCENARIOS if name in found}}


def write(rows: dict[str, Row]) -> None:
    facts = about(1)
    found = merged(rows, facts)
    (RESULTS / "clusters.json").write_text(json.dumps(found, indent=2) + "\n")
    fields = [{k: v for k, v in one.items() if k != "date"} for one in found["rows"].values()]
    table = as_table(HEAD, [Row(**one).cells for one in fields])
    _, _, explained = (__doc__ or "").partition("\n\n")
    text = f"# Clusters whose machines come and go\n\n{made(facts, 'make clusters')}\n\n{table}\n\n"
    (RESULTS / "clusters.md").write_text(text + explained.partition("\n    python")[0] + "\n")


def benchmark(names: Sequence[str], scale: float) -> None:
    rows = {}
    for name in names:
        rows[name] = in_new_interpreter(name, scale)
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
        if scale == 1:
            write({name: rows[name]})  # at once: the whole takes long
    print(as_table(HEAD, [one.cells for one in rows.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="all by default")
    parser.add_argument("--quick", action="store_true", help="a tenth of the inputs")
    parser.add_argument("--long", action="store_true", help="also 64 workers")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)  # how it starts itself
    parser.add_argument("--driver", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        name, scale, result = given.cell
        inside(name, float(scale), Path(result))
    elif given.driver:
        with by_value(*SENT):
            cluster_scenarios.drive(**given.driver)
    else:
        names = given.scenario or [name for name in SCENARIOS if given.long or name not in LONG]
        benchmark(names, QUICK if given.quick else 1)


if __name__ == "__main__":
    main()
