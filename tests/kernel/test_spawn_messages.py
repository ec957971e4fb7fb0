"""What an error says: the path, the index of the action and the descriptors, in at most 1,023 bytes. Source: spec 2.3, 1.3."""

import os
import pickle

import pytest
from rig.launchers import every_launcher

import shoal
from shoal import (
    PA_HND,
    AddHandle,
    AddNsEntry,
    CloneDir,
    CloneFd,
    Directory,
    File,
    HandleType,
    Job,
    SpawnFlags,
    Stage,
    Status,
    TransferFd,
    UtcClock,
    Vmo,
)


def refusal(launch, path, argv=("workload",), **more):
    with pytest.raises(shoal.SpawnError) as caught:
        launch(path, list(argv), **more)
    return caught.value


def says(error, *parts):
    text = str(error)
    assert all(str(part) in text for part in parts), text
    assert error.status.name in text
    assert error.stage.value in text
    assert "\n" not in text
    assert len(text.encode()) <= 1023


@every_launcher
def test_a_file_that_cannot_be_loaded_is_named_with_the_stage(launch, tmp_path):
    says(refusal(launch, tmp_path / "missing"), tmp_path / "missing")
    says(refusal(launch, tmp_path), tmp_path)
    (tmp_path / "plain").write_text("x")
    says(refusal(launch, tmp_path / "plain"), tmp_path / "plain")


@every_launcher
def test_a_bad_target_names_target_local_and_index(launch, workload, pipe):
    for kind in (CloneFd, TransferFd):
        number = os.dup(pipe.read)
        says(refusal(launch, workload, actions=[CloneFd(0, 4), kind(number, 1024)]), "action 1", 1024, number)
        if kind is CloneFd:
            os.close(number)


@every_launcher
def test_a_target_used_twice_names_target_local_and_index(launch, workload, pipe):
    says(refusal(launch, workload, actions=[CloneFd(0, 44), CloneFd(1, 5), CloneFd(pipe.read, 44)]), "action 2", 44, pipe.read)


@every_launcher
def test_the_stdio_bit_is_left_out_of_numbers_in_messages(launch, workload):
    error = refusal(launch, workload, actions=[CloneFd(0, 0x8000 | 2000)])
    says(error, 2000)
    assert str(0x8000 | 2000) not in str(error)
    error = refusal(launch, workload, actions=[AddHandle(PA_HND(HandleType.FD, 0x8000 | 1030), Vmo.from_bytes(b""))])
    says(error, "action 0", 1030)
    assert str(0x8000 | 1030) not in str(error)


@every_launcher
@pytest.mark.parametrize("kind", [CloneFd, TransferFd])
def test_a_bad_local_fd_names_it_and_the_index(launch, workload, kind, closed_fd):
    says(refusal(launch, workload, actions=[CloneFd(0, 40), kind(closed_fd, 41)]), "action 1", closed_fd)


@every_launcher
def test_a_shared_fd_that_cannot_be_transferred_is_named(launch, workload, pipe):
    other = os.dup(pipe.read)
    try:
        says(refusal(launch, workload, actions=[TransferFd(pipe.read, 5)]), "action 0", pipe.read)
    finally:
        os.close(other)


@every_launcher
def test_indexes_count_from_0_over_the_whole_list(launch, workload, tmp_path):
    actions = [
        CloneFd(0, 7),
        CloneFd(0, 8),
        AddHandle(PA_HND(HandleType.USER0), Vmo.from_bytes(b"")),
        AddNsEntry("relative", Directory.open(tmp_path)),
    ]
    says(refusal(launch, workload, actions=actions), "action 3", "relative")


@every_launcher
def test_a_bad_prefix_is_named_with_its_index(launch, workload, tmp_path):
    says(refusal(launch, workload, actions=[CloneDir("not/absolute")]), "action 0", "not/absolute")
    says(refusal(launch, workload, actions=[AddNsEntry("/a/../b", Directory.open(tmp_path))]), "action 0", "/a/../b")


@every_launcher
def test_two_clocks_are_said_to_have_been_asked_for_together(launch, workload):
    actions = [AddHandle(PA_HND(HandleType.CLOCK_UTC), UtcClock.create())]
    says(refusal(launch, workload, flags=SpawnFlags.CLONE_UTC_CLOCK, actions=actions), "CLONE_UTC_CLOCK", "action 0")


@every_launcher
def test_a_bad_startup_id_is_named_in_hexadecimal(launch, workload):
    says(refusal(launch, workload, actions=[AddHandle(PA_HND(HandleType.NS_DIR, 2), Vmo.from_bytes(b""))]), "action 0", "0x20020")


@every_launcher
def test_a_startup_descriptor_that_is_closed_names_its_number_and_index(launch, workload):
    handle = Vmo.from_bytes(b"")
    handle.close()
    says(refusal(launch, workload, actions=[AddHandle(PA_HND(HandleType.FD, 77), handle)]), "action 0", 77)


@every_launcher
def test_an_interpreter_that_cannot_be_loaded_is_named_beside_the_script(launch, tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/nowhere/interpreter -x\n")
    script.chmod(0o755)
    says(refusal(launch, script), "/nowhere/interpreter", script)


@every_launcher
def test_a_dynamic_program_without_a_loader_is_told_what_to_add(launch, workload_dynamic):
    says(refusal(launch, workload_dynamic), "DEFAULT_LDSVC", workload_dynamic)


@every_launcher
def test_a_missing_right_of_the_job_is_named(launch, workload):
    with Job.default() as whole, whole.duplicate(whole.rights & ~shoal.Rights.MANAGE_PROCESS) as job:
        says(refusal(launch, workload, job=job), "MANAGE_PROCESS", "job")


@every_launcher
@pytest.mark.parametrize("length", [900, 1023, 1024, 4000])
def test_a_text_is_cut_at_1023_bytes_and_still_ends_with_status_and_stage(launch, length):
    path = "/" + "/".join(["é" * 100] * (length // 201))
    error = refusal(launch, path)
    assert len(str(error).encode()) <= 1023
    assert error.status.name in str(error)
    assert error.stage.value in str(error)


@every_launcher
@pytest.mark.parametrize("path", [b"/missing\xff\xfe", "/missing\udcff", "/missing\nsecond line", "/missing\x1b[31m"])
def test_a_strange_path_gives_a_text_of_one_line_that_can_be_printed_anywhere(launch, path):
    text = str(refusal(launch, path))
    text.encode("utf-8")
    assert text.isprintable(), repr(text)
    assert "missing" in text


@every_launcher
def test_an_error_crosses_processes_whole(launch, tmp_path):
    error = refusal(launch, tmp_path / "missing")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.status, copy.stage, copy.errno, str(copy)) == (Status.NOT_FOUND, Stage.LOAD, error.errno, str(error))


@every_launcher
def test_a_closed_descriptor_handle_is_told_as_such(launch, workload):
    handle = File.from_fd(os.open("/dev/null", os.O_RDONLY))
    handle.close()
    says(refusal(launch, workload, actions=[AddHandle(PA_HND(HandleType.USER0), handle)]), "action 0", "file")
