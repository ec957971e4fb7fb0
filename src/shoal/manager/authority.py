"""The authority of one manager: its root key, what it has revoked, and so which capabilities are good."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from shoal.manager.revocations import Revocation
from shoal.manager.rights import FOR_ITSELF, DomainRights, ManagerRights
from shoal.manager.rootkey import RootKey
from shoal.manager.tokens import DomainCap, Mint
from shoal.manager.verifier import Verifier

if TYPE_CHECKING:
    from shoal.manager.layout import Layout
    from shoal.manager.store import Store


class Authority:
    """Mints, checks and revokes."""

    def __init__(self, layout: Layout, store: Store) -> None:
        """
        Raises:
            ManagerError: the root key cannot be used; says why and what to do.
        """
        # Where the record of domains begins anew, so do their numbers: what was given out for a number must not do for another's.
        self._key = RootKey.renew(layout.state) if store.is_new else RootKey.open(layout.state)
        self._mint = Mint(self._key)
        self._store = store
        self._verifier = Verifier(self._key.public, (Revocation.from_dict(json.loads(text)) for text in store.revocations()))

    def mint(self, domain: int) -> str:
        """A capability for a domain, for who has started it."""
        generation = self._verifier.revocations.generation(domain)
        made = self._mint.domain(domain, generation=generation)
        self._verifier.learn(made)
        return made.to_token()

    def own_of_domain(self, domain: int) -> DomainCap:
        """A capability for a domain, for itself: it may do everything with it."""
        return self._mint.domain(domain, FOR_ITSELF, generation=self._verifier.revocations.generation(domain))

    def own(self) -> str:
        """The manager capability, for its owner."""
        return self._mint.manager(generation=self._verifier.revocations.generation(None)).to_token()

    def check(self, token: str, right: DomainRights) -> int:
        """The domain that a token is for.

        Raises:
            CapabilityError: it is not good for that.
        """
        found = self._verifier.verify(token, None, right).domain_id
        assert found is not None
        return found

    def rights_of(self, token: str) -> ManagerRights:
        """What the holder of a manager capability may do.

        Raises:
            CapabilityError: it is not good.
        """
        rights = self._verifier.verify_manager(token, ManagerRights(0)).rights
        assert isinstance(rights, ManagerRights)
        return rights

    def revoke(self, domain: int) -> None:
        """Make all capabilities for a domain worthless, from now on and for every later manager.

        Raises:
            ManagerError: it cannot be written down, and so was not done.
        """
        item = self._verifier.revocations.of_all(domain)
        self._store.revoke(domain, json.dumps(item.to_dict()))
        self._verifier.revocations.apply(item)

    def revoke_one(self, token: str) -> int:
        """Make one capability worthless, and all that were narrowed from it. The domain it was for.

        Raises:
            ManagerError: this manager did not make it, or it cannot be written down.
        """
        reading = self._verifier.read(token)
        item = self._verifier.revocations.of_one(reading)
        self._store.revoke(-1 if reading.domain_id is None else reading.domain_id, json.dumps(item.to_dict()))
        self._verifier.revocations.apply(item)
        return -1 if reading.domain_id is None else reading.domain_id

    def forget(self, domain: int) -> None:
        """A domain is no longer known."""
        self._verifier.revocations.forget(domain)
