"""What does it cost to call a Python function in a sandbox of its own? shoal.SandboxExecutor and its peers, side by side in one run.

    python bench/executor.py                  # all questions, about four minutes
    python bench/executor.py --quick          # a first impression
    python bench/executor.py --only call      # one question: call, calls, crowd (may be repeated)

It needs numpy, cloudpickle and msgpack (make test installs them). Prints a table with the machine it was measured on, and writes the
samples (JSON) and a picture (SVG) to bench/out. Targets are printed with what was measured, met or not; the exit status does not
depend on them.
"""

from __future__ import annotations

import sys

import question_call
import question_calls
import question_crowd
import session
from question import Effort

QUESTIONS = {module.KEY: module.ask for module in (question_call, question_calls, question_crowd)}

if __name__ == "__main__":
    sys.exit(session.main("executor", __doc__, QUESTIONS, Effort(rounds=30, count=10, seconds=4.0), Effort(rounds=6, count=5, seconds=1.0)))
