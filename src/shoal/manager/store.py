"""The store: what a manager has to remember, in SQLite with a write-ahead log.

Every change is on its way to the disk, out of this process, when a method returns: a manager that is killed loses none. What a
machine without power loses is told by the boot's identity. Once the disk is full, or the database broken, changes are refused with
an error that says so; domains that run are not touched by it, since their inits keep the truth in the ledger.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from shoal.manager.errors import ManagerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS domains (
    id INTEGER PRIMARY KEY, key INTEGER NOT NULL, request TEXT, slot INTEGER NOT NULL, boot TEXT NOT NULL,
    name TEXT NOT NULL, core TEXT NOT NULL, argv BLOB NOT NULL, about TEXT NOT NULL, ended TEXT);
CREATE INDEX IF NOT EXISTS alive ON domains (id) WHERE ended IS NULL;
CREATE UNIQUE INDEX IF NOT EXISTS requests ON domains (request) WHERE request IS NOT NULL;
CREATE TABLE IF NOT EXISTS names (key TEXT PRIMARY KEY, what TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS granted (domain INTEGER PRIMARY KEY, what BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS revocations (domain INTEGER NOT NULL, what TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audit (at REAL NOT NULL, who TEXT NOT NULL, did TEXT NOT NULL, domain INTEGER, refused TEXT);
"""


_MOVE: Final = "move manager.db and what begins with its name away, and the domains that run are found again by the ledger"
_DAMAGED: Final = f"it is damaged; {_MOVE}"
_ADVICE: Final = {
    "SQLITE_FULL": "the disk is full; make room",
    "SQLITE_READONLY": "it cannot be written; is the disk mounted read-only?",
    "SQLITE_IOERR": "the disk cannot be read or written; is it full, or does the kernel's log tell of it?",
    "SQLITE_CANTOPEN": "it cannot be opened; are it and its directory this user's, and is there room on the disk?",
    "SQLITE_BUSY": "another program has it open; end that",
    "SQLITE_CORRUPT": _DAMAGED,
    "SQLITE_NOTADB": f"it is no database; {_MOVE}",
}
AUDIT_MOST: Final = 100_000
"""Entries kept of the audit log, more or less; the oldest go first."""
_TRIM_EVERY: Final = 1000


class Row:
    """A domain as it is remembered.

    Attributes:
        about: what else is to be known of it, as JSON: cwd, sandbox, limits, dispatchers.
        ended: how it did, as JSON; None while it has not.
    """

    __slots__ = ("about", "argv", "boot", "core", "ended", "id", "key", "name", "request", "slot")

    def __init__(self, fields: tuple[Any, ...]) -> None:
        self.id, self.key, self.request, self.slot, self.boot, self.name, self.core, self.argv, self.about, self.ended = fields
        self.key &= (1 << 64) - 1


