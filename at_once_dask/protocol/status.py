"""The status of one input, in one byte: what became of it, or what is being done with it."""

from __future__ import annotations

# What became of it.
SKIPPED, PROCESSED, FAILED, PENDING, LEFT = range(5)
NAMES = ("skipped", "processed", "failed", "pending", "left")

# What is being done with it. These are greater than all that is final.
STARTED, OPEN, SEND, CHECK, PROCESS, VERIFY, COLLECT, COMBINE, REDUCE = range(16, 25)

_STAGES = {
    STARTED: "check",
    OPEN: "send",  # all inputs of the partition together
    SEND: "send",
    CHECK: "check",
    PROCESS: "process",
    VERIFY: "verify",
    COLLECT: "collect",
    COMBINE: "reduce",
    REDUCE: "reduce",
}


def is_final(state: int) -> bool:
    return state < STARTED


def stage(state: int) -> str:
    """The stage that a byte stands for, as reports name it; empty for what is final."""
    return _STAGES.get(state, "")
