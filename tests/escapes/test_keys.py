"""Keys: what the kernel keeps for a user or a session, which no namespace divides.

A program gets a session keyring of its own, which is empty. What belongs to its user it reaches, when that is the caller and no
filter closes the calls.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cell, pytest.mark.skipif(not Path("/proc/keys").exists(), reason="needs a kernel with keyrings")]

SECRET = "top-secret"

PREAMBLE = """
import keyring, shoal
from attempts import AT_FDCWD, Given, Ground, spawned
from keyring import LINK, READ, SEARCH, SESSION, USER, add_key, keyctl

buffer = bytes(10)

def reached(outcomes):  # in two words: whether the secret was read, and how far it got
    return [outcomes[-1].data.rstrip(b"\\0").decode(), [outcome.errno for outcome in outcomes]]
"""


@pytest.fixture
def run_keys(run_attacks):
    """As run_attacks, for a script that has keys itself."""
    return lambda script, *args, **how: run_attacks(PREAMBLE + script, *args, **how)


READING = """
session = keyctl(keyring.JOIN_SESSION_KEYRING, 0)
key = add_key("shoal-test-key", "top-secret", SESSION)
ways = [
    [("keyctl", READ, key, buffer, 10)],
    [("keyctl", SEARCH, SESSION, "user", "shoal-test-key", 0), ("keyctl", READ, Given(1), buffer, 10)],
    [("keyctl", LINK, key, SESSION), ("keyctl", READ, key, buffer, 10)],
    [("keyctl", LINK, session, SESSION), ("keyctl", READ, key, buffer, 10)],
]
grounds = {
    "outside": Ground(workload).calls,
    "inside": Ground(workload, args[0]).calls,
    "unfiltered": Ground(workload, args[0] | {"seccomp": "off"}).calls,
    "spawned": lambda *steps: spawned(workload, *steps),
}
# More than once: the first launch of a kind takes another way than those after it.
found = {name: [[reached(calls(*steps)) for steps in ways] for _ in range(4)] for name, calls in grounds.items()}
assert keyctl(keyring.GET_KEYRING_ID, SESSION, 0) == session, "the caller has another one now"
answer(found)
"""


def test_the_keys_of_the_callers_session_are_not_read(inside, run_keys):
    """Nor by a program that no filter keeps from trying."""
    found = run_keys(READING, inside.box)
    for outside in found["outside"]:
        assert [secret for secret, _ in outside] == [SECRET] * 4
    for ways in found["inside"]:
        assert {secret for secret, _ in ways} == {""}
        assert {error for _, errors in ways for error in errors} <= {errno.EPERM}
    for ways in (*found["unfiltered"], *found["spawned"]):
        assert {secret for secret, _ in ways} == {""}
        assert {errors[0] for _, errors in ways} <= {errno.EACCES, errno.ENOKEY}


LISTING = """
keyctl(keyring.JOIN_SESSION_KEYRING, 0)
add_key("shoal-test-key", "top-secret", SESSION)
look = (("openat", AT_FDCWD, "/proc/keys", os.O_RDONLY), ("read", Given(1), bytes(65536), 65536))
boxes = (None, args[0], args[0] | {"seccomp": "off"})
answer([b"shoal-test-key" in Ground(workload, box).calls(*look)[-1].data for box in boxes])
"""


def test_the_keys_of_the_caller_are_listed_to_nobody_but_its_user(inside, run_keys):
    """The kernel lists to each user the names of its keys. SECURITY.md says so."""
    mine = not inside.has_own_user
    assert run_keys(LISTING, inside.box) == [True, mine, mine]


OF_THE_USER = """
session = keyctl(keyring.JOIN_SESSION_KEYRING, 0)
of_user = keyctl(keyring.GET_KEYRING_ID, USER, 1)
key = add_key("shoal-test-key-of-user", "top-secret", USER)
steps = (("keyctl", LINK, of_user, SESSION), ("keyctl", READ, key, buffer, 10))
try:
    boxes = (None, args[0], args[0] | {"seccomp": "off"})
    answer([reached(Ground(workload, box).calls(*steps)) for box in boxes])
finally:
    keyctl(9, key, of_user)  # unlink