class Store:
    """The database of one state directory. For one thread."""

    def __init__(self, path: str) -> None:
        """Open it, or make it.

        Raises:
            ManagerError: it cannot be used; says why and what to do.
        """
        self._path = path
        self._history = -1
        self._audits = 0
        with self._told("opening"):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=32)
            try:
                # Nobody else's, so that there is no file of shared memory, for which a full disk would have no room.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute("PRAGMA busy_timeout=0")
                self._db.executescript(_SCHEMA)
                self.is_new = self._db.execute("SELECT value FROM facts WHERE name='boot'").fetchone() is None
                found = self._db.execute("PRAGMA quick_check(1)").fetchone()
                if found[0] != "ok":
                    raise sqlite3.DatabaseError(f"{_DAMAGED} ({found[0]})")
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """sqlite3's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            kind = "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
            advice = _ADVICE.get(kind, str(error))
            raise ManagerError("PROC_MGMT_ERR_CREATE_DOMAIN_TABLE", f"{doing} {self._path}: {advice}") from error

    # --- domains ------------------------------------------------------------------------------------

    def add(
        self,
        id: int,
        key: int,
        request: str | None,
        slot: int,
        boot: str,
        name: str,
        core: str,
        argv: bytes,
        about: Mapping[str, Any],
        granted: bytes | None = None,
    ) -> None:
        """A domain, before its first instruction.

        Args:
            granted: what its plan gives it: inspecting.py.
        """
        fields = (id, key - (1 << 64) if key >> 63 else key, request, slot, boot, name, core, argv, json.dumps(about))
        with self._told("writing to"):
            if granted is not None:  # first: without its domain it means nothing, and is replaced by the next of that number
                self._db.execute("INSERT OR REPLACE INTO granted VALUES (?,?)", (id, granted))
            self._db.execute("INSERT INTO domains VALUES (?,?,?,?,?,?,?,?,?,NULL)", fields)

    def granted(self, id: int) -> bytes | None:
        """What the plan of a domain gave it; None: that was not written down."""
        with self._told("reading"):
            found = self._db.execute("SELECT what FROM granted WHERE domain=?", (id,)).fetchone()
        return None if found is None else found[0]

    def drop(self, id: int) -> None:
        """A domain that never began."""
        with self._told("writing to"):
            self._db.execute("DELETE FROM domains WHERE id=?", (id,))
            self._db.execute("DELETE FROM granted WHERE domain=?", (id,))

    def end(self, endings: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Domains that have ended, and how."""
        changes = [(json.dumps(how), id) for id, how in endings]
        with self._told("writing to"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("UPDATE domains SET ended=? WHERE id=?", changes)
                self._db.execute("COMMIT")
                self._history = -1 if self._history < 0 else self._history + len(changes)
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def change(self, id: int, about: Mapping[str, Any]) -> None:
        with self._told("writing to"):
            self._db.execute("UPDATE domains SET about=? WHERE id=?", (json.dumps(about), id))

    def alive(self) -> list[Row]:
        """Those of which no end is known."""
        with self._told("reading"):
            return [Row(fields) for fields in self._db.execute("SELECT * FROM domains WHERE ended IS NULL")]

    def find(self, id: int) -> Row | None:
        with self._told("reading"):
            fields = self._db.execute("SELECT * FROM domains WHERE id=?", (id,)).fetchone()
        return None if fields is None else Row(fields)

    def has_end(self, id: int, key: int) -> bool:
        """Whether the end of this very domain is known."""
        with self._told("reading"):
            found = self._db.execute("SELECT key FROM domains WHERE id=? AND ended IS NOT NULL", (id,)).fetchone()
        return found is not None and found[0] & (1 << 64) - 1 == key

    def ended(self, before: int, count: int) -> list[Row]:
        """Those of which the end is known, with a number below `before`; newest first."""
        query = "SELECT * FROM domains WHERE ended IS NOT NULL AND id < ? ORDER BY id DESC LIMIT ?"
        with self._told("reading"):
            return [Row(fields) for fields in self._db.execute(query, (before, count))]

    def by_request(self, request: str) -> int | None:
        """The domain that a request made, if it was carried out before."""
        with self._told("reading"):
            found = self._db.execute("SELECT id FROM domains WHERE request=?", (request,)).fetchone()
        return None if found is None else found[0]

    def ids(self) -> set[int]:
        """Of all that are remembered."""
        with self._told("reading"):
            return {id for (id,) in self._db.execute("SELECT id FROM domains")}

    def last_id(self) -> int:
        """The highest that was ever given."""
        with self._told("reading"):
            found = self._db.execute("SELECT max(id) FROM domains").fetchone()[0]
        return max(-1 if found is None else found, int(self.fact("last_id") or -1))

    def forget(self, most: int) -> list[int]:
        """Where more than `most` have ended, drop the oldest of them. Which they were."""
        with self._told("writing to"):
            if self._history < 0:
                self._history = self._db.execute("SELECT count(*) FROM domains WHERE ended IS NOT NULL").fetchone()[0]
            if self._history <= most:
                return []
            least = most - most // 10  # some at a time
            old = self._db.execute(
                "SELECT id FROM domains WHERE ended IS NOT NULL ORDER BY id LIMIT ?", (self._history - least,)
            ).fetchall()
            self._history = -1
            self.remember("last_id", str(self.last_id()))  # a number is never given again
            self._db.executemany("DELETE FROM domains WHERE id=?", old)
            self._db.executemany("DELETE FROM revocations WHERE domain=?", old)
            self._db.executemany("DELETE FROM granted WHERE domain=?", old)
            return [id for (id,) in old]

    # --- else ---------------------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        with self._told("reading"):
            found = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return None if found is None else found[0]

    def remember(self, name: str, value: str) -> None:
        with self._told("writing to"):
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (name, value))

    def revoke(self, domain: int, what: str) -> None:
        """A revocation, as JSON. domain: -1 for the manager itself."""
        with self._told("writing to"):
            self._db.execute("INSERT INTO revocations VALUES (?,?)", (domain, what))

    def revocations(self) -> list[str]:
        with self._told("reading"):
            return [what for (what,) in self._db.execute("SELECT what FROM revocations")]

    def audit(self, at: float, who: str, did: str, domain: int | None, refused: str | None) -> None:
        with self._told("writing to"):
            self._db.execute("INSERT INTO audit VALUES (?,?,?,?,?)", (at, who, did, domain, refused))
            self._audits += 1
            if self._audits % _TRIM_EVERY == 1:
                self._db.execute("DELETE FROM audit WHERE rowid <= (SELECT max(rowid) FROM audit) - ?", (AUDIT_MOST,))

    def audited(self, count: int) -> list[tuple[float, str, str, int | None, str | None]]:
        """The newest entries, oldest first."""
        with self._told("reading"):
            found = self._db.execute("SELECT at, who, did, domain, refused FROM audit ORDER BY rowid DESC LIMIT ?", (count,)).fetchall()
        return found[::-1]

    def names(self) -> list[str]:
        """What of the name service has to survive, as JSON."""
        with self._told("reading"):
            return [what for (what,) in self._db.execute("SELECT what FROM names")]

    def keep_names(self, entries: Iterable[tuple[str, str | None]]) -> None:
        """Rows by their keys. None: the row is deleted."""
        with self._told("writing to"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for key, what in entries:
                    if what is None:
                        self._db.execute("DELETE FROM names WHERE key=?", (key,))
                    else:
                        self._db.execute("INSERT OR REPLACE INTO names VALUES (?,?)", (key, what))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
