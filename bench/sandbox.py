"""What does running a program nobody trusts cost? shoal.run and its peers, side by side in one run.

    python bench/sandbox.py                  # all questions, about three minutes
    python bench/sandbox.py --quick          # a first impression
    python bench/sandbox.py --only latency   # one question: latency, sustained, command, idle (may be repeated)

All peers give the program the same: itself and its libraries, read-only, a private /tmp, /proc and /dev, no network, no
environment to speak of. Prints a table with the machine it was measured on, and writes the samples (JSON) and a picture (SVG) to
bench/out. Targets are printed with what was measured, met or not; the exit status does not depend on them.
"""

from __future__ import annotations

import sys

import question_command
import question_idle
import question_latency
import question_sustained
import session
from question import Effort

QUESTIONS = {module.KEY: module.ask for module in (question_latency, question_sustained, question_command, question_idle)}

if __name__ == "__main__":
    sys.exit(session.main("sandbox", __doc__, QUESTIONS, Effort(rounds=40, count=10, seconds=3.0), Effort(rounds=8, count=5, seconds=0.5)))
