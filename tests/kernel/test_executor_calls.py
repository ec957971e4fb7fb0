"""SandboxExecutor is a concurrent.futures.Executor: what its calls are given, give back and tell."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import datetime
import decimal
import enum
import functools
import logging
import os
import pickle
import threading
import uuid

import numpy
import pytest

import shoal
from shoal import Sandbox, SandboxExecutor
from shoal.executor import Call, CallError, RemoteError

PATIENCE_S = 60


def add(a, b=1, *, c=0):
    return a + b + c


def echo(value):
    return value


def test_a_call_gives_what_its_function_returns(ex):
    assert ex.submit(add, 1, 2, c=3).result(PATIENCE_S) == 6
    assert ex.submit(lambda: [add(n) for n in range(3)]).result(PATIENCE_S) == [1, 2, 3]
    assert ex.submit(functools.partial(add, 40), b=2).result(PATIENCE_S) == 42
    assert isinstance(ex, concurrent.futures.Executor)
    assert isinstance(ex.submit(len, "abc"), concurrent.futures.Future)


class Level(enum.IntEnum):
    HIGH = 7


@dataclasses.dataclass
class Point:
    x: int
    near: list[float]


Pair = collections.namedtuple("Pair", "a b")

PLAIN = [
    None,
    True,
    0,
    -1,
    2**63 - 1,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**400,
    1.5,
    float("inf"),
    2 - 3j,
    "text \u00e9 \U0001f600 \ud800",
    b"\0\xff",
    bytearray(b"ab"),
    [],
    [1, [2.0, "x", None], {}],
    (),
    (1, (2,), [3]),
    {},
    {"a": 1, "b": {"c": [1]}},
    {1: 2, None: 3, (1, "x"): [4], 2.5: b""},
    {1, 2, (3, 4)},
    frozenset({"a", b"b"}),
    [2**70, 1, "beside a number that is long"],
    {"": [[[[[[1]]]]]]},
    datetime.datetime(2024, 2, 29, 23, 59, 59, 999999),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC, fold=1),
    datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))),
    datetime.date(9999, 12, 31),
    datetime.time(12, 30, 1, 5),
    datetime.timedelta(days=-1, seconds=1, microseconds=2),
    decimal.Decimal("-1.230E+5"),
    decimal.Decimal("NaN"),
    uuid.UUID(int=2**127),
]


def test_values_come_back_as_they_were(ex):
    for value, found in zip(PLAIN, ex.submit(echo, PLAIN).result(PATIENCE_S), strict=True):
        assert found == value or repr(found) == repr(value)  # no NaN is like another, and no set need be in the same order
        assert type(found) is type(value)


def more_than_plain():
    return [Pair(1, 2), Point(1, [2.0]), Level.HIGH, collections.OrderedDict(z=1, a=2), {1: 2}.keys(), memoryview(b"x")]


def test_what_is_more_than_plain_comes_back_as_what_it_is_made_of(ex):
    found = ex.submit(more_than_plain).result(PATIENCE_S)
    assert found == [(1, 2), {"x": 1, "near": [2.0]}, 7, {"z": 1, "a": 2}, frozenset({1}), b"x"]
    assert [type(item) for item in found] == [tuple, dict, int, dict, frozenset, bytes]


ARRAYS = [
    numpy.arange(24, dtype="<i2").reshape(2, 3, 4)[:, ::2],
    numpy.array(5.0),
    numpy.zeros((0, 3)),
    numpy.array([True, False]),
    numpy.array(["a", "longer \u00e9"]),
    numpy.array([b"a", b"bc"]),
    numpy.array([1 + 2j], dtype=">c16"),
    numpy.array(["2024-01-01", "NaT"], dtype="datetime64[ns]"),
    numpy.array([1], dtype="timedelta64[D]"),
    numpy.array([1.5], dtype="f2"),
]


def test_arrays_come_back_with_type_and_shape(ex):
    for array, found in zip(ARRAYS, ex.submit(echo, ARRAYS).result(PATIENCE_S), strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert found.flags.writeable
    scalar = ex.submit(lambda: numpy.float32(2.5)).result(PATIENCE_S)
    assert type(scalar) is numpy.float32
    assert scalar == 2.5


def test_large_arguments_and_results_go_both_ways(ex):
    data = os.urandom(5 << 20)
    found = ex.submit(lambda given: (len(given), given[::-1]), data).result(PATIENCE_S)
    assert found == (len(data), data[::-1])


def test_map_keeps_the_order_and_ends_with_the_first_failure(ex):
    assert list(ex.map(add, range(10), range(10))) == [2 * n for n in range(10)]
    results = ex.map(lambda n: 1 // n, [2, 1, 0, 4])
    assert (next(results), next(results)) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)
    kept = list(ex.map(lambda n: 1 // n, [1, 0, 2], return_exceptions=True))
    assert (kept[0], kept[2]) == (1, 0)
    assert isinstance(kept[1], ZeroDivisionError)


def test_map_gives_up_in_time_and_what_is_left_is_killed(ex):
    import time

    results = ex.map(time.sleep, [0, 600, 600, 600], timeout=2)
    assert next(results) is None
    with pytest.raises(TimeoutError):
        next(results)
    assert ex.submit(add, 1).result(PATIENCE_S) == 2  # there is room again


def test_futures_can_be_waited_for_like_any_other(ex):
    calls = [ex.submit(add, n) for n in range(6)]
    assert {call.result() for call in concurrent.futures.as_completed(calls, PATIENCE_S)} == set(range(1, 7))
    told = []
    call = ex.submit(add, 1)
    call.add_done_callback(told.append)
    assert concurrent.futures.wait([call], PATIENCE_S).done == {call}
    assert call.exception() is None
    assert call.done()
    assert not call.running()
    ex.submit(add, 1).result(PATIENCE_S)  # told by the same thread, one after the other
    assert told == [call]


def test_a_call_tells_what_it_wrote_and_used(ex):
    def speak():
        import sys

        print("out \u00e9")
        print("err", file=sys.stderr)
        os.write(1, b"\xff raw\n")
        return sum(range(10**5))

    call = ex.submit(speak)
    call.result(PATIENCE_S)
    assert (call.stdout, call.stderr) == ("out \u00e9\n\\xff raw\n", "err\n")
    assert call.output_bytes == (13, 4)
    assert not call.truncated
    assert call.reason == "returned"
    assert call.usage.wall_s > 0
    assert call.usage.max_memory_bytes > 1 << 20
    assert call.usage.user_s + call.usage.system_s >= 0


def test_what_was_said_before_it_was_killed_is_kept(ex):
    def speak():
        import time

        print("begun")
        time.sleep(600)

    call = ex.with_limits(timeout=1).submit(speak)
    with pytest.raises(TimeoutError) as caught:
        call.result(PATIENCE_S)
    assert call.stdout == "begun\n"
    assert caught.value.stdout == "begun\n"


def test_progress_is_told_while_it_runs(ex):
    told = []

    def slow():
        from shoal.executor import report

        report(1, 4, "first")
        report(4, 4, "last")
        return "done"

    call = ex.submit_with(lambda *progress: told.append(progress), slow)
    assert call.result(PATIENCE_S) == "done"
    assert told[-1] == (4.0, 4.0, "last")
    assert call.progress == (4.0, 4.0, "last")


def test_a_callback_that_raises_disturbs_nobody(ex, caplog):
    def tell(*progress):
        raise RuntimeError("no")

    def slow():
        from shoal.executor import report

        report(1, 1)
        return 1

    with caplog.at_level(logging.ERROR, "shoal.executor"):
        assert ex.submit_with(tell, slow).result(PATIENCE_S) == 1
        assert ex.submit(add, 1).result(PATIENCE_S) == 2
    assert "on_progress" in caplog.text


def test_source_text_has_inputs_and_outputs(ex):
    source = "import math\nclass C: pass\ndef f(): return 1\n_own = 3\ny = [math.sqrt(x)] * n\nx = x\nz = object()\n"
    assert ex.run_code(source, {"x": 4, "n": 2}) == {"y": [2.0, 2.0]}
    assert ex.run_code("a = 1; b = {1: 2}", outputs=["b"]) == {"b": {1: 2}}
    assert ex.run_code("name = __name__") == {"name": "__main__"}
    with pytest.raises(NameError, match="has not set nothing"):
        ex.run_code("a = 1", outputs=["a", "nothing"])
    with pytest.raises(SyntaxError) as caught:
        ex.run_code("a = = 1")
    assert isinstance(caught.value, RemoteError)
    call = ex.submit_code("print('said')", name="submission 7")
    assert call.result(PATIENCE_S) == {}
    assert call.stdout == "said\n"
    assert "submission 7" in repr(call)


def test_a_traceback_from_inside_shows_the_source_text(ex):
    with pytest.raises(ZeroDivisionError) as caught:
        ex.run_code("def f(n):\n    return 1 / n  # here\n\nf(0)\n")
    assert 'File "<code>", line 4, in <module>\n    f(0)' in caught.value.traceback_text
    assert "return 1 / n  # here" in "".join(caught.value.__notes__)


def test_exceptions_are_of_pythons_own_classes_or_remote(ex):
    class Odd(Exception):
        pass

    class OddValue(ValueError):
        pass

    def fail(kind):
        raise {"odd": Odd("one", 2), "value": OddValue("bad"), "key": KeyError("k"), "file": FileNotFoundError(2, "gone")}[kind]

    with pytest.raises(RemoteError, match=r"Odd: \('one', 2\)") as caught:
        ex.submit(fail, "odd").result(PATIENCE_S)
    assert caught.value.type_name.endswith("Odd")
    assert caught.value.args == ("one", 2)
    assert type(caught.value) is RemoteError
    with pytest.raises(ValueError, match="OddValue: bad"):
        ex.submit(fail, "value").result(PATIENCE_S)
    with pytest.raises(KeyError) as caught:
        ex.submit(fail, "key").result(PATIENCE_S)
    assert caught.value.args == ("k",)
    assert isinstance(caught.value, RemoteError)
    with pytest.raises(FileNotFoundError) as caught:
        ex.submit(fail, "file").result(PATIENCE_S)
    assert (caught.value.errno, caught.value.strerror) == (2, "gone")
    for name in ("SystemExit", "KeyboardInterrupt", "StopIteration", "TimeoutError", "GeneratorExit"):
        call = ex.submit_code(f"raise {name}('x')")
        with pytest.raises(RemoteError, match=f"^{name}: x") as caught:
            call.result(PATIENCE_S)
        assert not isinstance(caught.value, TimeoutError)  # which would be taken for one of ours
        assert isinstance(caught.value, OSError) == (name == "TimeoutError")
        assert call.reason == "raised"


def test_errors_can_be_pickled(ex):
    for error in (ex.submit_code("{}['k']").exception(PATIENCE_S), ex.submit_code("import os; os._exit(3)").exception(PATIENCE_S)):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)
        assert isinstance(again, CallError)


def test_modules_of_ones_own_go_along_by_value(tmp_path, monkeypatch, ex):
    (tmp_path / "helper_of_mine.py").write_text(
        "BASE = 40\ndef more(n):\n    return BASE + n\nclass Box:\n    def __init__(self): self.v = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import helper_of_mine

    assert ex.submit(helper_of_mine.more, 2).result(PATIENCE_S) == 42
    assert ex.submit(lambda: helper_of_mine.more(3)).result(PATIENCE_S) == 43
    assert ex.submit(lambda box: box.v, helper_of_mine.Box()).result(PATIENCE_S) == 1
    with SandboxExecutor(preload=["helper_of_mine"], max_workers=1, warm=0) as own:
        assert own.submit(helper_of_mine.more, 4).result(PATIENCE_S) == 44
    with SandboxExecutor(Sandbox(read=[str(tmp_path)]), max_workers=1, warm=0) as granted:
        assert granted.run_code("import helper_of_mine; n = helper_of_mine.more(5)") == {"n": 45}


def test_what_was_not_loaded_before_can_still_be_imported(ex):
    code = "import sqlite3, decimal, ssl, ctypes, json, xml.dom.minidom, zoneinfo\nok = sqlite3.sqlite_version and 1"
    assert ex.run_code(code) == {"ok": 1}


def test_each_call_has_randomness_of_its_own(ex):
    def draw():
        import random

        return random.random(), float(numpy.random.rand()), os.urandom(8), uuid.uuid4().hex

    drawn = [call.result(PATIENCE_S) for call in [ex.submit(draw) for _ in range(4)]]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == 4


def test_each_call_has_its_own_tmp_and_it_is_empty(ex):
    def leave():
        found = os.path.exists("/tmp/left"), os.statvfs("/tmp").f_files - os.statvfs("/tmp").f_ffree
        with open("/tmp/left", "w") as file:
            file.write("x")
        return found

    first, *others = [ex.submit(leave).result(PATIENCE_S) for _ in range(3)]
    assert not first[0]
    assert others == [first, first]


def test_calls_that_wait_are_taken_back_and_those_that_run_are_killed():
    import time

    with SandboxExecutor(max_workers=1, warm=1) as one:
        running, waiting = one.submit(time.sleep, 600), one.submit(add, 1)
        last = one.submit(add, 2)
        one.wait_ready(PATIENCE_S)
        assert waiting.cancel()
        assert waiting.cancelled()
        assert waiting.wait_gone(0)
        while not running.running():
            time.sleep(0.001)
        assert running.cancel()
        assert running.cancel()  # twice is fine
        assert running.wait_gone(PATIENCE_S)
        assert running.reason == "killed"
        with pytest.raises(concurrent.futures.CancelledError):
            running.result()
        assert last.result(PATIENCE_S) == 3
        assert not last.cancel()
        assert concurrent.futures.wait([running, waiting, last], PATIENCE_S).not_done == set()


def test_shutdown_means_what_it_means_elsewhere(world):
    one = SandboxExecutor(max_workers=1, warm=0)
    calls = [one.submit(add, n) for n in range(3)]
    one.shutdown(wait=True)
    assert [call.result(0) for call in calls] == [1, 2, 3]
    with pytest.raises(RuntimeError, match="after shutdown"):
        one.submit(add, 1)
    one.shutdown()
    two = SandboxExecutor(max_workers=1, warm=0)
    first, *rest = [two.submit(add, n) for n in range(4)]
    two.shutdown(wait=True, cancel_futures=True)
    assert first.done()
    assert all(call.cancelled() for call in rest)
    del one, two
    world.assert_unchanged()


def test_an_executor_nobody_refers_to_ends_when_its_calls_have(world):
    call = SandboxExecutor(max_workers=1, warm=1).submit(add, 1)
    assert call.result(PATIENCE_S) == 2
    world.assert_unchanged()


def test_limits_of_one_view_are_not_those_of_another(ex):
    strict = ex.with_limits(timeout=30, open_files=17)
    code = "import resource; n = resource.getrlimit(resource.RLIMIT_NOFILE)"
    assert strict.run_code(code) == {"n": (17, 17)}
    assert ex.run_code(code)["n"] != (17, 17)
    assert strict.with_limits(open_files=15).run_code(code) == {"n": (15, 15)}
    with ex.with_limits(timeout=30) as view:
        call = view.submit(add, 1)
    assert call.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        view.submit(add, 1)
    assert ex.submit(add, 1).result(PATIENCE_S) == 2


def test_it_tells_about_itself(ex):
    assert ex.wait_ready(PATIENCE_S)
    assert repr(ex).startswith("<SandboxExecutor: 0 of 3 running")
    call = ex.submit(add, 1)
    call.result(PATIENCE_S)
    assert repr(call).startswith(f"<Call {call.number} of add(): returned after ")
    assert call.enforced["namespaces"] is True
    assert call.enforced["seccomp"] == "default"
    assert ex.with_limits(timeout=9, open_files=20).submit(add, 1).enforced["tree"] is True
    listing = str(ex.explain())
    assert "name         shoal-call" in listing
    assert "a cell" in listing
    assert "seccomp: default" in listing
    assert isinstance(call, Call)
    assert shoal.SandboxExecutor is SandboxExecutor


def test_a_bar_is_drawn_on_a_terminal_only(ex, capfd):
    assert list(ex.map(add, range(3))) == [1, 2, 3]
    assert capfd.readouterr().err == ""
    import time

    assert list(ex.map(time.sleep, [0.7, 0.1], progress=True)) == [None, None]
    assert "sleep" in (drawn := capfd.readouterr().err) or "2/2" in drawn


def test_many_threads_may_submit_at_once(ex):
    found = []

    def submit():
        found.extend(ex.submit(add, n).result(PATIENCE_S) for n in range(5))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(found) == sorted(list(range(1, 6)) * 4)


def test_what_it_does_is_logged(caplog):
    with caplog.at_level(logging.DEBUG, "shoal.executor"), SandboxExecutor(max_workers=1, warm=0) as one:
        one.submit(add, 1).result(PATIENCE_S)
    assert "of add() begins" in caplog.text
    assert "of add(): returned" in caplog.text


def test_the_streams_of_a_call_are_what_they_look_like(ex):
    def look():
        import io
        import os
        import sys

        streams = sys.stdin, sys.stdout, sys.stderr
        for stream in streams[1:]:
            try:
                stream.seek(0)
            except (OSError, io.UnsupportedOperation):
                continue
            raise AssertionError("it is a pipe")
        return [
            [each.fileno() for each in streams],
            [each.encoding for each in streams],
            [each.seekable() for each in streams[1:]],
            [each is getattr(sys, f"__{name}__") for each, name in zip(streams, ("stdin", "stdout", "stderr"), strict=True)],
            sys.stdin.read(),
            os.isatty(1),
            sys.stdout.write("said\n"),
        ]

    call = ex.submit(look)
    assert call.result(PATIENCE_S) == [[0, 1, 2], ["utf-8"] * 3, [False, False], [True] * 3, "", False, 5]
    assert call.stdout == "said\n"


def test_what_is_rehearsed_before_the_first_call_leaves_no_trace(ex):
    def look():
        import gc
        import linecache
        import logging
        import threading

        return (
            threading.active_count(),
            threading.main_thread() is threading.current_thread(),
            logging.getLogger("x").isEnabledFor(logging.ERROR),
            "<code>" in linecache.cache,
            gc.isenabled(),
        )

    assert ex.submit(look).result(PATIENCE_S) == (1, True, True, False, True)
