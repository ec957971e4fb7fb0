"""Capabilities as tokens: what is good for what, what narrowing does, and what is refused with which words."""

import base64
import datetime
import pickle
import random
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import AccessDeniedError, InvalidArgsError, Rights, Vmo
from shoal.manager.biscuits import LONGEST, MOST_BLOCKS
from shoal.manager.errors import ManagerError
from shoal.manager.instant import Instant, boot_id
from shoal.manager.revocations import Revocation, Revocations
from shoal.manager.rights import EVERYTHING, FOR_ITSELF, FOR_SPAWNER, DomainRights, ManagerRights, from_words, words
from shoal.manager.rootkey import RootKey
from shoal.manager.tokens import DomainCap, ManagerCap, Mint
from shoal.manager.verifier import CapabilityError, Verifier

biscuit = pytest.importorskip("biscuit_auth")
ALL = tuple(DomainRights)
CAP_HASH = "PROC_MGMT_ERR_DOMAIN_CAP_HASH"
NOW = Instant(boot_id(), 1_000_000, 1_700_000_000.0)


@pytest.fixture(scope="module")
def key():
    return RootKey.generate()


@pytest.fixture(scope="module")
def mint(key):
    return Mint(key)


@pytest.fixture
def verifier(key):
    return Verifier(key.public)


def refused(verifier, token, domain=7, right=DomainRights.KILL, now=None):
    with pytest.raises(CapabilityError) as caught:
        verifier.verify(token, domain, right, now)
    return caught.value


# --- what a capability allows


def test_whoever_starts_a_domain_may_do_everything_with_it_but_exit_in_its_name(mint, verifier):
    cap = mint.domain(7)
    assert cap.domain_id == 7
    assert cap.rights == FOR_SPAWNER
    for right in ALL:
        if right is DomainRights.EXIT:
            assert refused(verifier, cap, right=right).refusal.why == "lacks the right"
        else:
            assert verifier.verify(cap.to_token(), 7, right).rights == FOR_SPAWNER


def test_a_domain_itself_may_exit(mint, verifier):
    claims = verifier.verify(mint.domain(7, FOR_ITSELF), 7, DomainRights.EXIT)
    assert (claims.domain_id, claims.rights) == (7, FOR_ITSELF)


def test_a_capability_says_which_domain_it_is_for_where_nobody_else_does(mint, verifier):
    assert verifier.verify(mint.domain(0), None, DomainRights.WAIT).domain_id == 0
    assert verifier.verify(mint.domain(2**32 - 1), None, DomainRights.WAIT).domain_id == 2**32 - 1


def test_what_a_mint_says_of_a_capability_is_what_is_read_in_it(mint, verifier):
    for cap in (mint.domain(7, generation=3), mint.domain(0, FOR_ITSELF), mint.domain(9, DomainRights.WAIT | DomainRights.LOGS)):
        assert verifier.read(cap.to_token()) == DomainCap.from_token(cap.to_token()).reading == cap.reading
    manager = mint.manager(ManagerRights.LIST)
    assert verifier.read(manager) == ManagerCap.from_token(manager.to_token()).reading == manager.reading


def test_a_capability_that_was_minted_here_is_taken_unread_and_no_other_is(mint, verifier):
    known, other = mint.domain(7), mint.domain(7)
    elsewhere = Verifier(RootKey.generate().public)  # which can check neither of the two signatures
    elsewhere.learn(known)
    assert elsewhere.verify(known.to_token(), 7, DomainRights.KILL).rights == FOR_SPAWNER
    assert refused(elsewhere, other).refusal.why == "other manager"
    assert refused(elsewhere, known.attenuate(DomainRights.KILL)).refusal.why == "other manager"
    elsewhere.revocations.apply(elsewhere.revocations.of_all(7))
    assert refused(elsewhere, known).refusal.why == "revoked"
    assert refused(elsewhere, known, domain=8).refusal.why == "other domain"


