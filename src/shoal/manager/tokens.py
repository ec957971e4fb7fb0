"""Domain capabilities and manager capabilities, as programs hold them; and the mint that makes them.

A capability is a token: whoever has it may use it, and whoever sees it has it. So no printed form shows it. It can be narrowed without
asking anybody, and never widened. Whether one is good is for the manager to say: see verifier.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final, Generic, Self, TypeVar

from shoal.handles.vmo import Vmo
from shoal.manager.biscuits import CODE, LAST_DOMAIN, MOST_BLOCKS, Deadline, Reading, first_block, load, narrowing, read, unverified
from shoal.manager.errors import ManagerError
from shoal.manager.instant import Instant, boot_id
from shoal.manager.rights import EVERYTHING, FOR_SPAWNER, DomainRights, ManagerRights, shown
from shoal.status import Stage, Status, failure
from shoal.units import parse_duration

if TYPE_CHECKING:
    from shoal.manager.rootkey import RootKey

R = TypeVar("R", DomainRights, ManagerRights)

VMO_NAME: Final = "shoal capability"


class _Cap(Generic[R]):
    """A token and what it says."""

    __slots__ = ("_reading", "_token")

    kind: ClassVar[type[DomainRights] | type[ManagerRights]]
    _token: str
    _reading: Reading

    def __init__(self) -> None:
        raise TypeError(f"a {type(self).__name__} comes from the manager, from attenuate() or from from_token()")

    @classmethod
    def from_token(cls, token: str) -> Self:
        """The capability that was written as `token`. Only its form is checked: whether it is good, the manager says when it is used.

        Raises:
            ManagerError: it is not the token of such a capability.
            TypeError: it is no text.
        """
        return cls._made(token, read(unverified(token)))

    @classmethod
    def _made(cls, token: str, reading: Reading) -> Self:
        if type(reading.rights) is not cls.kind:
            what = "a domain" if reading.domain_id is not None else "the manager itself"
            raise ManagerError(CODE, f"this is a capability for {what}, which a {cls.__name__} cannot hold")
        self = object.__new__(cls)
        self._token, self._reading = token, reading
        return self

    @property
    def rights(self) -> R:
        """What it allows, as long as it is good."""
        return self._reading.rights  # type: ignore[return-value]

    @property
    def reading(self) -> Reading:
        """All that it says."""
        return self._reading

    @property
    def id(self) -> str:
        """What logs call it: the beginning of `revocation_id`."""
        return self._reading.id

    @property
    def revocation_id(self) -> str:
        """What the manager is told for revoking this capability and all that were narrowed from it; it is no secret."""
        return self._reading.revocation_ids[-1]

    def expires_in(self) -> float | None:
        """Seconds until it ends, negative when it has; None when it does not end by itself."""
        left = self._reading.left_s(Instant.now())
        return None if left == math.inf else left

    def to_token(self) -> str:
        """The capability as text. Whoever reads it has the capability."""
        return self._token

    def to_vmo(self) -> Vmo:
        """The capability in a sealed memory object, to travel as a descriptor. The caller's, to close or to hand over."""
        vmo = Vmo.from_bytes(self._token.encode(), VMO_NAME)
        try:
            vmo.seal()
        except BaseException:
            vmo.close()
            raise
        return vmo

    @classmethod
    def from_vmo(cls, vmo: Vmo) -> Self:
        """The capability in a memory object, which stays the caller's.

        Raises:
            ManagerError: there is none in it.
            AccessDeniedError: it may not be read.
        """
        size = min(vmo.size, 1 << 16)
        try:
            return cls.from_token(vmo.read(size).decode("ascii"))
        except UnicodeDecodeError:
            raise ManagerError(CODE, f"there is no capability in {vmo!r}") from None

    def attenuate(self, rights: R, *, expires: float | str | None = None) -> Self:
        """A capability with `rights` and no more, made here: nobody is asked. This one stays as it is.

        Args:
            rights: some of those that this one has.
            expires: how long it is good from now on, in seconds or as text such as "1h"; never longer than this one. It is measured by
                the time since boot, which nobody can set, where we are on the machine of the manager and it has not been restarted
                since; elsewhere by the wall clock.
        Raises:
            InvalidArgsError: none of its rights, or one that this one lacks.
            ManagerError: it was narrowed as often as possible, or its signature is not that of the manager it names.
            ValueError, TypeError: `expires` is no duration above zero.
        """
        if type(rights) is not self.kind:
            raise TypeError(f"rights have to be {self.kind.__name__}, not {type(rights).__name__}")
        if more := rights & ~self.rights:
            what = f"a capability can only be narrowed; this one lacks {shown(more)}, it has {shown(self.rights)}"
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, what)
        if not rights:
            raise failure(Status.INVALID_ARGS, Stage.HANDLE, "a capability without any right is none; name some of those that this one has")
        deadline = None if expires is None else _deadline(expires, self._reading.boot)
        if len(self._reading.revocation_ids) >= MOST_BLOCKS:
            raise ManagerError(
                CODE, f"the capability was narrowed {MOST_BLOCKS - 1} times, which is the most: ask the manager for a fresh one"
            )
        token = _append(self._token, self._reading, narrowing(rights, deadline))
        return type(self)._made(token, read(unverified(token)))

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._token == other._token

    def __hash__(self) -> int:
        return hash((type(self), self._token))

    def __repr__(self) -> str:
        left = self.expires_in()
        ending = "" if left is None else ", expired" if left < 0 else f", for {left:.0f} s"
        return f"<shoal.manager.{type(self).__name__} {self._what()}: {shown(self.rights)}{ending} ({self.id})>"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self).from_token, (self._token,)

    def _what(self) -> str:
        raise NotImplementedError


