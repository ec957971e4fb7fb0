"""#! lines: how they are cut into an interpreter and one argument, how far they are followed, and #!resolve. Source: spec 4."""

import os
import shutil
import stat

import pytest
from rig.launchers import every_launcher
from rig.workload import observe

from shoal import (
    AccessDeniedError,
    InternalError,
    InvalidArgsError,
    IoInvalidError,
    NotSupportedError,
    OutOfRangeError,
    SpawnFlags,
    Stage,
    Status,
    Vmo,
    set_resolver,
)
from shoal.status import failure

WINDOW = 2058
TELL_ARGV = {"WORKLOAD": "argv"}


@pytest.fixture
def script(tmp_path):
    """Writes an executable file and returns its path."""

    def write(content, name="script"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
        path.chmod(0o755)
        return str(path)

    return write


def arguments(launch, path, argv=("given", "x")):
    return observe(launch, path, argv=list(argv), environ=TELL_ARGV).one("argv")


@every_launcher
@pytest.mark.parametrize(
    ("line", "extra"),
    [
        ("#!{0}\n", []),
        ("#!{0}", []),
        ("#! {0}\n", []),
        ("#!\t {0}\n", []),
        ("#!{0} one\n", ["one"]),
        ("#!{0} \t one\n", ["one"]),
        ("#!{0} one two  three\n", ["one two  three"]),
        ("#!{0} trailing \t \n", ["trailing \t "]),
        ("#!{0}  \t \n", []),
        ("#!{0} -x\nsecond line\n#!third\n", ["-x"]),
        ("#!{0} with return\r\n", ["with return\r"]),
        ("#!{0} cut\0here\n", ["cut"]),
        ("#!{0} no newline at all", ["no newline at all"]),
        ("#!{0} üñ\n", ["üñ"]),
    ],
)
def test_a_line_is_an_interpreter_and_at_most_one_argument_before_the_whole_argv(launch, workload, script, line, extra):
    assert arguments(launch, script(line.format(workload))) == [workload, *extra, "given", "x"]


@every_launcher
def test_argv_is_kept_complete_and_the_path_given_to_spawn_is_not_added(launch, workload, script):
    assert arguments(launch, script(f"#!{workload}\n"), argv=["not the path"]) == [workload, "not the path"]


@every_launcher
def test_the_name_stays_the_original_one_and_is_not_the_interpreters(launch, workload, script):
    path = script(f"#!{workload}\n")
    report = observe(launch, path, argv=["given"], environ={"WORKLOAD": "comm"})
    assert report.one("comm") == ["given"]


@every_launcher
def test_interpreters_of_interpreters_come_first(launch, workload, script):
    inner = script(f"#!{workload} inner argument\n", "inner")
    outer = script(f"#!{inner} outer argument\n", "outer")
    assert arguments(launch, outer) == [workload, "inner argument", inner, "outer argument", "given", "x"]


@every_launcher
def test_a_relative_interpreter_is_found_from_the_callers_working_directory(launch, workload, script, tmp_path, monkeypatch):
    shutil.copy(workload, tmp_path / "tool")
    monkeypatch.chdir(tmp_path)
    assert arguments(launch, script("#!./tool\n")) == ["./tool", "given", "x"]


@every_launcher
def test_the_interpreter_comes_from_the_callers_world_also_for_a_cell_that_has_no_files(launch, workload, script):
    report = observe(launch, script(f"#!{workload}\n"), argv=["given"], environ={"WORKLOAD": "argv list / exit 7"})
    assert report.returncode == 7


@every_launcher
def test_a_dynamic_interpreter_needs_the_loader_like_any_program(launch, workload_dynamic, script):
    with pytest.raises(InvalidArgsError, match="DEFAULT_LDSVC"):
        launch(script(f"#!{workload_dynamic}\n"), ["given"])


@every_launcher
def test_the_first_line_may_fill_the_window_and_not_more(launch, workload, script):
    filler = "x" * (WINDOW - 1 - len(f"#!{workload} "))
    fits = f"#!{workload} {filler}\n"
    assert len(fits) == WINDOW
    assert arguments(launch, script(fits)) == [workload, filler, "given", "x"]
    with pytest.raises(OutOfRangeError) as caught:
        launch(script(fits.replace("\n", "x\n")), ["given"])
    assert caught.value.status is Status.OUT_OF_RANGE
    assert caught.value.stage is Stage.DIRECTIVES
    assert "long" in str(caught.value)


@every_launcher
def test_a_line_that_ends_with_the_file_must_leave_room_for_its_end(launch, workload, script):
    filler = "x" * (WINDOW - 1 - len(f"#!{workload} "))
    assert arguments(launch, script(f"#!{workload} {filler}")) == [workload, filler, "given", "x"]
    with pytest.raises(OutOfRangeError):
        launch(script(f"#!{workload} {filler}y"), ["given"])


@every_launcher
@pytest.mark.parametrize("line", ["#!\n", "#!", "#! \t \n", "#!\0/bin/sh\n"])
def test_a_line_without_an_interpreter_is_an_invalid_argument(launch, script, line, world):
    with pytest.raises(InvalidArgsError, match="interpreter") as caught:
        launch(script(line), ["given"])
    assert caught.value.status is Status.INVALID_ARGS
    assert caught.value.stage is Stage.DIRECTIVES
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("name", ["/nowhere/interpreter", "/bin/sh\r", "missing", "resolve"])
def test_a_missing_interpreter_is_internal_and_never_not_found(launch, script, name, tmp_path, monkeypatch, world):
    monkeypatch.chdir(tmp_path)
    world.reset()
    with pytest.raises(InternalError) as caught:
        launch(script(f"#!{name}\n"), ["given"])
    assert type(caught.value) is InternalError
    assert caught.value.status is Status.INTERNAL
    assert name.rstrip("\r") in str(caught.value)
    assert "script" in str(caught.value)
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize("line", ["#!resolve\n", "#! resolve x\n", "#!RESOLVE x\n", "#!resolve\tx\n"])
def test_only_the_exact_word_and_one_space_ask_the_resolver(launch, script, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InternalError, match=r"(?i)resolve"):
        launch(script(line), ["given"])


@every_launcher
def test_an_interpreter_that_may_not_be_executed_is_denied(launch, workload, script):
    plain = script("not a program", "plain")
    os.chmod(plain, stat.S_IRUSR)
    with pytest.raises(AccessDeniedError) as caught:
        launch(script(f"#!{plain}\n"), ["given"])
    assert caught.value.status is Status.ACCESS_DENIED
    assert plain in str(caught.value)


@every_launcher
def test_a_script_that_names_itself_ends_in_io_invalid(launch, script, tmp_path, world):
    with pytest.raises(IoInvalidError, match="255") as caught:
        launch(script(f"#!{tmp_path}/script\n"), ["given"])
    assert caught.value.status is Status.IO_INVALID
    assert caught.value.stage is Stage.DIRECTIVES
    world.assert_unchanged()


@every_launcher
def test_255_directives_are_followed_and_the_256th_fails(launch, workload, script):
    at = workload
    names = []
    for depth in range(255):
        names.append(at)
        at = script(f"#!{at}\n", f"s{depth}")
    assert arguments(launch, at) == [*names, "given", "x"]
    with pytest.raises(IoInvalidError):
        launch(script(f"#!{at}\n", "one-more"), ["given"])


# --- #!resolve -----------------------------------------------------------------------------------------------------


class Shelf:
    """A resolver with a few programs; remembers what it was asked."""

    def __init__(self, **programs):
        self.programs, self.asked = programs, []

    def resolve(self, name):
        self.asked.append(name)
        answer = self.programs.get(name.strip() or "empty")
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            raise failure(Status.NOT_FOUND, Stage.DIRECTIVES, f"no {name}")
        return Vmo.from_bytes(answer).replace_as_executable(), ()


@pytest.fixture
def resolver():
    def install(shelf):
        set_resolver(shelf)
        return shelf

    yield install
    set_resolver(None)


@every_launcher
def test_a_resolved_program_runs_without_extra_arguments(launch, workload, script, resolver, world):
    with open(workload, "rb") as program:
        shelf = resolver(Shelf(tool=program.read()))
    world.reset()
    assert arguments(launch, script("#!resolve tool\n")) == ["given", "x"]
    assert shelf.asked == ["tool"]
    world.assert_unchanged()


@every_launcher
@pytest.mark.parametrize(
    ("line", "name"), [("#!resolve  tool \n", " tool "), ("#!resolve \n", ""), ("#!resolve tool", "tool"), ("#!resolve a b\n", "a b")]
)
def test_the_name_is_the_rest_of_the_line_untrimmed(launch, workload, script, resolver, line, name):
    with open(workload, "rb") as program:
        content = program.read()
    shelf = resolver(Shelf(tool=content, empty=content, **{"a b": content}))
    assert arguments(launch, script(line)) == ["given", "x"]
    assert shelf.asked == [name]


@every_launcher
def test_resolve_may_follow_resolve(launch, workload, script, resolver):
    with open(workload, "rb") as program:
        shelf = resolver(Shelf(tool=program.read(), alias=b"#!resolve tool\n"))
    assert arguments(launch, script("#!resolve alias\n")) == ["given", "x"]
    assert shelf.asked == ["alias", "tool"]


@every_launcher
def test_the_two_kinds_of_directive_never_mix(launch, workload, script, resolver, world):
    resolver(Shelf(script=f"#!{workload}\n".encode()))
    inner = script("#!resolve script\n", "inner")
    world.reset()
    for path in (script("#!resolve script\n"), script(f"#!{inner}\n", "outer")):
        with pytest.raises(NotSupportedError, match="resolve") as caught:
            launch(path, ["given"])
        assert caught.value.status is Status.NOT_SUPPORTED
        assert caught.value.stage is Stage.DIRECTIVES
    world.assert_unchanged()


@every_launcher
def test_a_name_the_resolver_does_not_know_is_internal(launch, script, resolver):
    resolver(Shelf())
    with pytest.raises(InternalError, match="nothing-like-it") as caught:
        launch(script("#!resolve nothing-like-it\n"), ["given"])
    assert caught.value.status is Status.INTERNAL


@every_launcher
def test_any_other_refusal_of_the_resolver_comes_through_unchanged(launch, script, resolver):
    resolver(Shelf(secret=failure(Status.ACCESS_DENIED, Stage.DIRECTIVES, "not for you")))
    with pytest.raises(AccessDeniedError, match="secret") as caught:
        launch(script("#!resolve secret\n"), ["given"])
    assert caught.value.status is Status.ACCESS_DENIED


@every_launcher
def test_without_a_resolver_resolving_is_internal(launch, script):
    set_resolver(None)
    with pytest.raises(InternalError, match=r"(?i)resolver"):
        launch(script("#!resolve tool\n"), ["given"])


@every_launcher
def test_a_resolved_name_with_nul_is_rejected(launch, script, resolver):
    shelf = resolver(Shelf())
    with pytest.raises(InvalidArgsError):
        launch(script(b"#!resolve to\0ol\n"), ["given"])
    assert shelf.asked == []


@every_launcher
def test_resolving_in_a_circle_ends_in_io_invalid(launch, script, resolver):
    shelf = resolver(Shelf(loop=b"#!resolve loop\n"))
    with pytest.raises(IoInvalidError):
        launch(script("#!resolve loop\n"), ["given"])
    assert len(shelf.asked) == 255


@every_launcher
def test_a_resolved_dynamic_program_has_no_loader_even_if_one_was_asked_for(launch, workload_dynamic, script, resolver):
    with open(workload_dynamic, "rb") as program:
        resolver(Shelf(tool=program.read()))
    with pytest.raises(InvalidArgsError):
        launch(script("#!resolve tool\n"), ["given"], flags=SpawnFlags.DEFAULT_LDSVC)
