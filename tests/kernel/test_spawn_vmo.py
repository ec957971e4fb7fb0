"""spawn_vmo: programs from memory, what rights they need, and that the VMO is always consumed. Source: spec 2, 4, 6.5, 7."""

import pytest
from rig.launchers import make_launcher
from rig.workload import observe

import shoal
from shoal import (
    AccessDeniedError,
    BadHandleError,
    Directory,
    InternalError,
    InvalidArgsError,
    OutOfRangeError,
    Rights,
    SpawnFlags,
    Status,
    TransferFd,
    Vmo,
    WrongTypeError,
)


@pytest.fixture(params=["direct", "cell"])
def launch_vmo(request):
    launcher = make_launcher(request.param)
    flag = SpawnFlags(0) if launcher.own_world else SpawnFlags.CLONE_NAMESPACE

    def start(executable, argv, *, flags=0, **rest):
        return shoal.spawn_vmo(executable, argv, flags=flags | flag, **rest)

    launcher.start = start
    yield launcher
    launcher.clean_up()


@pytest.fixture
def program(workload):
    """The static workload as an executable VMO."""
    return lambda: Vmo.from_file(workload).replace_as_executable()


def test_a_program_in_memory_runs_and_is_consumed(launch_vmo, program, world):
    vmo = program()
    report = observe(launch_vmo, vmo, "argv", "exit", 6)
    assert report.one("argv") == ["workload", "argv", "exit", "6"]
    assert report.returncode == 6
    assert vmo.closed
    world.assert_unchanged()


def test_a_program_written_from_bytes_runs(launch_vmo, workload):
    with open(workload, "rb") as file:
        vmo = Vmo.from_bytes(file.read(), "from bytes").replace_as_executable()
    assert observe(launch_vmo, vmo, "exit", 8).returncode == 8


def test_a_dynamic_program_in_memory_needs_the_loader(launch_vmo, workload_dynamic):
    def make():
        return Vmo.from_file(workload_dynamic).replace_as_executable()

    assert observe(launch_vmo, make(), "exit", 3, flags=SpawnFlags.DEFAULT_LDSVC).returncode == 3
    vmo = make()
    with pytest.raises(InvalidArgsError, match="DEFAULT_LDSVC"):
        launch_vmo(vmo, ["workload"])
    assert vmo.closed


def test_a_duplicate_can_be_run_while_the_original_stays(launch_vmo, program):
    with program() as vmo:
        for status in (1, 2):
            assert observe(launch_vmo, vmo.duplicate(), "exit", status).returncode == status
        assert not vmo.closed


def test_a_program_cannot_change_the_memory_it_was_started_from(launch_vmo, program, workload):
    with program() as vmo:
        observe(launch_vmo, vmo.duplicate(), "alloc", 1 << 20)
        with open(workload, "rb") as file:
            assert vmo.read() == file.read()


@pytest.mark.parametrize("missing", [Rights.EXECUTE, Rights.READ, Rights.MAP, Rights.GET_PROPERTY, Rights.TRANSFER, Rights.DUPLICATE])
def test_a_vmo_without_a_right_it_needs_is_denied_and_consumed(launch_vmo, program, missing, world):
    with program() as whole:
        vmo = whole.duplicate(whole.rights & ~missing)
    with pytest.raises(AccessDeniedError) as caught:
        launch_vmo(vmo, ["workload"])
    assert caught.value.status is Status.ACCESS_DENIED
    assert vmo.closed
    world.assert_unchanged()


def test_a_vmo_that_was_never_made_executable_is_denied_also_for_a_dynamic_program(launch_vmo, workload, workload_dynamic):
    for path in (workload, workload_dynamic):
        with open(path, "rb") as file:
            vmo = Vmo.from_bytes(file.read())
        with pytest.raises(AccessDeniedError, match="EXECUTE"):
            launch_vmo(vmo, ["workload"], flags=SpawnFlags.DEFAULT_LDSVC)
        assert vmo.closed


def test_a_closed_vmo_is_a_bad_handle(launch_vmo, program, pipe, world):
    vmo = program()
    vmo.close()
    with pytest.raises(BadHandleError) as caught:
        launch_vmo(vmo, ["workload"], actions=[TransferFd(pipe.read, 5)])
    assert caught.value.status is Status.BAD_HANDLE
    world.assert_unchanged(besides={pipe.read})


def test_a_handle_that_is_no_vmo_is_the_wrong_type_and_consumed(launch_vmo, tmp_path, world):
    handle = Directory.open(tmp_path)
    with pytest.raises(WrongTypeError) as caught:
        launch_vmo(handle, ["workload"])
    assert caught.value.status is Status.WRONG_TYPE
    assert handle.closed
    world.assert_unchanged()


@pytest.mark.parametrize("value", [None, "/bin/true", b"", 3, object()])
def test_something_that_is_no_handle_is_a_type_error(launch_vmo, value):
    with pytest.raises(TypeError):
        launch_vmo(value, ["workload"])


def test_an_empty_vmo_is_out_of_range(launch_vmo):
    with pytest.raises(OutOfRangeError) as caught:
        launch_vmo(Vmo.from_bytes(b"").replace_as_executable(), ["workload"])
    assert caught.value.status is Status.OUT_OF_RANGE


@pytest.mark.parametrize("content", [b"\x7fELF" + bytes(6), b"\x7fELF" + bytes(200), b"echo hello\n", bytes(5000)])
def test_bytes_that_are_no_program_are_internal_and_never_not_found(launch_vmo, content, world):
    vmo = Vmo.from_bytes(content).replace_as_executable()
    with pytest.raises(InternalError) as caught:
        launch_vmo(vmo, ["workload"])
    assert type(caught.value) is InternalError
    assert caught.value.status is Status.INTERNAL
    assert vmo.closed
    world.assert_unchanged()


def test_a_script_in_memory_finds_its_interpreter_in_the_callers_world(launch_vmo, workload):
    vmo = Vmo.from_bytes(f"#!{workload} extra\n".encode()).replace_as_executable()
    report = observe(launch_vmo, vmo, argv=["given", "x"], environ={"WORKLOAD": "argv"})
    assert report.one("argv") == [workload, "extra", "given", "x"]


def test_a_missing_interpreter_of_a_script_in_memory_is_internal(launch_vmo):
    with pytest.raises(InternalError, match="/nowhere"):
        launch_vmo(Vmo.from_bytes(b"#!/nowhere\n").replace_as_executable(), ["x"])


def test_an_argument_error_is_found_before_a_closed_vmo(launch_vmo, program):
    vmo = program()
    vmo.close()
    with pytest.raises(InvalidArgsError):
        launch_vmo(vmo, [])


def test_an_argument_error_consumes_the_vmo(launch_vmo, program):
    vmo = program()
    with pytest.raises(InvalidArgsError):
        launch_vmo(vmo, [])
    assert vmo.closed
