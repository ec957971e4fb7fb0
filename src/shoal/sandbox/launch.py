"""Launch: a Sandbox and a program become a Plan, and the Plan a process, in a cell made ahead where there is one.

What was worked out for a box and a program is kept with the box, and used again while the files it was worked out from are the same.

Ownership of time: a box is plain data. What it names is looked at when something is started in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from shoal.actions import Action, AddNsEntry, CloneFd, SetName
from shoal.arguments import StrOrBytesPath
from shoal.cells import launch_warm
from shoal.draft import Draft
from shoal.entries import held_in_place
from shoal.environment import encode_environ
from shoal.flags import SpawnFlags
from shoal.handles import reaper
from shoal.handles.directory import DEVICES, Directory
from shoal.handles.job import Job
from shoal.handles.keeper import Strings
from shoal.handles.made import empty_mounts
from shoal.handles.mount import Bind
from shoal.handles.netns import NetNs
from shoal.handles.process import Process
from shoal.handles.reaper import OwnedFd
from shoal.launcher import run
from shoal.loader import FileIdentity
from shoal.lowering import Lowered
from shoal.packing import count_strings, encode_words
from shoal.plan import Confinement, Plan
from shoal.privileges import is_initial_user_namespace, is_privileged
from shoal.recipe import Recipe, can_be_cooked, can_wait, make_recipe
from shoal.sandbox.box import EACH_PROCESS, ENVIRONMENT, Sandbox
from shoal.sandbox.confinement import confinement_of, hard_limits
from shoal.sandbox.entries import make_entries
from shoal.sandbox.errors import RequestError
from shoal.sandbox.grants import Grant, Kind, View, check_dest, grant_path, lay_out, working_directory
from shoal.sandbox.landlock import abi, second_wall
from shoal.sandbox.landlocked import Wanted, enforced_without_cell, launch_landlocked, plan_landlocked
from shoal.sandbox.own_user import may_become_another
from shoal.sandbox.program import Program
from shoal.sandbox.tier import Tier, tier
from shoal.spawning import make_plan, start
from shoal.startup_table import VARIABLE
from shoal.status import Stage, Status, failure
from shoal.units import parse_size

OF_EACH_PROCESS = ("open_files", "file_size")
"""Limits that are meant for each process."""
KEPT = 64
"""Programs remembered for one box; the one used longest ago goes first."""

_FLAGS = SpawnFlags.DEFAULT_LDSVC
_CONSOLE = "/dev/console"
_STARTUP = VARIABLE.encode() + b"="

Identity = tuple[int, ...]
_Key = tuple[str, str, str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Known:
    """What was worked out for one program, and what it was worked out from.

    Attributes:
        files: what the box names, and the program that really runs, as they were: path and identity.
        directives: arguments that #! lines put in front.
    """

    program: FileIdentity | None
    files: tuple[tuple[str, Identity], ...]
    directives: tuple[bytes, ...]
    plan: Plan
    same_libraries: Callable[[], bool]

    @classmethod
    def of(cls, plan: Plan, draft: Draft, order: Order, named: Sequence[str]) -> _Known:
        """
        Args:
            named: the files that the box names.
        """
        own = [os.fsdecode(plan.program.path)] if plan.program.path else []
        files = tuple((path, _identity(path)) for path in (*named, *held_in_place(plan.mounts), *own))
        directives = plan.argv[: len(plan.argv) - len(order.args) - 1]
        return cls(order.program.identity, files, directives, plan, draft.closure_check())

    def is_true_for(self, order: Order) -> bool:
        """Whether nothing has changed."""
        program = order.program.identity
        if program is None or program != self.program or self.plan.privileged != is_privileged():
            return False
        try:
            for path, known in self.files:
                if _identity(path) != known:
                    return False
        except OSError:
            return False
        return self.same_libraries()

    def plan_of(self, order: Order) -> Plan:
        """The plan of a launch that is like the first one in all but its arguments, variables and descriptors."""
        placed = tuple(dataclasses.replace(item, source=order.fds[item.target]) for item in self.plan.descriptors)
        environ = self.plan.environ if order.environ is None else tuple(encode_environ(order.environ))
        return dataclasses.replace(self.plan, argv=(*self.directives, *order.argv), environ=environ, descriptors=placed)

    def argv(self, order: Order) -> Strings:
        """What the program gets."""
        return count_strings((*self.directives, *order.argv))


@dataclass(frozen=True, slots=True)
class _Kept:
    """How it is launched again."""

    known: _Known
    lowered: Lowered
    ahead: Recipe | None


class Cooked(NamedTuple):
    """The recipe for a cell, and what the program in it gets.

    Attributes:
        targets: the numbers of its descriptors in the child, in the order in which they are to be sent.
        plan: all that it gets; its descriptors are those of the order.
    """

    recipe: Recipe
    targets: tuple[int, ...]
    argv: Strings
    environ: Strings
    plan: Plan


@dataclass(slots=True)  # not frozen: that costs a call for each field at each run
class Order:
    """What is to be started in a box.

    Attributes:
        args: without the program's name.
        fds: descriptors by the number they get in the child; borrowed.
        host_cwd: the caller's working directory.
        name: what ps shows; None: the program's own.
        terminal: becomes the controlling terminal of the program's session; borrowed.
        grants: all that it sees, as `Boxed.grants()` laid it out; None: as the box says.
        environ: all its variables; None: those of the box.
    """

    program: Program
    args: Sequence[str]
    fds: Mapping[int, int]
    host_cwd: str
    name: str | None = None
    terminal: int | None = None
    grants: tuple[Grant, ...] | None = None
    environ: Mapping[str, str] | None = None

    @property
    def argv(self) -> tuple[bytes, ...]:
        """What the program gets, without what a #! line puts in front."""
        return encode_words((self.program.argv0, *self.args))

    @property
    def is_plain(self) -> bool:
        """Whether everything is as the box says, its variables aside."""
        return self.name is None and self.terminal is None and self.grants is None


