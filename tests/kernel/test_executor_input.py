"""Bad input gets an error that names it, where it is given."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import pytest

import shoal
from shoal import Sandbox, SandboxExecutor
from shoal.executor import BadResultError, PreloadError, RemoteError

PATIENCE_S = 60


def test_an_argument_that_cannot_be_pickled_is_named(ex):
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"argument 2 of len\(\) \(a lock\) cannot be sent to a sandbox: cannot pickle '_thread.lock'"):
        ex.submit(len, "fine", lock)
    with pytest.raises(TypeError, match=r"argument 'key' of sorted\(\)"):
        ex.submit(sorted, [], key=lock)
    with pytest.raises(TypeError, match=r"the function .*lambda.* cannot be sent"):
        ex.submit(lambda: lock)
    with pytest.raises(TypeError, match="input 'x'"):
        ex.run_code("y = x", {"x": lock})

    class Odd:
        def __reduce__(self):
            raise KeyboardInterrupt if False else ZeroDivisionError("odd")

    with pytest.raises(TypeError, match=r"argument 1 of len\(\) \(an Odd\).*odd"):
        ex.submit(len, Odd())
    assert ex.submit(len, "ab").result(PATIENCE_S) == 2


def test_what_is_no_call_is_refused(ex):
    for what in (None, 3, "print"):
        with pytest.raises(TypeError, match="cannot be called"):
            ex.submit(what)
    with pytest.raises(TypeError, match="source has to be text"):
        ex.run_code(b"x = 1")
    with pytest.raises(TypeError, match="names to values"):
        ex.run_code("x = 1", {1: 2})
    with pytest.raises(TypeError, match="list of names"):
        ex.run_code("x = 1", outputs="x")


def test_results_that_cannot_come_back_say_where_they_are(ex):
    cases = {
        "r = {'a': [1, open('/dev/null')]}": r"result\['r'\]\['a'\]\[1\] is a[n]? _io.TextIOWrapper",
        "r = []\nfor _ in range(200): r = [r]": "more than 100 containers deep",
        "r = []; r.append(r)": "contains itself",
        "import numpy; r = numpy.array([None])": "an array of object",
        "r = 1 << (1 << 24)": "an int of",
        "r = list(range(2_000_001))": "too many values in it: 2,000,000 can come back, of which an array of numpy or bytes is one",
        "r = [[0] * 1000 for _ in range(2001)]": "too many values in it",
    }
    for code, text in cases.items():
        call = ex.submit_code(code, outputs=["r"])
        error = call.exception(PATIENCE_S)
        assert isinstance(error, BadResultError), error
        assert call.reason == "bad_result"
        with pytest.raises(BadResultError, match=text):
            call.result()
    with pytest.raises(BadResultError, match="takes 2000005 bytes, and 1000000 can come back"):
        ex.with_limits(result=1_000_000).submit(bytes, 2_000_000).result(PATIENCE_S)


def test_a_module_that_is_missing_inside_comes_with_advice(ex):
    import pickle

    class Missing:
        def __reduce__(self):
            return pickle.loads, (b"\x80\x04cno_such_module\nf\n.",)

    error = ex.submit(len, Missing()).exception(PATIENCE_S)
    assert isinstance(error, ModuleNotFoundError)
    assert isinstance(error, RemoteError)
    assert "preloaded" in "".join(error.__notes__)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"sandbox": {}}, TypeError, "shoal.Sandbox"),
        ({"preload": "numpy"}, TypeError, "list of names"),
        ({"preload": [3]}, TypeError, "list of names"),
        ({"preload": ["nmupy_is_not_there"]}, ModuleNotFoundError, "no module named 'nmupy_is_not_there'"),
        ({"preload": ["jsn"]}, ModuleNotFoundError, "did you mean 'json'"),
        ({"preload": ["no_such_package.part"]}, ModuleNotFoundError, "no_such_package.part"),
        ({"max_workers": 0}, ValueError, "max_workers has to lie between 1"),
        ({"max_workers": 1.5}, TypeError, "max_workers has to be a number"),
        ({"max_workers": True}, TypeError, "max_workers has to be a number"),
        ({"warm": -1}, ValueError, "warm has to lie between 0"),
        ({"sandbox": Sandbox(linger="keep")}, ValueError, "nothing outlives a call"),
        ({"sandbox": Sandbox(read=["/no/such/place"])}, Exception, "/no/such/place"),
        ({"sandbox": Sandbox(cwd="/no/such/place")}, Exception, "/no/such/place"),
    ],
)
def test_an_executor_that_cannot_be_meant_is_not_made(arguments, kind, text):
    with pytest.raises(kind, match=text):
        SandboxExecutor(**arguments)


@pytest.mark.parametrize(
    ("limits", "kind", "text"),
    [
        ({"memry": 1}, TypeError, "did you mean 'memory'"),
        ({"timeout": 0}, ValueError, "timeout is 0"),
        ({"timeout": "soon"}, ValueError, "timeout: 'soon' is not a duration"),
        ({"timeout": True}, TypeError, "timeout: a duration"),
        ({"memory": "lots"}, ValueError, "memory: 'lots' is not a size"),
        ({"memory": None}, ValueError, "memory=None"),
        ({"open_files": 1}, ValueError, "open_files has to lie between"),
        ({"output": -1}, ValueError, "output: a size cannot be negative"),
        ({"result": 0}, ValueError, "result: 0 has to lie between"),
        ({"result": "1T"}, ValueError, "result: '1T' has to lie between"),
        ({"on_output_limit": "explode"}, ValueError, "on_output_limit cannot be 'explode'"),
        ({"read": ["/"]}, TypeError, "no limit 'read' for a call"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(ex, limits, kind, text):
    with pytest.raises(kind, match=text):
        ex.with_limits(**limits)


def write(tmp_path, monkeypatch, name, source):
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_preload_that_raises_is_told_with_its_traceback(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "raises_when_loaded", "def f():\n    raise ValueError('not today')\nf()\n")
    with SandboxExecutor(preload=["raises_when_loaded"]) as one:
        with pytest.raises(PreloadError, match="raises_when_loaded cannot be loaded") as caught:
            one.wait_ready(PATIENCE_S)
        assert "ValueError: not today" in "".join(caught.value.__notes__)
        with pytest.raises(PreloadError):
            one.submit(len, "")


def test_a_preload_that_leaves_a_thread_is_refused(tmp_path, monkeypatch):
    write(
        tmp_path,
        monkeypatch,
        "starts_a_thread",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n",
    )
    with SandboxExecutor(preload=["starts_a_thread"]) as one, pytest.raises(PreloadError, match="starts_a_thread leaves 1 threads running"):
        one.wait_ready(PATIENCE_S)


def test_a_preload_that_leaves_shared_memory_is_refused(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, "shares_memory", "import mmap\nmemory = mmap.mmap(-1, 4096)\n")
    with SandboxExecutor(preload=["shares_memory"]) as one, pytest.raises(PreloadError, match="memory that all copies would share"):
        one.wait_ready(PATIENCE_S)


def test_what_a_preload_writes_is_logged(tmp_path, monkeypatch, caplog):
    write(tmp_path, monkeypatch, "speaks_when_loaded", "print('I am loaded', flush=True)\n")
    with caplog.at_level("INFO", "shoal.executor"), SandboxExecutor(preload=["speaks_when_loaded"]) as one:
        assert one.submit(len, "").result(PATIENCE_S) == 0
    assert "zygote: I am loaded" in caplog.text


def test_too_few_descriptors_are_told_before_anything_is_started():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(shoal.NoResourcesError, match="ulimit -n"):
            SandboxExecutor(max_workers=100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_descriptors_that_run_out_meanwhile_only_cost_time(run_python):
    assert (
        run_python(
            """
