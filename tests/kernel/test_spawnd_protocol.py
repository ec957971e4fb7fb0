"""What a spawn daemon says to whoever connects, and that nothing anybody says harms more than the connection."""

import os
import random
import select
import socket

import msgspec
import pytest
from rig import managed
from rig.spawnds import address_of, spawnd

import shoal.manager
from shoal.manager import wire
from shoal.manager.bond import VERSION, Bind, TakeInit

CORE = min(os.sched_getaffinity(0))
SEED = 20_26
REAPED_LATER = 3
"""Processes that have ended, and are reaped when the next one is started."""


@pytest.fixture
def state(monkeypatch):
    with managed.state_directory(monkeypatch.setenv) as directory:
        shoal.manager.embedded(str(directory), cores=[]).close()
        yield directory


@pytest.fixture
def serving(state):
    with spawnd(state, CORE, registers=False) as process:
        yield process


class Talk:
    """One connection to it."""

    def __init__(self, state):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(address_of(state, CORE)))
        self.inbox = wire.Inbox()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.inbox.close()
        self.sock.close()

    def say(self, data, fds=()):
        self.sock.sendmsg([data], wire.ancillary(fds), socket.MSG_NOSIGNAL)

    def ask(self, order, fds=()):
        self.say(wire.frame(wire.encode(order), fds), fds)
        return self.hear()

    def hear(self):
        """The answer and its descriptors; None: the connection was closed."""
        while (found := self.inbox.next()) is None:
            try:
                if not self.inbox.receive(self.sock):
                    return None
            except ConnectionError:
                return None
        return wire.decode_answer(found[0]), found[1]


@pytest.fixture
def given(state):
    """What a manager hands over when it binds."""
    fds = [os.open(state / "ledger", os.O_RDWR), os.open(state / "run", os.O_RDONLY), os.open(state / "logs", os.O_RDONLY)]
    yield fds
    for fd in fds:
        os.close(fd)


def bind(state, version=VERSION):
    return Bind(version, (state / "manager.cap").read_text())


def opened(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def opened_at_rest(state, process, given):
    """The same, once it has what it opens only once."""
    with Talk(state) as talk:
        talk.ask(bind(state), given)
        _, (end,) = talk.ask(TakeInit(False))
        os.close(end)
    managed.wait_until(lambda: managed.processes(state, managed.NURSERY) == [])
    with Talk(state) as talk:
        talk.ask(TakeInit(False))
    return opened(process)


def test_who_has_the_capability_is_served_inits(state, serving, given):
    with Talk(state) as talk:
        answer, _ = talk.ask(bind(state), given)
        assert answer.value == [serving.pid, sorted(os.sched_getaffinity(0)), os.geteuid() == 0]
        answer, (end,) = talk.ask(TakeInit(False))
        managed.wait_until(lambda: answer.value in managed.processes(state, managed.DOMAIN))  # once it has its own name
        os.close(end)
        managed.wait_gone(answer.value)  # nobody tells it anything any more
        (nursery,) = managed.processes(state, managed.NURSERY)
    managed.wait_gone(nursery)
    assert managed.processes(state, managed.DOMAIN) == []


def test_the_next_manager_need_not_wait_for_inits_that_one_who_has_gone_was_given(state, serving, given):
    with Talk(state) as talk:
        talk.ask(bind(state), given)
        _, (end,) = talk.ask(TakeInit(False))
        os.close(end)
    with shoal.manager.embedded(str(state)) as manager:
        manager.add_spawnd(CORE, address_of(state, CORE))
        assert manager.spawn_program(CORE, "sh", ["sh", "-c", "exit 4"]).wait().code == 4


@pytest.mark.parametrize("token", ["", "x", "shoal-manager:AAAA"])
def test_who_has_no_capability_is_not_served(state, serving, given, token):
    with Talk(state) as talk:
        answer, fds = talk.ask(Bind(VERSION, token), given)
        assert (answer.code, fds) == ("SPAWN_ERR_NOT_PROC_MNGR", [])
        assert talk.ask(TakeInit(False)) is None
    assert managed.processes(state, managed.NURSERY) == []


def test_a_capability_for_a_domain_is_none_for_the_manager(state, serving, given):
    with shoal.manager.embedded(str(state), cores=[CORE]) as manager:
        token = manager.spawn_program(CORE, "true", ["true"]).cap.to_token()
    with Talk(state) as talk:
        answer, _ = talk.ask(Bind(VERSION, token), given)
        assert answer.code == "SPAWN_ERR_NOT_PROC_MNGR"


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_who_hands_over_something_else_is_not_served(state, serving, given, count):
    with Talk(state) as talk:
        answer, _ = talk.ask(bind(state), (given + given)[:count])
        assert answer.code == "PROC_MGMT_ERR_SPAWND_REQUEST"


def test_another_version_is_refused_with_advice(state, serving, given):
    with Talk(state) as talk:
        answer, _ = talk.ask(bind(state, VERSION + 1), given)
        assert "start it anew" in answer.message


@pytest.mark.parametrize("second", ["bind", "descriptors"])
def test_who_does_not_keep_to_the_order_loses_the_connection(state, serving, given, second):
    with Talk(state) as talk:
        talk.ask(bind(state), given)
        assert talk.ask(bind(state) if second == "bind" else TakeInit(False), given) is None


def test_one_that_asks_and_never_reads_ends_with_what_it_asked_for(state, serving, given):
    before = opened_at_rest(state, serving, given)
    with Talk(state) as talk:
        talk.ask(bind(state), given)
        asked = wire.frame(wire.encode(TakeInit(False)))
        talk.sock.settimeout(30)
        try:
            for _ in range(5_000):
                talk.say(asked)
        except (ConnectionError, TimeoutError):
            pass
        hang_up = select.poll()
        hang_up.register(talk.sock, 0)
        assert hang_up.poll(30_000)
    assert opened_at_rest(state, serving, given) <= before + REAPED_LATER
    managed.wait_until(lambda: managed.processes(state, managed.DOMAIN) == [])
    with Talk(state) as talk:
        assert talk.ask(bind(state), given)[0].value[0] == serving.pid


def test_whatever_is_said_costs_the_connection_at_most(state, serving, given):
    pick = random.Random(SEED)
    good = [
        wire.frame(wire.encode(bind(state)), given),
        wire.frame(wire.encode(TakeInit(True))),
        wire.frame(msgspec.msgpack.encode([1, {}])),
    ]
    before = opened_at_rest(state, serving, given)
    for _ in range(400):
        data = bytearray(pick.choice(good))
        for _ in range(pick.choice((0, 1, 1, 2, 8))):
            data[pick.randrange(len(data))] = pick.randrange(256)
        data = data[: pick.choice((len(data), len(data), pick.randrange(1, len(data) + 1)))]
        with Talk(state) as talk:
            talk.say(bytes(data), given[: pick.choice((0, 1, 3, 3))])
            talk.sock.shutdown(socket.SHUT_WR)
            while (found := talk.hear()) is not None:
                for fd in found[1]:
                    os.close(fd)
    assert serving.poll() is None
    assert opened_at_rest(state, serving, given) <= before + REAPED_LATER
    with Talk(state) as talk:
        assert talk.ask(bind(state), given)[0].value[0] == serving.pid
