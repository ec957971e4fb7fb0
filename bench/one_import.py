"""What does changing one import cost? shoal.subprocess and the standard module, side by side in one run.

    python bench/one_import.py               # about a minute
    python bench/one_import.py --quick       # a first impression

Both start the same program with the same arguments, in turns, from the same process. Prints a table with the machine it was measured
on, and writes the samples (JSON) and a picture (SVG) to bench/out. Targets are printed with what was measured, met or not; the exit
status does not depend on them. (Not called subprocess.py: what lies beside a script is imported before the standard library.)
"""

from __future__ import annotations

import sys

import question_import
import session
from question import Effort

QUESTIONS = {question_import.KEY: question_import.ask}

if __name__ == "__main__":
    sys.exit(session.main("one_import", __doc__, QUESTIONS, Effort(rounds=60, count=10, seconds=0), Effort(rounds=10, count=5, seconds=0)))
