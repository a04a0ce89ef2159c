"""Terminals: one that remembers what was drawn, a real one for a process, and what stands on it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

import at_once_dask

ROOT = str(Path(at_once_dask.__file__).parents[1])


class Terminal(io.StringIO):
    """A terminal that remembers all that was ever drawn."""

    encoding = "utf-8"  # tqdm asks whether it knows blocks

    def __init__(self, columns: int = 80) -> None:
        super().__init__()
        self._ours, self._theirs = pty.openpty()
        self.resize(columns)

    def close(self) -> None:
        if not self.closed:
            os.close(self._ours)
            os.close(self._theirs)
        super().close()

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def fileno(self) -> int:
        return self._theirs

    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[str]:
        return [frame.rstrip() for frame in re.split("[\r\n]+", self.getvalue()) if frame.strip()]


def in_a_terminal(command: list[str], columns: int) -> tuple[str, str]:
    """What `command` writes to stdout, a pipe, and to stderr, a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": ROOT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    ) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: read(ours), b""))
        os.close(ours)
        assert process.stdout is not None
        return process.stdout.read(), shown.decode()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other side is closed
        return b""


def screen(text: str, columns: int) -> list[str]:
    """The lines that stand on a terminal so wide after `text` was written to it."""
    lines, line, column = [], "", 0
    for char in text:
        if char == "\n":
            lines.append(line.rstrip())
            line, column = "", 0
        elif char == "\r":
            column = 0
        else:
            assert column < columns, f"it wraps after {line!r}"
            line = line[:column] + char + line[column + 1 :]
            column += 1
    return [*lines, line] if line else lines
