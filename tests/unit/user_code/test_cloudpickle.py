"""What is leaned on of cloudpickle that is not public."""

from __future__ import annotations

import io
import subprocess
import sys


def uses_modules() -> list[object]:
    return [subprocess.run, sys.executable]


def test_what_is_leaned_on_of_cloudpickle_is_there() -> None:
    """Without these, functions of a script do not find its names; see ``main_module``."""
    from cloudpickle import cloudpickle

    def function() -> None: ...

    pickler = cloudpickle.Pickler(io.BytesIO())
    _, (code, known, *_), (_, state), *_ = pickler._dynamic_function_reduce(function)
    assert code is function.__code__
    assert known is pickler.globals_ref[id(function.__globals__)]
    assert {"__globals__", "_cloudpickle_submodules"} <= state.keys()
    members = {"__module__": "__main__"}
    make, made_of, *_ = pickler.reducer_override(type("Kind", (), members))
    assert make is cloudpickle._make_skeleton_class
    assert isinstance(made_of[3], dict)
    assert made_of[4] in cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
    assert list(cloudpickle._extract_code_globals(uses_modules.__code__)) == ["subprocess", "sys"]
