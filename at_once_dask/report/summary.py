"""A run in words: how it ended, counts, causes, the next step."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from at_once_dask.protocol.status import FAILED, LEFT, PENDING, PROCESSED, SKIPPED
from at_once_dask.report.ledger import Cause, Failed, Ledger
from at_once_dask.user_code.text import cut, first_line, safe_repr, sound

CAUSES_IN_TEXT = 5
MESSAGE_IN_TEXT = 300  # characters
NAMES_IN_TEXT = 200  # characters of the inputs of a cause, where it is not one alone

FINISHED, STOPPED, INTERRUPTED, BROKEN = "finished", "stopped early", "interrupted", "broken off"


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run besides what the ledger holds.

    Attributes
    ----------
    run : str
    begun : float
        Seconds since the epoch.
    seconds : float
    ended : str
        FINISHED, STOPPED, INTERRUPTED or BROKEN.
    reason, traceback : str
        Why, where it did not finish; and where what broke it was raised.
    dashboard_link : str or None
    logfile : str
    log_part : tuple of int
        Where in the log the run began and ended, in bytes.
    checked : bool
        Whether there is a ``check_inp``.
    settings, versions : mapping of str to str
    notes : tuple of str
        What somebody should know, however it ended.
    kept : bool
        Whether the values of the keys are kept, to be reduced again.
    function, script, host, folder : str
        Whose run it was: of which function, in which program, on which machine, and where there.
    page_link : str or None
        Of the page "This run".
    """

    run: str
    begun: float
    seconds: float
    ended: str
    reason: str
    traceback: str
    dashboard_link: str | None
    logfile: str
    log_part: tuple[int, int]
    checked: bool
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    kept: bool = False
    function: str = ""
    script: str = ""
    host: str = ""
    folder: str = ""
    page_link: str | None = None


@dataclass(frozen=True)
class Summary:
    """A run in words, wherever they are shown: in a terminal, a notebook, a file."""

    facts: RunFacts
    ledger: Ledger

    @property
    def name(self) -> str:
        """The name that tells it from other runs: the function's, and the program's."""
        return " in ".join(filter(None, (self.facts.function, self.facts.script)))

    @property
    def n_inputs(self) -> int:
        return sum(self.ledger.counts)

    @property
    def n_skipped(self) -> int:
        return self.ledger.counts[SKIPPED]

    @property
    def n_processed(self) -> int:
        return self.ledger.counts[PROCESSED]

    @property
    def n_failed(self) -> int:
        return self.ledger.counts[FAILED]

    @property
    def n_left(self) -> int:
        """The inputs not handled; a plan has not handled those that it found pending either."""
        return self.ledger.counts[LEFT] + self.ledger.counts[PENDING]

    @cached_property
    def n_keys_failed(self) -> int:
        return self.ledger.n_keys_failed

    @property
    def ok(self) -> bool:
        return not (self.n_failed or self.n_keys_failed or self.n_left)

    @property
    def ending(self) -> str:
        """How it ended, in one line."""
        if self.facts.ended != FINISHED:
            return f"{self.facts.ended.capitalize()}: {self.facts.reason}."
        failed = [
            counted(n, what)
            for n, what in ((self.n_failed, "input"), (self.n_keys_failed, "key"))
            if n
        ]
        return f"Finished; {' and '.join(failed)} failed." if failed else "Finished; all is done."

    @property
    def tally(self) -> list[tuple[str, int]]:
        """The counts with their names."""
        keys = [("keys failed", self.n_keys_failed)] if self.n_keys_failed else []
        return [
            ("inputs", self.n_inputs),
            ("processed", self.n_processed),
            ("skipped", self.n_skipped),
            ("failed", self.n_failed),
            ("left", self.n_left),
            *keys,
        ]

    @property
    def counts(self) -> str:
        text = (
            f"{counted(self.n_inputs, 'input')} in {elapsed(self.facts.seconds)}:"
            f" {self.n_processed:,} processed, {self.n_skipped:,} skipped,"
            f" {self.n_failed:,} failed, {self.n_left:,} left"
        )
        if self.n_keys_failed:
            text += f"; {counted(self.n_keys_failed, 'key')} failed"
        return text

    @property
    def summary(self) -> str:
        """The run in a few lines: counts, largest causes with an example, log and next step.

        Where it did not finish, the first of them says how it ended.
        """
        lines = [self.counts] if self.facts.ended == FINISHED else [self.ending, self.counts]
        causes = self.ledger.causes(CAUSES_IN_TEXT)
        lines += [f"  {cause_line(cause, self.ledger.only_on(cause))}" for cause in causes]
        if self.ledger.n_causes > len(causes):
            lines.append(f"  and {self.ledger.n_causes - len(causes)} more: see report.causes")
        lines += [f"Note: {note}" for note in self.facts.notes]
        lines.append(f"Log: {self.facts.logfile} (run {self.facts.run})")
        if self.n_failed or self.n_keys_failed:
            lines.append(f"Failures one by one: {self.listing}")
        if self.goes_on:
            lines.append(f"Next: {self.next_step}")
        return sound("\n".join(lines))

    @property
    def listing(self) -> str:
        """The command that lists all failures."""
        log = shlex.quote(self.facts.logfile)
        return f"python -m at_once_dask.failures {log} --run {self.facts.run}"

    @property
    def goes_on(self) -> bool:
        """Whether something is to be done next: of a list that broke off nobody knows the rest."""
        return not self.ok or self.facts.ended != FINISHED

    @property
    def next_step(self) -> str:
        if self.facts.kept and not (self.n_failed or self.n_left):
            fix = "fix reduce_fn and " if self.n_keys_failed else ""
            return (
                f"{fix}call at_once_dask.last_report().reduce(reduce_fn) in this process: the"
                " values are kept, nothing is mapped again."
            )
        failures = [failed.failure for failed in self.ledger.failed]
        if any(failure.final and failure.stage == "verify" for failure in failures):
            return (
                "have check_inp give what process_inp returns, or return None there; other inputs"
                " are likely to differ too, and what is saved counts as done."
            )
        if self.n_failed or self.n_keys_failed:
            step = "fix the cause and run the same again"
        else:
            step = "run the same again to go on"
        done = self.n_processed + self.n_skipped
        if not done:
            return f"{step}."
        inputs = counted(done, "input")
        if self.facts.checked:
            return f"{step}: the {inputs} that {'is' if done == 1 else 'are'} done will be skipped."
        return f"{step}; pass a check_inp, so that the {inputs} done can be skipped."