def test_several_rights_asked_at_once_have_to_be_there_all(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.WAIT | DomainRights.KILL)
    verifier.verify(cap, 7, DomainRights.WAIT | DomainRights.KILL)
    error = refused(verifier, cap, right=DomainRights.WAIT | DomainRights.LOGS)
    assert "does not allow: logs; it allows: wait kill" in error.message


def test_the_manager_capability_does_what_concerns_all_and_nothing_with_a_domain(mint, verifier):
    cap = mint.manager()
    for right in ManagerRights:
        assert verifier.verify_manager(cap.to_token(), right).domain_id is None
    error = refused(verifier, cap.to_token())
    assert (error.code, error.refusal.why) == (CAP_HASH, "wrong kind")


@pytest.mark.parametrize("token", ["domain", "narrowed", "nonsense"])
def test_what_concerns_all_is_refused_to_whoever_has_no_manager_capability(mint, verifier, token):
    given = {
        "domain": mint.domain(7).to_token(),
        "narrowed": mint.manager().attenuate(ManagerRights.LIST).to_token(),
        "nonsense": "nonsense",
    }[token]
    with pytest.raises(CapabilityError) as caught:
        verifier.verify_manager(given, ManagerRights.ADD_SPAWND)
    assert caught.value.code == "PROC_MGMT_ERR_NOT_MONITOR"


# --- narrowing


def test_narrowing_asks_nobody_and_leaves_the_first_as_it_was(mint, verifier, key):
    cap = DomainCap.from_token(mint.domain(7).to_token())  # somebody who has only the text
    narrow = cap.attenuate(DomainRights.WAIT | DomainRights.LOGS)
    assert narrow.rights == DomainRights.WAIT | DomainRights.LOGS
    assert cap.rights == FOR_SPAWNER
    verifier.verify(narrow, 7, DomainRights.WAIT)
    assert refused(verifier, narrow).refusal.why == "lacks the right"
    verifier.verify(cap, 7, DomainRights.KILL)


def test_what_was_narrowed_can_be_narrowed_further_and_never_widened(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.WAIT | DomainRights.LOGS)
    assert cap.attenuate(DomainRights.WAIT).rights == DomainRights.WAIT
    with pytest.raises(InvalidArgsError, match="this one lacks kill, it has wait logs"):
        cap.attenuate(DomainRights.WAIT | DomainRights.KILL)
    with pytest.raises(InvalidArgsError, match="without any right"):
        cap.attenuate(DomainRights(0))
    with pytest.raises(TypeError, match="DomainRights"):
        cap.attenuate(ManagerRights.LIST)


@pytest.mark.parametrize(
    "block",
    [
        'right("kill")',
        "domain(8, 0)",
        'right("kill"); check if operation("wait") or operation("kill")',
        'right("kill") <- operation("wait")',
        'check if operation("wait") or operation("kill") or right("kill")',
        'check if operation("wait") trusting previous',
        'reject if operation("wait")',
        'check all operation($o), ["wait"].contains($o)',
        "check if true",
    ],
)
def test_a_block_that_says_more_than_what_it_takes_away_is_refused_whatever_it_says(mint, verifier, block):
    narrow = mint.domain(7).attenuate(DomainRights.WAIT)
    widened = append(narrow.to_token(), block)
    for right in (DomainRights.KILL, DomainRights.WAIT):
        error = refused(verifier, widened, right=right)
        assert (error.code, error.refusal.why) == (CAP_HASH, "unreadable")
        assert "block 2 of the capability says" in error.message
        assert error.refusal.is_genuine


def test_a_block_that_allows_more_again_takes_nothing_back(mint, verifier):
    widened = append(mint.domain(7).attenuate(DomainRights.WAIT).to_token(), 'check if operation("wait") or operation("kill")')
    assert DomainCap.from_token(widened).rights == DomainRights.WAIT
    assert refused(verifier, widened).refusal.why == "lacks the right"


