"""Biscuits: the small part of the Biscuit language that capabilities are written in, and reading it.

A capability is a Biscuit token. Its first block, signed by the manager, says what it is for; each further block narrows it, and whoever
holds the token can add one offline. Anybody's Biscuit library can read, check and narrow them.

A block is a program in a logic language, and who adds one chooses what it says. We do not run it: a few facts and one check that joins
them keep the evaluator busy for minutes in a single step, which none of its limits interrupts. So the only statements taken are those
below, each of which has one meaning that can be read off; any other is refused. In the first block:

    domain(7, 0);                     for domain 7, in its generation 0; or manager(0): for the manager itself
    right("wait");                    one for each right
    minted_by("ed25519/...");         the public half of the manager's key, so that a holder can add blocks
    boot("...");                      the boot of the machine, which uptimes count from

and in those after it, where all have to hold:

    check if operation("wait") or operation("kill");
    check if boot("..."), uptime($ms), $ms <= 93600000;
    check if time($time), $time <= 2026-11-22T13:08:20Z;

What is read is the text that the library prints of a block whose signature it has checked. It quotes no strings, so a block could print
as something that it is not; but a block after the first can only take away, however it is read, and the first is the manager's own.

Source: the Biscuit specification, version 3; biscuit-python.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from shoal.manager.errors import ManagerError
from shoal.manager.instant import Instant
from shoal.manager.rights import DomainRights, ManagerRights, from_words, words

if TYPE_CHECKING:
    from biscuit_auth import Biscuit, UnverifiedBiscuit

CODE: Final = "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
"""What the seed says of anything that is no domain capability it can read."""
LONGEST: Final = 4096
"""Characters of a token. One of MOST_BLOCKS blocks takes about 2,300."""
MOST_BLOCKS: Final = 8
"""Each costs a signature to check, so that a token of more would take too long."""
LAST_DOMAIN: Final = (1 << 32) - 1
"""Domains are numbered in 32 bits."""
_LAST_SECOND: Final = 253402300799
"""The end of the year 9999, which is as far as a date goes."""
_LAST_MS: Final = 10**18 - 1

_WORD: Final = r"[a-z_]{1,32}"
_DOMAIN: Final = re.compile(r"domain\(([0-9]{1,10}), ([0-9]{1,10})\)")
_MANAGER: Final = re.compile(r"manager\(([0-9]{1,10})\)")
_RIGHT: Final = re.compile(rf'right\("({_WORD})"\)')
_MINTED_BY: Final = re.compile(r'minted_by\("ed25519/([0-9a-f]{64})"\)')
_BOOT: Final = re.compile(r'boot\("([0-9a-f]{0,32})"\)')
_OPERATIONS: Final = re.compile(rf'check if (operation\("{_WORD}"\)(?: or operation\("{_WORD}"\)){{0,31}})')
_OPERATION: Final = re.compile(rf'operation\("({_WORD})"\)')
_UPTIME: Final = re.compile(r'check if boot\("([0-9a-f]{32})"\), uptime\(\$ms\), \$ms <= ([0-9]{1,18})')
_TIME: Final = re.compile(r"check if time\(\$time\), \$time <= ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})Z")


@functools.cache
def load() -> Any:
    """The library.

    Raises:
        ManagerError: it is not installed; says what to install.
    """
    try:
        import biscuit_auth
    except ImportError as error:
        what = "capabilities need biscuit-python, which is not installed; install the extra: pip install 'shoal[manager]'"
        raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_CAP", what) from error
    found: ModuleType = biscuit_auth
    return found


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a capability ends: at an uptime of one boot, or at a wall clock time.

    Attributes:
        boot: which boot; empty: `at` is seconds since 1970.
        at: milliseconds of uptime, or seconds.
    """

    boot: str
    at: int

    def left_s(self, now: Instant) -> float:
        """Seconds from `now`; less than none: it is over, as an uptime of another boot is."""
        if not self.boot:
            return self.at - now.wall_s
        return (self.at - now.uptime_ms) / 1000 if self.boot == now.boot else float("-inf")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a token says, whoever signed it.

    Attributes:
        domain_id: None for a capability to the manager itself.
        generation: of the capabilities for it, counted up when all are revoked.
        rights: those that no block takes away.
        deadlines: all of them hold.
        revocation_ids: one for each block, as hexadecimal digits. Revoking one revokes every token that has it.
        minted_by: the public half of the manager's key, as it says itself.
        boot: the boot it was minted in; empty: not known.
    """

    domain_id: int | None
    generation: int
    rights: DomainRights | ManagerRights
    deadlines: tuple[Deadline, ...]
    revocation_ids: tuple[str, ...]
    minted_by: str
    boot: str

    @property
    def id(self) -> str:
        """What this very capability is known by in logs; it is no secret, and nothing can be done with it."""
        return self.revocation_ids[-1][:16]

    @property
    def label(self) -> str:
        """For messages."""
        what = "the manager" if self.domain_id is None else f"domain {self.domain_id}"
        return f"capability {self.id} for {what}"

    def left_s(self, now: Instant) -> float:
        """Seconds until it ends; infinite when it does not."""
        return min((deadline.left_s(now) for deadline in self.deadlines), default=float("inf"))


def first_block(domain_id: int | None, generation: int, rights: DomainRights | ManagerRights, minted_by: str, boot: str) -> str:
    """The source of what the manager signs. Without a domain, the capability is for the manager itself.

    Args:
        minted_by: the manager's public key, in hexadecimal.
    """
    what = f"manager({generation})" if domain_id is None else f"domain({domain_id}, {generation})"
    return f'{what}; {_rights_source(rights)}; minted_by("ed25519/{minted_by}"); boot("{boot}")'


@functools.lru_cache
def _rights_source(rights: DomainRights | ManagerRights) -> str:
    return "; ".join(f'right("{word}")' for word in words(rights))


def narrowing(rights: DomainRights | ManagerRights, deadline: Deadline | None) -> str:
    """The source of a block that narrows."""
    checks = ["check if " + " or ".join(f'operation("{word}")' for word in words(rights))]
    if deadline is not None and deadline.boot:
        checks.append(f'check if boot("{deadline.boot}"), uptime($ms), $ms <= {min(deadline.at, _LAST_MS)}')
    elif deadline is not None:
        when = datetime.datetime.fromtimestamp(min(deadline.at, _LAST_SECOND), datetime.UTC)
        checks.append(f"check if time($time), $time <= {when:%Y-%m-%dT%H:%M:%SZ}")
    return "; ".join(checks)


def check_text(token: object) -> str:
    """The token, if it can be one at all.

    Raises:
        TypeError: it is no text. ManagerError: too long, or empty.
    """
    if not isinstance(token, str):
        raise TypeError(f"a capability travels as text, not as {type(token).__name__}; DomainCap.to_token() gives it")
    if not token:
        raise ManagerError(CODE, "the capability is empty")
    if len(token) > LONGEST:
        raise ManagerError(CODE, f"the capability has {len(token)} characters; none is longer than {LONGEST}")
    return token


def unverified(token: str) -> UnverifiedBiscuit:
    """The token, whoever signed it.

    Raises:
        ManagerError: it is none.
    """
    biscuit = load()
    try:
        found: UnverifiedBiscuit = biscuit.UnverifiedBiscuit.from_base64(check_text(token))
    except (biscuit.BiscuitValidationError, biscuit.BiscuitBlockError, UnicodeError) as error:
        raise ManagerError(CODE, "this is no capability: it is no Biscuit token, or has been cut or changed on the way") from error
    return found


def read(token: Biscuit | UnverifiedBiscuit) -> Reading:
    """What a token says.

    Raises:
        ManagerError: it is too long, or has a statement that is not one of ours; says which.
    """
    count = token.block_count()
    if count > MOST_BLOCKS:
        what = f"it was narrowed {count - 1} times; {MOST_BLOCKS - 1} is the most: ask the manager for a fresh one"
        raise ManagerError(CODE, f"the capability is too long: {what}")
    try:
        sources = [token.block_source(index) for index in range(count)]
    except load().BiscuitBlockError as error:
        raise ManagerError(CODE, "the capability has a block that cannot be read") from error
    found = _read_first(_statements(sources[0]), tuple(token.revocation_ids))
    return _narrowed(found, sources[1:]) if count > 1 else found


def _statements(source: str) -> list[str]:
    return [line.removesuffix(";") for line in source.splitlines() if line]


def _read_first(statements: Sequence[str], revocation_ids: tuple[str, ...]) -> Reading:
    whose: list[tuple[int | None, int]] = []
    rights, minted_by, boot = [], "", ""
    for text in statements:
        if found := _DOMAIN.fullmatch(text):
            whose.append((int(found[1]), int(found[2])))
        elif found := _MANAGER.fullmatch(text):
            whose.append((None, int(found[1])))
        elif found := _RIGHT.fullmatch(text):
            rights.append(found[1])
        elif found := _MINTED_BY.fullmatch(text):
            minted_by = found[1]
        elif found := _BOOT.fullmatch(text):
            boot = found[1]
        else:
            raise _unknown(text, 0)
    if len(whose) != 1:
        raise ManagerError(CODE, "this Biscuit token is no capability of a shoal manager: it says not what it is for")
    domain_id, generation = whose[0]
    kind: type[DomainRights] | type[ManagerRights] = ManagerRights if domain_id is None else DomainRights
    try:
        held = from_words(kind, rights)
    except ValueError as error:
        raise ManagerError(CODE, f"the capability comes from another version of shoal: {error}") from None
    return Reading(domain_id, generation, held, (), revocation_ids, minted_by, boot)


def _narrowed(reading: Reading, sources: Sequence[str]) -> Reading:
    rights, deadlines = set(words(reading.rights)), []
    for index, source in enumerate(sources, 1):
        for text in _statements(source):
            if found := _OPERATIONS.fullmatch(text):
                rights &= set(_OPERATION.findall(found[1]))
            elif found := _UPTIME.fullmatch(text):
                deadlines.append(Deadline(found[1], int(found[2])))
            elif found := _TIME.fullmatch(text):
                deadlines.append(Deadline("", _seconds(found[1])))
            else:
                raise _unknown(text, index)
    kept = from_words(type(reading.rights), rights)
    return Reading(reading.domain_id, reading.generation, kept, tuple(deadlines), reading.revocation_ids, reading.minted_by, reading.boot)


def _seconds(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp())
    except ValueError:
        return 0  # no such day: a deadline that has passed


def _unknown(text: str, index: int) -> ManagerError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    what = f"block {index} of the capability says {shown!r}, which this manager does not take"
    return ManagerError(CODE, f"{what}; a block may only narrow: see docs/capabilities.md for what it can say")
