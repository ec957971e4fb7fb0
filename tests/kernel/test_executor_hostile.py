"""A call may send whatever it likes: nothing of it runs in the caller, nothing hangs, and the next call is as if nothing had been."""

from __future__ import annotations

import os
import pickle
import struct
import threading

import pytest
from rig.forging import frame, send_raw

from shoal import SandboxExecutor
from shoal.executor import BadResultError, CallEndedError, CallError, RemoteError
from shoal.executor.encode import encode
from shoal.executor.wire import ITEMS_MOST, Kind

PATIENCE_S = 60


class Trap:
    """What a pickle of it would do in whoever loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture(scope="module")
def one():
    with SandboxExecutor(max_workers=2, warm=1) as executor:
        yield executor.with_limits(result="1M")


def outcome(ex, data, then="exit"):
    call = ex.submit(send_raw, data, then)
    error = call.exception(PATIENCE_S)
    assert call.wait_gone(0)
    assert ex.submit(len, "abc").result(PATIENCE_S) == 3  # nobody else is disturbed
    return call, error


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("kind", [*Kind, 0, 77])
def test_a_pickle_is_never_loaded(one, tmp_path, protocol, kind):
    trap = tmp_path / "sprung"
    payload = pickle.dumps(Trap(str(trap)), protocol)
    for data in (payload, frame(kind, payload), frame(kind, encode({"type": payload, "text": payload}))):
        call, error = outcome(one, data)
        if error is None:  # bytes are bytes
            assert call.result() == {"type": payload, "text": payload}
        else:
            assert isinstance(error, CallError)
        assert not trap.exists()


FORGED = {
    "a frame of no kind": (frame(99, b""), BadResultError, "kind that there is not"),
    "a result longer than allowed": (frame(Kind.RESULT, b"", 1 << 30), BadResultError, "where 1048576 is the most"),
    "an exception longer than allowed": (frame(Kind.RAISED, b"", 1 << 30), BadResultError, "is the most"),
    "progress longer than allowed": (frame(Kind.PROGRESS, b"", 1 << 20), BadResultError, "is the most"),
    "a huge length": (struct.pack("<IB", 0xFFFFFFFF, Kind.RESULT), BadResultError, "is the most"),
    "nothing": (b"", CallEndedError, "with exit status 0"),
    "half a head": (b"\x01\x00", CallEndedError, "in the middle of telling"),
    "half a result": (frame(Kind.RESULT, encode([1] * 100))[:-1], CallEndedError, "in the middle of telling"),
    "an empty result": (frame(Kind.RESULT, b""), BadResultError, "no result"),
    "a result that is text": (frame(Kind.RESULT, b"hello"), BadResultError, "no result"),
    "a deep result": (frame(Kind.RESULT, b"\x91" * 200_000 + b"\xc0"), BadResultError, "no result"),
    "a wide result": (frame(Kind.RESULT, b"\xdd" + struct.pack(">I", ITEMS_MOST + 1)), BadResultError, "no result"),
    "an exception without fields": (frame(Kind.RAISED, encode({})), BadResultError, "without its fields"),
    "an exception that is a number": (frame(Kind.RAISED, encode(3)), BadResultError, "without fields"),
    "an exception of wrong types": (
        frame(Kind.RAISED, encode({"type": 1, "text": b"", "traceback": None, "bases": {}, "args": 3})),
        BadResultError,
        "without its fields",
    ),
    "an exception with odd arguments": (
        frame(Kind.RAISED, encode({"type": "E", "text": "", "traceback": "", "bases": [], "args": {"a": 1}})),
        BadResultError,
        "for arguments",
    ),
    "an explanation that is none": (frame(Kind.UNFIT, encode({"a": 1})), BadResultError, "no text"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_frames_are_told_as_what_they_are(one, name):
    data, kind, text = FORGED[name]
    _, error = outcome(one, data)
    assert isinstance(error, kind), error
    assert text in str(error)


def test_the_first_result_counts_and_what_comes_after_it_is_not_read(one):
    data = frame(Kind.RESULT, encode("first")) + frame(Kind.RESULT, encode("second")) + b"\xff" * 4096
    for then in ("exit", "stay", "return"):
        call = one.submit(send_raw, data, then)
        assert call.result(PATIENCE_S) == "first"
        assert call.wait_gone(0)  # though it had stayed


def test_a_forged_exception_can_only_be_of_a_class_that_is_listed(one):
    fields = {
        "type": "os.system",
        "text": "x",
        "traceback": "",
        "bases": ["SystemExit", "KeyboardInterrupt", "__import__", "eval", "ValueError"],
    }
    _, error = outcome(one, frame(Kind.RAISED, encode(fields | {"args": ["rm"]})))
    assert isinstance(error, RemoteError)
    assert isinstance(error, ValueError)
    assert type(error).__mro__[-1] is object
    assert not isinstance(error, SystemExit | KeyboardInterrupt)
    fields = {"type": "\x1b]0;title\x07", "text": "\x1b[2J", "traceback": "\x9b31m", "bases": [], "args": None}
    _, error = outcome(one, frame(Kind.RAISED, encode(fields)))
    assert "\x1b" not in str(error) + "".join(error.__notes__)
    assert error.text == "\x1b[2J"


def test_a_result_that_drips_is_ended_by_the_deadline(one):
    def drip():
        import os
        import time

        os.write(3, struct.pack("<IB", 1000, 1))
        while True:
            os.write(3, b"\x90")
            time.sleep(0.05)

    call = one.with_limits(timeout=0.5).submit(drip)
    assert isinstance(call.exception(PATIENCE_S), TimeoutError)
    assert call.reason == "wall_time"


def test_a_result_after_the_deadline_is_none(one):
    def late():
        import os
        import signal
        import time

        for number in signal.valid_signals():
            try:
                signal.signal(number, signal.SIG_IGN)
            except OSError:
                pass
        os.fork()
        time.sleep(0.6)
        os.write(3, frame(1, encode("late")))
        time.sleep(600)

    call = one.with_limits(timeout=0.3).submit(late)
    assert isinstance(call.exception(PATIENCE_S), TimeoutError)
    assert call.wait_gone(0)


def test_progress_without_end_ends_the_call_and_keeps_nobody_busy(one):
    told = []

    def flood():
        import os

        data = frame(4, encode([1.0, None, ""])) * 1000
        while True:
            os.write(3, data)

    call = one.submit_with(lambda *progress: told.append(progress), flood)
    error = call.exception(PATIENCE_S)
    assert isinstance(error, BadResultError)
    assert "too often" in str(error)
    assert len(told) < 1100


@pytest.mark.parametrize(
    "message", [b"", b"\xc1", encode("x"), encode([1]), encode([1, 2, 3]), encode({"a": 1}), pickle.dumps([1.0, None, ""])]
)
def test_progress_that_makes_no_sense_is_not_told(one, message):
    told = []

    def send():
        import os

        os.write(3, frame(4, message))
        return "fine"

    call = one.submit_with(lambda *progress: told.append(progress), send)
    assert call.result(PATIENCE_S) == "fine"
    assert told == []


def test_descriptors_that_are_sent_along_are_not_taken(one):
    def send():
        import os
        import socket

        channel = socket.socket(fileno=os.dup(3))
        for _ in range(50):
            socket.send_fds(channel, [frame(4, encode([1.0, None, ""]))], [0, 1, 2, 3])
        return "sent"

    before = len(os.listdir("/proc/self/fd"))
    assert one.submit(send).result(PATIENCE_S) == "sent"
    assert one.submit(len, "").result(PATIENCE_S) == 0
    assert len(os.listdir("/proc/self/fd")) <= before + 30  # those of one or two calls


def test_two_results_of_a_call_that_forked_do_not_mix(one):
    def fork():
        import os

        return "child" if os.fork() == 0 else "parent"

    def leave():
        import os

        if os.fork():
            os._exit(0)
        return "child"

    assert one.submit(fork).result(PATIENCE_S) == "parent"
    error = one.submit(leave).exception(PATIENCE_S)
    assert isinstance(error, CallEndedError)
    assert "before it returned" in str(error) or "without a result" in str(error)


def test_many_hostile_calls_at_once_leave_the_honest_ones_alone():
    attacks = [data for data, _, _ in FORGED.values()]
    with SandboxExecutor(max_workers=4, warm=2) as ex:
        hostile = [ex.submit(send_raw, data, then) for data in attacks for then in ("exit", "return")]
        honest = [ex.submit(pow, n, 2) for n in range(20)]
        assert [call.result(PATIENCE_S) for call in honest] == [n * n for n in range(20)]
        for call in hostile:
            call.exception(PATIENCE_S)
    assert threading.active_count() < 20
