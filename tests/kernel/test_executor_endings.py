"""However a call ends: its result, or an error that says why there is none; and no hang."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest

from shoal.executor import BadResultError, CallEndedError, RemoteError

PATIENCE_S = 60


def closes_everything():
    os.closerange(0, 1024)
    return 1


def daemonises():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for fd in range(3):
                os.close(fd)
            time.sleep(600)
        os._exit(0)
    return "gone on"


def floods():
    for _ in range(300):
        os.write(1, b"x" * 65536)
    return "done"


def takes_all_signals():
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):
            signal.signal(number, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    return "done"


def empties_sys_modules():
    sys.modules.clear()
    return {1, (2, 3)}


def replaces_the_streams():
    class Broken:
        def flush(self):
            raise RuntimeError("no")

        write = flush

    sys.stdout = sys.stderr = Broken()
    del sys.__stdout__
    return "done"


def leaves_a_thread():
    import threading

    threading.Thread(target=time.sleep, args=(600,)).start()
    return "done"


def leaves_a_fork_that_holds_everything():
    if os.fork() == 0:
        while True:
            time.sleep(600)
    return "done"


FINE = {
    daemonises: "gone on",
    floods: "done",
    takes_all_signals: "done",
    empties_sys_modules: {1, (2, 3)},
    replaces_the_streams: "done",
    leaves_a_thread: "done",
    leaves_a_fork_that_holds_everything: "done",
}


@pytest.mark.parametrize("what", FINE, ids=lambda f: f.__name__)
def test_what_a_call_does_to_its_process_does_no_harm(ex, what):
    call = ex.with_limits(timeout=PATIENCE_S).submit(what)
    assert call.result(PATIENCE_S) == FINE[what]
    assert call.reason == "returned"
    assert call.wait_gone(0)


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def raises_what_cannot_be_printed():
    raise Silent


def raises_a_very_long_text():
    raise ValueError("x" * 10_000_000)


def raises_a_chain():
    try:
        raise KeyError("first")
    except KeyError as error:
        raise RuntimeError("second") from error


def recurses():
    return recurses()


def test_exceptions_that_are_hard_to_tell_are_told(ex):
    error = ex.submit(raises_what_cannot_be_printed).exception(PATIENCE_S)
    assert isinstance(error, RemoteError)
    assert "Silent" in str(error)
    assert "could not be had: RuntimeError" in str(error)
    error = ex.submit(raises_a_very_long_text).exception(PATIENCE_S)
    assert isinstance(error, ValueError)
    assert len(str(error)) < 10_000
    error = ex.submit(raises_a_chain).exception(PATIENCE_S)
    assert "KeyError: 'first'" in error.traceback_text
    assert "direct cause" in error.traceback_text
    assert isinstance(ex.submit(recurses).exception(PATIENCE_S), RecursionError)


ENDS = {
    "exits": ("import os; os._exit(3)", CallEndedError, "exited", 3, "with exit status 3"),
    "exits with 0": ("import os; os._exit(0)", CallEndedError, "exited", 0, "with exit status 0"),
    "kills itself": ("import os; os.kill(os.getpid(), 9)", CallEndedError, "signaled", -9, "killed by SIGKILL"),
    "crashes": ("import ctypes; ctypes.string_at(0)", CallEndedError, "signaled", -11, "killed by SIGSEGV"),
    "aborts": ("import os; os.abort()", CallEndedError, "signaled", -6, "killed by SIGABRT"),
    "closes its channel": ("import os; os.closerange(0, 99)", CallEndedError, "exited", 70, "closed from inside"),
    "closes its channel and stays": (
        "import os, time; os.close(3); time.sleep(600)",
        BadResultError,
        "bad_result",
        -9,
        "closed the channel",
    ),
    "executes something else": (
        "import os, sys; os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'raise SystemExit(5)'])",
        CallEndedError,
        "exited",
        5,
        "with exit status 5",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_call_that_ends_without_a_result_says_how(ex, name):
    code, kind, reason, status, text = ENDS[name]
    call = ex.submit_code(code)
    error = call.exception(PATIENCE_S)
    assert isinstance(error, kind), error
    assert (error.reason, call.reason) == (reason, reason)
    assert text in str(error)
    assert call.returncode == status
    assert call.usage is not None


def test_what_it_wrote_last_is_in_the_error(ex):
    error = ex.submit_code("import sys, os\nsys.stderr.write('the reason\\n'); os._exit(1)").exception(PATIENCE_S)
    assert "the reason" in "".join(error.__notes__)
    assert error.stderr == "the reason\n"


_SENT = ("returned", "")
_SPOILT = ("bad_result", "could not be told")
_CLOSED = ("exited", "the channel by which it comes back was closed from inside")
_LATE = ("wall_time", "took longer than 1 s")

SABOTAGE = {
    "modules are overwritten": ("import sys\nfor n in list(sys.modules): sys.modules[n] = None", _SENT),
    "modules raise": (
        "import sys\nclass J:\n    def __getattr__(self, n): raise RuntimeError(n)\nfor n in list(sys.modules): sys.modules[n] = J()",
        _SENT,
    ),
    "functions of os and socket are replaced": (
        "import os, socket\nos._exit = os.write = os.fork = socket.socket.sendall = lambda *a: 1 / 0",
        _CLOSED,
    ),
    "builtins are gone": ("import builtins\nfor n in list(vars(builtins)):\n    if n != '__import__': delattr(builtins, n)", _SPOILT),
    "a trace function raises": ("import sys\ndef t(*a): raise RuntimeError\nsys.settrace(t); sys.setprofile(t)", _SPOILT),
    "an audit hook raises": ("import sys\ndef t(*a): raise RuntimeError\nsys.addaudithook(t)", _SENT),
    "the end never ends": ("import atexit\ndef f():\n    while True: pass\natexit.register(f)", _SENT),
    "a finalizer never ends": ("class D:\n    def __del__(self):\n        while True: pass\n_d = D()", _SENT),
    "the collector never ends": ("import gc\ndef f(*a):\n    while True: pass\ngc.callbacks.append(f)", _SENT),
    "no recursion is left": ("import sys\nsys.setrecursionlimit(30)", _SENT),
    "no descriptor is left": ("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))", _SENT),
    "the directory is gone": ("import os\nos.mkdir('/tmp/a'); os.chdir('/tmp/a'); os.rmdir('/tmp/a')", _SENT),
    "it stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", _LATE),
    "the result never ends": ("class L(list):\n    def __iter__(self):\n        while True: yield 1\nx = L()", _LATE),
    "the channel is another": ("import os\nr, w = os.pipe()\nos.dup2(w, 3)", _CLOSED),
    "threads are busy": (
        "import threading\ndef _f():\n    while True: pass\nfor _n in range(8): threading.Thread(target=_f, daemon=True).start()",
        _SENT,
    ),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_what_a_call_breaks_is_broken_for_it_alone_and_told(ex, what):
    code, (reason, text) = SABOTAGE[what]
    late = reason == "wall_time"
    call = ex.with_limits(timeout=1 if late else PATIENCE_S).submit_code("x = 1\n" + code, outputs=["x"])
    error = call.exception(PATIENCE_S)
    assert call.reason == reason, error
    assert text in str(error)
    if reason == "returned":
        assert call.result() == {"x": 1}
    assert call.wait_gone(0)
    assert ex.submit(len, "abc").result(PATIENCE_S) == 3


RAISED = {
    "raise SystemExit('bye')": "SystemExit: bye",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "class Odd(BaseException): pass\nraise Odd('b')": "Odd: b",
    "e = ValueError('circle')\ne.__cause__ = e\nraise e": "circle",
    "class E(Exception):\n    args = property(lambda self: 1 / 0)\nraise E": "E",
    "class C:\n    __class__ = property(lambda self: 1 / 0)\nx = C()": "division by zero",
}


@pytest.mark.parametrize("code", RAISED)
def test_whatever_is_raised_is_a_remote_error_and_nothing_that_ends_the_host(ex, code):
    error = ex.submit_code(code).exception(PATIENCE_S)
    assert isinstance(error, RemoteError)
    assert not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
    assert str(error) == RAISED[code]
