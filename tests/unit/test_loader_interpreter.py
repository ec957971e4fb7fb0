from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.loader.interpreter import (
    MAX_DIRECTIVES,
    WINDOW_BYTES,
    InterpreterDirective,
    ResolveDirective,
    follow,
    is_directive,
    parse_directive,
)
from shoal.status import (
    AccessDeniedError,
    InternalError,
    InvalidArgsError,
    IoInvalidError,
    NotFoundError,
    NotSupportedError,
    OutOfRangeError,
    SpawnError,
    Stage,
    Status,
    failure,
)


@dataclass
class File:
    window: bytes = b""


@dataclass
class Answer:
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@dataclass
class World:
    """Files by path and programs by name; remembers what it was asked for."""

    files: dict = field(default_factory=dict)
    shelf: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    answers: list = field(default_factory=list)

    def load(self, path):
        self.asked.append(path)
        if path not in self.files:
            raise failure(Status.NOT_FOUND, Stage.LOAD, f"cannot open {path!r}")
        if isinstance(self.files[path], SpawnError):
            raise self.files[path]
        return File(self.files[path])

    def resolve(self, name):
        self.asked.append(name)
        if name not in self.shelf:
            raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, "no such name")
        if isinstance(self.shelf[name], SpawnError):
            raise self.shelf[name]
        self.answers.append(Answer())
        return File(self.shelf[name]), self.answers[-1]

    def follow(self, window):
        return follow(File(window), self.load, self.resolve, "script")


@pytest.mark.parametrize(
    ("line", "interpreter", "argument"),
    [
        (b"#!/bin/sh\n", b"/bin/sh", None),
        (b"#!/bin/sh", b"/bin/sh", None),
        (b"#! \t /bin/sh \t \n", b"/bin/sh", None),
        (b"#!/bin/sh -e  -x \n", b"/bin/sh", b"-e  -x "),
        (b"#!/bin/sh\t-e\n", b"/bin/sh", b"-e"),
        (b"#!/bin/sh\r\n", b"/bin/sh\r", None),
        (b"#!/bin/sh\0-e\n", b"/bin/sh", None),
        (b"#!/bin/sh -e\0x\n", b"/bin/sh", b"-e"),
        (b"#!resolve\n", b"resolve", None),
        (b"#! resolve x\n", b"resolve", b"x"),
        (b"#!resolve\tx\n", b"resolve", b"x"),
        (b"#!Resolve x\n", b"Resolve", b"x"),
        (b"#!bin\xff \xfe\n", b"bin\xff", b"\xfe"),
    ],
)
def test_an_ordinary_line_is_an_interpreter_and_at_most_one_argument(line, interpreter, argument):
    assert parse_directive(line) == InterpreterDirective(interpreter, argument)


@pytest.mark.parametrize(
    ("line", "name"),
    [(b"#!resolve x\n", "x"), (b"#!resolve  a b \n", " a b "), (b"#!resolve \n", ""), (b"#!resolve x", "x"), (b"#!resolve x\0y", "x")],
)
def test_a_resolve_line_gives_the_rest_untrimmed(line, name):
    assert parse_directive(line) == ResolveDirective(name)


@pytest.mark.parametrize("line", [b"#!\n", b"#!", b"#! \t \n", b"#!\0/bin/sh\n", b"#! \0", b"#!resolve a\0b\n", b"#!resolve \xff\n"])
def test_a_line_that_names_nothing_usable_is_invalid_args(line):
    with pytest.raises(InvalidArgsError, match="the script"):
        parse_directive(line)


@pytest.mark.parametrize("prefix", [b"#!/", b"#!resolve "])
def test_the_window_holds_2057_bytes_and_the_newline(prefix):
    longest = prefix.ljust(WINDOW_BYTES - 1, b"x")
    assert len(longest) == 2057
    for end in (b"\n", b"\0"):
        parse_directive(longest + end)
    for too_long in (longest + b"x\n", longest + b"x", longest + b" \n"):
        with pytest.raises(OutOfRangeError, match="too long"):
            parse_directive(too_long)


def test_a_newline_ends_the_line_even_behind_a_zero_byte():
    assert parse_directive(b"#!/bin/sh\0" + b"x" * 100 + b"\n -e") == InterpreterDirective(b"/bin/sh", None)


@given(st.binary(max_size=WINDOW_BYTES + 10))
def test_any_line_is_read_or_refused(tail):
    directive = None
    refusal = Status.OK
    try:
        directive = parse_directive(b"#!" + tail)
    except SpawnError as error:
        refusal = error.status
    assert refusal in (Status.OK, Status.INVALID_ARGS, Status.OUT_OF_RANGE)
    if isinstance(directive, InterpreterDirective):
        assert directive.interpreter
        assert not set(directive.interpreter) & set(b" \t\n\0")
        assert directive.argument != b""
        assert not set(directive.argument or b"x") & set(b"\n\0")
        assert (directive.argument or b"x")[:1] not in (b" ", b"\t")


