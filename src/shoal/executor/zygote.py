"""The zygote: an interpreter that has loaded its modules and makes copies of itself, each in a cell of its own, when it is asked to.

It runs what is trusted - shoal, the modules to be loaded before - and never what a call runs: it is not told, and a copy can neither
see nor reach it. It has one thread, so that a fork finds no lock held, and no memory that it shares with its copies for writing; what a
module leaves of either kind is refused here.

It ends when its owner does: the socket it is asked by tells, and where it is not listening - a module that takes long to load - the
kernel kills it when the pipe LIFE is closed on the other side (fcntl(2), F_SETSIG).
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass

from shoal import _native
from shoal.copy_numbers import (
    CONFIGURATION,
    CONTROL,
    GROUP,
    ID_MAP,
    INSIDE_TALK,
    KEEPER,
    KEEPER_END,
    LIFE,
    REQUESTS,
    STDERR,
    STDOUT,
    TALK,
)

PROGRAM = """import sys, types
shoal = sys.modules["shoal"] = types.ModuleType("shoal")
shoal.__path__ = [sys.argv[1] + "/shoal"]
from shoal.executor.zygote import main
main()
"""
"""What the interpreter is started with. The package itself, with all that it imports, is loaded only when somebody asks for it: what is not
here need not be copied, nor told of each fork."""

ANSWER = struct.Struct("=iiiiii")
"""Which of the two was being made (0: pid 1), the pid of pid 1 and of the copy (0: there is none), stage, op index and errno. With it come
the pidfds of those that there are, and where all went well our end of the socket to pid 1."""
IN_GROUP = b"g"
"""A request for a copy that begins in a cgroup, which comes along; anything else begins where the zygote is."""
READY, REFUSED = b"ready", b"refused"
_MESSAGE = 1 << 16
_NUMBER = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a zygote is told first.

    Attributes:
        path: where modules are looked for, until all are loaded; path_inside: from then on.
        preload: modules to load.
        keeper, keeper_in_group, tasks, copy, copy_in_group, first_user, maps_ids: as in `copies.Copies`; of the plans of a copy, where
            the number of its user goes, too.
    """

    path: tuple[str, ...]
    path_inside: tuple[str, ...]
    preload: tuple[str, ...]
    keeper: bytes
    keeper_in_group: bytes
    tasks: str
    copy: tuple[bytes, tuple[int, ...]]
    copy_in_group: tuple[bytes, tuple[int, ...]]
    first_user: int
    maps_ids: bool


