"""Guests in virtual machines: refused with what is missing, since there is no service for them."""

import os

import pytest

from shoal import Vmo
from shoal.manager import CNode, ManagerError


@pytest.mark.parametrize("core", [0, 9999, "elsewhere/0"])
def test_without_a_service_it_is_refused_and_says_what_is_missing(manager, core):
    with pytest.raises(ManagerError, match=f"nothing is registered as arrakis.{core}") as caught:
        manager.spawn_arrakis_program(core, "true", ["true"])
    assert caught.value.code == "PROC_MGMT_ERR_INVALID_SPAWND"
    assert "/dev/kvm" in caught.value.message
    assert manager.domains() == []


def test_a_service_that_nobody_knows_is_not_asked(manager):
    manager.names.register("arrakis.0 { core: 0 }")
    with pytest.raises(ManagerError, match=r"arrakis\.0 is registered, and this version") as caught:
        manager.spawn_arrakis_program(0, "true", ["true"])
    assert caught.value.code == "PROC_MGMT_ERR_INVALID_SPAWND"


def test_what_was_to_be_handed_over_is_used_up_all_the_same(manager):
    manager.cores()  # which connects
    before = len(os.listdir("/proc/self/fd"))
    args = CNode()
    args.put(1, Vmo.create(4096))
    with pytest.raises(ManagerError, match="arrakis"):
        manager.spawn_arrakis_program(0, "true", ["true"], args=args)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ManagerError, match="used it up"):
        manager.spawn_program(manager.cores()[0], "true", ["true"], args=args)