def test_a_block_whose_text_prints_like_others_can_only_take_away(mint, verifier):
    text = 'x"); right("kill'
    widened = append(mint.domain(7).attenuate(DomainRights.WAIT).to_token(), "check if operation({text})", {"text": text})
    assert refused(verifier, widened).refusal.why == "unreadable"
    split = 'wait")\ncheck if operation("wait'
    narrowed = append(mint.domain(7).attenuate(DomainRights.WAIT).to_token(), "check if operation({text})", {"text": split})
    assert refused(verifier, narrowed).refusal.why in ("unreadable", "lacks the right")


def test_a_block_made_to_keep_the_evaluator_busy_costs_nothing(mint, verifier):
    facts = "; ".join(f"p({number})" for number in range(60))
    bomb = append(mint.domain(7).to_token(), f"{facts}; check if p($a), p($b), p($c), p($d), p($e), $a == 77")
    assert len(bomb) <= LONGEST
    done = threading.Event()

    def look():
        refused(verifier, bomb)
        done.set()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    assert done.wait(30)


def test_a_capability_is_narrowed_only_so_often(mint, verifier):
    cap = mint.domain(7)
    for _ in range(MOST_BLOCKS - 1):
        cap = cap.attenuate(FOR_SPAWNER, expires="1h")
    verifier.verify(cap, 7, DomainRights.KILL)
    assert len(cap.to_token()) < LONGEST
    with pytest.raises(ManagerError, match="ask the manager for a fresh one"):
        cap.attenuate(DomainRights.WAIT)
    error = refused(verifier, append(cap.to_token(), 'check if operation("kill")'))
    assert "narrowed 8 times; 7 is the most" in error.message


def append(token, block, parameters=None):
    """What a hostile holder does, who has the library too."""
    unverified = biscuit.UnverifiedBiscuit.from_base64(token)
    public = unverified.block_source(0).partition('minted_by("')[2][:72]
    return unverified.verify(biscuit.PublicKey(public)).append(biscuit.BlockBuilder(block, parameters)).to_base64()


subsets = st.sets(st.sampled_from(ALL), min_size=1)
moments = st.integers(0, 2_000_000)
blocks = st.lists(
    st.tuples(st.none() | subsets, st.none() | moments, st.none() | st.integers(1_600_000_000, 1_800_000_000)), max_size=MOST_BLOCKS - 1
)


@given(first=subsets, blocks=blocks, wanted=st.sampled_from(ALL), uptime_ms=moments, wall=st.integers(1_600_000_000, 1_800_000_000))
def test_what_is_read_off_a_token_is_what_the_evaluator_makes_of_it(first, blocks, wanted, uptime_ms, wall):
    key = RootKey.generate()
    held = from_words(DomainRights, [item.name.lower() for item in first])
    token = biscuit.Biscuit.from_base64(Mint(key).domain(7, held).to_token(), key.public)
    for rights, until_ms, until in blocks:
        block = biscuit.BlockBuilder("")
        if rights is not None:
            block.add_code("check if " + " or ".join(f'operation("{item.name.lower()}")' for item in rights))
        if until_ms is not None:
            block.add_code("check if boot({boot}), uptime($ms), $ms <= {at}", {"boot": NOW.boot, "at": until_ms})
        if until is not None:
            block.add_code("check if time($time), $time <= {at}", {"at": datetime.datetime.fromtimestamp(until, datetime.UTC)})
        token = token.append(block)
    authorizer = biscuit.AuthorizerBuilder(
        "operation({wanted}); boot({boot}); uptime({ms}); time({time}); allow if right($r), operation($r)",
        {"wanted": wanted.name.lower(), "boot": NOW.boot, "ms": uptime_ms, "time": datetime.datetime.fromtimestamp(wall, datetime.UTC)},
    )
    authorizer.set_limits(patient(authorizer.limits()))
    try:
        authorizer.build(token).authorize()
        allowed = True
    except biscuit.AuthorizationError:
        allowed = False
    try:
        Verifier(key.public).verify(token.to_base64(), 7, wanted, Instant(NOW.boot, uptime_ms, wall))
        found = True
    except CapabilityError:
        found = False
    assert found == allowed


def patient(limits):
    limits.max_time = datetime.timedelta(seconds=20)
    return limits


