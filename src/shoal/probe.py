"""Every choice between kernel features, made once by trying. `shoal doctor` prints it.

Nothing here looks at version numbers: distributions carry features over, and containers take them away. What takes a
namespace or a mount to try is tried in a child that ends by itself, so nothing is left behind.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import NamedTuple, Unpack

from shoal import _native
from shoal.handles.userns import own_user_namespace
from shoal.packing import CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CWD_FD, Packer, Place
from shoal.privileges import MAKING_CELLS, has_kcmp, is_initial_user_namespace, is_privileged, lacking
from shoal.status import SpawnError

_MFD_EXEC = 0x10
_MOUNT_ATTR_RDONLY = 1
_OPEN_TREE_CLONE = 1
_CLONING, _LEAVING, _OVERLAY = "making a process", "close_range", "mounting an overlay"
_NUMBER_CLONE3 = 435  # the same on every architecture


class Feature(NamedTuple):
    """One thing that a machine may allow or not.

    Attributes:
        name: short, lower case.
        available: whether it works here, for this user.
        essential: whether shoal cannot spawn without it.
        detail: what was seen.
        fix: a command or a setting that would make it available; empty when there is none or none is needed.
    """

    name: str
    available: bool
    essential: bool
    detail: str
    fix: str = ""


class Refusal(NamedTuple):
    """What stopped an attempt."""

    error: int
    doing: str

    def __str__(self) -> str:
        return f"{self.doing}: {os.strerror(self.error)}"


# --- tried when asked -------------------------------------------------------------------------------


def try_namespaces(flags: int) -> Refusal | None:
    """Make a child in new namespaces `flags` and set them up; None when it worked. Leaves nothing behind."""

    def bring_up(packer: Packer) -> None:
        if flags & CLONE_NEWNET:
            packer.op("LOOPBACK_UP", "bringing the loopback device up")

    return _in_namespaces(flags, bring_up)


def try_mounts(flags: int) -> Refusal | None:
    """Make a root file system out of detached mounts, as every cell does, in new namespaces `flags`; None when it worked."""
    return _in_namespaces(flags, _mount_root)


def _mount_root(packer: Packer) -> None:
    tmpfs = _mount_tmpfs(packer)
    packer.op("MKDIRS", "mkdir", fd=tmpfs, text="root", a=0o755)
    tree = packer.made("OPEN_TREE", "open_tree", fd=tmpfs, text="root", a=_OPEN_TREE_CLONE)
    packer.op("MOUNT_SETATTR", "mount_setattr", fd=tree, a=_MOUNT_ATTR_RDONLY)
    packer.op("MOVE_MOUNT", "move_mount", fd=tree, fd2=tmpfs, text="")


def try_cell(*, privileged: bool) -> Refusal | None:
    """Make what a cell is made of, but for the slowest of its namespaces; None when it worked. Takes half a millisecond."""

    def mount(packer: Packer) -> None:
        packer.made("FSMOUNT", "mounting /proc", text="proc", text2="")
        _mount_root(packer)

    return _in_namespaces(CLONE_NEWNS | CLONE_NEWPID | (0 if privileged else CLONE_NEWUSER), mount)


def is_forbidden(refusal: Refusal) -> bool:
    """Whether it is refused always, and not for want of something at this moment: memory, processes, namespaces."""
    if refusal.error == errno.ENOSPC:
        return "0" in (_read(f"/proc/sys/user/max_{kind}_namespaces") for kind in ("user", "mnt", "pid"))
    return refusal.error not in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR)


def cell_fix(refusal: Refusal, *, privileged: bool) -> str:
    """The setting that would let a cell be made."""
    if privileged:
        return _ROOT_FIX if refusal.doing == _CLONING else f"{_ROOT_FIX}; {_allow('mount and the calls around it')}"
    if refusal.doing == "mounting /proc" and _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != "1":
        return "in a container, let /proc be whole (docker: --security-opt systempaths=unconfined; podman: --security-opt unmask=ALL)"
    return _user_namespace_fix(refusal)


def try_overlay(flags: int) -> Refusal | None:
    """Put a writable layer over a directory and write to it, in new namespaces `flags`; None when it worked."""
    options = "lowerdir=lower,upperdir=upper,workdir=work" + (",userxattr" if flags & CLONE_NEWUSER else "")

    def put_over(packer: Packer) -> None:
        tmpfs = _mount_tmpfs(packer)
        for name in ("lower", "upper", "work"):
            packer.op("MKDIRS", "mkdir", fd=tmpfs, text=name, a=0o755)
        # No path leads to the tmpfs, which is mounted over the root: overlayfs finds its directories from where the child stands.
        packer.op("CHDIR", "chdir", fd=tmpfs, text="")
        merged = packer.made("FSMOUNT", _OVERLAY, text="overlay", text2=options)
        packer.op("MKDIRS", _OVERLAY, fd=merged, text="made", a=0o755)

    return _in_namespaces(flags, put_over)


def try_descriptor_table() -> Refusal | None:
    """Let a child leave its caller's descriptor table, with close_range(2), as every launch does; None when it worked."""
    packer = Packer()
    packer.unshare_fds()
    refusal = _attempt(packer, 0)
    return refusal if refusal is None or refusal.doing == _CLONING else Refusal(refusal.error, _LEAVING)


