"""SandboxExecutor: concurrent.futures.Executor, in which each call has a sandbox to itself.

What a call may touch is what its Sandbox says, and the interpreter's own files, read-only. It is a fork of an interpreter that has
loaded its modules already, so it begins in milliseconds; it is used once.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from importlib.util import find_spec
from typing import Any, ParamSpec, Self, TypeVar

from shoal.copies import executable_of, make_copies
from shoal.copy_numbers import COMM
from shoal.executor.arguments import Arguments
from shoal.executor.call import Call, Progress
from shoal.executor.engine import Engine
from shoal.executor.limits import Limits
from shoal.executor.progress import Bar
from shoal.executor.visible import PLACE, interpreter_grants, visible_path
from shoal.executor.zygote_process import Recipe
from shoal.handles.made import empty_mounts
from shoal.handles.netns import NetNs
from shoal.plan import Plan
from shoal.sandbox.box import Sandbox, nearest
from shoal.sandbox.grants import View
from shoal.sandbox.launch import Boxed, Order
from shoal.sandbox.limits import Budget
from shoal.sandbox.program import current_directory, find_program
from shoal.status import Stage, Status, failure

P = ParamSpec("P")
T = TypeVar("T")

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
"""Variables that libraries for numbers take the number of their threads from. A fork has none of them."""
FDS_OF_A_CALL = 6

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


class SandboxExecutor(Executor):
    """Runs functions in sandboxes of their own.

    Used as a context manager it waits for its calls in the end. What still runs when the interpreter ends is killed: nobody could have
    the results.

    Args:
        sandbox: what a call gets; None is `Sandbox()`: a private /tmp, no network, no file but the interpreter's. Its limits are those of
            each call; its `wall_time` counts from the beginning of the call.
        preload: modules to load before the first call. They are trusted: they run outside of any sandbox, with all that this process may
            do, and what they hold in memory every call can see.
        max_workers: how many calls run at once; None: as many as there are processors. warm: how many sandboxes wait for a call; None:
            one, or as many as there are processors where more run at once.
    Raises:
        SpawnError: no sandbox can be made here, or the interpreter cannot be started; says why.
        ValueError, TypeError, RequestError: an argument, or something that the sandbox names, cannot be meant.
        ImportError: cloudpickle or msgpack is missing (the extra is shoal[executor]). ModuleNotFoundError: there is no such module.
    Source: concurrent.futures.Executor, whose methods mean what they mean there.
    """

    def __init__(
        self,
        sandbox: Sandbox | None = None,
        *,
        preload: Sequence[str] = (),
        max_workers: int | None = None,
        warm: int | None = None,
    ) -> None:
        if sandbox is not None and not isinstance(sandbox, Sandbox):
            raise TypeError(f"sandbox has to be a shoal.Sandbox, not {type(sandbox).__name__}")
        if isinstance(preload, str) or not all(isinstance(name, str) for name in preload):
            raise TypeError('preload has to be a list of names of modules, such as ["numpy"]')
        box = Sandbox() if sandbox is None else sandbox
        self._workers = _number("max_workers", max_workers, _processors(), at_least=1)
        self._warm = _number("warm", warm, min(self._workers, _processors()), at_least=0)
        if box.linger != "kill":
            raise ValueError(f"linger={box.linger!r}: nothing outlives a call")
        _check_descriptors(self._workers + self._warm)
        for name in preload:
            _check_module(name)
        self._limits = Limits.of(box)
        self._recipe, self._plan, self._enforced = _recipe(box, tuple(preload))
        self._arguments = Arguments(self._recipe.path_inside, frozenset(name.partition(".")[0] for name in preload))
        self._engine = Engine(
            self._recipe, _budget_maker(self._limits), counted=self._limits.needs_group, max_workers=self._workers, warm=self._warm
        )
        _engines.add(self._engine)
        self._root: SandboxExecutor | None = None
        self._end: weakref.finalize[Any, Any] | None = weakref.finalize(self, self._engine.close, wait=False, cancel=False)
        self._closed = False
        self._own: weakref.WeakSet[Call[Any]] = weakref.WeakSet()

    # --- calls --------------------------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """Run `fn(*args, **kwargs)` in a sandbox of its own, as soon as there is room.

        Raises:
            TypeError: it cannot be sent there; says which argument.
            BrokenSandboxError: there will never be a sandbox. RuntimeError: the executor was shut down, or belongs to another process.
        """
        return self._submit(fn, args, kwargs, None)

    def submit_with(self, on_progress: Progress, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """The same, and be told how far it is.

        Args:
            on_progress: called with what the function gives to `shoal.executor.report()`: done, total, text. In a thread of the
                executor, so it should not take long; of reports that come close together only the last is told.
        """
        return self._submit(fn, args, kwargs, on_progress)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        return_exceptions: bool = False,
        progress: bool | None = None,
    ) -> Iterator[T]:
        """As Executor.map(): the results in the order of the arguments, each call in a sandbox of its own.

        Args:
            timeout: seconds from now, for all together; `with_limits(timeout=...)` is for each.
            chunksize: has no effect: two calls never share a sandbox.
            return_exceptions: a call that failed gives its exception as its result, and the others go on.
            progress: whether to show a bar on standard error; None: where that is a terminal.
        Raises:
            TimeoutError: the next result is not there in time.
        """
        del chunksize
        end = None if timeout is None else time.monotonic() + timeout
        bar = Bar(_name_of(fn), None) if Bar.is_wanted(progress) else None
        calls = []
        for args in zip(*iterables, strict=False):
            call: Call[T] = self._submit(fn, args, {}, None)
            if bar is not None:
                call.add_done_callback(lambda done: bar.step(failed=done.cancelled() or done.exception() is not None))
            calls.append(call)
        if bar is not None:
            bar.total = len(calls)
        return _results(calls, end, bar, return_exceptions=return_exceptions)

    def run_code(
        self, source: str, inputs: Mapping[str, Any] | None = None, *, outputs: Sequence[str] | None = None, name: str = "code"
    ) -> dict[str, Any]:
        """Run source text, and wait for what comes of it.

        Args:
            inputs: variables that it finds. outputs: names of variables that are wanted; None: all that it has set, that can come back,
                and that do not begin with an underscore.
        Raises:
            RemoteError: it raised something, or is no Python; says where. CallError: it ended otherwise.
        """
        return self.submit_code(source, inputs, outputs=outputs, name=name).result()

    def submit_code(
        self, source: str, inputs: Mapping[str, Any] | None = None, *, outputs: Sequence[str] | None = None, name: str = "code"
    ) -> Call[dict[str, Any]]:
        """The same without waiting."""
        if not isinstance(source, str):
            raise TypeError(f"source has to be text, not {type(source).__name__}")
        given = {} if inputs is None else dict(inputs)
        if not all(isinstance(key, str) for key in given):
            raise TypeError("inputs has to be a mapping of names to values")
        if isinstance(outputs, str):
            raise TypeError("outputs has to be a list of names")
        wanted = None if outputs is None else list(outputs)
        from shoal.executor.inside import run_source  # it takes libraries whose absence is told above

        payload = self._arguments.pickled_source(run_source, source, given, wanted)
        return self._enqueue(name, payload, None)

    def with_limits(self, **limits: Any) -> Self:
        """The same executor, with other limits for the calls that are submitted through what this returns.

        Args:
            timeout: seconds or text ("1m30s"), from the beginning of a call; None: any time.
            memory, swap, pids, cpus, io, cpu_time, open_files, file_size: as of a Sandbox. The first five and cpu_time take a cgroup.
            output: how much of stdout and of stderr is kept each; on_output_limit: "drain" (the rest is counted) or "kill".
            result: how large a result may be, as a message.
        Raises:
            TypeError, ValueError: no such limit, or it cannot be meant. The kernel's refusals come with the calls.
        """
        changed = self._limits.replace(limits)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._limits = changed
        other._root = self._root or self
        other._end = None
        other._own = weakref.WeakSet()
        return other

    # --- its life -----------------------------------------------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the modules are loaded and `warm` sandboxes wait. False: not within `timeout` seconds.

        Raises:
            PreloadError: a module cannot be loaded. BrokenSandboxError: there will never be a sandbox.
        """
        return self._engine.wait_ready(timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor.shutdown(). With `wait` it returns when nothing is left: no process, no descriptor, no thread.

        Of what `with_limits()` gave, only the calls submitted through it are waited for or cancelled.
        """
        self._closed = True
        if self._root is None:
            self._engine.close(wait=wait, cancel=cancel_futures)
            return
        calls = list(self._own)
        for call in calls if cancel_futures else ():
            if not call.running():
                call.cancel()
        if wait:
            for call in calls:
                call.wait_gone()

    def cancel_all(self) -> None:
        """Cancel every call submitted through this, those that run too, and return at once."""
        for call in list(self._own):
            call.cancel()

    def explain(self) -> Plan:
        """All that a call can touch, as a value that prints readably."""
        return self._plan

    @property
    def zygote_pid(self) -> int | None:
        """The process that calls are forked from; None while there is none."""
        return self._engine.zygote_pid

    def __repr__(self) -> str:
        running, waiting, ready = self._engine.counts
        state = "shut down, " if self._closed or self._engine.is_closed else ""
        limits = f", a call has {told}" if (told := str(self._limits)) else ""
        return f"<{type(self).__name__}: {state}{running} of {self._workers} running, {waiting} waiting, {ready} sandboxes ready{limits}>"

    def _submit(self, fn: Callable[..., T], args: tuple[Any, ...], kwargs: Mapping[str, Any], on_progress: Progress | None) -> Call[T]:
        return self._enqueue(_name_of(fn), self._arguments.pickled(fn, args, kwargs), on_progress)

    def _enqueue(self, name: str, payload: bytes, on_progress: Progress | None) -> Call[Any]:
        if self._closed:
            raise RuntimeError("cannot submit a call after shutdown")
        call: Call[Any] = Call(self._engine, name, payload, self._limits, on_progress, self._enforced)
        self._own.add(call)
        self._engine.submit(call)
        return call


def _results(calls: list[Call[T]], end: float | None, bar: Bar | None, *, return_exceptions: bool) -> Iterator[T]:
    def results() -> Iterator[T]:
        try:
            calls.reverse()
            while calls:
                call = calls.pop()  # what has been handed out is not held any longer
                try:
                    yield call.result(None if end is None else max(0.0, end - time.monotonic()))
                except Exception as error:
                    if not return_exceptions or not call.done():
                        calls.append(call)
                        raise
                    yield error  # type: ignore[misc]
        finally:
            for call in calls:
                call.cancel()
            if bar is not None:
                bar.close()

    return results()


def _recipe(box: Sandbox, preload: tuple[str, ...]) -> tuple[Recipe, Plan, dict[str, bool | str]]:
    if isinstance(box.network, NetNs):
        box = box.replace(network=box.network.duplicate())  # the caller may close its own
    boxed = Boxed.of(box)
    tier = boxed.tier
    if not tier.is_cell:
        what = f"calls take cells, and none can be made here ({tier.why}); {tier.fix}"
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, what)
    boxed.enforced_with(_promised(box))
    python = sys.executable
    if not python:
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, "it is not known which interpreter this is (sys.executable is empty)")
    program = find_program(python, "", "/")
    environ = {**ONE_THREAD, **boxed.environ}
    grants = boxed.grants(program, current_directory(), interpreter_grants())
    order = Order(program, (), {}, "/", name=COMM, grants=grants, environ=environ)
    path = tuple(os.path.abspath(entry) if entry else os.getcwd() for entry in sys.path)
    options = ("-I", "-B", *(["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []))
    visible = visible_path(View(grants), path)

    def make() -> tuple[Recipe, Plan]:
        """From what was asked for then: neither the directory nor the module path that this process has now matters."""
        plan = boxed.plan(order)
        if isinstance(box.network, NetNs):
            plan = dataclasses.replace(plan, netns_fd=box.network.fileno())
        copies = make_copies(plan, empty_mounts, executable_of(python))
        return Recipe(copies, python, options, PLACE, environ, path, visible, preload, lambda: make()[0]), plan

    return *make(), boxed.enforced


def _promised(box: Sandbox) -> dict[str, bool | str]:
    """What a call's own budget will enforce, where the box requires it."""
    return dict.fromkeys(("memory", "pids", "cpus", "io", "cpu_time", "swap"), True) if box.limits == "require" else {}


def _budget_maker(limits: Limits) -> Callable[[Call[Any] | None], Budget]:
    def make(call: Call[Any] | None) -> Budget:
        return Budget.of(limits.box if call is None else call.limits.box)

    return make


def _number(name: str, value: int | None, default: int, *, at_least: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} has to be a number, not {value!r}")
    if not at_least <= value <= 100_000:
        raise ValueError(f"{name} has to lie between {at_least} and 100000, not {value}")
    return value


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _check_descriptors(calls: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FDS_OF_A_CALL * calls + 64
    if soft != resource.RLIM_INFINITY and needed > soft:
        what = f"{calls} calls and sandboxes at once take some {needed} descriptors, and this process may have {soft}"
        advice = f"ulimit -n {needed}" if needed <= hard or hard == resource.RLIM_INFINITY else f"at most {hard} can be had here"
        raise failure(Status.NO_RESOURCES, Stage.ARGUMENTS, f"{what}; {advice}")


def _check_module(name: str) -> None:
    """Raises ModuleNotFoundError: there is none. What loading it would say, the zygote says."""
    top = name.partition(".")[0]
    if top in sys.modules or top in sys.builtin_module_names:
        return
    try:
        found = find_spec(top)
    except (ImportError, ValueError):
        found = None
    if found is None:
        near = nearest(top, sorted(sys.stdlib_module_names)) if top else ""
        hint = near if near.startswith("; did you mean") else ""
        raise ModuleNotFoundError(f"preload: no module named {name!r}{hint}", name=name)


def _name_of(fn: object) -> str:
    while hasattr(fn, "func"):  # functools.partial
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__name__
    return str(name)


def _abort_all() -> None:
    for engine in list(_engines):
        engine.abort()


_forking: list[Engine] = []
_forks = threading.RLock()


def _before_fork() -> None:
    _forks.acquire()
    _forking[:] = [engine for engine in _engines if not engine.is_over]
    for engine in _forking:
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in _forking:
        engine.after_fork()
    _forking.clear()
    _forks.release()


def _after_fork_in_child() -> None:
    for engine in _forking:
        engine.after_fork_in_child()
    _forking.clear()
    _forks.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
atexit.register(_abort_all)
