"""Job: a group of processes that are limited, counted and killed together, whatever they fork.

Jobs form a tree. What a job is made of is its backend's business: a cgroup v2 directory (cgroup.py), or a pid namespace
where no cgroup can be made (pidns.py). Here are the rights, the policy, and the order of the checks: is the handle valid
(BAD_HANDLE), does it carry the right (ACCESS_DENIED), are the arguments right (INVALID_ARGS), is the job alive (BAD_STATE).

Source: Zircon's zx_job_create(), zx_task_kill(), zx_job_set_policy(); spec 6.2 and 6.3.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Literal, Self

from shoal.handles.bare_job import BareBackend
from shoal.handles.base import Handle, Rights
from shoal.handles.cgroup import CgroupBackend
from shoal.handles.deadline import Deadline
from shoal.handles.hierarchy import availability, is_cgroup
from shoal.handles.job_arguments import ENFORCED, check_count, check_cpus, check_io, check_name, check_policy, parse_limit
from shoal.handles.job_backend import Counters, JobBackend, Limits, Placement
from shoal.handles.process import Usage
from shoal.status import AccessDeniedError, NotSupportedError, Stage, Status, failure, failure_from_errno

TREE_HEIGHT: Final = 32

_given_job: list[Callable[[], Job | None]] = []


def use_given_job(source: Callable[[], Job | None]) -> None:
    """Make `Job.default()` ask `source` first: the layer that knows what this process was handed at its start."""
    _given_job[:] = [source]


def given_job() -> Job | None:
    """The job this process was handed at its start, borrowed, or None."""
    return _given_job[0]() if _given_job else None


class Job(Handle):
    """A handle to a job. `fileno()` is the cgroup directory, or the pidfd of the first process of a pid namespace.

    A job is not ended by closing its handles: what runs in it runs on. When its maker has closed all of its own and nothing
    runs in it any more, its directory is removed.
    """

    kind: ClassVar[str] = "job"
    default_rights: ClassVar[Rights] = Rights.DEFAULT_JOB

    _backend: JobBackend | None
    _name: str

    @classmethod
    def default(cls) -> Job:
        """The job given to this process when it was started, or else the cgroup it lives in.

        The latter comes without `Rights.DESTROY`. Each call gives a new handle, to be closed by the caller.
        """
        given = given_job()
        if given is not None:
            return given._alias()
        backend: JobBackend
        try:
            backend = CgroupBackend.home()
        except NotSupportedError:
            backend = BareBackend.shared()
        return cls._with_backend(backend, Rights.DEFAULT_JOB & ~Rights.DESTROY)

    @classmethod
    def _from_fd(cls, fd: int, rights: Rights | None = None, name: str | None = None) -> Self:
        """The handle to the job a descriptor stands for, such as one handed over at the start.

        Raises:
            BadHandleError: `fd` is not open.
            WrongTypeError: it is not a job.
        Ownership: takes over `fd`; on an error it stays with the caller.
        """
        try:
            copy = os.dup(fd)
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"descriptor {fd} cannot be a job") from error
        try:
            backend = _adopt(copy, name)
        except BaseException:
            os.close(copy)
            raise
        return cls._wrap(fd, rights, backend)

    @classmethod
    def _own(cls, fd: int, rights: Rights | None = None) -> Self:
        return cls._from_fd(fd, rights)

    @classmethod
    def _with_backend(cls, backend: JobBackend, rights: Rights | None = None) -> Self:
        """A new handle to the job of `backend`."""
        try:
            fd = backend.open_fd()
        except OSError as error:
            raise failure_from_errno(error.errno or 0, Stage.HANDLE, f"cannot open a handle to job {backend.name}") from error
        return cls._wrap(fd, rights, backend)

    @classmethod
    def _wrap(cls, fd: int, rights: Rights | None, backend: JobBackend) -> Self:
        self = super()._own(fd, rights)
        self._backend = backend
        self._name = backend.name
        return self

    @property
    def name(self) -> str:
        """The name of the cgroup directory, without those above it."""
        return self._name

    def create_child(self, name: str | None = None) -> Job:
        """A new job below this one, with all rights. It inherits the policy as it is now. Needs `Rights.MANAGE_JOB`.

        Args:
            name: one path component, at most 255 bytes; None: shoal chooses one.
        Raises:
            AlreadyExistsError: a job of that name is there.
            BadStateError: this job was killed.
            OutOfRangeError: the tree would be higher than 32 levels.
            InvalidArgsError: not a possible name.
        Source: zx_job_create(); spec 6.2.
        """
        backend = self._require(Rights.MANAGE_JOB, "create_child()")
        if name is not None:
            check_name(name)
        if backend.is_killed():
            raise self._killed_error()
        if backend.depth >= TREE_HEIGHT:
            raise failure(Status.OUT_OF_RANGE, Stage.JOB, f"job {self._name} is {TREE_HEIGHT} levels down and can have no children")
        try:
            child = backend.create_child(name)
        except (NotSupportedError, AccessDeniedError) as error:
            child = _create_pidns(name, backend, error)
        if backend.is_killed():  # meanwhile
            child.kill()
            raise self._killed_error()
        return Job._with_backend(child)

    def set_policy(self, policy: Mapping[str, Literal["allow", "deny"]]) -> None:
        """Decide what the processes of this job may not do. Needs `Rights.SET_POLICY`, and a job that is still empty.

        `{"new_process": "deny"}` means that a process put into the job can make no other. It binds the processes and jobs
        that come afterwards, for ever; a job below cannot allow it again. Zircon's other conditions are known, but a
        request to deny one is refused, since nothing on Linux would enforce it for a tree of processes.

        Raises:
            BadStateError: it has a live process or child job, or was killed.
            InvalidArgsError: an unknown condition, or an empty policy.
            NotSupportedError: a condition that cannot be enforced, or an unknown action.
            AlreadyExistsError: it allows what is denied already. Nothing of the policy was applied.
        Source: zx_job_set_policy(); spec 6.3.
        """
        backend = self._require(Rights.SET_POLICY, "set_policy()")
        denied = check_policy(policy)
        if backend.is_killed():
            raise self._killed_error()
        if backend.is_populated() or backend.children():
            raise failure(Status.BAD_STATE, Stage.JOB, f"job {self._name} has live processes or child jobs; set the policy before")
        if policy.get(ENFORCED, policy.get("new_any")) == "allow" and backend.denies_new_process:
            raise failure(Status.ALREADY_EXISTS, Stage.JOB, f"job {self._name} denies {ENFORCED} already, which cannot be undone")
        if denied:
            backend.deny_new_process()

    def set_limits(
        self,
        *,
        memory: int | str | None = None,
        swap: int | str | None = None,
        pids: int | None = None,
        cpus: float | None = None,
        io: Mapping[str, int | str] | None = None,
        dies_whole: bool = False,
    ) -> None:
        """Limit everything in the job together, all limits given or none. Needs `Rights.MANAGE_JOB`.

        Args:
            memory, swap: bytes, or text such as "512M". None leaves a limit as it is.
            pids: processes and threads. A cell has one of its own besides the program: its first process.
            cpus: processors' worth of time; at least 0.01.
            io: block devices by path, such as "/dev/sda", and the bytes per second that may be read from, and written to, each.
            dies_whole: where the memory limit kills one process, it kills all that is in the job.
        Raises:
            NotSupportedError: the kernel cannot enforce one of them here; the message says how to get there.
            InvalidArgsError: not a possible limit.
        """
        backend = self._require(Rights.MANAGE_JOB, "set_limits()")
        limits = Limits(
            parse_limit("memory", memory), parse_limit("swap", swap), check_count(pids), check_cpus(cpus), check_io(io or {}), dies_whole
        )
        if backend.is_killed():
            raise self._killed_error()
        backend.set_limits(limits)

    def processes(self, *, recursive: bool = False) -> list[int]:
        """The pids of the live processes directly in this job, or in the whole tree. Needs `Rights.ENUMERATE`."""
        return self._require(Rights.ENUMERATE, "processes()").processes(recursive=recursive)

    def children(self) -> list[Job]:
        """New handles to the live child jobs, oldest first, with the rights of this one. Needs `Rights.ENUMERATE`."""
        backend = self._require(Rights.ENUMERATE, "children()")
        return [Job._with_backend(child, self._rights) for child in backend.children()]

    def usage(self) -> Usage:
        """What everything in the tree used, the ended included. Needs `Rights.INSPECT`."""
        return self._require(Rights.INSPECT, "usage()").usage()

    def counters(self) -> Counters:
        """What the kernel counted for the tree, the ended included. Needs `Rights.INSPECT`.

        Raises:
            NotSupportedError: the job is no cgroup.
        """
        return self._require(Rights.INSPECT, "counters()").counters()

    def kill(self) -> None:
        """Kill everything in the tree, whatever forks meanwhile; from now on nothing can be put into it.

        Returns when all are doomed; `wait_empty()` waits until they are gone. Killing twice is fine. Needs `Rights.DESTROY`.
        Source: zx_task_kill(); spec 6.2.
        """
        self._require(Rights.DESTROY, "kill()").kill()

    def wait_empty(self, timeout: float | str | None = None) -> None:
        """Wait until no process lives in the tree. Needs `Rights.WAIT`.

        Raises:
            TimeoutError: something still does after `timeout` (seconds, or text such as "1m30s").
        """
        backend = self._require(Rights.WAIT, "wait_empty()")
        if not backend.wait_empty(Deadline(timeout)):
            raise TimeoutError(f"job {self._name} still has live processes after {timeout} s")

    def placement(self, operation: str) -> Placement:
        """How to put a new process into this job. Needs `Rights.MANAGE_PROCESS`.

        Once the process is there ask `Placement.is_revoked()`, and kill it if so.

        Args:
            operation: who asks, for the message.
        Raises:
            BadStateError: the job was killed.
            AccessDeniedError: no `Rights.MANAGE_PROCESS`.
        """
        backend = self._require(Rights.MANAGE_PROCESS, operation)
        if backend.is_killed():
            del backend  # the traceback of this error must not keep the job's directory open
            raise self._killed_error()
        return backend.placement()

    def consume(self) -> int:
        """Move the descriptor out; the handle is closed afterwards. -1 when it already was.

        The job is then somebody else's, too: it is removed only after something ran in it and ended, or when we exit.
        """
        if (backend := self._backend) is not None:
            backend.hand_over()
        return self._release()

    def __repr__(self) -> str:
        return f"<shoal.Job {self._name!r} {'closed' if self.closed else f'fd {self._fd}'}>"

    def _require(self, rights: Rights, operation: str) -> JobBackend:
        self.require(rights, operation)
        backend = self._backend
        if backend is None:
            raise self._closed_error()
        return backend

    def _alias(self) -> Job:
        """Another handle with the same rights, also where `Rights.DUPLICATE` is not among them."""
        return Job._with_backend(self._require(Rights.NONE, "default()"), self._rights)

    def _release(self) -> int:
        fd = super()._release()
        self._backend = None  # the last one to go removes the directory
        return fd

    def _wrap_duplicate(self, fd: int, rights: Rights) -> Self:
        backend = self._backend
        if backend is None:
            os.close(fd)
            raise self._closed_error()
        return self._wrap(fd, rights, backend)

    def _killed_error(self) -> Exception:
        return failure(Status.BAD_STATE, Stage.JOB, f"job {self._name} was killed")


def _adopt(fd: int, name: str | None) -> JobBackend:
    """The backend for a descriptor, which it takes over unless it raises."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        if is_cgroup(fd):
            return CgroupBackend.adopt(fd, name)
    elif BareBackend.is_one(fd):
        os.close(fd)
        return BareBackend.shared()
    elif _is_pidfd(fd):
        from shoal.handles import pidns

        return pidns.adopt(fd, name)
    raise failure(Status.WRONG_TYPE, Stage.HANDLE, f"descriptor {fd} is not a job: no cgroup v2 directory and no pidfd")


def _create_pidns(name: str | None, parent: JobBackend, cause: Exception) -> JobBackend:
    """A job made of a pid namespace, where `parent` cannot have one made of a cgroup."""
    from shoal.handles import pidns

    try:
        return pidns.create(name, parent)
    except NotSupportedError as error:
        _, reason, fix = availability()
        detail = f"no job can be made: {error.detail}; and no cgroup: {reason}"
        raise failure(Status.NOT_SUPPORTED, Stage.JOB, f"{detail}; {fix}" if fix else detail) from cause


def _is_pidfd(fd: int) -> bool:
    import signal

    try:
        signal.pidfd_send_signal(fd, 0)
    except (ProcessLookupError, PermissionError):
        return True
    except OSError:
        return False
    return True