# --- time


def test_a_capability_ends_when_it_was_said_to(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.KILL, expires="1m")
    assert 0 < cap.expires_in() <= 60
    now = Instant.now()
    verifier.verify(cap, 7, DomainRights.KILL, now)
    error = refused(verifier, cap, now=now._replace(uptime_ms=now.uptime_ms + 60_001))
    assert (error.code, error.refusal.why) == (CAP_HASH, "expired")
    assert "expired 0.0 s ago" in error.message or "expired 0.1 s ago" in error.message


def test_a_capability_made_here_does_not_follow_a_wall_clock_that_jumps(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.KILL, expires="1m")
    now = Instant.now()
    verifier.verify(cap, 7, DomainRights.KILL, now._replace(wall_s=now.wall_s + 1e6))
    late = now._replace(uptime_ms=now.uptime_ms + 61_000)
    assert refused(verifier, cap, now=late).refusal.why == "expired"
    assert refused(verifier, cap, now=late._replace(wall_s=0.0)).refusal.why == "expired"


def test_a_deadline_does_not_survive_the_boot_it_was_meant_in(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.KILL, expires="1m")
    error = refused(verifier, cap, now=Instant("0" * 32, 5, Instant.now().wall_s))
    assert error.refusal.why == "expired"
    assert "earlier boot" in error.message
    assert refused(verifier, cap, now=Instant("", 5, Instant.now().wall_s)).refusal.why == "expired"
    verifier.verify(mint.domain(7), 7, DomainRights.KILL, Instant("0" * 32, 5, 0.0))


def test_a_capability_narrowed_on_another_machine_follows_the_wall_clock(mint, verifier, monkeypatch):
    cap = mint.domain(7)
    elsewhere = Instant("f" * 32, 77, 1_700_000_000.0)
    monkeypatch.setattr(Instant, "now", classmethod(lambda cls: elsewhere))
    there = cap.attenuate(DomainRights.KILL, expires="1m")
    assert there.expires_in() == pytest.approx(60, abs=1)
    monkeypatch.undo()
    verifier.verify(there, 7, DomainRights.KILL, Instant(boot_id(), 1, 1_700_000_059.0))
    assert refused(verifier, there, now=Instant(boot_id(), 1, 1_700_000_061.0)).refusal.why == "expired"


def test_a_later_deadline_does_not_make_an_earlier_one_later(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.KILL, expires="1m").attenuate(DomainRights.KILL, expires="1h")
    assert cap.expires_in() <= 60
    now = Instant.now()
    assert refused(verifier, cap, now=now._replace(uptime_ms=now.uptime_ms + 61_000)).refusal.why == "expired"


@pytest.mark.parametrize(
    ("expires", "error"), [(0, ValueError), (-1, ValueError), ("soon", ValueError), (float("inf"), ValueError), ([], TypeError)]
)
def test_a_time_that_is_none_is_refused(mint, expires, error):
    with pytest.raises(error):
        mint.domain(7).attenuate(DomainRights.KILL, expires=expires)


def test_a_time_beyond_all_dates_is_a_long_one(mint, verifier, monkeypatch):
    verifier.verify(mint.domain(7).attenuate(DomainRights.KILL, expires=1e17), 7, DomainRights.KILL)
    monkeypatch.setattr(Instant, "now", classmethod(lambda cls: Instant("", 77, 1_700_000_000.0)))
    verifier.verify(mint.domain(7).attenuate(DomainRights.KILL, expires=1e17), 7, DomainRights.KILL)


# --- what is refused


def test_a_capability_for_another_domain_is_refused(mint, verifier):
    error = refused(verifier, mint.domain(8))
    assert (error.code, error.refusal.why) == (CAP_HASH, "other domain")
    assert "for domain 8 says nothing of domain 7" in error.message