import resource
from shoal import SandboxExecutor
with SandboxExecutor(max_workers=2, warm=1) as ex:
    ex.wait_ready(60)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    calls = [ex.submit(pow, n, 2) for n in range(3)]
    first = calls[0].result(60)
    for fd in taken:
        os.close(fd)
    told = [call.exception(60) is None or "no sandbox can be made" in str(call.exception()) for call in calls]
    answer([*told, first == 0, ex.submit(pow, 3, 2).result(60) == 9])
"""
        )
        == [True] * 5
    )


@pytest.mark.parametrize("name", ["SandboxExecutor", "AsyncSandboxExecutor"])
@pytest.mark.parametrize("missing", ["cloudpickle", "msgpack"])
def test_a_missing_library_names_the_extra(missing, name):
    code = f"import sys; sys.modules[{missing!r}] = None\nimport shoal\ntry: shoal.{name}()\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'shoal[executor]'" in done.stdout


def test_importing_shoal_imports_nothing_of_it():
    code = "import sys, shoal; print([name for name in sys.modules if 'executor' in name or name in ('cloudpickle', 'msgpack', 'asyncio')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_where_no_cell_can_be_made_it_says_so(monkeypatch):
    from shoal.sandbox import launch
    from shoal.sandbox.tier import Tier

    monkeypatch.setattr(launch, "tier", lambda: Tier("landlock", 7, "mount: Operation not permitted", "let it"))
    with pytest.raises(shoal.NotSupportedError, match="calls take cells"):
        SandboxExecutor(Sandbox(env={"A": "b"}))
