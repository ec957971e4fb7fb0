"""RootKey: the key a manager signs capabilities with, in a file of its state directory that nobody else can read.

Whoever has the key can mint any capability, so it is refused rather than used where others could have read or exchanged it. The file
appears whole or not at all, also when two managers begin at once or the power fails: it is written without a name, and linked to its
name only when it is complete; the second to do so finds the first's.

Touches: the one file, and nothing else.
Source: open(2), O_TMPFILE; linkat(2); the way ssh refuses a key file that others can read.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from shoal.manager.errors import ManagerError

if TYPE_CHECKING:
    from biscuit_auth import PrivateKey, PublicKey

FILE: Final = "root.key"
"""Its name in the state directory."""

_CODE: Final = "PROC_MGMT_ERR_CREATE_DOMAIN_CAP"
_CONTENTS: Final = re.compile(rb"shoal root key 1\ned25519-private/([0-9a-f]{64})\n")
_LONGEST: Final = 4096


class RootKey:
    """A manager's key. Its printed form shows only which one it is."""

    __slots__ = ("private", "public")

    def __init__(self, private: PrivateKey) -> None:
        from shoal.manager.biscuits import load

        self.private: PrivateKey = private
        self.public: PublicKey = load().KeyPair.from_private_key(private).public_key

    @classmethod
    def open(cls, state_dir: str | os.PathLike[str]) -> RootKey:
        """The key in `state_dir`, made now if there is none.

        Args:
            state_dir: made, for its owner only, if it is not there.
        Raises:
            ManagerError: the file or the directory is open to others, is somebody else's, is damaged, or cannot be made; says which,
                and what to do.
        """
        path = os.path.join(state_dir, FILE)
        try:
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            _check_directory(os.fspath(state_dir))
            text = _read(path)
            if text is None:
                _create(path, _contents())
                text = _read(path)
        except OSError as error:
            raise ManagerError(_CODE, f"the root key {path} cannot be read or made: {error.strerror}") from error
        if text is None:
            raise ManagerError(_CODE, f"the root key {path} was removed while it was being made")
        return cls._parsed(text, path)

    @classmethod
    def renew(cls, state_dir: str | os.PathLike[str]) -> RootKey:
        """A new key in the place of the one in `state_dir`. Every capability there is becomes worthless.

        To be done where the record of domains is begun anew: a number of old would else stand for another domain.

        Raises:
            ManagerError: as `open()`.
        """
        path = os.path.join(state_dir, FILE)
        try:
            os.makedirs(state_dir, mode=0o700, exist_ok=True)
            _check_directory(os.fspath(state_dir))
            _replace(path, _contents())
        except OSError as error:
            raise ManagerError(_CODE, f"the root key {path} cannot be replaced: {error.strerror}") from error
        return cls.open(state_dir)

    @classmethod
    def generate(cls) -> RootKey:
        """A key that is kept in memory only."""
        from shoal.manager.biscuits import load

        return cls(load().KeyPair().private_key)

    @property
    def name(self) -> str:
        """What tells this key from others: the beginning of its public half."""
        return bytes(self.public.to_bytes()).hex()[:8]

    def __repr__(self) -> str:
        return f"<shoal root key {self.name}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a root key stays in its process and cannot be pickled")

    @classmethod
    def _parsed(cls, text: bytes, path: str) -> RootKey:
        from shoal.manager.biscuits import load

        found = _CONTENTS.fullmatch(text)
        if found is None:
            what = f"{path} is not a root key, or is damaged; put it back from a copy, or remove it, which makes all capabilities worthless"
            raise ManagerError(_CODE, what)
        return cls(load().PrivateKey(f"ed25519-private/{found[1].decode()}"))


def _contents() -> bytes:
    from shoal.manager.biscuits import load

    key = bytes(load().KeyPair().private_key.to_bytes())
    return b"shoal root key 1\ned25519-private/" + key.hex().encode() + b"\n"


def _check_directory(path: str) -> None:
    found = os.stat(path)
    if found.st_uid not in (os.geteuid(), 0):
        _refuse(f"the directory {path} belongs to user {found.st_uid}, who could exchange the root key; choose one of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _refuse(f"others may write to the directory {path}, and so exchange the root key in it; close it: chmod go-w {path}")


def _read(path: str) -> bytes | None:
    """What is in the file, once it is known that nobody else could have read it. None: there is none."""
    try:
        # A pipe in its place would keep us waiting.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse(f"the root key {path} is a symbolic link; put the file itself there")
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            _refuse(f"the root key {path} is no regular file")
        if found.st_uid != os.geteuid():
            _refuse(f"the root key {path} belongs to user {found.st_uid}, not to you ({os.geteuid()})")
        if found.st_mode & 0o077:
            what = f"others may read the root key {path} (mode {stat.S_IMODE(found.st_mode):04o}) and mint capabilities with it"
            _refuse(f"{what}; close it with chmod 600 {path}, and if somebody may have read it, remove it: all capabilities then end")
        return os.read(fd, _LONGEST)
    finally:
        os.close(fd)


def _create(path: str, contents: bytes) -> None:
    """Make the file, unless somebody else has made it meanwhile."""
    folder, name = os.path.split(path)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            _create_named(path, contents)
        else:
            try:
                _write(fd, contents)
                # Without a descriptor of the directory Python calls link(2), which would link the symbolic link.
                with suppress(FileExistsError):
                    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(fd)
        os.fsync(directory)
    finally:
        os.close(directory)


def _create_named(path: str, contents: bytes) -> None:
    """The same where a file cannot be without a name."""
    made = _written(path, contents)
    try:
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.unlink(made)


def _replace(path: str, contents: bytes) -> None:
    made = _written(path, contents)
    try:
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
    _sync_directory(os.path.dirname(path))


def _written(path: str, contents: bytes) -> str:
    """A new file beside `path`."""
    fd, made = tempfile.mkstemp(prefix=f".{FILE}.", dir=os.path.dirname(path))
    try:
        _write(fd, contents)
    except BaseException:
        os.unlink(made)
        raise
    finally:
        os.close(fd)
    return made


def _write(fd: int, contents: bytes) -> None:
    os.fchmod(fd, 0o600)  # whatever the mask
    view = memoryview(contents)
    while view:
        view = view[os.write(fd, view) :]
    os.fsync(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse(what: str) -> NoReturn:
    raise ManagerError(_CODE, what)