WORD = st.binary(min_size=1, max_size=20).filter(lambda word: not set(word) & set(b" \t\n\0"))
BLANK = st.text(alphabet=" \t", max_size=3).map(str.encode)


@given(BLANK, WORD, BLANK, st.one_of(st.none(), st.tuples(WORD, BLANK, WORD)))
def test_a_written_line_reads_back(before, interpreter, between, argument):
    written = None if argument is None else b"".join(argument)
    line = b"#!" + before + interpreter + (between if written is None else (between or b" ") + written) + b"\n"
    if not line.startswith(b"#!resolve "):
        assert parse_directive(line) == InterpreterDirective(interpreter, written)


def test_only_the_first_two_bytes_decide():
    assert is_directive(b"#!")
    assert not any(map(is_directive, (b"", b"#", b" #!", b"\x7fELF")))


def test_a_program_is_left_as_it_is():
    program = File()
    followed = follow(program, None, None)
    assert followed.executable is program
    assert (followed.extra_args, followed.interpreter, followed.resolved) == ((), None, None)


def test_the_last_interpreter_comes_first():
    world = World({b"/i1": b"#!/i2 two\n", b"/i2": b"#!/i3\n", b"/i3": b""})
    followed = world.follow(b"#!/i1 one\n")
    assert followed.extra_args == (b"/i3", b"/i2", b"two", b"/i1", b"one")
    assert followed.interpreter == b"/i3"
    assert world.asked == [b"/i1", b"/i2", b"/i3"]


@given(st.lists(st.one_of(st.none(), WORD), max_size=MAX_DIRECTIVES + 3))
def test_255_directives_are_followed_and_no_more(arguments):
    lines = [b"#!/%d" % (i + 1) + (b"" if a is None else b" " + a) + b"\n" for i, a in enumerate(arguments)]
    world = World({b"/%d" % i: line for i, line in enumerate([*lines, b""])})
    if len(lines) > MAX_DIRECTIVES:
        with pytest.raises(IoInvalidError):
            world.follow((lines or [b""])[0])
    else:
        expected = []
        for index, argument in enumerate(arguments):
            expected = [b"/%d" % (index + 1), *([] if argument is None else [argument]), *expected]
        assert list(world.follow((lines or [b""])[0]).extra_args) == expected


def test_the_256th_directive_is_io_invalid_also_for_resolve():
    for line in (b"#!/me\n", b"#!resolve me\n"):
        world = World({b"/me": line}, {"me": line})
        with pytest.raises(IoInvalidError, match="255"):
            world.follow(line)
        assert len(world.asked) == MAX_DIRECTIVES
        assert all(answer.closed for answer in world.answers)


def test_the_last_answer_of_the_resolver_counts_and_the_others_are_closed():
    world = World(shelf={"a": b"#!resolve b\n", "b": b""})
    followed = world.follow(b"#!resolve a\n")
    assert followed.extra_args == ()
    assert followed.interpreter is None
    assert followed.resolved is world.answers[1]
    assert [answer.closed for answer in world.answers] == [True, False]


@pytest.mark.parametrize("first", [b"#!/i\n", b"#!resolve r\n"])
def test_the_two_kinds_never_mix(first):
    world = World({b"/i": b"#!resolve r\n"}, {"r": b"#!/i\n"})
    with pytest.raises(NotSupportedError, match="mixed"):
        world.follow(first)
    assert all(answer.closed for answer in world.answers)


@pytest.mark.parametrize("line", [b"#!/nowhere -x\n", b"#!resolve nowhere\n"])
def test_what_is_not_found_late_is_internal_and_named(line):
    with pytest.raises(InternalError, match="nowhere") as caught:
        World().follow(line)
    assert caught.value.status is Status.INTERNAL
    assert not isinstance(caught.value, FileNotFoundError)
    assert str(int(Status.NOT_FOUND)) in caught.value.detail
    assert isinstance(caught.value.__cause__, NotFoundError)


def test_any_other_refusal_keeps_its_status_and_is_named():
    denied = failure(Status.ACCESS_DENIED, Stage.LOAD, "not for you")
    for line in (b"#!/i\n", b"#!resolve i\n"):
        with pytest.raises(AccessDeniedError, match="not for you") as caught:
            World({b"/i": denied}, {"i": denied}).follow(line)
        assert "i" in caught.value.detail
        assert caught.value.stage is Stage.DIRECTIVES
        assert caught.value.errno == denied.errno
