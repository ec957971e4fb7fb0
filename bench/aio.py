"""What do programs cost that are started from an event loop, 200 at a time? shoal.aio and its peers, side by side in one run.

    python bench/aio.py                  # about two minutes
    python bench/aio.py --quick          # a first impression

Each peer keeps 200 programs going until the time is over: asyncio.create_subprocess_exec, anyio.run_process on trio, subprocess.run in a
pool of threads, and shoal.aio.run without a sandbox, on asyncio, uvloop and trio, and with one. Prints a table with the machine it was
measured on, and writes the samples (JSON) and a picture (SVG) to bench/out. Targets are printed with what was measured, met or not; the
exit status does not depend on them. Needs anyio; trio and uvloop are measured when they are there.
"""

from __future__ import annotations

import sys

import question_concurrent
import session
from question import Effort

QUESTIONS = {module.KEY: module.ask for module in (question_concurrent,)}

if __name__ == "__main__":
    sys.exit(session.main("aio", __doc__, QUESTIONS, Effort(rounds=12, count=1, seconds=1.0), Effort(rounds=3, count=1, seconds=0.5)))
