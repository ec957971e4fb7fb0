"""Interim."""

from __future__ import annotations

import hmac
import os
import secrets

from shoal.manager.errors import ManagerError


class KeyAuthority:
    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self._key = file.read()
        except FileNotFoundError:
            self._key = secrets.token_bytes(32)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.write(fd, self._key)
            os.close(fd)

    def capability(self) -> str:
        return hmac.new(self._key, b"manager", "sha256").hexdigest()

    def mint(self, domain: int) -> str:
        return f"{domain}.{hmac.new(self._key, str(domain).encode(), 'sha256').hexdigest()}"

    def check(self, token: str, right: str) -> int:
        number = token.partition(".")[0]
        if not number.isdigit() or not hmac.compare_digest(token, self.mint(int(number))):
            raise ManagerError("PROC_MGMT_ERR_DOMAIN_CAP_HASH", "this is not a domain capability of this manager")
        return int(number)

    def revoke(self, domain: int) -> None:
        pass
