"""Where a manager keeps what: its state directory, and the one in which it listens."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

from shoal import xdg
from shoal.manager.errors import ManagerError


def boot_identity() -> str:
    """What no two boots of a machine have in common: proc_sys_kernel(5), random/boot_id."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


_ADVICE: Final = {
    errno.ENOSPC: "; make room",
    errno.EDQUOT: "; make room",
    errno.EMFILE: "; the manager's limit of open files is reached (RLIMIT_NOFILE): start it anew where `ulimit -Hn` is higher",
    errno.ENFILE: "; the machine's limit of open files is reached (fs.file-max)",
    errno.EAGAIN: "; a limit of processes is reached (ulimit -u, kernel.pid_max, or pids.max of a cgroup)",
    errno.ETOOMANYREFS: "; this user has as many descriptors on their way as it may have open (RLIMIT_NOFILE)",
}


def unusable(path: str, error: OSError) -> ManagerError:
    """What is raised where a file of the manager's cannot be used."""
    what = f"{path}: {os.strerror(error.errno or 0)}{_ADVICE.get(error.errno or 0, '')}"
    return ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", what)


def out_of(error: OSError, what: str, code: str = "PROC_MGMT_ERR_SPAWND_REQUEST") -> ManagerError:
    """What is raised where the machine has no more of something; names the limit.

    Args:
        what: was not done.
    """
    return ManagerError(code, f"{what}: {os.strerror(error.errno or 0)}{_ADVICE.get(error.errno or 0, '')}")


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one manager.

    Attributes:
        state: the state directory. run: where its socket and those of the domains' inits are.
    """

    state: str
    run: str

    @classmethod
    def of(cls, state_dir: str | None = None) -> Layout:
        """That of the user's manager: $XDG_STATE_HOME/shoal, with its sockets in $XDG_RUNTIME_DIR/shoal.

        One that is given a state directory ($SHOAL_STATE_DIR, unless `state_dir` says it) has its sockets in that. So has the user's where
        there is no runtime directory: then nothing but the state tells apart the managers of programs with homes of their own.
        """
        given = state_dir if state_dir is not None else os.environ.get("SHOAL_STATE_DIR") or None
        if given is not None:
            state, runtime = os.path.abspath(given), ""
        else:
            state = os.path.join(xdg.directory("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "shoal")
            runtime = xdg.directory("XDG_RUNTIME_DIR")
        return cls(state, os.path.join(runtime, "shoal") if runtime else os.path.join(state, "run"))

    @property
    def socket(self) -> str:
        return os.path.join(self.run, "manager.sock")

    def spawnd_socket(self, core: int) -> str:
        """Where a spawn daemon of its own listens that serves a core, unless it is told otherwise."""
        return os.path.join(self.run, f"spawnd.{core}.sock")

    @property
    def lock(self) -> str:
        return os.path.join(self.state, "lock")

    @property
    def starting(self) -> str:
        """Locked by a manager that is starting, until it listens."""
        return os.path.join(self.state, "starting")

    @property
    def database(self) -> str:
        return os.path.join(self.state, "manager.db")

    @property
    def ledger(self) -> str:
        return os.path.join(self.state, "ledger")

    @property
    def logs(self) -> str:
        return os.path.join(self.state, "logs")

    @property
    def capability(self) -> str:
        """The manager capability, for whoever may read it."""
        return os.path.join(self.state, "manager.cap")

    @property
    def own_log(self) -> str:
        """What the manager itself has to say."""
        return os.path.join(self.state, "manager.log")

    def make(self) -> None:
        """Make the directories, for nobody but the user.

        Raises:
            ManagerError: they cannot be made, or are somebody else's.
        """
        for path in (self.state, self.run, self.logs):
            try:
                os.makedirs(path, mode=0o700, exist_ok=True)
                found = os.lstat(path)
            except OSError as error:
                raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", f"cannot make {path}: {error.strerror}") from error
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", f"{path} is not a directory of this user's; move it away")
            if found.st_mode & stat.S_ISVTX:
                what = f"{path} is for all users, like /tmp, and would be closed to them; name a directory below it"
                raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", what)
            if found.st_mode & 0o077:
                try:
                    os.chmod(path, 0o700)
                except OSError as error:
                    raise unusable(path, error) from error
