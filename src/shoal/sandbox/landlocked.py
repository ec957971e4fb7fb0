"""Landlocked: a Sandbox and a program become a Plan for the caller's world, where no cell can be made.

The Plan has no mounts. What a cell's mounts would show is a list of Landlock rules, and whatever cannot be said in rules is refused:
Landlock allows and never takes back, and shows a file nowhere but where it is. The filter of `walls` closes the rest.

What every program gets: itself, its interpreter and libraries, the standard devices, a directory of its own in the place of /tmp, and
of /proc a few files about itself and the machine which runtimes read when they start. Not /proc as a whole, which would be everybody's
there.

Source: landlock(7).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from shoal import loader
from shoal.actions import Action, CloneFd, SetName
from shoal.draft import Draft
from shoal.flags import SpawnFlags
from shoal.handles.holder import Holder
from shoal.handles.job import Job
from shoal.handles.netns import NetNs
from shoal.handles.process import Process
from shoal.holding import start_held
from shoal.plan import Confinement, FileRule, Plan
from shoal.sandbox.box import Sandbox
from shoal.sandbox.errors import RequestError
from shoal.sandbox.grants import Grant, Kind, is_inside
from shoal.sandbox.landlock import (
    EXECUTE,
    IOCTL_DEV,
    OF_DIRECTORIES,
    OF_FILES,
    READ_DIR,
    READ_FILE,
    WRITE_FILE,
    first_wall,
)
from shoal.sandbox.own_user import is_open_to_all
from shoal.sandbox.private import PrivateDirectory
from shoal.sandbox.tier import Tier
from shoal.sandbox.walls import LABEL, walls
from shoal.spawning import in_job, make_plan
from shoal.status import Stage, Status, failure

_FLAGS = SpawnFlags.CLONE_NAMESPACE | SpawnFlags.DEFAULT_LDSVC
_OF_ITSELF = ("cmdline", "comm", "fd", "limits", "maps", "stat", "statm", "status")
_OF_THE_MACHINE = ("cpuinfo", "meminfo", "stat", "version")
_LINKER_CACHE = "/etc/ld.so.cache"
_TMP = "/tmp"
_TMP_VARIABLES = ("TMPDIR", "TMP", "TEMP")


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be started, as `Boxed` and its order say it.

    Attributes:
        grants: all that a cell would show, laid out.
        devices: below /dev.
        confinement: without Landlock's rules and without the filter in the place of namespaces.
        cwd: the working directory, as in a cell.
    """

    box: Sandbox
    path: str
    argv: tuple[bytes, ...]
    grants: tuple[Grant, ...]
    devices: Sequence[str]
    environ: Mapping[str, str]
    fds: Mapping[int, int]
    confinement: Confinement
    cwd: str
    name: str | None
    terminal: int | None


def check(wanted: Wanted, tier: Tier) -> None:
    """Refuse what Landlock cannot say.

    Raises:
        RequestError: what, and how to get it.
    """
    box, writes = wanted.box, [grant for grant in wanted.grants if grant.kind is Kind.PATH and grant.writable]
    for grant in wanted.grants:
        if grant.kind is Kind.TMPFS and grant.asked and grant.dest == _TMP:
            raise _refused("a size of the private /tmp", "say tmp=True, and file_size for each file", tier)
        if grant.kind is Kind.TMPFS and grant.asked:
            raise _refused(f"an empty directory in memory at {grant.dest}", "use the directory that TMPDIR names", tier)
        if grant.kind is not Kind.PATH:
            continue
        if os.path.realpath(grant.dest) != grant.source:
            raise _refused(f"{grant.source} at {grant.dest}", "hand it over where it is", tier)
        if grant.source == "/dev" or is_inside(grant.source, "/dev"):
            raise _refused(f"{grant.dest} without its device nodes", "name the devices that it needs in devices", tier)
        holder = next((other for other in writes if not grant.writable and grant.asked and is_inside(grant.source, other.source)), None)
        if holder is not None:
            raise _refused(f"{grant.dest}, to be read only, inside {holder.dest}, which is written", "hand over what lies beside it", tier)
    if isinstance(box.network, NetNs):
        raise _refused("a network handed over", 'network="host" or "none"', tier)
    if "pts" in box.devices:
        raise _refused("terminals of its own (devices: pts)", "hand over a terminal as a descriptor", tier)
    if box.linger == "keep" and _private_tmp(wanted.grants):
        raise _refused('a private /tmp with linger="keep"', "say tmp=False: nobody would be there to remove it", tier)
    for target, fd in wanted.fds.items():
        if _names_receivers(fd):
            raise _refused(f"descriptor {target}, a unix socket that could reach others,", "hand over a connected stream", tier)