def test_a_capability_of_another_manager_is_told_from_a_forged_one(mint, verifier, key):
    other = RootKey.generate()
    error = refused(verifier, Mint(other).domain(7))
    assert (error.code, error.refusal.why, error.refusal.is_genuine) == (CAP_HASH, "other manager", False)
    assert other.name in error.message
    assert key.name in error.message
    named = f'domain(7, 0); right("kill"); minted_by("ed25519/{bytes(key.public.to_bytes()).hex()}"); boot("")'
    forged = biscuit.BiscuitBuilder(named).build(other.private).to_base64()
    error = refused(verifier, forged)
    assert (error.code, error.refusal.why, error.refusal.is_genuine) == (CAP_HASH, "forged", False)
    with pytest.raises(ManagerError, match="not signed by the manager it names"):
        DomainCap.from_token(forged).attenuate(DomainRights.KILL)


def test_a_token_of_somebody_elses_is_refused(verifier, key):
    for source in (
        'user("ana")',
        'right("kill")',
        "domain(7, 0); domain(8, 0)",
        'domain(7, 0); right("fly")',
        "domain(7)",
        "domain(7, 0); manager(0)",
    ):
        token = biscuit.BiscuitBuilder(source).build(key.private).to_base64()
        assert refused(verifier, token).refusal.why == "unreadable"
        with pytest.raises(ManagerError):
            DomainCap.from_token(token)


@pytest.mark.parametrize("token", ["", " ", "x", "é", "\ud800", "A" * LONGEST, "A" * (LONGEST + 1), "A" * 10_000_000])
def test_text_that_is_no_token_is_refused_and_not_kept(verifier, token):
    error = refused(verifier, token)
    assert (error.code, error.refusal.why, error.refusal.capability_id) == (CAP_HASH, "unreadable", "")
    assert len(error.message) < 500
    with pytest.raises(ManagerError):
        DomainCap.from_token(token)


@pytest.mark.parametrize("token", [None, 7, b"bytes", ["list"]])
def test_what_is_no_text_is_a_type_error(verifier, token):
    with pytest.raises(TypeError, match="travels as text"):
        verifier.verify(token, 7, DomainRights.KILL)
    with pytest.raises(TypeError, match="travels as text"):
        DomainCap.from_token(token)


def test_a_token_with_bytes_changed_is_refused_or_says_the_same(mint, verifier):
    cap = mint.domain(7).attenuate(DomainRights.WAIT)
    data = base64.urlsafe_b64decode(cap.to_token())
    chance = random.Random(7)
    for _ in range(3000):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            place = chance.randrange(len(changed))
            if chance.random() < 0.6:
                changed[place] = chance.randrange(256)
            elif chance.random() < 0.5:
                del changed[place : place + chance.randrange(1, 9)]
            else:
                changed.insert(place, chance.randrange(256))
        token = base64.urlsafe_b64encode(bytes(changed)).decode()
        try:
            claims = verifier.verify(token, 7, DomainRights.WAIT)
        except CapabilityError:
            continue
        assert (claims.domain_id, claims.rights) == (7, DomainRights.WAIT)
        assert refused(verifier, token).refusal.why == "lacks the right"


def test_a_manager_capability_is_no_domain_capability(mint):
    with pytest.raises(ManagerError, match="for the manager itself, which a DomainCap cannot hold"):
        DomainCap.from_token(mint.manager().to_token())
    with pytest.raises(ManagerError, match="for a domain, which a ManagerCap cannot hold"):
        ManagerCap.from_token(mint.domain(7).to_token())


def test_a_domain_beyond_the_last_is_not_minted(mint):
    with pytest.raises(ManagerError) as caught:
        mint.domain(2**32)
    assert caught.value.code == "SYS_ERR_DOMAIN_SPACE_EXHAUSTED"
    with pytest.raises(ValueError, match="negative"):
        mint.domain(-1)
    with pytest.raises(ValueError, match="without any right"):
        mint.domain(7, DomainRights(0))


# --- the audit record