"""


def test_the_keys_of_the_callers_user_are_reached_by_who_is_that_user_and_has_no_filter(inside, run_keys):
    """Known: they belong to a user id, and that is the same. SECURITY.md says so."""
    outside, filtered, unfiltered = run_keys(OF_THE_USER, inside.box)
    assert outside == [SECRET, [0, 0]]
    assert filtered == ["", [errno.EPERM, errno.EPERM]]
    assert unfiltered == (["", [errno.EACCES, errno.EACCES]] if inside.has_own_user else [SECRET, [0, 0]])


BETWEEN = """
keyctl(keyring.JOIN_SESSION_KEYRING, 0)
ground = Ground(workload, args[0] | {"seccomp": "off"})
make = ("add_key", "user", "shoal-of-a-sibling", "top-secret", 10, SESSION)
find = (("keyctl", SEARCH, SESSION, "user", "shoal-of-a-sibling", 0), ("keyctl", READ, Given(1), buffer, 10))
assert ground.calls(make, *[(name, *(Given(2) if isinstance(item, Given) else item for item in rest)) for name, *rest in find])[2].data
with ground.held(make, ("getpid",)) as other:
    key = other.outcomes[0].value
    siblings = [reached(ground.calls(*find)), reached(ground.calls(("keyctl", READ, key, buffer, 10)))]
answer([siblings, reached(Ground(workload).calls(*find))])
"""


def test_programs_do_not_meet_in_a_keyring(inside, run_keys):
    siblings, caller = run_keys(BETWEEN, inside.box)
    assert [secret for secret, _ in (*siblings, caller)] == [""] * 3
    assert siblings[0][1][0] == caller[1][0] == errno.ENOKEY
    assert siblings[1][1] == [errno.EACCES]


TO_PARENT = """
shoal.cells.limit(0)  # only the keyring of a process with one thread can be exchanged
own = keyctl(keyring.JOIN_SESSION_KEYRING, 0)
steps = (("keyctl", keyring.JOIN_SESSION_KEYRING, 0), ("keyctl", keyring.SESSION_TO_PARENT))
found = []
for box in (None, args[0], args[0] | {"seccomp": "off"}):
    errnos = Ground(workload, box).errnos(*steps)
    now = keyctl(keyring.GET_KEYRING_ID, SESSION, 0)
    found.append([errnos, now != own])
    own = now
answer(found)
"""


def test_a_program_exchanges_the_callers_keyring_only_as_its_user_and_without_a_filter(inside, run_keys):
    """Known: who started it is its parent, whose session keyring a process of the same user may exchange for its own."""
    outside, filtered, unfiltered = run_keys(TO_PARENT, inside.box)
    assert outside == [[0, 0], True]
    assert filtered == [[errno.EPERM, errno.EPERM], False]
    assert unfiltered == ([[0, errno.EPERM], False] if inside.has_own_user else [[0, 0], True])


# --- a user with as many keys as it may have ------

USED_UP = """
keyctl(keyring.JOIN_SESSION_KEYRING, 0)  # who has none gets the first one whatever the limit
user = 0x6b800000 + os.getpid()  # nobody else
ready, over = os.pipe(), os.pipe()
filler = os.fork()
if filler == 0:
    os.close(over[1])
    os.setresuid(user, user, user)
    keyctl(keyring.JOIN_SESSION_KEYRING, 0)
    try:
        for number in range(100_000):
            add_key(f"key-{number}", "x", SESSION)
    except OSError as error:
        os.write(ready[1], bytes([error.errno]))
    os.read(over[0], 1)
    os._exit(0)
error = os.read(ready[0], 1)[0]
os.setresuid(user, 0, 0)  # root, but for the counting of keys

def attempt(run):
    try:
        return run().returncode
    except shoal.SpawnError as error:
        return [error.status.name, str(error)]

boxes = [args[0], args[0] | {"seccomp": "off"}]
full = [attempt(lambda: Ground(args[1], box).run("ids")) for box in boxes]
os.close(over[1])
os.waitpid(filler, 0)
again = [attempt(lambda: Ground(args[1], box).run("ids")) for box in boxes]
answer([error, full, again])
"""


@pytest.mark.root
def test_a_user_with_too_many_keys_starts_what_cannot_use_any_and_nothing_else(inside, run_keys, public_folder):
    program = public_folder / "attacks"  # where a real user that is not root can execute it
    shutil.copy(inside.program, program)
    error, full, again = run_keys(USED_UP, inside.box, str(program))
    assert error == errno.EDQUOT
    if inside.box.get("user") == "caller":  # it would be the real user, so that nothing is started at all
        assert all(status == "ACCESS_DENIED" and "os.setresuid()" in message for status, message in full + again)
        return
    filtered, (status, message) = full
    assert filtered == 0
    assert status == "NO_RESOURCES"
    assert "/proc/sys/kernel/keys/maxkeys" in message
    assert again == [0, 0]