class Boxed:
    """A Sandbox, ready to start programs in."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.environ = {**ENVIRONMENT, **box.env}
        self._standing = _standing()
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._cooked: OrderedDict[_Key, tuple[_Known, Recipe]] = OrderedDict()

    @classmethod
    def of(cls, box: Sandbox) -> Boxed:
        """The one that belongs to `box`, made on first use, and anew when this process has become somebody else."""
        known = box.__dict__.get("_boxed")
        if isinstance(known, Boxed) and known._standing == _standing():
            return known
        made = cls(box)
        object.__setattr__(box, "_boxed", made)
        return made

    @property
    def search(self) -> str:
        """Where programs are looked for: the caller's PATH, which is not the program's."""
        return os.environ.get("PATH", os.defpath)

    def looks_around(self, name: str) -> bool:
        """Always: where it begins depends on it."""
        return True

    def kill(self, process: Process) -> Sequence[OwnedFd]:
        """Kill it and all that it has started. Returns at once. There is nothing else to be waited for: the cell ends as a whole."""
        process.kill_cell()
        return ()

    @functools.cached_property
    def enforced(self) -> dict[str, bool | str]:
        """Each protection, and whether it is in force."""
        confinement, tier = self._confinement, self.tier
        found: dict[str, bool | str] = {} if tier.is_cell else enforced_without_cell(self.box, tier)
        found = {
            "tier": tier.name,
            "namespaces": True,
            "network": self.box.network != "host",
            "no_new_privs": True,
            "capabilities": True,
            "seccomp": confinement.filter_label or False,
            "landlock": f"second wall, ABI {abi()}" if abi() else False,
            "user": confinement.own_user,
            "tree": True,
        } | found
        found |= {limit.name: EACH_PROCESS for limit in confinement.rlimits if limit.name != "core_size"}
        asked = {"wall_time": self.box.wall_time is not None, "core_set": bool(self.box.core_set), "nice": self.box.nice is not None}
        found |= {name: True for name, is_asked in asked.items() if is_asked}
        if self.box.core_set and not confinement.filter:
            found["core_set"] = "until the program changes it: that takes a filter"
        return found

    def enforced_with(self, others: dict[str, bool | str]) -> dict[str, bool | str]:
        """The same, with what others see to.

        Raises:
            NotSupportedError: one that the box requires is not in force.
        """
        enforced = self.enforced | others
        for name in self.box.require:
            how = enforced.get(name, False)
            if how is False or (how == EACH_PROCESS and name not in OF_EACH_PROCESS):
                what = "it was not asked for" if name not in enforced else "it is not in force" if how is False else f"only for {how}"
                raise failure(Status.NOT_SUPPORTED, Stage.SETUP, f"{name} is required, but {what}; `shoal doctor` tells what is missing")
        return enforced

    def plan(self, order: Order) -> Plan:
        """What `launch()` would do, for a listing. Starts nothing."""
        with ExitStack() as stack:
            if self.tier.is_cell:
                draft, plan = self._draft(order, None, stack, consume=False)
            else:
                draft, plan = plan_landlocked(self._wanted(order), self.tier, None, "/tmp", consume=False)
            draft.close()
            return plan

    def launch(self, order: Order, job: Job | None, told: Callable[[Plan], None] | None = None) -> Process:
        """Start a program.

        Args:
            job: where it is accounted; None: the caller's.
            told: called with what is about to be carried out, whose descriptors are open meanwhile; more than once where it takes
                another attempt, and the last time counts.
        Raises:
            SpawnError: nothing was started.
            RequestError: what the box names is not there, or not possible for this program.
        """
        program = order.program
        key = (program.path, program.argv0, order.host_cwd, tuple(order.fds))
        plain = job is None and order.is_plain
        kept = self._kept.get(key) if plain else None
        if kept is not None:
            process = self._again(kept, order, told)
            if process is not None:
                return process
        reaper.sweep()
        if not self.tier.is_cell:
            return launch_landlocked(self._wanted(order), self.tier, job, told)
        with ExitStack() as stack:
            draft, plan = self._draft(order, job, stack, consume=True)
            try:
                known = _Known.of(plan, draft, order, self._named(order.host_cwd))
                if told is not None:
                    told(plan)
                process, lowered = start(plan, draft)
                if plain and plan.netns_fd is None:  # a plan with a network that was handed over has a copy of it, which ends here
                    self._remember(key, _Kept(known, lowered, make_recipe(plan, empty_mounts) if can_wait(plan) else None))
            finally:
                draft.close()
        return process

    def _again(self, kept: _Kept, order: Order, told: Callable[[Plan], None] | None) -> Process | None:
        known = kept.known
        if not known.is_true_for(order):
            return None
        argv = known.argv(order)
        if argv[0].count(b"\0") != argv[1]:
            return None
        numbers = tuple(order.fds[item.target] for item in known.plan.descriptors)
        if told is not None:
            told(known.plan_of(order))
        environ = self._environ_of(order)
        try:
            process = launch_warm(kept.ahead, numbers, argv, environ) if kept.ahead is not None else None
            return process or run(kept.lowered, numbers, argv, environ)
        except OSError:
            return None  # and the long way says what is wrong

    def cook(self, order: Order) -> Cooked | None:
        """What somebody else needs to make a cell for a program and to start it there; None: it takes descriptors of this process.

        Raises: as `launch()`.
        """
        key = (order.program.path, order.program.argv0, order.host_cwd, tuple(order.fds))
        found = self._cooked.get(key)
        if found is None or not found[0].is_true_for(order):
            with ExitStack() as stack:
                draft, plan = self._draft(dataclasses.replace(order, environ=None), None, stack, consume=True)
                try:
                    if not can_be_cooked(plan):
                        return None
                    found = (_Known.of(plan, draft, order, self._named(order.host_cwd)), make_recipe(plan, empty_mounts))
                finally:
                    draft.close()
            self._cooked[key] = found
            while len(self._cooked) > KEPT:
                self._cooked.popitem(last=False)
        known, recipe = found
        targets = tuple(item.target for item in known.plan.descriptors)
        return Cooked(recipe, targets, known.argv(order), self._environ_of(order), known.plan_of(order))

    def _environ_of(self, order: Order) -> Strings:
        return self._own_environ if order.environ is None else count_strings(encode_environ(order.environ))

    @functools.cached_property
    def _own_environ(self) -> Strings:
        return count_strings(encode_environ(self.environ))

    def _remember(self, key: _Key, kept: _Kept) -> None:
        self._kept[key] = kept
        while len(self._kept) > KEPT:
            with contextlib.suppress(KeyError):  # another thread was quicker
                self._kept.popitem(last=False)

    def _draft(self, order: Order, job: Job | None, stack: ExitStack, *, consume: bool) -> tuple[Draft, Plan]:
        grants = self.grants(order.program, order.host_cwd) if order.grants is None else order.grants
        view = View(grants)
        cwd = working_directory(self.box.cwd, view, order.host_cwd)
        devices = self._devices()
        actions: list[Action] = list(make_entries(grants, view, stack, devices, own_user=self._confinement.own_user))
        actions += _console(order.terminal, grants, devices, stack)
        network = self.box.network
        if network == "host":
            actions.append(AddNsEntry("/svc/net", stack.enter_context(NetNs.host())))
        elif isinstance(network, NetNs):
            actions.append(AddNsEntry("/svc/net", stack.enter_context(network.duplicate())))
        actions += [CloneFd(fd, target) for target, fd in order.fds.items()]
        actions += [SetName(order.name)] if order.name is not None else []
        draft = Draft(_FLAGS, tuple(actions), consume=consume)
        try:
            plan = make_plan(
                draft,
                order.program.path,
                order.argv,
                self.environ if order.environ is None else order.environ,
                job,
                order.terminal,
                die_with_caller=self.box.linger != "keep",
                confinement=self._confinement,
            )
            plan = dataclasses.replace(_lasting(plan), cwd=os.fsencode(cwd))
            return draft, dataclasses.replace(plan, confinement=dataclasses.replace(plan.confinement, landlock=second_wall(plan)))
        except BaseException:
            draft.close()
            raise

    @functools.cached_property
    def tier(self) -> Tier:
        """What the sandbox is made of here.

        Raises:
            NotSupportedError: there is nothing to make one of.
        """
        return tier()

    @functools.cached_property
    def _confinement(self) -> Confinement:
        by_root = self.tier.name == "cell, root" and is_initial_user_namespace()  # in another one there are no ids to spare
        own_user = by_root or (not self.tier.is_cell and may_become_another(self.box))
        return confinement_of(self.box, privileged=own_user)

    def _wanted(self, order: Order) -> Wanted:
        """What is to be started without a cell."""
        grants = self.grants(order.program, order.host_cwd) if order.grants is None else order.grants
        return Wanted(
            self.box,
            order.program.path,
            order.argv,
            grants,
            self._devices(),
            self.environ if order.environ is None else order.environ,
            order.fds,
            self._confinement,
            working_directory(self.box.cwd, View(grants), order.host_cwd),
            order.name,
            order.terminal,
        )

    def _devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*DEVICES, *self.box.devices)))

    def grants(self, program: Program, host_cwd: str, more: Sequence[Grant] = ()) -> tuple[Grant, ...]:
        """All that the program sees, laid out.

        Args:
            more: besides what the box has, and instead of it where both have something for one place.
        """
        box = self.box
        own = [*_grants(box.read, host_cwd, writable=False), *_grants(box.write, host_cwd, writable=True)]
        taken = {grant.dest for grant in more}
        asked = [*(grant for grant in own if grant.dest not in taken), *more]
        if isinstance(box.tmp, int | str) and not isinstance(box.tmp, bool) and all(grant.dest != "/tmp" for grant in asked):
            asked.append(Grant(Kind.TMPFS, "/tmp", writable=True, size=str(parse_size(box.tmp))))
        return lay_out(asked, program=program.path, scripts=program.between, network=box.network == "host", tmp=box.tmp is not False)

    def _named(self, host_cwd: str) -> list[str]:
        named = []
        for what in (self.box.read, self.box.write):
            paths = what.values() if isinstance(what, Mapping) else what
            named += [os.path.join(host_cwd, os.fsdecode(path)) for path in paths]
        return named


def _standing() -> tuple[int, ...]:
    """What of this process decides how a box is made: its user, and what it may leave to others. A daemon gives up both by and by."""
    return os.geteuid(), *hard_limits()


def _console(terminal: int | None, grants: Sequence[Grant], devices: Sequence[str], stack: ExitStack) -> list[Action]:
    """The terminal by the name it can have in there: its own is in a file system of terminals that the program does not see. ttyname(3)."""
    if terminal is None or "console" in devices or any(grant.dest == _CONSOLE for grant in grants):
        return []
    try:
        node = Directory.file(os.ttyname(terminal), writable=True)
    except OSError:  # where we do not see it either
        return []
    return [AddNsEntry(_CONSOLE, stack.enter_context(node), nested=True)]


def _grants(what: Sequence[StrOrBytesPath] | Mapping[str, StrOrBytesPath], host_cwd: str, *, writable: bool) -> list[Grant]:
    pairs: list[tuple[StrOrBytesPath, str | None]]
    if isinstance(what, Mapping):
        pairs = [(outside, check_dest(inside, _option(writable))) for inside, outside in what.items()]
    else:
        pairs = [(path, None) for path in what]
    found: list[Grant] = []
    for path, dest in pairs:
        try:
            found += grant_path(os.fsdecode(path), dest, writable=writable, cwd=host_cwd, option=_option(writable))
        except OSError as error:
            raise RequestError(f"{_option(writable)}: {os.fsdecode(path)}: {error.strerror}") from None
    return found


def _option(writable: bool) -> str:
    return "write" if writable else "read"


def _lasting(plan: Plan) -> Plan:
    """The plan with what it binds known by name and identity instead of by descriptor, so that it can be carried out again."""

    def by_name(source: object) -> object:
        return dataclasses.replace(source, fd=-1, follow_fd=-1) if isinstance(source, Bind) else source

    mounts = tuple(dataclasses.replace(mount, source=by_name(mount.source)) for mount in plan.mounts)  # type: ignore[arg-type]
    # Nothing is handed over that a program would look up there.
    environ = tuple(item for item in plan.environ if not item.startswith(_STARTUP))
    return dataclasses.replace(plan, mounts=mounts, environ=environ)


def _identity(path: str) -> Identity:
    found = os.stat(path)
    if stat.S_ISREG(found.st_mode):
        return found.st_dev, found.st_ino, found.st_mode, found.st_mtime_ns, found.st_size
    return found.st_dev, found.st_ino, found.st_mode