def test_a_refused_use_leaves_a_record_without_the_token(mint, verifier):
    cap = mint.domain(8)
    error = refused(verifier, cap, right=DomainRights.SPAN)
    refusal = error.refusal
    assert (refusal.why, refusal.wanted, refusal.domain_id, refusal.capability_domain_id) == ("other domain", "span", 7, 8)
    assert (refusal.capability_id, refusal.is_genuine) == (cap.id, True)
    assert refusal.at == pytest.approx(Instant.now().wall_s, abs=60)
    assert set(refusal.to_dict()) == {
        "at", "why", "wanted", "domain_id", "capability_id", "capability_domain_id", "is_genuine", "message",
    }  # fmt: skip
    assert cap.to_token() not in repr(refusal) + str(error)


def test_an_error_crosses_processes_whole(mint, verifier):
    error = refused(verifier, mint.domain(8))
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message, copy.refusal) == (error.code, error.message, error.refusal)


# --- revocation


def test_revoking_one_ends_it_and_all_that_were_made_from_it(mint, verifier):
    parent = mint.domain(7)
    given, sibling = parent.attenuate(DomainRights.KILL), parent.attenuate(DomainRights.KILL)
    child = given.attenuate(DomainRights.KILL, expires="1h")
    for cap in (parent, given, sibling, child):
        verifier.verify(cap, 7, DomainRights.KILL)
    verifier.revocations.apply(verifier.revocations.of_one(verifier.read(given)))
    for cap in (given, child):
        assert refused(verifier, cap).refusal.why == "revoked"
    for cap in (parent, sibling):
        verifier.verify(cap, 7, DomainRights.KILL)


def test_revoking_all_of_a_domain_leaves_other_domains_and_later_capabilities(mint, verifier):
    old, other = mint.domain(7), mint.domain(8)
    narrow = old.attenuate(DomainRights.KILL)
    verifier.verify(narrow, 7, DomainRights.KILL)
    verifier.revocations.apply(verifier.revocations.of_all(7))
    for cap in (old, narrow, old.attenuate(DomainRights.KILL)):
        error = refused(verifier, cap)
        assert (error.code, error.refusal.why) == (CAP_HASH, "revoked")
    verifier.verify(other, 8, DomainRights.KILL)
    fresh = mint.domain(7, generation=verifier.revocations.generation(7))
    verifier.verify(fresh, 7, DomainRights.KILL)
    verifier.revocations.apply(verifier.revocations.of_all(7))
    assert refused(verifier, fresh).refusal.why == "revoked"


def test_manager_capabilities_can_be_revoked_all_at_once(mint, verifier):
    cap = mint.manager()
    verifier.revocations.apply(verifier.revocations.of_all(None))
    with pytest.raises(CapabilityError, match="no longer good"):
        verifier.verify_manager(cap, ManagerRights.LIST)
    verifier.verify_manager(mint.manager(generation=verifier.revocations.generation(None)), ManagerRights.LIST)


def test_what_was_revoked_stays_revoked_after_a_restart(mint, verifier, key):
    one, other = mint.domain(7), mint.domain(8)
    verifier.revocations.apply(verifier.revocations.of_one(verifier.read(one.to_token())))
    verifier.revocations.apply(verifier.revocations.of_all(8))
    stored = [item.to_dict() for item in verifier.revocations]
    again = Verifier(key.public, [Revocation.from_dict(data) for data in stored])
    assert refused(again, one).refusal.why == "revoked"
    assert refused(again, other, domain=8).refusal.why == "revoked"
    assert again.revocations.generation(8) == 1


def test_revocations_may_be_applied_twice_and_in_any_order(mint):
    first, second = Revocation("all", 7, "", 1, 0.0), Revocation("all", 7, "", 2, 1.0)
    for order in ((first, second, first), (second, first), (second, second)):
        assert Revocations(order).generation(7) == 2


def test_what_was_revoked_for_a_domain_can_be_forgotten_with_it(verifier, mint):
    verifier.revocations.apply(verifier.revocations.of_one(verifier.read(mint.domain(7))))
    verifier.revocations.apply(verifier.revocations.of_all(7))
    verifier.revocations.apply(verifier.revocations.of_all(8))
    assert len(verifier.revocations) == 3
    verifier.revocations.forget(7)
    assert [item.domain_id for item in verifier.revocations] == [8]


