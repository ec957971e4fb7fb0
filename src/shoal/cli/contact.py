"""Contact: the manager as the verbs reach it, the domains they are told of, and its refusals as one line with what to do.

Nothing of the manager is loaded before a verb really asks it something: help and completion need none of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.cli.output import TIMED_OUT, CommandError
from shoal.sandbox.errors import NOT_EXECUTABLE, NOT_FOUND, SHOAL_FAILED

if TYPE_CHECKING:
    from shoal.manager import Domain, Manager, ManagerError
    from shoal.manager.layout import Layout

_LONGEST_NUMBER = 18
_CODE = re.compile(r" \[[A-Z_]+\]")
_NUMBER = re.compile(r"domain (\d+)")
_ADVICE = {
    "PROC_MGMT_ERR_DOMAIN_TABLE_FIND": "`shoal ps -a` lists those that are known",
    "PROC_MGMT_ERR_DOMAIN_NOT_RUNNING": "`shoal status {id}` tells how",
    "PROC_MGMT_ERR_SPAWND_REQUEST": "try again; `shoal manager status` tells where its log is",
}
NO_MATCH = 1
"""Exit code of a question that nothing is an answer to, as grep(1) has it."""
_EXIT_CODES = {
    "SPAWN_ERR_FIND_MODULE": NOT_FOUND,
    "SPAWN_ERR_LOAD": NOT_EXECUTABLE,
    "OCT_ERR_TIMEOUT": TIMED_OUT,
    "OCT_ERR_NO_RECORD": NO_MATCH,
}


@contextmanager
def reached(*, starts: bool = True) -> Iterator[Manager]:
    """The user's manager, which is started where none runs. What it refuses inside becomes a CommandError.

    Args:
        starts: False: where none runs there is an error instead.
    Raises:
        CommandError: it cannot be reached, or refuses; says what to do.
    """
    with refusals():
        from shoal.manager import connect

        with connect(None if starts else layout().socket) as manager:
            yield manager


@contextmanager
def refusals() -> Iterator[None]:
    """What a manager refuses inside becomes a CommandError, and so does a library that is missing for it."""
    from shoal.manager.errors import ManagerError

    try:
        yield
    except ManagerError as error:
        raise as_command_error(error) from None
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("shoal"):
            raise
        what = f"the process manager takes {error.name}, which is not installed; get it with: pip install 'shoal[manager]'"
        raise CommandError(what) from None


def as_command_error(error: ManagerError) -> CommandError:
    """What a manager has refused, as a person is told it."""
    message = _CODE.sub("", error.message)
    advice = _ADVICE.get(error.code)
    if advice is not None and "`" not in message:
        found = _NUMBER.search(message)
        message = f"{message}; {advice.format(id=found[1] if found else 'ID')}"
    code = _EXIT_CODES.get(error.code, SHOAL_FAILED)
    return CommandError(message, code, _hints(error))


def _hints(error: ManagerError) -> tuple[str, ...]:
    """What a login that lacks something would need to find the manager that runs."""
    expected = f"/run/user/{os.geteuid()}"
    unset = not os.environ.keys() & {"XDG_RUNTIME_DIR", "SHOAL_STATE_DIR"}
    if unset and "is in use by the manager" in error.message and os.path.isdir(expected):
        return (f"XDG_RUNTIME_DIR is not set here, so its socket was not found; export XDG_RUNTIME_DIR={expected}",)
    return ()


def layout() -> Layout:
    """Where the user's manager keeps what."""
    from shoal.manager.layout import Layout

    return Layout.of()


def has_history() -> bool:
    """Whether there has ever been a manager. Where there has not, there is nothing to show, and none is started for it."""
    with refusals():
        return os.path.exists(layout().database)


def domain_of(manager: Manager, word: str) -> Domain:
    """The domain that somebody means: by its number, or by its name the one that runs, or the last one that did.

    Raises:
        CommandError: there is none, or there are several.
    """
    from shoal.manager.wording import shown_path

    if word.isdecimal() and len(word) <= _LONGEST_NUMBER:
        return manager.domain(int(word))
    word = shown_path(word)
    running = [status.id for status in manager.statuses() if status.name == word and status.exit is None]
    if len(running) > 1:
        raise CommandError(f"{len(running)} domains are called {word}: say which: {' '.join(map(str, running))}")
    if running:
        return manager.domain(running[0])
    ended = next((status.id for status in manager.history() if status.name == word), None)
    if ended is None:
        raise CommandError(f"there is no domain {word}; `shoal ps -a` lists those that are known")
    return manager.domain(ended)


@contextmanager
def reached_with(words: list[str]) -> Iterator[tuple[Manager, list[Domain]]]:
    """The manager, and the domains that were meant, in the order of `words`; each once.

    Raises:
        CommandError: one of them does not exist.
    """
    if not has_history():
        raise CommandError(f"there is no domain {words[0]}: nothing has been started here; `shoal spawn -d PROGRAM` starts something")
    with reached() as manager:
        found = [domain_of(manager, word) for word in words]
        yield manager, list({domain.id: domain for domain in found}.values())


def core_of(word: str) -> int | str:
    """A core, as the manager calls it: by its number, or with a node before that."""
    from shoal.manager.wording import shown_path

    return int(word) if word.isdecimal() and len(word) <= _LONGEST_NUMBER else shown_path(word)
