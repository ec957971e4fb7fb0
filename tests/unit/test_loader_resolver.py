import os
import shutil

import pytest

from shoal.handles.vmo import Vmo
from shoal.loader import DirectoryResolver, Kind, Resolved, ask, get_resolver, inspect, library_closure, set_resolver
from shoal.status import (
    AccessDeniedError,
    BadHandleError,
    BadPathError,
    InternalError,
    NotFoundError,
    NotSupportedError,
    Stage,
    Status,
    WrongTypeError,
    failure,
)


class Answering:
    """A resolver that always says the same."""

    def __init__(self, answer):
        self.answer = answer

    def resolve(self, name):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def install():
    before = get_resolver()
    yield lambda answer: set_resolver(Answering(answer))
    set_resolver(before)


@pytest.fixture
def shelf(tmp_path):
    """A directory of programs, and one beside it that nobody may reach."""
    directory = tmp_path / "shelf"
    directory.mkdir()
    for name in ("true", ".hidden"):
        shutil.copy("/bin/true", directory / name)
    (directory / "script").write_bytes(b"#!resolve true\n")
    (directory / "script").chmod(0o755)
    (directory / "data").write_bytes(b"x")
    (directory / "folder").mkdir()
    os.mkfifo(directory / "fifo", 0o755)
    shutil.copy("/bin/true", tmp_path / "outside")
    for name, target in (
        ("alias", "true"),
        ("again", "./alias"),
        ("up", "../outside"),
        ("far", "/bin/true"),
        ("loop", "loop"),
        ("gone", "x"),
    ):
        (directory / name).symlink_to(target)
    return directory


def test_without_a_resolver_asking_is_internal():
    set_resolver(None)
    with pytest.raises(InternalError, match="no resolver"):
        ask("x")


def test_a_resolver_must_be_able_to_resolve():
    with pytest.raises(TypeError, match=r"resolve\(name\)"):
        set_resolver(object())


def test_the_answer_of_a_user_s_resolver_is_a_pair_and_its_actions_are_kept(install):
    vmo = Vmo.from_bytes(b"#!/bin/sh\n").replace_as_executable()
    install((vmo, ["an action"]))
    executable, resolved = ask("x")
    assert executable.kind is Kind.SCRIPT
    assert resolved == Resolved(vmo, actions=("an action",))
    resolved.close()
    assert vmo.closed


@pytest.mark.parametrize("answer", [None, 5, (), (1, 2, 3)])
def test_an_answer_that_is_none_is_a_wrong_type(install, answer):
    install(answer)
    with pytest.raises(WrongTypeError, match="executable, actions"):
        ask("x")


def test_a_success_without_an_executable_is_a_bad_handle(install):
    install((None, ()))
    with pytest.raises(BadHandleError):
        ask("x")
    closed = Vmo.from_bytes(b"x")
    closed.close()
    install((closed, ()))
    with pytest.raises(BadHandleError):
        ask("x")


def test_a_refusal_is_passed_on_and_any_other_failure_is_internal(install):
    install(failure(Status.ACCESS_DENIED, Stage.DIRECTIVES, "no"))
    with pytest.raises(AccessDeniedError):
        ask("x")
    install(FileNotFoundError("its own trouble"))
    with pytest.raises(InternalError, match="its own trouble"):
        ask("x")


def test_closing_an_answer_closes_the_handles_of_its_actions_too():
    class Action:
        handle = Vmo.from_bytes(b"x")

    resolved = Resolved(Vmo.from_bytes(b"y"), files=(("/lib/x", Vmo.from_bytes(b"z")),), actions=(Action(), "other"))
    resolved.close()
    assert resolved.executable.closed
    assert resolved.files[0][1].closed
    assert Action.handle.closed


@pytest.mark.parametrize("name", ["true", "alias", "again"])
def test_a_directory_gives_programs_by_name_with_their_libraries(shelf, name):
    with DirectoryResolver(shelf) as resolver:
        resolved = resolver.resolve(name)
    with open("/bin/true", "rb") as program:
        assert resolved.executable.read() == program.read()
    assert resolved.closure is not None
    assert list(resolved.closure) == list(library_closure(inspect("/bin/true"), "/bin/true"))
    assert (resolved.files, resolved.actions) == ((), ())
    resolved.close()


def test_a_script_in_a_directory_has_no_libraries(shelf):
    with DirectoryResolver(shelf) as resolver:
        resolved = resolver.resolve("script")
    assert resolved.closure is None
    resolved.close()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../outside", "/bin/true", "folder/x", "true/", "a\0b", "missing", "gone", "up", "far"]
)
def test_what_is_no_name_of_the_directory_is_not_found(shelf, name):
    with DirectoryResolver(shelf) as resolver, pytest.raises(NotFoundError) as caught:
        resolver.resolve(name)
    assert repr(name) in caught.value.detail


def test_what_cannot_be_executed_is_refused_and_nothing_stays_open(shelf):
    before = len(os.listdir("/proc/self/fd"))
    with DirectoryResolver(shelf) as resolver:
        for name, error in (
            ("data", AccessDeniedError),
            ("folder", NotSupportedError),
            ("fifo", NotSupportedError),
            ("loop", BadPathError),
        ):
            with pytest.raises(error, match=name):
                resolver.resolve(name)
        resolver.resolve("true").close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_resolver_keeps_its_directory_wherever_it_moves(shelf):
    with DirectoryResolver(shelf) as resolver:
        shelf.rename(shelf.with_name("moved"))
        resolver.resolve("true").close()
    with pytest.raises(BadHandleError):
        resolver.resolve("true")
    with pytest.raises(NotFoundError):
        DirectoryResolver(shelf)
