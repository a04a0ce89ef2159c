"""Where a process was when it died: what ``faulthandler`` wrote, read back.

On the worker it writes into a file, from inside the signal, without the GIL: for the signals that
end a process, and when the nanny asks before it ends one.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import traceback
from dataclasses import dataclass
from typing import TextIO

from at_once_dask.protocol.failure import WHERE_LIMIT
from at_once_dask.user_code.modules import is_ours, is_users_file
from at_once_dask.user_code.text import cut_start

ASK: int = getattr(signal, "SIGUSR2", 0)  # what the nanny sends; 0 where there is no such signal

_FATAL_SIGNALS = ("SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL")
_WRITTEN_AT = {getattr(signal, name) for name in _FATAL_SIGNALS if hasattr(signal, name)}
_THREAD = re.compile(
    r"^(Current thread|Thread) 0x([0-9a-f]+).*\(most recent call first\):$", re.MULTILINE
)
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_FATAL = re.compile(r"^Fatal Python error: .*$", re.MULTILINE)

_children_are_silent = False


def begin(file: TextIO) -> bool:
    """Let this process write its last stack into `file`; False where somebody else does so."""
    if not ASK or faulthandler.is_enabled() or signal.getsignal(ASK) is not signal.SIG_DFL:
        return False
    global _children_are_silent
    if not _children_are_silent:
        os.register_at_fork(after_in_child=faulthandler.disable)  # a child's death is its own
        _children_are_silent = True
    faulthandler.enable(file)
    faulthandler.register(ASK, file, all_threads=True)
    return True


def end() -> None:
    """Undo `begin`."""
    faulthandler.disable()
    faulthandler.unregister(ASK)


def is_written(written: str, thread: int | None) -> bool:
    """Whether the stack of `thread` is in there to its end.

    The main thread's comes last, and nothing tells that it is complete. Inputs run in others.
    """
    return any(int(header[2], 16) == thread for header in list(_THREAD.finditer(written))[:-1])


@dataclass(frozen=True)
class Stack:
    """The last moment of a process, as far as it is known.

    Attributes
    ----------
    text : str
        The user's frames, as a traceback; empty when there are none.
    where : str
        The innermost place in the user's own code, ``file:line in function``.
    thread : int or None
        The number of the thread that a signal ended the process in.
    """

    text: str = ""
    where: str = ""
    thread: int | None = None


NOWHERE = Stack()


def read(written: str, exit: int | None, thread: int | None) -> Stack:
    """The stack of the thread that ended the process.

    Parameters
    ----------
    written : str
        By `faulthandler`; forked children write into the same file.
    exit : int or None
        The exit code: only of some signals there is a stack. None where nobody knows it.
    thread : int or None
        Whose stack it is, where the process was ended from outside.
    """
    is_fatal = exit is None or -exit in _WRITTEN_AT
    fatal = list(_FATAL.finditer(written)) if is_fatal else []
    found = fatal[-1] if fatal else None
    if found is not None:
        written = written[found.start() :]
    headers = list(_THREAD.finditer(written))
    ends = [header.start() for header in headers[1:]] + [len(written)]
    threads = [
        (header, _FRAME.findall(written[header.end() : following]))
        for header, following in zip(headers, ends, strict=False)
    ]
    ended = None
    if found:
        ended, frames = next(
            (
                (int(header[2], 16), frames)
                for header, frames in threads
                if header[1] == "Current thread"
            ),
            (None, []),
        )
    else:  # the last: it may have been asked before, and have gone on
        threads.reverse()
        frames = next((frames for header, frames in threads if int(header[2], 16) == thread), [])
    users = []
    for file, line, name in frames:  # the innermost first
        if is_ours(file):
            break
        users.append((file, int(line), name))
    if not users:
        return Stack(thread=ended)
    lines = ["Traceback of the worker's end (most recent call last):\n"]
    lines += traceback.format_list(
        traceback.StackSummary.from_list(
            [(file, line, name, None) for file, line, name in reversed(users)]
        )
    )
    own = next((frame for frame in users if is_users_file(frame[0])), users[0])
    where = cut_start(f"{own[0]}:{own[1]} in {own[2]}", WHERE_LIMIT)
    return Stack("".join(lines) + (found[0] if found else ""), where, ended)
