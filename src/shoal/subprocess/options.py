"""Options: the types of what Popen() and its callers take. Types only; they say what typeshed says of the standard module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypedDict

from shoal.arguments import StrOrBytesPath

if TYPE_CHECKING:
    from shoal.sandbox.box import Sandbox

Command: TypeAlias = "StrOrBytesPath | Sequence[StrOrBytesPath]"
File: TypeAlias = "int | IO[Any] | None"
Env: TypeAlias = "Mapping[str, StrOrBytesPath] | Mapping[bytes, StrOrBytesPath]"


class Started(TypedDict, total=False):
    """How a program is started, the command and its three streams aside."""

    preexec_fn: Callable[[], Any] | None
    close_fds: bool
    shell: bool
    cwd: StrOrBytesPath | None
    env: Env | None
    startupinfo: Any
    creationflags: int
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    pipesize: int
    process_group: int | None
    sandbox: Sandbox | str | None


class Popened(Started, total=False):
    """What Popen() takes besides the command and what decides on text or bytes."""

    stdin: File
    stdout: File
    stderr: File


class Called(Popened, total=False):
    """What call() takes besides the command."""

    text: bool | None
    encoding: str | None
    errors: str | None
    universal_newlines: bool | None
    timeout: float | None


class Ran(Popened, total=False):
    """What run() takes besides the command and what decides on text or bytes."""

    capture_output: bool
    check: bool
    timeout: float | None


class Checked(Started, total=False):
    """What check_output() takes besides the command and what decides on text or bytes."""

    stdin: File
    stderr: File
    timeout: float | None