def counted(n: int, what: str) -> str:
    """So many of them.

    >>> counted(1, "input"), counted(1_000, "key")
    ('1 input', '1,000 keys')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def cause_line(cause: Cause, host: str) -> str:
    """One line: how often, what and where, on which host if it is one, with examples."""
    lead, names = examples(cause)
    all_on = f", all on {host}" if host else ""
    return (
        f"{cause.count:,} x {cause.example.failure.what}{all_on},"
        f" {lead}{names}: {message_line(cause.example)}"
    )


def example(cause: Cause) -> str:
    """Whose failure the first is, as it was called then."""
    return f"{_kind(cause.example)} {cause.inp}"


def examples(cause: Cause) -> tuple[str, str]:
    """Whose failures these are, as they were called then; before it, whether there are more."""
    what = _kind(cause.example)
    names, room = [cause.inp], NAMES_IN_TEXT - len(cause.inp)
    for _, name in cause.first[1:]:
        room -= len(name) + 2
        if room < 0:
            break
        names.append(name)
    if len(names) == 1:
        return "e.g. ", example(cause)
    return "" if len(names) == cause.count else "e.g. ", f"{what}s {', '.join(names)}"


def named(failed: Failed) -> str:
    """Whose failure it is."""
    return f"{_kind(failed)} {safe_repr(failed.inp)}"


def _kind(failed: Failed) -> str:
    return "key" if failed.index is None else "input"


def message_line(failed: Failed) -> str:
    return cut(first_line(failed.failure.message), MESSAGE_IN_TEXT)


def took(seconds: float) -> str:
    """How long one thing took, for people: as `elapsed`, but short ones in milliseconds.

    >>> took(0.00042), took(0.25), took(7.26), took(75)
    ('0.42 ms', '250 ms', '7.3 s', '1:15')
    """
    if 0 < seconds < 0.9995:
        thousandths = seconds * 1e3
        return f"{thousandths:.0f} ms" if thousandths >= 10 else f"{thousandths:.2g} ms"
    return elapsed(seconds) if seconds else "0 s"


def elapsed(seconds: float) -> str:
    """How long something took, for people.

    >>> elapsed(0.26), elapsed(9.94), elapsed(9.96), elapsed(75)
    ('0.3 s', '9.9 s', '10 s', '1:15')
    """
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(3.2), duration(75), duration(3_700)
    ('3 s', '1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def speed(rate: float) -> str:
    """Inputs a second for people, or a minute, or an hour.

    >>> speed(12_345.6), speed(1.5), speed(0.1), speed(0.01)
    ('12,346/s', '1.5/s', '6.0/min', '36.0/h')
    """
    unit, seconds = next((u for u in (("s", 1), ("min", 60)) if rate * u[1] >= 1), ("h", 3600))
    number = rate * seconds
    return f"{number:,.{0 if number >= 100 else 1}f}/{unit}"
