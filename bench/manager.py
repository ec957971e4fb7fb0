"""What does it cost that a manager keeps what is started? shoal.manager beside the direct call and the C floor, in one run.

    python bench/manager.py                   # all questions, about three minutes
    python bench/manager.py --quick           # a first impression, with 1,000 live domains instead of 10,000
    python bench/manager.py --only clients    # one question: managed, clients, domains (may be repeated)

The manager is the daemon, with directories of its own. Prints a table with the machine it was measured on, and writes the samples (JSON)
and a picture (SVG) to bench/out. Targets are printed with what was measured, met or not; the exit status does not depend on them.
"""

from __future__ import annotations

import sys

import question_clients
import question_domains
import question_managed
import session
from question import Effort

QUESTIONS = {module.KEY: module.ask for module in (question_managed, question_clients, question_domains)}

if __name__ == "__main__":
    sys.exit(session.main("manager", __doc__, QUESTIONS, Effort(rounds=40, count=10, seconds=1.0), Effort(rounds=8, count=5, seconds=0.3)))