class DomainCap(_Cap[DomainRights]):
    """The right to do some things with one domain. Made by the manager when the domain is started.

    `attenuate()` makes a narrower one to give away, offline; `to_token()` and `from_token()` take it anywhere.
    """

    __slots__ = ()

    kind: ClassVar[type[DomainRights]] = DomainRights

    @property
    def domain_id(self) -> int:
        """Which domain."""
        found = self._reading.domain_id
        assert found is not None
        return found

    def _what(self) -> str:
        return f"domain {self.domain_id}"


class ManagerCap(_Cap[ManagerRights]):
    """The right to do some things with the manager itself: what concerns all domains, and the machine."""

    __slots__ = ()

    kind: ClassVar[type[ManagerRights]] = ManagerRights

    def _what(self) -> str:
        return "the manager"


class Mint:
    """Makes capabilities, with a manager's root key."""

    def __init__(self, key: RootKey) -> None:
        self._key = key
        self._public = bytes(key.public.to_bytes()).hex()

    def domain(self, domain_id: int, rights: DomainRights = FOR_SPAWNER, *, generation: int = 0) -> DomainCap:
        """A capability for a domain.

        Args:
            domain_id: 0 to 2**32 - 1; never one that has stood for another domain under this key.
            generation: counted up each time all capabilities for the domain are revoked: `Revocations.generation()`.
        Raises:
            ManagerError: no number is left, SYS_ERR_DOMAIN_SPACE_EXHAUSTED.
        """
        if domain_id > LAST_DOMAIN:
            what = f"domain {domain_id} cannot be: numbers end at {LAST_DOMAIN}; begin anew with a new root key"
            raise ManagerError("SYS_ERR_DOMAIN_SPACE_EXHAUSTED", what)
        if domain_id < 0:
            raise ValueError(f"a domain's number cannot be negative: {domain_id}")
        return DomainCap._made(*self._sign(domain_id, generation, rights))

    def manager(self, rights: ManagerRights = EVERYTHING, *, generation: int = 0) -> ManagerCap:
        """A capability for the manager itself.

        Args:
            generation: counted up each time all of them are revoked.
        """
        return ManagerCap._made(*self._sign(None, generation, rights))

    def _sign(self, domain_id: int | None, generation: int, rights: DomainRights | ManagerRights) -> tuple[str, Reading]:
        if not rights:
            raise ValueError("a capability without any right is none")
        boot = boot_id()
        source = first_block(domain_id, generation, rights, self._public, boot)
        made = load().BiscuitBuilder(source).build(self._key.private)
        return made.to_base64(), Reading(domain_id, generation, rights, (), tuple(made.revocation_ids), self._public, boot)


def _deadline(expires: float | str, boot: str) -> Deadline:
    seconds = parse_duration(expires)
    if seconds <= 0:
        raise ValueError("expires has to be above zero: a capability that has ended already is none")
    now = Instant.now()
    if boot and boot == now.boot:
        return Deadline(boot, now.uptime_ms + int(seconds * 1000))
    return Deadline("", int(now.wall_s + seconds))


def _append(token: str, reading: Reading, source: str) -> str:
    biscuit = load()
    try:
        parent = unverified(token).verify(biscuit.PublicKey(f"ed25519/{reading.minted_by}"))
    except (biscuit.BiscuitValidationError, ValueError) as error:
        what = f"{reading.label} is not signed by the manager it names, so that nobody would take it; get it anew from where it came from"
        raise ManagerError(CODE, what) from error
    narrowed: str = parent.append(biscuit.BlockBuilder(source)).to_base64()
    return narrowed