def main() -> None:
    """What the interpreter is started for. Never returns."""
    _die_with_owner()
    with open(CONFIGURATION, "rb") as file:
        configuration: Configuration = pickle.load(file)  # of the owner's making
    _load_the_package_on_demand()
    requests = socket.socket(fileno=REQUESTS)
    problem = _load(configuration)
    try:
        requests.send(REFUSED + problem.encode("utf-8", "backslashreplace")[: _MESSAGE // 2] if problem else READY)
    except OSError:
        problem = problem or "nobody is there"
    if problem:
        os._exit(1)
    inside = importlib.import_module("shoal.executor.inside")
    inside.rehearse()
    inside.freeze()
    serve(requests, configuration)
    os._exit(0)


def _load_the_package_on_demand() -> None:
    package = sys.modules["shoal"]
    place = package.__path__[0]
    spec = importlib.util.spec_from_file_location("shoal", os.path.join(place, "__init__.py"), submodule_search_locations=[place])

    def load(name: str) -> object:
        if name.startswith("__") or spec is None or spec.loader is None:
            raise AttributeError(f"module 'shoal' has no attribute {name!r}")
        del package.__dict__["__getattr__"]
        package.__spec__ = spec
        spec.loader.exec_module(package)
        return getattr(package, name)

    package.__dict__["__getattr__"] = load


def _die_with_owner() -> None:
    fcntl.fcntl(LIFE, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(LIFE, getattr(fcntl, "F_SETSIG", 10), signal.SIGKILL)
    fcntl.fcntl(LIFE, fcntl.F_SETFL, fcntl.fcntl(LIFE, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([LIFE], [], [], 0)[0]:  # it has ended before
        os._exit(0)


def _load(configuration: Configuration) -> str:
    """Load the modules. Why that is not possible, or ""."""
    sys.path[:] = configuration.path
    sys.argv[:] = [""]
    importlib.import_module("cloudpickle")  # every call begins with it
    importlib.import_module("shoal.executor.inside")
    for name in configuration.preload:
        try:
            importlib.import_module(name)
        except BaseException:
            return f"{name} cannot be loaded\n{traceback.format_exc()}"
        threads = os.listdir("/proc/self/task")
        if len(threads) > 1:
            others = f"{len(threads) - 1} threads running ({_names(threads)})"
            return f"{name} leaves {others}, and a call, which is a fork, would have their locks but not them"
        shared = _shared_memory()
        if shared:
            return f"{name} leaves memory that all copies would share and could write to: {shared}"
    sys.path[:] = configuration.path_inside
    sys.path_importer_cache.clear()
    importlib.import_module("__main__").__dict__.pop("main", None)
    return ""


def _names(threads: list[str]) -> str:
    found = set()
    for thread in threads:
        if int(thread) != os.getpid():
            with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
                found.add(file.read().strip())
    return ", ".join(sorted(found))


def _shared_memory() -> str:
    """What is mapped here shared and writable, or ""."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        return "; ".join(line.strip() for line in file if line.split()[1][1:4:2] == "ws")[:500]


def serve(requests: socket.socket, configuration: Configuration) -> None:
    """Make copies as long as somebody asks."""
    for fd in range(KEEPER_END, ID_MAP + 1):
        os.dup2(0, fd, inheritable=False)  # so that no number of a copy's is ever somebody else's
    argv = b"shoal-init\0" + configuration.tasks.encode() + b"\0"
    while True:
        kind, fds, _, _ = socket.recv_fds(requests, _MESSAGE, 4)
        if not kind:
            return
        for fd, number in zip(fds, (TALK, STDOUT, STDERR, GROUP), strict=False):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        answer, handed = _make(configuration, argv, in_group=kind == IN_GROUP)
        try:
            socket.send_fds(requests, [answer], handed)
        except OSError:
            return  # nobody is there any more
        for fd in range(KEEPER_END, ID_MAP + 1):
            os.dup2(0, fd, inheritable=False)


def _make(configuration: Configuration, argv: bytes, *, in_group: bool) -> tuple[bytes, list[int]]:
    """One copy: what to answer. In the copy it does not return."""
    for end, number in zip(socket.socketpair(), (CONTROL, KEEPER_END), strict=True):
        os.dup2(end.fileno(), number, inheritable=False)
        end.close()
    keeper_plan = configuration.keeper_in_group if in_group else configuration.keeper
    keeper, pidfd, stage, index, error, _ = _native.launch(keeper_plan, argv, 2, b"", 0)
    handed = []
    if keeper > 0:
        os.dup2(pidfd, KEEPER, inheritable=False)
        os.close(pidfd)
        handed.append(KEEPER)
    os.dup2(0, KEEPER_END, inheritable=False)
    if keeper <= 0 or stage != _native.STAGE_EXEC or error:
        return ANSWER.pack(0, max(keeper, 0), 0, stage, index, error), handed
    user = configuration.first_user + keeper if configuration.first_user else 0
    try:
        if configuration.maps_ids:
            from shoal.handles.idmap import make_id_map

            id_map = make_id_map(user)
            os.dup2(id_map.fd, ID_MAP, inheritable=False)
            del id_map
    except OSError as problem:
        return ANSWER.pack(1, keeper, 0, _native.STAGE_CLONE, -1, problem.errno or 0), handed
    data, places = configuration.copy_in_group if in_group else configuration.copy
    plan = bytearray(data)
    for place in places:
        _NUMBER.pack_into(plan, place, user)
    become_call = sys.modules["shoal.executor.inside"].become_call
    made = _native.fork_into(bytes(plan), TALK)
    if made is None:
        become_call(INSIDE_TALK)
        raise AssertionError  # it does not return
    pid, pidfd, error = made
    if error:
        return ANSWER.pack(1, keeper, 0, _native.STAGE_CLONE, -1, error), handed
    os.dup2(pidfd, ID_MAP, inheritable=False)
    os.close(pidfd)
    return ANSWER.pack(1, keeper, pid, _native.STAGE_EXEC, -1, 0), [*handed, ID_MAP, CONTROL]
