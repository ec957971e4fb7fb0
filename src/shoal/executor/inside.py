"""The life of one call, in its sandbox: be told what to run, run it, tell what came of it, end.

All of it runs in a fork of the zygote that is confined already. What is here may be trusted until the function begins, and by nobody
afterwards: the function can change it, and whoever listens takes what comes for what anybody may have sent. It only has to work for
functions that mean no harm but break things all the same: that close descriptors, empty sys.modules, replace sys.stdout, fork and
return twice, raise what cannot be printed. So what it needs after the function is held here beforehand.
"""

from __future__ import annotations

import gc
import io
import linecache
import os
import pickle
import resource
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any, Never, TextIO

from shoal.executor import wire
from shoal.executor.encode import UnfitError, encode
from shoal.executor.wire import Kind

SOURCE_NAME = "<code>"
"""What source text is called in tracebacks."""

_exit, _getpid = os._exit, os.getpid
_channel: socket.socket | None = None
_REPORT_S = 0.05
_reported_at = 0.0


def report(done: float, total: float | None = None, text: str = "") -> None:
    """Tell how far a call has come: twenty times a second at most, and what comes sooner is left out. Does nothing outside of a call.

    Args:
        done: how much is done, of `total`; any unit.
        text: at most 1,000 characters.
    """
    global _reported_at
    channel, now = _channel, time.monotonic()
    if channel is None or (now - _reported_at < _REPORT_S and done != total):
        return
    _reported_at = now
    message = encode([float(done), None if total is None else float(total), str(text)[:1000]])
    _send(channel, Kind.PROGRESS, message)


def _send(channel: socket.socket, kind: Kind, message: bytes) -> None:
    channel.sendall(wire.HEAD.pack(len(message), kind) + message)


def become_call(talk: int) -> Never:
    """What a copy does instead of returning. Waits until it is told what to run.

    Args:
        talk: its socket.
    """
    status = wire.CHANNEL_LOST
    try:
        channel = _prepare(talk)
        order = _next_order(channel)
        status = 0 if order is None else _run(channel, *order)
    except BaseException:
        os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        _exit(status)


def _prepare(talk: int) -> socket.socket:
    global _channel
    _reseed()
    sys.stdin, sys.stdout, sys.stderr = _made_streams or _streams(0, 1, 2)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    _channel = socket.socket(fileno=talk)
    return _channel


