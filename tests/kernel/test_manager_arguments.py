"""What cannot be meant is refused before anything is asked, and named: what programs give the client of the manager."""

import os
import subprocess

import pytest
from rig.domains import core, sh

from shoal.manager import ManagerError


def test_wrong_types_are_refused_before_anything_is_asked(manager):
    with pytest.raises(TypeError, match="argv must be a sequence"):
        manager.spawn_program(core(manager), "true", "true")
    with pytest.raises(ValueError, match="zero byte"):
        manager.spawn_program(core(manager), "true", ["a\0b"])
    with pytest.raises(ValueError, match=r"argv.1. has '.ud800' in it"):
        manager.spawn_program(core(manager), "true", ["true", "a\ud800"])
    with pytest.raises(ValueError, match="cannot be -1"):
        manager.spawn_program(core(manager), "true", ["true"], stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    "how", [{"envp": "A=1"}, {"sandbox": "strict"}, {"inherit": "x"}, {"args": {}}, {"stdin": "x"}, {"stdout": b"x"}, {"stderr": "/err"}]
)
def test_a_wrong_type_is_named(manager, how):
    with pytest.raises(TypeError, match=f"{next(iter(how))} must be"):
        manager.spawn_program(core(manager), "true", ["true"], **how)


def test_what_was_opened_where_a_standard_descriptor_was_closed_is_not_shared_with_a_command(manager):
    """It may be the very connection to the manager."""
    domain = sh(manager, "exec sleep 1000")
    before = os.dup(0)
    try:
        os.close(0)
        assert os.open("/etc/passwd", os.O_RDONLY) == 0
        with pytest.raises(ValueError, match="stdin: there is none to share: descriptor 0 is closed, or close-on-exec"):
            domain.exec(["true"])
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_wrong_types_are_named_by_what_is_asked_of_a_domain(manager):
    domain = sh(manager, "exec sleep 1000")
    for message, call in {
        "env must be": lambda: domain.exec(["true"], env="A=1"),
        "stdout must be": lambda: domain.exec(["true"], stdout="/dev/null"),
        "float": lambda: domain.send_signal(1.5),
    }.items():
        with pytest.raises(TypeError, match=message):
            call()
    for message, call in {
        "core: a number": lambda: domain.span(10**30),
        "core: character 2": lambda: domain.span("a\udcff"),
        "domain: a number": lambda: manager.status(10**30),
        "on_error": lambda: manager.spawn_program_on_all_cores(True, "true", ["true"], on_error="go on"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert domain.status().state == "running"
    domain.kill()


def test_a_name_has_room_in_a_list(manager):
    with pytest.raises(ManagerError, match="a name of 4097 characters"):
        manager.spawn_program(core(manager), "true", ["true"], name="x" * 4097)
    long = manager.spawn_program(core(manager), "true", ["true"], name="\U0001f41f" * 4096)
    odd = manager.spawn_program(core(manager), "true", ["true"], name="a\udcff")
    assert [long.wait().code, odd.wait().code] == [0, 0]
    assert [status.name for status in manager.history()][:2] == ["a\\xff", "\U0001f41f" * 4096]


def test_a_wrong_type_costs_nothing_that_the_connection_keeps(manager):
    manager.names.register("mine")  # as long as the connection lives
    for message, call in {
        "core: ": lambda: manager.spawn_program(None, "true", ["true"]),
        "flags: ": lambda: manager.spawn_program(core(manager), "true", ["true"], flags="1"),
        "name: ": lambda: manager.spawn_program(core(manager), "true", ["true"], name=b"x"),
        "domain: ": lambda: manager.status(1.5),
        "a capability": lambda: manager.domain(None),
    }.items():
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match="stdout: descriptor 999 is not open"):
        manager.spawn_program(core(manager), "true", ["true"], stdout=999)
    assert manager.names.names("mine") == ["mine"]
