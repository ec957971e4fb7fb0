"""Verifier: whether a capability is good for what it is used for, and why not.

A token's signatures are checked when it is first seen: some 40 microseconds for each of its blocks, of which there can be eight. What it
says is kept, by the hash of the token, so that afterwards only what can change is looked at: the time, and what has been revoked.

Every refusal is an error that says what was wrong, and carries a record of it for the audit log. Neither has the token in it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from shoal.manager.biscuits import CODE, Reading, check_text, load, read, unverified
from shoal.manager.errors import ManagerError
from shoal.manager.instant import Instant
from shoal.manager.revocations import Revocation, Revocations
from shoal.manager.rights import DomainRights, ManagerRights, shown
from shoal.manager.tokens import DomainCap, ManagerCap

if TYPE_CHECKING:
    from biscuit_auth import PublicKey

NOT_MONITOR: Final = "PROC_MGMT_ERR_NOT_MONITOR"
"""What the seed says to those who do what only the holder of the manager capability may."""
KEPT: Final = 10_000
"""Tokens remembered; the one used longest ago goes first. About a KiB each."""

Why = Literal["unreadable", "forged", "other manager", "wrong kind", "other domain", "revoked", "expired", "lacks the right"]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a capability that was found good allows its holder.

    Attributes:
        domain_id: None: it is for the manager itself.
        rights: all that it has, not just what was asked for.
        capability_id: what logs call it.
        reading: all that it says, such as for revoking it.
    """

    domain_id: int | None
    rights: DomainRights | ManagerRights
    capability_id: str
    reading: Reading


@dataclass(frozen=True, slots=True)
class Refusal:
    """A capability that was refused: a line of the audit log.

    Attributes:
        at: when, in seconds since 1970.
        why: which rule.
        wanted: what it was used for: "kill", or "" where it was only to be read.
        domain_id: the domain it was used on; None: the manager itself, or whatever it is for.
        capability_id: what logs call it; empty where it could not be read.
        capability_domain_id: what it says it is for; None also where it could not be read.
        is_genuine: whether this manager signed it, so that the ids above are true.
        message: the same in words.
    """

    at: float
    why: Why
    wanted: str
    domain_id: int | None
    capability_id: str
    capability_domain_id: int | None
    is_genuine: bool
    message: str

    def to_dict(self) -> dict[str, Any]:
        """In the types of JSON."""
        return asdict(self)


class CapabilityError(ManagerError):
    """A capability that was refused.

    Attributes:
        refusal: for the audit log.
    """

    def __init__(self, code: str, message: str, refusal: Refusal) -> None:
        super().__init__(code, message)
        self.refusal = refusal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.refusal)