def try_pidfds() -> Refusal | None:
    """Open a process, signal it and ask to wait for it by its descriptor; None when all three work."""
    import signal

    doing = "pidfd_open"
    try:
        fd = os.pidfd_open(os.getpid())
        try:
            doing = "pidfd_send_signal"
            signal.pidfd_send_signal(fd, 0)  # 0 is no signal: only the permission is checked
            doing = "waitid(P_PIDFD)"
            _native.wait(fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass  # nobody is a child of its own; a kernel without it answers EINVAL
        finally:
            os.close(fd)
    except OSError as error:
        return Refusal(error.errno or errno.EIO, doing)
    return None


def try_memory_program() -> Refusal | None:
    """Execute a file in memory; None when that is allowed.

    The file is empty. Whether it may be executed is decided before anybody looks at what it is, so ENOEXEC is a yes.
    """
    try:
        try:
            fd = os.memfd_create("shoal-probe", os.MFD_CLOEXEC | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 6.3 there is no such flag, and every memfd is executable
                raise
            fd = os.memfd_create("shoal-probe", os.MFD_CLOEXEC)
    except OSError as error:
        return Refusal(error.errno or errno.EIO, "memfd_create")
    try:
        packer = Packer()
        packer.unshare_fds()
        packed = packer.packed(exec_fd=fd, exec_path="")
        _, _, stage, _, error_number, _ = _native.launch(packed.filled(()), b"shoal-probe\0", 1, b"", 0)
    finally:
        os.close(fd)
    if stage == _native.STAGE_EXEC and error_number == errno.ENOEXEC:
        return None
    doing = "execveat" if stage == _native.STAGE_EXEC else _LEAVING if stage == _native.STAGE_OPS else _CLONING
    return Refusal(error_number or errno.EIO, doing)


def landlock_abi() -> int:
    """The Landlock ABI the kernel offers, 0 for none: landlock_create_ruleset(2)."""
    return _native.landlock_abi()


def _in_namespaces(flags: int, do: Callable[[Packer], None]) -> Refusal | None:
    packer, where = Packer(), Place()
    if flags & CLONE_NEWUSER:
        try:
            flags = flags & ~CLONE_NEWUSER | own_user_namespace(packer, where)
        except SpawnError as error:
            return Refusal(error.errno or errno.EIO, _CLONING)
    if flags & CLONE_NEWNS:
        packer.op("PRIVATE_MOUNTS", "making mounts private")
    do(packer)
    return _attempt(packer, flags, **where)


def _mount_tmpfs(packer: Packer) -> int:
    """A tmpfs mounted over the root of the child's own mount namespace: only what is mounted somewhere can be cloned."""
    tmpfs = packer.made("FSMOUNT", "fsmount", text="tmpfs", text2="size=64k,mode=755")
    root = packer.made("OPEN", "opening the root directory", fd=CWD_FD, text="/", a=os.O_PATH | os.O_DIRECTORY)
    packer.op("MOVE_MOUNT", "move_mount", fd=tmpfs, fd2=root, text="")
    return tmpfs


def _attempt(packer: Packer, clone_flags: int, **where: Unpack[Place]) -> Refusal | None:
    packed = packer.packed(clone_flags=clone_flags, collect=True, **where)
    *_, stage, index, error, slots = _native.launch(packed.filled(()), b"", 0, b"", 0)
    if slots is None:
        doing = packed.labels[index] if stage == _native.STAGE_OPS else _CLONING
        return Refusal(error or errno.EIO, doing)
    for fd in slots:
        if fd >= 0:
            os.close(fd)
    return None


def _syscall(number: int, *args: int) -> int:
    """The result of a raw system call, or -errno. -ENOSYS where this Python has no ctypes to make one with."""
    try:
        import ctypes  # costly, and not there in every world: only who asks pays
    except ImportError:
        return -errno.ENOSYS
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args)))
    return -ctypes.get_errno() if result < 0 else result


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


