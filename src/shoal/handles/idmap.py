"""Id maps: what makes files of the caller appear as files of somebody else in one mount.

A map is a user namespace in which nothing runs. It is written from outside by root, which takes a process in it for a moment.

Source: mount_setattr(2), "ID-mapped mounts"; user_namespaces(7).
"""

from __future__ import annotations

import os

from shoal.handles import reaper
from shoal.handles.keeper import keeper_plan, open_null, start_keeper
from shoal.handles.reaper import OwnedFd
from shoal.packing import CLONE_NEWUSER, Packer
from shoal.status import Stage, failure_from_errno


def make_id_map(user: int) -> OwnedFd:
    """A map by which the caller's own user and group appear as `user`, and the other way round.

    Raises:
        SpawnError: no user namespace can be made.
    """
    packer = Packer()
    packer.unshare_fds()
    keeper, control = start_keeper(keeper_plan(packer, open_null(packer), CLONE_NEWUSER), "an id map")
    try:
        for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
            with open(f"/proc/{keeper.pid}/{kind}_map", "w", encoding="ascii") as file:
                file.write(f"{own} {user} 1\n")
        return OwnedFd(os.open(f"/proc/{keeper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise failure_from_errno(error.errno or 0, Stage.SETUP, "cannot map the user ids of a sandbox to the caller's") from error
    finally:
        os.close(control)
        reaper.register(keeper)