class Verifier:
    """Checks capabilities against a manager's public key. Safe from any thread.

    Args:
        public: the public half of the root key.
        revocations: those that were stored.
        kept: how many tokens are remembered.
    """

    def __init__(self, public: PublicKey, revocations: Iterable[Revocation] = (), *, kept: int = KEPT) -> None:
        self.revocations = Revocations(revocations)
        self._public = public
        self._own = bytes(public.to_bytes()).hex()
        self._kept = kept
        self._known: OrderedDict[bytes, Reading] = OrderedDict()
        self._lock = threading.Lock()

    def verify(self, token: DomainCap | str, domain_id: int | None, right: DomainRights, now: Instant | None = None) -> Claims:
        """What a domain capability allows, if it is good and has `right`.

        Args:
            domain_id: the domain it is used on; None: whichever it is for.
            right: what for; several rights have to be there all.
            now: None: this moment.
        Raises:
            CapabilityError: it is not; PROC_MGMT_ERR_DOMAIN_CAP_HASH.
        """
        return self._verify(token, domain_id, right, now, CODE)

    def verify_manager(self, token: ManagerCap | str, right: ManagerRights, now: Instant | None = None) -> Claims:
        """What a manager capability allows, if it is good and has `right`.

        Raises:
            CapabilityError: it is not; PROC_MGMT_ERR_NOT_MONITOR.
        """
        return self._verify(token, None, right, now, NOT_MONITOR)

    def read(self, token: DomainCap | ManagerCap | str) -> Reading:
        """What a token says that this manager signed, also when it has expired or was revoked: for revoking it.

        Raises:
            CapabilityError: this manager did not sign it.
        """
        return self._reading(token, _Use(None, None, CODE, Instant.now()))

    def _verify(
        self,
        token: DomainCap | ManagerCap | str,
        domain_id: int | None,
        right: DomainRights | ManagerRights,
        now: Instant | None,
        code: str,
    ) -> Claims:
        use = _Use(right, domain_id, code, now or Instant.now())
        reading = self._reading(token, use)
        if type(reading.rights) is not type(right):
            asked = "a domain's is" if isinstance(right, DomainRights) else "the manager's own is"
            raise use.refused("wrong kind", f"{reading.label} does not do here: {asked} needed", reading)
        if domain_id is not None and reading.domain_id != domain_id:
            raise use.refused(
                "other domain", f"{reading.label} says nothing of domain {domain_id}; use the one that was given with that", reading
            )
        if (revocation := self.revocations.find(reading)) is not None:
            which = "all capabilities for it were revoked" if revocation.kind == "all" else "it was revoked, or one it was made from"
            raise use.refused("revoked", f"{reading.label} is no longer good: {which}; ask who gave it to you for another", reading)
        left_s = reading.left_s(use.now)
        if left_s < 0:
            ago = (
                f"{-left_s:.1f} s ago" if left_s > float("-inf") else "with an earlier boot of the machine, or it was made for another one"
            )
            raise use.refused("expired", f"{reading.label} expired {ago}; ask who gave it to you for another", reading)
        if right & ~reading.rights:  # type: ignore[operator]
            lacking = shown(right & ~reading.rights)  # type: ignore[operator]
            raise use.refused("lacks the right", f"{reading.label} does not allow: {lacking}; it allows: {shown(reading.rights)}", reading)
        return Claims(reading.domain_id, reading.rights, reading.id, reading)

    def _reading(self, token: DomainCap | ManagerCap | str, use: _Use) -> Reading:
        text = token.to_token() if isinstance(token, DomainCap | ManagerCap) else token
        try:
            key = hashlib.sha256(check_text(text).encode("ascii", "replace")).digest()
        except ManagerError as error:
            raise use.refused("unreadable", error.message) from error
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        reading = self._checked(text, use)
        self._keep(key, reading)
        return reading

    def learn(self, token: DomainCap | ManagerCap) -> None:
        """Take a token for good that was minted here just now: what is the same to the last character needs no other proof."""
        self._keep(hashlib.sha256(token.to_token().encode("ascii")).digest(), token.reading)

    def _keep(self, key: bytes, reading: Reading) -> None:
        with self._lock:
            self._known[key] = reading
            while len(self._known) > self._kept:
                self._known.popitem(last=False)

    def _checked(self, text: str, use: _Use) -> Reading:
        biscuit = load()
        try:
            return read(biscuit.Biscuit.from_base64(text, self._public))
        except ManagerError as error:
            raise use.refused("unreadable", error.message, is_genuine=True) from error
        except (biscuit.BiscuitValidationError, biscuit.BiscuitBlockError, UnicodeError):
            pass
        try:
            claimed = read(unverified(text))
        except ManagerError as error:
            raise use.refused("unreadable", error.message) from error
        if claimed.minted_by != self._own:
            other = f"{claimed.label} was given out by another manager ({claimed.minted_by[:8] or 'unknown'}); this one is {self._own[:8]}"
            raise use.refused(
                "other manager",
                f"{other}. Use it there; after a new root key all capabilities have to be given anew",
                claimed,
                is_genuine=False,
            )
        forged = f"{claimed.label} is forged, or was changed on the way: its signature is not the manager's"
        raise use.refused("forged", f"{forged}; get it anew from where it came from", claimed, is_genuine=False)


@dataclass(frozen=True, slots=True)
class _Use:
    """What a capability is used for."""

    wanted: DomainRights | ManagerRights | None
    domain_id: int | None
    code: str
    now: Instant

    def refused(self, why: Why, message: str, reading: Reading | None = None, *, is_genuine: bool | None = None) -> CapabilityError:
        known_id, known_domain = ("", None) if reading is None else (reading.id, reading.domain_id)
        genuine = reading is not None if is_genuine is None else is_genuine
        wanted = "" if self.wanted is None else shown(self.wanted)
        refusal = Refusal(self.now.wall_s, why, wanted, self.domain_id, known_id, known_domain, genuine, message)
        return CapabilityError(self.code, message, refusal)
