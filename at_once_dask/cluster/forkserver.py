"""The process that forks the workers, with what they need imported."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import multiprocessing.resource_tracker
import multiprocessing.spawn
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from at_once_dask.errors import AtOnceError
from at_once_dask.user_code.replaced import Replaced
from at_once_dask.worker import processes

WORKER_PROCESS = "Dask Worker process"  # so begin the names of Dask's worker processes
PRELOADED = ["at_once_dask.worker.preload"]

# So that libraries do not start a thread a core in every worker; the driver's own settings win.
THREAD_LIMITS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# As Dask gives it to workers, with the same hashes in each; but without its
# ``MALLOC_TRIM_THRESHOLD_``, which has them give memory back at once: each new megabyte would cost
# 250 page faults.
ENVIRONMENT = THREAD_LIMITS | {"PYTHONHASHSEED": "6640"}

USUAL_DESCRIPTORS = 1024  # as most systems let a process have
LONGEST_SOCKET = 107  # characters of a socket's path, in bytes
SOCKET_NAME = "/pymp-12345678/listener-12345678"  # as `multiprocessing` makes it
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def start() -> None:
    """Start it, unless it runs; it imports by itself, nobody waits for it here.

    It stays for as long as this process, and ends with it.
    """
    _check_system()
    _check_folders()
    hold_standard_streams()
    allow_descriptors(USUAL_DESCRIPTORS)
    _keep_sockets_short()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    # A Ctrl-C is for the driver. The fork server, and workers until they have a group of their
    # own, would get it too, and die of it in the middle of an import. (The resource tracker comes
    # first: to start it takes the block away. And it must not have the mark: it tidies up behind
    # a driver that was killed.)
    with _environment(_import_path()), _plain_preparation():
        multiprocessing.resource_tracker.ensure_running()
        with _environment(_missing() | dict([processes.mark()])), _no_interrupts():
            multiprocessing.forkserver.ensure_running()


def folder() -> str | None:
    """Where its socket lies: `multiprocessing` removes it, unless this process is killed."""
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    inherited = multiprocessing.parent_process() is not None
    found: str | None = None if inherited else config.get("tempdir")
    return found


def hold_standard_streams() -> None:
    """Where standard streams are closed, no pipe of ours must get their numbers.

    What a worker prints would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free


def allow_descriptors(n: int) -> int:
    """Let this process, and those it starts, have `n` files and sockets open; how many they may."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n if hard == resource.RLIM_INFINITY else min(n, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return n if soft == resource.RLIM_INFINITY else soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def forget() -> None:
    """In a child that was forked: the fork server is the parent's, and knows nothing of this."""
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_pid is not None:
        os.close(server._forkserver_alive_fd)  # or it would outlive its own driver
        server.__init__()
    tracker: Any = multiprocessing.resource_tracker._resource_tracker
    tracker._pid = None  # it is shared, but no child of this process
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    config.pop("tempdir", None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def _check_system() -> None:
    if sys.platform != "linux":
        raise AtOnceError(
            f"at_once_dask starts workers of its own on Linux only, and this is {sys.platform}:"
            " there is no /proc, by which it ends what they leave; run it in a Linux container or"
            " in WSL, or pass a Client of a Dask cluster, as in run(inp_list, check_inp,"
            " process_inp, client=client)"
        )


def _check_folders() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise AtOnceError(
            "the current directory is gone, and no process can be started in it; go to one that is"
            ' there, as with os.chdir("/tmp"), and call run() again'
        ) from None
    try:
        tempfile.gettempdir().encode()
    except UnicodeEncodeError:
        raise AtOnceError(
            f"the name of the temporary folder is not UTF-8, {tempfile.gettempdir()!a}, and Dask"
            ' cannot send it; name another one before Python starts, as with export TMPDIR="/tmp"'
        ) from None


def _missing() -> dict[str, str]:
    return {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}


def _import_path() -> dict[str, str]:
    """Files of the current directory are not imported, unless the driver itself would.

    Python looks there first when it is started with ``-c``. Where this package is found before the
    standard library, as in a clone of its repository, it must be found without that.
    """
    path = {"PYTHONSAFEPATH": "1"}
    root = str(Path(os.path.abspath(__file__)).parents[2])
    library = os.path.dirname(os.__file__)
    entries = [os.path.abspath(entry) for entry in sys.path if isinstance(entry, str)]
    if root in entries and library in entries[entries.index(root) :]:
        path["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return path


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """For processes that start meanwhile."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _plain_preparation() -> Iterator[None]:
    """The fork server learns of this process from a text, in which only texts can be."""
    prepare = Replaced(
        multiprocessing.spawn, "get_preparation_data", lambda prepare: partial(plain, prepare)
    )
    try:
        yield
    finally:
        prepare.undo()


def plain(prepare: Any, name: str) -> dict[str, Any]:
    """The preparation data of `multiprocessing` for a new process.

    Of the import path what Python itself looks at: texts. And debuggers make a ``__main__`` that
    has no ``__spec__``, which is asked for.
    """
    vars(sys.modules["__main__"]).setdefault("__spec__", None)
    data: dict[str, Any] = prepare(name)
    data["sys_path"] = [entry for entry in data["sys_path"] if isinstance(entry, str)]
    return data


def _keep_sockets_short() -> None:
    """Where the temporary folder's name is too long for a socket, those lie in a short one."""
    config: Any = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    folder = config.get("tempdir")
    used = os.path.dirname(folder) if folder else tempfile.gettempdir()
    if len(os.fsencode(used)) + len(SOCKET_NAME) <= LONGEST_SOCKET:
        return
    for short in SHORT_FOLDERS:
        with contextlib.suppress(OSError):
            config["tempdir"] = made = tempfile.mkdtemp(prefix="pymp-", dir=short)
            multiprocessing.util.Finalize(None, shutil.rmtree, args=(made, True), exitpriority=-100)
            return
    raise AtOnceError(
        f"the name of the temporary folder, {used!r}, is too long for a socket; name a shorter one"
        ' before Python starts, as with export TMPDIR="/tmp"'
    )


def keep_main_out_of_workers() -> Replaced:
    """Stop `multiprocessing` from running the script again in Dask's worker processes.

    Without this, a script without a ``__main__`` guard starts its cluster again in every worker,
    and no worker starts. Functions of ``__main__`` travel by value, so workers do not miss it.
    Processes of other names are not touched.
    """
    return Replaced(multiprocessing.spawn, "get_preparation_data", _without_main)


def _without_main(prepare: Any) -> Callable[[str], dict[str, Any]]:
    def without_main(name: str) -> dict[str, Any]:
        if not name.startswith(WORKER_PROCESS):
            prepared: dict[str, Any] = prepare(name)
            return prepared
        data = plain(prepare, name)
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
        return data

    return without_main
