"""The name of a process: argv[0] or SetName, and where it can be seen. Source: spec 1.3, 3.11."""

import os
import subprocess
from pathlib import Path

import pytest
from rig.launchers import every_launcher
from rig.workload import Reporting, observe

from shoal import CloneFd, InvalidArgsError, SetName, Status


def comm_of(pid):
    return Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")


@every_launcher
@pytest.mark.parametrize("name", ["worker", "two words", "fifteen-letters", "x"])
def test_the_name_is_argv_0_and_visible_from_the_first_moment(launch, workload, pipe, name):
    with launch(workload, [name, "drain", "0"], actions=[CloneFd(pipe.read, 0)]) as process:
        assert process.name == name
        assert comm_of(process.pid) == name.encode()
        shown = subprocess.run(["ps", "-o", "comm=", "-p", str(process.pid)], capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == name
        os.close(pipe.write)
        process.wait(timeout=30)


@every_launcher
def test_set_name_overrides_argv_0_and_does_not_alter_it(launch, workload):
    report = observe(launch, workload, "comm", "argv", argv=["given", "comm", "argv"], actions=[SetName("other")])
    assert report.one("comm") == ["other"]
    assert report.one("argv")[0] == "given"


@every_launcher
def test_the_last_of_several_names_wins(launch, workload):
    report = observe(launch, workload, "comm", actions=[SetName("first"), SetName("second"), SetName("third")])
    assert report.one("comm") == ["third"]


@every_launcher
def test_a_name_is_cut_at_31_bytes_and_the_kernel_shows_15(launch, workload, pipe):
    name = "a-name-of-more-than-thirty-one-bytes"
    with launch(workload, ["workload", "drain", "0"], actions=[SetName(name), CloneFd(pipe.read, 0)]) as process:
        assert process.name == name[:31]
        assert comm_of(process.pid) == name[:15].encode()
        os.close(pipe.write)
        process.wait(timeout=30)


@every_launcher
def test_a_name_is_cut_inside_a_character_rather_than_refused(launch, workload, pipe):
    name = "é" * 20  # 40 bytes: the cuts at 31 and at 15 both fall inside a character
    with launch(workload, ["workload", "drain", "0"], actions=[SetName(name), CloneFd(pipe.read, 0)]) as process:
        assert os.fsencode(process.name) == name.encode()[:31]
        assert comm_of(process.pid) == name.encode()[:15]
        os.close(pipe.write)
        process.wait(timeout=30)


@every_launcher
def test_an_empty_name_is_a_name(launch, workload):
    with launch(workload, [], actions=[SetName("")]) as process:
        assert process.name == ""
        assert process.wait(timeout=30) == 0


@every_launcher
def test_argv_may_be_empty_when_there_is_a_name(launch, workload):
    report = observe(launch, workload, argv=[], environ={"WORKLOAD": "argv comm"}, actions=[SetName("named")])
    assert report.one("argv") in ([], [""])  # Linux 5.18 and later put an empty string where argv has nothing
    assert report.one("comm") == ["named"]


@every_launcher
def test_no_name_at_all_is_an_invalid_argument(launch, workload, world):
    with pytest.raises(InvalidArgsError) as caught:
        launch(workload, [])
    assert caught.value.status is Status.INVALID_ARGS
    world.assert_unchanged()


@every_launcher
def test_an_empty_argv_0_is_a_name(launch, workload):
    report = observe(launch, workload, argv=["", "argv"])
    assert report.one("argv") == ["", "argv"]


@every_launcher
def test_the_whole_name_is_in_the_startup_table_when_it_differs_from_argv_0(launch, workload):
    report = observe(launch, workload, "env", actions=[SetName("a name with blanks")])
    assert "name=a%20name%20with%20blanks" in report.variables()["SHOAL_STARTUP"].split(" ")
    assert "SHOAL_STARTUP" not in observe(launch, workload, "env", actions=[SetName("workload")]).variables()


@every_launcher
@pytest.mark.parametrize("name", ["nul\0byte", "\0"])
def test_a_name_with_nul_is_an_invalid_argument(launch, workload, name):
    with pytest.raises(InvalidArgsError):
        launch(workload, ["workload"], actions=[SetName(name)])


@every_launcher
def test_a_running_program_still_has_its_name_when_it_looks_itself(launch, workload, pipe):
    with Reporting() as reporting:
        actions = [SetName("looks-itself"), CloneFd(pipe.read, 0), reporting.action()]
        with launch(workload, ["workload", "comm", "thread", "comm", "drain", "0"], actions=actions) as process:
            reporting.started()
            assert [reporting.line() for _ in range(3)] == [["comm", "looks-itself"], ["thread", "ok", "0"], ["comm", "looks-itself"]]
            os.close(pipe.write)
            process.wait(timeout=30)