def _streams(stdin: int, stdout: int, stderr: int) -> tuple[TextIO, TextIO, TextIO]:
    """Text streams of three descriptors, which they leave open. Line by line: what is killed has still said what it said."""
    return (
        io.TextIOWrapper(io.BufferedReader(io.FileIO(stdin, "r", closefd=False)), "utf-8", "surrogateescape"),
        io.TextIOWrapper(io.FileIO(stdout, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True),
        io.TextIOWrapper(io.FileIO(stderr, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True),
    )


_made_streams: tuple[TextIO, TextIO, TextIO] | None = None
"""Those of every copy: a stream is a number and its state, and the numbers are the same in all of them."""


def _make_streams() -> None:
    """Make the streams once. Meanwhile 1 and 2 are what they will be in a copy, pipes: a stream looks at that when it is made."""
    global _made_streams
    kept = [(fd, os.dup(fd)) for fd in (1, 2)]
    ends = os.pipe()
    for fd, _ in kept:
        os.dup2(ends[1], fd)
    _made_streams = _streams(0, 1, 2)
    for fd, own in kept:
        os.dup2(own, fd)
        os.close(own)
    for end in ends:
        os.close(end)


_SEEDED = ("random", "numpy.random")
"""Modules with a generator that all share, which would be the same in every copy, and a function to seed it."""


def _reseed() -> None:
    for name in _SEEDED:
        seed = getattr(sys.modules.get(name), "seed", None)
        if callable(seed):
            seed()


def _next_order(channel: socket.socket) -> tuple[bytes, int] | None:
    """What to run, and how long a result may be. None: nobody will tell."""
    head = b""
    fds: list[int] = []
    while len(head) < wire.ORDER.size:
        data, more, _, _ = socket.recv_fds(channel, wire.ORDER.size - len(head), 1)
        fds += more
        if not data:
            return None
        head += data
    size, limits_size, most, in_memory = wire.ORDER.unpack(head)
    limits = _received(channel, limits_size)
    if limits is None:
        return None
    _limit(limits)
    if not in_memory:
        payload = _received(channel, size)
        return None if payload is None else (payload, most)
    with open(fds[0], "rb") as file:
        return file.read(size), most


def _received(channel: socket.socket, size: int) -> bytes | None:
    parts = []
    while size > 0:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _limit(limits: bytes) -> None:
    """Take on the limits of this call: "resource soft hard" one after the other. Whoever cannot be limited is not to run."""
    numbers = [int(word) for word in limits.split()]
    for which, soft, hard in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True):
        resource.setrlimit(which, (soft, hard))


def _run(channel: socket.socket, payload: bytes, most: int) -> int:
    own = _getpid()
    keep = (traceback, linecache, types)  # also when sys.modules is emptied
    try:
        function, args, kwargs = pickle.loads(payload)
    except BaseException as error:
        _send(channel, Kind.UNREAD, _told(error))
        return 0
    del payload
    try:
        try:
            value = function(*args, **kwargs)
            kind, message = Kind.RESULT, encode(value)
            if len(message) > most:
                raise UnfitError(f"the result takes {len(message)} bytes, and {most} can come back")
        except UnfitError as error:
            kind, message = Kind.UNFIT, encode(str(error)[: wire.TEXT_CHARACTERS])
        except BaseException as error:
            kind, message = Kind.RAISED, _told(error)
    except BaseException:  # a signal handler of the function's, at the worst moment
        kind, message = Kind.UNFIT, encode("what the function returned could not be told")
    del keep
    if _getpid() != own:
        return wire.NOT_THE_CALL
    _flush()
    try:
        _send(channel, kind, message)
    except BaseException:
        return wire.CHANNEL_LOST
    return 0


def _flush() -> None:
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        try:
            getattr(sys, name).flush()
        except BaseException:
            pass  # it was replaced or closed


# --- exceptions -----------------------------------------------------------------------------------------------------------------


def _told(error: BaseException) -> bytes:
    """An exception as plain values."""
    kind = type(error)
    bases = [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"]
    fields: dict[str, Any] = {
        "type": _name_of(kind)[:500],
        "text": _text_of(error)[: wire.TEXT_CHARACTERS],
        "traceback": _traceback_of(error),
        "bases": bases,
        "args": None,
    }
    try:
        message = encode(fields | {"args": list(error.args)})
        if len(message) <= wire.RAISED_BYTES:
            return message
    except BaseException:
        pass  # not what can come back
    return encode(fields)


def _name_of(kind: type) -> str:
    try:
        module, name = str(kind.__module__), str(kind.__qualname__)
    except BaseException:
        return "?"
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as another:
        try:
            return f"<{_name_of(type(error))}, whose text could not be had: {_name_of(type(another))}>"
        except BaseException:
            return "<no text>"


def _traceback_of(error: BaseException) -> str:
    """As Python would show it, without what is ours."""
    try:
        found = error.__traceback__
        while found is not None and found.tb_frame.f_globals is globals():
            found = found.tb_next
        lines = traceback.format_exception(type(error), error, found, chain=True)
        text = "".join(lines)
    except BaseException:
        try:
            text = "".join(traceback.format_tb(error.__traceback__))
        except BaseException:
            return ""
    most = wire.TRACEBACK_CHARACTERS
    return text if len(text) <= most else f"{text[: most // 2]}\n  ...\n{text[-most // 2 :]}"


# --- source text ----------------------------------------------------------------------------------------------------------------


def run_source(source: str, inputs: Mapping[str, object], outputs: list[str] | None) -> dict[str, object]:
    """Run source text as a module of its own. What it has then, by name.

    Args:
        outputs: which; None: all that it has set and that can come back, without names that begin with an underscore.
    """
    linecache.cache[SOURCE_NAME] = (len(source), None, source.splitlines(keepends=True), SOURCE_NAME)
    module = types.ModuleType("__main__")
    module.__dict__.update(inputs)
    sys.modules["__main__"] = module
    exec(compile(source, SOURCE_NAME, "exec", dont_inherit=True), module.__dict__)
    found = module.__dict__
    if outputs is not None:
        missing = [name for name in outputs if name not in found]
        if missing:
            raise NameError(f"the code has not set {', '.join(missing)}")
        return {name: found[name] for name in outputs}
    return {name: value for name, value in found.items() if _is_output(name, value, inputs)}


def _is_output(name: str, value: object, inputs: Mapping[str, object]) -> bool:
    if name.startswith("_") or (name in inputs and inputs[name] is value):
        return False
    if isinstance(value, type | types.ModuleType) or callable(value):
        return False
    try:
        encode(value)
    except UnfitError:
        return False
    return True


# --- before the first copy ------------------------------------------------------------------------------------------------------


def rehearse() -> None:
    """Go through what every call goes through, in the zygote, with functions of our own.

    What an interpreter does for the first time it writes down: looked-up attributes, specialized instructions, names bound to libraries. In
    a copy each of those takes time, and a copy of the page that it is written to, once for every call.
    """
    import cloudpickle

    hooks = [getattr(sys.modules.get(module), name, None) for module, name in _FORK_HOOKS]
    near, far = socket.socketpair()
    with near, far:
        payloads = [cloudpickle.dumps((function, (1,), {"more": (2.0, "x")})) for function in _REHEARSED]
        for _ in range(_REHEARSALS):
            for payload in payloads:
                far.sendall(wire.ORDER.pack(len(payload), 0, wire.RAISED_BYTES, 0) + payload)
                order = _next_order(near)
                if order is not None:
                    _run(near, *order)
                    far.recv(1 << 20)
            for hook in hooks:
                if hook is not None:
                    hook()
    _make_streams()
    _reseed()


_FORK_HOOKS = (("threading", "_after_fork"), ("logging", "_after_at_fork_child_reinit_locks"))
"""What the standard library does in each copy. It makes the state of a process with one thread, which the zygote is. Those of other modules
may note that this is a fork, so they are not rehearsed."""
_REHEARSALS = 20
"""From the eighth time on CPython 3.11 specializes what it executes."""
_REHEARSED: tuple[Callable[..., object], ...] = (
    lambda number, more: [number, more, {"a": b"b"}, None, True, -1.5],
    lambda number, more: {}[number],
)


def freeze() -> None:
    """Before the first copy: what is there by now is not looked at by the garbage collector of any, which would write to all of it."""
    gc.collect()
    gc.freeze()
