"""The name service of a manager on its loop: what takes long leaves turns to others."""

import asyncio

import pytest

from shoal.manager.names import LocalService
from shoal.manager.names.query import Query
from shoal.manager.names.registry import GONE_AT_ONCE
from shoal.manager.naming import Naming
from shoal.manager.store import Store
from shoal.manager.wire import NameList, NameSet

RECORDS = 20 * GONE_AT_ONCE


class Client:
    """Reads what it is answered at once."""

    principal, is_privileged, is_deaf = "uid 0", False, False

    def __init__(self):
        self.answers = []

    def answer(self, rid, value=None, fds=()):
        self.answers.append(value)

    def tell(self, watch, event):
        pass


@pytest.fixture
def store(tmp_path):
    made = Store(str(tmp_path / "manager.db"))
    yield made
    made.close()


def test_a_session_with_many_records_ends_in_pieces_between_which_others_are_served(store):
    async def main():
        loop = asyncio.get_running_loop()
        naming = Naming(store, loop.call_soon)
        many, other = Client(), Client()
        for number in range(RECORDS):
            naming.handle(many, NameSet(number, f"job{number}", "replace", "session", False, None, "", 0), [])
        left = []
        naming.left(many)
        while not left or left[-1]:
            naming.handle(other, NameList(1, "_"), [])
            left.append(len(other.answers[-1]))
            await asyncio.sleep(0)  # as long as the loop takes for everybody else
        return left

    left = asyncio.run(main())
    assert left[0] > 0
    assert left == sorted(left, reverse=True)
    assert max(before - after for before, after in zip([RECORDS, *left], left, strict=False)) == GONE_AT_ONCE
    assert len(left) >= RECORDS // GONE_AT_ONCE


def test_a_session_in_this_process_with_many_records_is_gone_when_it_has_been_closed():
    service = LocalService()
    names, other = service.connect(), service.connect()
    for number in range(3 * GONE_AT_ONCE + 1):
        names.set(Query(f"job{number}"))
    names.close()
    assert other.names(Query(None)) == []