# --- told to people ---------------------------------------------------------------------------------


def features() -> list[Feature]:
    """What this machine allows, tried now, in the order a person would want to read it."""
    privileged = is_privileged()
    no_user_namespaces = try_namespaces(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)
    found = [
        Feature("kernel", True, True, f"Linux {os.uname().release} on {os.uname().machine}"),
        _clone_feature(),
        _pidfd_feature(),
        _close_range_feature(),
        Feature("root", privileged, False, _may(privileged)),
        _user_namespace_feature(no_user_namespaces, privileged),
    ]
    if privileged:
        found.append(_root_namespace_feature())
    found.append(_mount_feature(no_user_namespaces, privileged))
    found.append(_overlay_feature(no_user_namespaces, privileged))
    found.append(_memory_program_feature())
    kcmp = has_kcmp()
    seen = "TransferFd notices a descriptor that has a duplicate" if kcmp else "not answered: TransferFd cannot notice duplicates"
    found.append(Feature("kcmp", kcmp, False, seen, "" if kcmp else _allow("kcmp")))
    abi = landlock_abi()
    found.append(Feature("landlock", abi > 0, False, f"ABI {abi}" if abi else "not offered", "" if abi else landlock_fix()))
    seccomp = _read("/proc/sys/kernel/seccomp/actions_avail")
    fix = "" if seccomp else "use a kernel built with CONFIG_SECCOMP_FILTER"
    found.append(Feature("seccomp", bool(seccomp), False, seccomp or "not offered", fix))
    return found


def _may(privileged: bool) -> str:
    if not privileged:
        return f"as an ordinary user, for want of {' '.join(lacking())}" if os.geteuid() == 0 else "an ordinary user"
    others = "" if is_initial_user_namespace() else "; programs get no user of their own: this is not the machine's user namespace"
    return f"may mount and make namespaces{others}"


_ROOT_FIX = f"start the container with {' '.join(MAKING_CELLS.values())}, and without a seccomp filter that forbids clone and mount"


def _allow(call: str) -> str:
    """How to lift what is almost always the reason for a call that the kernel has and that is refused: a container's filter."""
    return f"in a container, start it with a seccomp profile that allows {call}, such as --security-opt seccomp=unconfined"


def _pidfd_feature() -> Feature:
    refusal = try_pidfds()
    if refusal is None:
        return Feature("pidfd", True, True, "processes are held by descriptors: no pid is ever mistaken for another")
    fix = f"boot Linux 5.4 or later; {_allow('pidfd_open, pidfd_send_signal and waitid')}"
    return Feature("pidfd", False, True, str(refusal), fix)


def _close_range_feature() -> Feature:
    refusal = try_descriptor_table()
    if refusal is None:
        return Feature("close_range", True, True, "a child leaves all descriptors behind that are not for it")
    fix = "see clone3 above" if refusal.doing == _CLONING else f"boot Linux 5.9 or later; {_allow('close_range')}"
    return Feature("close_range", False, True, str(refusal), fix)


def _clone_feature() -> Feature:
    answer = -_syscall(_NUMBER_CLONE3, 0, 0)
    if answer == errno.ENOSYS:
        return Feature("clone3", False, False, "refused (a container's filter?): children join their job after the clone, by themselves")
    if answer == errno.EPERM:
        # The core takes ENOSYS for "use clone instead"; EPERM is the answer to a launch, not to a question.
        return Feature("clone3", False, True, "forbidden by a filter that should answer ENOSYS", _allow("clone3"))
    return Feature("clone3", True, False, "children begin in their job")


def _user_namespace_feature(refusal: Refusal | None, privileged: bool) -> Feature:
    if refusal is None:
        return Feature("user namespaces", True, False, "a cell can be made without root")
    return Feature("user namespaces", False, not privileged, str(refusal), _user_namespace_fix(refusal))


def _is_in_chroot() -> bool:
    """Whether the root directory is none of the mounts: chroot(2). False also where it is one of them all the same."""
    mounts = _read("/proc/self/mountinfo").splitlines()
    return bool(mounts) and all(line.split()[4] != "/" for line in mounts)


