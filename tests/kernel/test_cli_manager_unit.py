"""shoal manager: started and stopped by hand, and by systemd."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig.cli import PATIENCE_S, wait_gone
from rig.desk import Desk, own_desk

import shoal.manager


@pytest.fixture
def desk() -> Iterator[Desk]:
    with own_desk() as made:
        yield made


def test_the_manager_is_started_and_stopped_by_hand_as_well(desk: Desk) -> None:
    done = desk.shoal("manager", "status")
    assert done.returncode == 3
    assert done.stdout.startswith("manager\tdoes not run\n")
    assert desk.shoal("manager", "stop").stdout == "No manager runs.\n"
    assert desk.shoal("manager", "start").returncode == 0
    pid = desk.manager_pid()
    assert desk.shoal("manager", "start").stdout == f"The manager runs already, with pid {pid}.\n"
    number = desk.spawn("sleep", "1000")
    told = json.loads(desk.shoal("manager", "status", "--json").stdout)
    assert (told["running"], told["pid"], told["domains"], told["state"]) == (True, pid, 1, str(desk.state))
    done = desk.shoal("manager", "stop")
    assert (done.returncode, done.stdout) == (0, "The manager has ended. One domain runs on.\n")
    assert wait_gone([pid])
    assert desk.shoal("manager", "status").returncode == 3
    assert desk.shoal("ps", "-q").stdout == f"{number}\n"  # which has started another
    assert desk.manager_pid() != pid


def test_the_state_and_the_socket_may_be_in_different_places_as_they_are_for_most_people(desk: Desk) -> None:
    state, runtime = desk.state / "xdg-state", desk.state / "xdg-run"
    state.mkdir(parents=True)
    runtime.mkdir(mode=0o700)
    env = {name: value for name, value in desk.env.items() if name != "SHOAL_STATE_DIR"}
    env |= {"XDG_STATE_HOME": str(state), "XDG_RUNTIME_DIR": str(runtime)}
    number = desk.shoal("spawn", "-d", "true", env=env).stdout.strip()
    assert desk.shoal("wait", number, env=env).returncode == 0
    told = json.loads(desk.shoal("manager", "status", "--json", env=env).stdout)
    assert (told["running"], told["state"]) == (True, str(state / "shoal"))
    with shoal.manager.connect(str(runtime / "shoal" / "manager.sock")) as manager:  # whoever does not say where its state is
        assert manager.cores()
    done = desk.shoal("manager", "stop", env=env)
    assert (done.returncode, done.stdout) == (0, "The manager has ended.\n")
    assert wait_gone([told["pid"]])


def test_where_there_is_no_runtime_directory_each_home_has_its_manager(desk: Desk) -> None:
    told = []
    for home in (desk.state / "one", desk.state / "other"):
        home.mkdir(parents=True)
        env = {name: value for name, value in desk.env.items() if name not in ("SHOAL_STATE_DIR", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")}
        env["HOME"] = str(home)
        assert desk.shoal("manager", "start", env=env).returncode == 0
        told.append((env, json.loads(desk.shoal("manager", "status", "--json", env=env).stdout)))
    try:
        assert [status["state"] for _, status in told] == [f"{desk.state}/{name}/.local/state/shoal" for name in ("one", "other")]
        assert len({status["pid"] for _, status in told}) == 2
    finally:
        for env, status in told:
            assert desk.shoal("manager", "stop", env=env).returncode == 0
            assert wait_gone([status["pid"]])


def test_what_is_no_action_is_refused(desk: Desk) -> None:
    done = desk.shoal("manager", "restart")
    assert (done.returncode, done.stdout) == (125, "")
    assert "invalid choice: 'restart'" in done.stderr


def test_the_manager_of_a_unit_tells_when_it_listens_and_ends_with_term(desk: Desk, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(os.path.relpath(tmp_path / "notify"))
        told.settimeout(PATIENCE_S)
        env = desk.env | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with desk.begin("manager", "run", env=env) as process:
            assert told.recv(64) == b"READY=1"
            number = desk.spawn("sleep", "1000")
            other = desk.shoal("manager", "run")
            assert other.returncode == 125
            assert f"in use by the manager with pid {process.pid}" in other.stderr
            process.terminate()
            assert told.recv(64) == b"STOPPING=1"
            out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "", "")
    assert desk.shoal("ps", "-q").stdout == f"{number}\n"


def test_the_unit_says_how_to_start_it_and_leaves_the_domains_alone(desk: Desk, tmp_path: Path) -> None:
    unit = desk.shoal("manager", "unit").stdout
    for line in ("Type=notify", "KillMode=process", "OOMPolicy=continue", f"Environment=SHOAL_STATE_DIR={desk.state}"):
        assert line in unit.splitlines()
    [start] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert start.endswith(" manager run")
    if shutil.which("systemd-analyze"):
        (tmp_path / "shoal.service").write_text(unit)
        check = ["systemd-analyze", "--user", "verify", "--man=no", str(tmp_path / "shoal.service")]
        env = desk.env | {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(check, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert "shoal.service" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("state", "written"),
    [
        ("/odd 100%", '"SHOAL_STATE_DIR=/odd 100%%"'),
        ("/in $HOME/ü", "SHOAL_STATE_DIR=/in $HOME/ü".join('""')),
        ("/a\nExecStartPre=/b\t\x7f", r'"SHOAL_STATE_DIR=/a\x0aExecStartPre=/b\x09\x7f"'),
        ("/a\"b'c\\", r'''"SHOAL_STATE_DIR=/a\"b'c\\"'''),
    ],
)
def test_a_state_directory_of_any_name_is_one_word_of_the_unit(desk: Desk, state: str, written: str) -> None:
    plain = desk.shoal("manager", "unit").stdout.splitlines()
    unit = desk.shoal("manager", "unit", env=desk.env | {"SHOAL_STATE_DIR": state}).stdout.splitlines()
    assert [line for line in unit if line not in plain] == [f"Environment={written}"]
    assert len(unit) == len(plain)


def test_a_state_directory_that_systemd_cannot_be_told_is_refused(desk: Desk) -> None:
    done = desk.shoal("manager", "unit", env=desk.env | {"SHOAL_STATE_DIR": "/odd\udcff"})
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(r"shoal: SHOAL_STATE_DIR=/odd\udcff: systemd takes no variable that is not UTF-8; name another")


def test_the_unit_starts_a_program_of_any_name_that_systemd_can_start(desk: Desk, tmp_path: Path) -> None:
    def unit(directory: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / directory).mkdir()
        link = tmp_path / directory / "shoal"
        link.symlink_to(sys.executable)
        code = f"import sys; sys.argv[0] = {str(link)!r}; from shoal.cli.main import main; sys.exit(main(['manager', 'unit']))"
        return subprocess.run([sys.executable, "-c", code], env=desk.env, capture_output=True, text=True, check=False, timeout=120)

    assert f'ExecStart=":{tmp_path}/$a 5%%/shoal" manager run' in unit("$a 5%").stdout.splitlines()
    assert f'ExecStart="{tmp_path}/\\xff/shoal" manager run' in unit("\udcff").stdout.splitlines()
    for name in ("a\nb", "a\\b", "a'b", 'a"b'):
        done = unit(name)
        assert (done.returncode, done.stdout) == (125, "")
        assert "systemd starts no program with a quote, a backslash or a control character in its path; install" in done.stderr
