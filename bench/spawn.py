"""What does starting a program cost? shoal and its peers, side by side in one run.

    python bench/spawn.py                    # all questions, about two minutes
    python bench/spawn.py --quick            # a first impression
    python bench/spawn.py --only cell        # one question: plain, flat, cell, threads (may be repeated)

Prints a table with the machine it was measured on, and writes the samples (JSON) and a picture (SVG) to bench/out.
Targets are printed with what was measured, met or not; the exit status does not depend on them.
"""

from __future__ import annotations

import sys

import question_cell
import question_flat
import question_plain
import question_threads
import session
from question import Effort

QUESTIONS = {module.KEY: module.ask for module in (question_plain, question_flat, question_cell, question_threads)}

if __name__ == "__main__":
    sys.exit(session.main("spawn", __doc__, QUESTIONS, Effort(rounds=40, count=10, seconds=0.4), Effort(rounds=8, count=5, seconds=0.15)))