def enforced_without_cell(box: Sandbox, tier: Tier) -> dict[str, bool | str]:
    """What `Result.enforced` says otherwise than of a cell."""
    return {
        "namespaces": False,
        "network": box.network == "none" and "filter",
        "landlock": f"first wall, ABI {tier.abi}",
    }


def _refused(what: str, instead: str, tier: Tier) -> RequestError:
    text = f"{what} takes namespaces, which cannot be made here ({tier.why})"
    return RequestError(f"{text}; {instead}, or allow them: {tier.fix}", hints=(instead, tier.fix))


def _names_receivers(fd: int) -> bool:
    """Whether it could send to any socket of the host that has a name: for datagrams, or not connected yet."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as view:
            if view.family != socket.AF_UNIX or view.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            if view.type & 0xF == socket.SOCK_DGRAM:
                return True
            view.getpeername()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def _private_tmp(grants: Sequence[Grant]) -> bool:
    return any(grant.kind is Kind.TMPFS and grant.dest == _TMP for grant in grants)


def plan_landlocked(wanted: Wanted, tier: Tier, job: Job | None, tmp: str | None, *, consume: bool) -> tuple[Draft, Plan]:
    """The plan, and the draft it comes from, to be closed.

    Args:
        tmp: the directory in the place of /tmp; None: there is none.
    Raises:
        SpawnError, RequestError: as for a cell; or it cannot be had without namespaces.
    """
    check(wanted, tier)
    box = wanted.box
    actions: list[Action] = [CloneFd(fd, target) for target, fd in wanted.fds.items()]
    actions += [SetName(wanted.name)] if wanted.name is not None else []
    draft = Draft(_FLAGS, tuple(actions), consume=consume)
    try:
        environ, cwd = _moved(wanted.environ, tmp), tmp if tmp and wanted.cwd == _TMP else wanted.cwd
        plan = make_plan(
            draft, wanted.path, wanted.argv, environ, job, wanted.terminal, die_with_caller=False, confinement=wanted.confinement
        )
        if plan.program.path is None:
            raise _refused("a program that a resolver gave", "name its file", tier)
        handed = tuple(_rules(wanted, plan, tmp))
        rules = (*handed, *_standard(wanted.devices))
        confinement = dataclasses.replace(
            _with_user(wanted, handed, tmp),
            landlock=first_wall(rules, tier.abi, network=box.network == "host"),
            walls=walls(abi=tier.abi, network=box.network == "host"),
            walls_label=LABEL,
        )
        return draft, dataclasses.replace(
            plan,
            cwd=os.fsencode(cwd),
            network="caller" if box.network == "host" else "closed",
            session=True,
            dies_with_caller=box.linger != "keep",
            confinement=confinement,
            held=True,
        )
    except BaseException:
        draft.close()
        raise


def launch_landlocked(wanted: Wanted, tier: Tier, job: Job | None, told: Callable[[Plan], None] | None = None) -> Process:
    """Start it.

    Args:
        told: called with what is about to be carried out.
    Raises:
        SpawnError: nothing was started. RequestError: it cannot be had without namespaces.
    """
    check(wanted, tier)
    tmp = PrivateDirectory.make() if _private_tmp(wanted.grants) else None
    try:
        draft, plan = plan_landlocked(wanted, tier, job, tmp.path if tmp else None, consume=True)
        try:
            if told is not None:
                told(plan)
            process, _ = in_job(draft, lambda: (start_held(plan, tmp.give_to if tmp else _nobody), None))
        finally:
            draft.close()
    except BaseException:
        if tmp:
            tmp.remove()
        raise
    if tmp and isinstance(process._keeper, Holder):
        process._keeper.at_end = tmp.remove
    return process


def _with_user(wanted: Wanted, handed: Sequence[FileRule], tmp: str | None) -> Confinement:
    """The confinement with a user of its own only where that can use what it is handed.

    Raises:
        NotSupportedError: it cannot, and the box insists.
    """
    found = wanted.confinement
    closed = [rule.path for rule in handed if rule.path != tmp and (rule.writable or not is_open_to_all(rule.path))]
    if not found.own_user or not closed:
        return found
    if "user" in wanted.box.require:
        what = f"user is required, but without namespaces nobody but the caller can use {closed[0]} as it is handed over"
        raise failure(Status.NOT_SUPPORTED, Stage.SETUP, what)
    return dataclasses.replace(found, own_user=False)


def note_own_user(enforced: dict[str, bool | str], process: Process) -> None:
    """Correct what is said of the user: without a cell only its launch tells whether a program runs as somebody else than its caller."""
    if enforced["user"] and not enforced["namespaces"]:
        enforced["user"] = isinstance(process._keeper, Holder) and process._keeper.has_own_user


def _nobody(user: int) -> None:
    """There is nothing to be given."""


def _moved(environ: Mapping[str, str], tmp: str | None) -> dict[str, str]:
    """The variables, with those that speak of /tmp speaking of the directory in its place."""
    if tmp is None:
        return dict(environ)
    moved = {key: tmp if value == _TMP and key in ("HOME", "PWD", *_TMP_VARIABLES) else value for key, value in environ.items()}
    return dict.fromkeys(_TMP_VARIABLES, tmp) | moved


# --- rules --------------------------------------------------------------------------------------------------------------------------


def _rules(wanted: Wanted, plan: Plan, tmp: str | None) -> Iterator[FileRule]:
    for grant in wanted.grants:
        if grant.kind is Kind.PATH:
            origin = "write" if grant.writable else "read" if grant.asked else "every program"
            for path in _parts(grant.source, private_tmp=tmp is not None):
                yield _rule(path, origin, writable=grant.writable)
    if tmp is not None:
        yield _rule(tmp, "the private /tmp", writable=True)
    program = os.path.realpath(os.fsdecode(plan.program.path or b""))
    yield _rule(program, "the program")
    executable = loader.inspect(program)
    if not executable.program(plan.program.label).is_static:
        for library in loader.library_closure(executable, plan.program.path, plan.program.label):
            yield _rule(os.path.realpath(library.path), "DEFAULT_LDSVC")
        if os.path.exists(_LINKER_CACHE):
            yield _rule(os.path.realpath(_LINKER_CACHE), "DEFAULT_LDSVC")


def _parts(path: str, *, private_tmp: bool) -> list[str]:
    """What a grant is made of: of the whole host all but what a program has of its own in a cell, which no rule could take away."""
    if path != "/":
        return [path]
    own = ("dev", "proc", *(("tmp",) if private_tmp else ()))
    return [entry.path for entry in os.scandir("/") if entry.name not in own and not entry.is_symlink()]


def _rule(path: str, origin: str, *, writable: bool = False) -> FileRule:
    try:
        found = os.stat(path)
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}") from None
    return FileRule(path, _access(is_dir=stat.S_ISDIR(found.st_mode), writable=writable), found.st_dev, found.st_ino, writable, origin)


def _access(*, is_dir: bool, writable: bool) -> int:
    """Everything of its kind; what the kernel does not know is taken away where the wall is put together."""
    allowed = EXECUTE | READ_FILE | READ_DIR if not writable else OF_DIRECTORIES
    return allowed if is_dir else allowed & OF_FILES & ~IOCTL_DEV


def _standard(devices: Sequence[str]) -> Iterator[FileRule]:
    for name in devices:
        path = os.path.realpath(f"/dev/{name}")
        with suppress(OSError):
            found = os.stat(path)
            yield FileRule(path, READ_FILE | WRITE_FILE | IOCTL_DEV, found.st_dev, found.st_ino, True, "every program")
    for name in _OF_THE_MACHINE:
        with suppress(OSError):
            found = os.stat(f"/proc/{name}")
            yield FileRule(f"/proc/{name}", READ_FILE, found.st_dev, found.st_ino, False, "every program")
    if os.path.exists("/proc/self/maps"):
        for name in _OF_ITSELF:
            yield FileRule(f"/proc/self/{name}", READ_DIR if name == "fd" else READ_FILE, 0, 0, False, "every program")
