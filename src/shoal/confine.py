"""Confine: the ops that take away from a child what its Confinement says."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from resource import RLIMIT_CORE

from shoal.packing import CWD_FD, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, Packer
from shoal.plan import Confinement, Rlimit
from shoal.status import Stage, Status, failure
from shoal.world import World


class Confine:
    """Adds the ops to a packer. Each method where its place in the order is."""

    def __init__(self, packer: Packer, what: Confinement) -> None:
        self._packer = packer
        self._what = what

    def as_process(self) -> None:
        """What takes no privilege away, but may need one."""
        if self._what.processors:
            self._packer.affinity(self._what.processors, "binding it to processors")
        if self._what.nice is not None:
            self._packer.op(
                "NICE",
                f"setting the nice value {self._what.nice}; one below the caller's own takes CAP_SYS_NICE or RLIMIT_NICE",
                a=self._what.nice & 0xFFFFFFFF,
            )
        self._limit(limit for limit in self._what.rlimits if limit.resource == RLIMIT_CORE)  # which the filter does not let change

    def no_new_privs(self) -> None:
        """Nothing it executes gets more than it has: prctl(2), PR_SET_NO_NEW_PRIVS.

        Raises:
            AccessDeniedError: this process is somebody else for a while only, and execve(2) then makes the child who it really is.
        """
        ids = (("user", os.getuid(), os.geteuid()), ("group", os.getgid(), os.getegid()))
        for kind, real, effective in () if self._what.own_user else ids:
            if real != effective:
                what = f"what is started would have the real {kind} id of this process, {real}, and not the effective one, {effective}"
                raise failure(Status.ACCESS_DENIED, Stage.SETUP, f"{what}; os.setres{kind[0]}id() changes it for good", errno.EPERM)
        self._packer.op("NO_NEW_PRIVS", "setting no_new_privs")

    def rules(self, world: World) -> int | None:
        """The rules of Landlock. While the world's descriptors are still open. Returns their slot, if there are any."""
        landlock, packer = self._what.landlock, self._packer
        if landlock is None:
            return None
        label = "restricting access to files"
        rules = packer.made("LANDLOCK_RULES", label, a=landlock.files, b=landlock.network, flags=landlock.scopes)
        if landlock.program:
            packer.op("LANDLOCK_ALLOW", label, fd=rules, fd2=world.base, a=landlock.program)
        for path, allowed in landlock.rules:
            beneath = 0 if world.root == CWD_FD else RESOLVE_IN_ROOT
            place = packer.made("OPEN", f"{label}: {path}", fd=world.root, text=path, a=os.O_PATH, b=beneath)
            packer.op("LANDLOCK_ALLOW", f"{label}: {path}", fd=rules, fd2=place, a=allowed)
        for rule in landlock.only:
            text = f"{label}: {rule.path}"
            links = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS if rule.ino else 0
            place = packer.made("OPEN", text, fd=CWD_FD, text=rule.path, a=os.O_PATH, b=links)
            if rule.ino:
                packer.op("EXPECT", text, fd=place, a=rule.dev, b=rule.ino)
            packer.op("LANDLOCK_ALLOW", text, fd=rules, fd2=place, a=rule.allowed)
        return rules

    def enter_rules(self, rules: int | None, given: Sequence[int]) -> None:
        """Live by the rules. After no_new_privs, and before the descriptors of `given` are placed.

        Args:
            given: what is handed over, which may be opened anew.
        """
        landlock, packer = self._what.landlock, self._packer
        if landlock is None or rules is None:
            return
        for fd in given:
            packer.op("LANDLOCK_ALLOW", "allowing what was handed over", fd=rules, fd2=fd, a=landlock.given, b=1)
        packer.op("LANDLOCK_ENTER", "restricting access to files", fd=rules)

    def user(self, hole: int) -> None:
        """The user and group. Takes CAP_SETUID and CAP_SETGID, and leaves no capability.

        Args:
            hole: for the number of both.
        """
        if self._what.own_user:
            self._packer.op("IDS", "changing the user", fd=hole, fd2=hole)

    def limits(self) -> None:
        """Resource limits. After the descriptors were placed: copies of them may lie above the new limit meanwhile."""
        self._limit(limit for limit in self._what.rlimits if limit.resource != RLIMIT_CORE)

    def _limit(self, limits: Iterable[Rlimit]) -> None:
        for limit in limits:
            self._packer.op("RLIMIT", f"setting the limit {limit}", flags=limit.resource, a=limit.soft, b=limit.hard)

    def filter(self) -> None:
        """The filters. Last: they may forbid what the others need."""
        if self._what.walls:
            self._packer.seccomp(self._what.walls, f"installing the filter {self._what.walls_label}")
        if self._what.filter:
            self._packer.seccomp(self._what.filter, f"installing the filter {self._what.filter_label}")