def test_the_revocation_of_one_takes_its_whole_id(mint):
    cap = mint.domain(7)
    assert cap.revocation_id.startswith(cap.id)
    with pytest.raises(ValueError, match="whole revocation id"):
        Revocation("one", 7, cap.id, 0, 0.0)


# --- what is shown, and how it travels


def test_no_printed_form_shows_the_token(mint):
    for cap in (mint.domain(7), mint.manager(), mint.domain(7).attenuate(DomainRights.WAIT, expires="1m")):
        secret = cap.to_token()
        for text in (repr(cap), str(cap), f"{cap}", repr([cap]), repr(vars(type(cap)))):
            assert not any(secret[start : start + 40] in text for start in range(0, len(secret) - 40, 20))
    assert repr(mint.domain(7).attenuate(DomainRights.WAIT | DomainRights.KILL)).startswith(
        "<shoal.manager.DomainCap domain 7: wait kill ("
    )


def test_no_printed_form_shows_the_root_key(key):
    secret = bytes(key.private.to_bytes()).hex()
    assert secret not in repr(key)
    assert repr(key) == f"<shoal root key {key.name}>"
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(key)


def test_a_capability_is_equal_to_itself_however_it_came(mint):
    cap = mint.domain(7)
    assert cap == DomainCap.from_token(cap.to_token()) == pickle.loads(pickle.dumps(cap))
    assert len({cap, DomainCap.from_token(cap.to_token()), cap.attenuate(DomainRights.WAIT)}) == 2
    assert cap != mint.domain(7)
    with pytest.raises(TypeError, match="comes from the manager"):
        DomainCap()


def test_a_capability_travels_as_a_descriptor(mint):
    cap = mint.domain(7)
    with cap.to_vmo() as vmo:
        assert vmo.is_sealed
        assert DomainCap.from_vmo(vmo) == cap
        with vmo.duplicate(Rights.BASIC) as blind, pytest.raises(AccessDeniedError):
            DomainCap.from_vmo(blind)
    with Vmo.from_bytes(b"\xff\xfe") as vmo, pytest.raises(ManagerError, match="there is no capability in"):
        DomainCap.from_vmo(vmo)


def test_words_stand_for_rights_in_both_directions():
    for kind in (DomainRights, ManagerRights):
        for right in kind:
            assert from_words(kind, words(right)) == right
    assert words(FOR_SPAWNER) == ("wait", "kill", "signal", "span", "status", "capabilities", "logs")
    assert from_words(ManagerRights, words(EVERYTHING)) == EVERYTHING
    for bad in ("fly", "WAIT", "", "__class__"):
        with pytest.raises(ValueError, match="there are: wait, kill"):
            from_words(DomainRights, [bad])


# --- remembering


def test_only_so_many_tokens_are_remembered(mint, key):
    verifier = Verifier(key.public, kept=10)
    caps = [mint.domain(number) for number in range(30)]
    for cap in caps:
        verifier.verify(cap, None, DomainRights.KILL)
    assert len(verifier._known) == 10
    for cap in caps:
        verifier.verify(cap, cap.domain_id, DomainRights.KILL)
    for _ in range(50):
        refused(verifier, Mint(RootKey.generate()).domain(7))
    assert len(verifier._known) == 10


def test_many_threads_may_verify_at_once(mint, key):
    verifier, caps, failed = Verifier(key.public, kept=5), [mint.domain(number) for number in range(20)], []

    def look():
        try:
            for cap in caps * 10:
                assert verifier.verify(cap, cap.domain_id, DomainRights.KILL).domain_id == cap.domain_id
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# --- its library


def test_without_the_library_the_extra_is_named():
    script = (
        "import sys; sys.modules['biscuit_auth'] = None\n"
        "from shoal.manager.tokens import DomainCap\n"
        "from shoal.manager.errors import ManagerError\n"
        "try: DomainCap.from_token('x')\n"
        "except ManagerError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'shoal[manager]'" in done.stdout
