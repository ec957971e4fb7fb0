"""Whatever a client sends, the manager answers or hangs up: nothing comes out of its loop, no descriptor stays, and others are served.

tests/fuzz/wire.py does the same for as long as one likes.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig.besieged import Besieged, descriptors, left_over, storm

from shoal.manager import wire


@pytest.fixture(scope="module")
def besieged():
    with Besieged() as made:
        storm(made, random.Random(0), 200)  # what is opened on first use is open
        made.complaints.clear()
        yield made


def check_unharmed(besieged, before):
    complaints = besieged.complaints[:]
    besieged.complaints.clear()
    assert complaints == [], f"it was sent {besieged.sent}"
    assert besieged.ask(wire.Status, besieged.domain)["state"] == "running"
    assert left_over(before) == [], f"it was sent {besieged.sent}"


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_a_hostile_client_harms_nobody_but_itself(besieged, pick):
    before = descriptors()
    storm(besieged, pick, 12)
    check_unharmed(besieged, before)


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 3))
def test_no_bytes_do_harm(besieged, data, cut):
    before = descriptors()
    with besieged.connect() as sock:
        sock.send(data[: len(data) - cut])
        besieged.turn()
    besieged.settle()
    check_unharmed(besieged, before)


def test_the_fuzz_target_goes_on_for_as_long_as_it_is_told():
    target = Path(__file__).resolve().parents[1] / "fuzz" / "wire.py"
    done = subprocess.run([sys.executable, target, "--seconds", "1", "--seed", "5"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "clients, seeds 5 to" in done.stdout
    assert "nothing went wrong" in done.stdout
