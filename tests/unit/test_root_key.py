"""The key that capabilities are signed with: one for each state directory, and for its owner alone."""

import os
import stat
import subprocess
import sys

import pytest

pytest.importorskip("biscuit_auth")
from shoal.manager.errors import ManagerError
from shoal.manager.rights import DomainRights
from shoal.manager.rootkey import RootKey
from shoal.manager.tokens import Mint
from shoal.manager.verifier import CapabilityError, Verifier


def test_a_root_key_is_made_once_for_its_owner_alone(tmp_path):
    state = tmp_path / "state"
    mask = os.umask(0)
    try:
        key = RootKey.open(state)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "root.key").stat().st_mode) == 0o600
    again = RootKey.open(state)
    assert again.name == key.name
    Verifier(again.public).verify(Mint(key).domain(7), 7, DomainRights.KILL)
    assert os.listdir(state) == ["root.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_root_key_that_others_can_read_is_refused(tmp_path, mode):
    RootKey.open(tmp_path / "state")
    (tmp_path / "state" / "root.key").chmod(mode)
    with pytest.raises(ManagerError, match=r"others may read the root key .*chmod 600") as caught:
        RootKey.open(tmp_path / "state")
    assert caught.value.code == "PROC_MGMT_ERR_CREATE_DOMAIN_CAP"


def test_a_root_key_in_a_directory_that_others_can_write_is_refused(tmp_path):
    RootKey.open(tmp_path / "state")
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(ManagerError, match="others may write to the directory"):
        RootKey.open(tmp_path / "state")


@pytest.mark.parametrize("damage", ["empty", "cut", "other", "link", "directory", "pipe"])
def test_a_root_key_that_is_none_is_refused(tmp_path, damage):
    state = tmp_path / "state"
    RootKey.open(state)
    path = state / "root.key"
    whole = path.read_bytes()
    if damage in ("empty", "cut", "other"):
        path.write_bytes({"empty": b"", "cut": whole[:-10], "other": b"x" * 9000}[damage])
    else:
        path.rename(state / "moved")
        {"link": lambda: path.symlink_to("moved"), "directory": path.mkdir, "pipe": lambda: os.mkfifo(path, 0o600)}[damage]()
    with pytest.raises(ManagerError, match=r"root\.key"):
        RootKey.open(state)


def test_managers_that_begin_at_once_get_one_key(tmp_path):
    script = "import sys; from shoal.manager.rootkey import RootKey; sys.stdin.read(1); print(RootKey.open(sys.argv[1]).name)"
    started = [
        subprocess.Popen([sys.executable, "-c", script, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    names = {process.communicate("x", timeout=120)[0] for process in started}
    assert len(names) == 1
    assert os.listdir(tmp_path / "state") == ["root.key"]


def test_a_new_root_key_makes_all_capabilities_worthless(tmp_path):
    old = RootKey.open(tmp_path / "state")
    cap = Mint(old).domain(7)
    new = RootKey.renew(tmp_path / "state")
    with pytest.raises(CapabilityError) as caught:
        Verifier(new.public).verify(cap, 7, DomainRights.KILL)
    assert caught.value.refusal.why == "other manager"
    assert RootKey.open(tmp_path / "state").name == new.name
    assert os.listdir(tmp_path / "state") == ["root.key"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_state_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ManagerError, match=r"root key .* cannot be read or made: Permission denied"):
            RootKey.open(tmp_path / "state")
    finally:
        tmp_path.chmod(0o700)