def _user_namespace_fix(refusal: Refusal) -> str:
    if not os.path.exists("/proc/self"):
        return "mount /proc"
    limit = _read("/proc/sys/user/max_user_namespaces")
    if refusal.error == errno.ENOSPC or limit == "0":
        more = 15000 if not limit.isdecimal() else max(15000, 2 * int(limit))
        return f"sysctl user.max_user_namespaces={more}"
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "sysctl kernel.unprivileged_userns_clone=1"
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile with `userns,` for this interpreter"
    if refusal.error == errno.EUSERS:
        return "start it less deep: user namespaces nest 32 deep"
    if refusal.error == errno.EINVAL:
        return "use a kernel built with CONFIG_USER_NS"
    if refusal.error == errno.EPERM and _is_in_chroot():
        return "make its root directory a mount and enter that by pivot_root(2): in a chroot no user namespace can be made"
    root = f"start it with CAP_SETFCAP, or with {' '.join(lacking())}" if os.geteuid() == 0 else "run as root"
    return f"{root}; {_allow('clone, unshare and mount')}"


def _root_namespace_feature() -> Feature:
    refusal = try_namespaces(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET)
    if refusal is None:
        return Feature("namespaces as root", True, False, "a cell can be made")
    return Feature("namespaces as root", False, False, str(refusal), _ROOT_FIX)


def _mount_feature(no_user_namespaces: Refusal | None, privileged: bool) -> Feature:
    name = "mount calls"
    if not privileged and no_user_namespaces is not None:
        return Feature(name, False, False, "not tried: it takes a user namespace", _user_namespace_fix(no_user_namespaces))
    refusal = try_mounts(CLONE_NEWNS if privileged else CLONE_NEWUSER | CLONE_NEWNS)
    if refusal is None:
        return Feature(name, True, True, "open_tree, move_mount, fsmount, mount_setattr: files are mounted by descriptor")
    allowed = _allow("open_tree, move_mount, fsopen, fsconfig, fsmount and mount_setattr")
    fix = "see what is missing above" if refusal.doing == _CLONING else f"boot Linux 5.12 or later; {allowed}"
    return Feature(name, False, True, str(refusal), fix)


def _overlay_feature(no_user_namespaces: Refusal | None, privileged: bool) -> Feature:
    """Tried where it is harder: in a user namespace, if there can be one."""
    name = "overlayfs"
    if no_user_namespaces is not None and not privileged:
        return Feature(name, False, False, "not tried: it takes a user namespace", _user_namespace_fix(no_user_namespaces))
    in_user_namespace = no_user_namespaces is None
    refusal = try_overlay(CLONE_NEWUSER | CLONE_NEWNS if in_user_namespace else CLONE_NEWNS)
    if refusal is None:
        return Feature(name, True, False, "a writable layer over read-only files" + (", in a user namespace" if in_user_namespace else ""))
    if refusal.doing != _OVERLAY:
        fix = "see mount calls above"
    elif refusal.error == errno.ENODEV:
        fix = "modprobe overlay"
    elif in_user_namespace:
        fix = "boot Linux 5.11 or later, which allows it in a user namespace"
    else:
        fix = _allow("fsopen, fsconfig and fsmount")
    return Feature(name, False, False, str(refusal), fix)


def _memory_program_feature() -> Feature:
    name = "memory programs"
    refusal = try_memory_program()
    if refusal is None:
        return Feature(name, True, True, "a memfd can be executed")
    if refusal.doing in (_CLONING, _LEAVING):
        fix = "see what is missing above"
    elif refusal.doing == "execveat":
        fix = "let the security module (SELinux, AppArmor, IPE) allow this program to execute a memfd"
    elif _read("/proc/sys/vm/memfd_noexec") == "2":
        fix = "sysctl vm.memfd_noexec=1"
    else:
        fix = _allow("memfd_create")
    return Feature(name, False, True, str(refusal), fix)


def landlock_fix() -> str:
    """What would bring Landlock."""
    modules = _read("/sys/kernel/security/lsm")
    if modules and "landlock" not in modules.split(","):
        return f"boot with lsm=landlock,{modules} (a kernel of 5.13 or later, built with CONFIG_SECURITY_LANDLOCK)"
    return f"boot Linux 5.13 or later with landlock in lsm=...; {_allow('landlock_create_ruleset')}"
