"""An online judge: grade submissions in parallel, each run in a sandbox of its own.

    python examples/judge.py SUBMISSION.py...

The task: `solve(numbers)` gives the sum of the squares of the even ones. A submission is tried with each test in a fresh sandbox, so that
it can neither remember the last test nor see the next one, nor reach the grader, a file or the network. Prints a table; without arguments,
grades a few submissions that a judge has to expect.
"""

import sys
from pathlib import Path

from shoal import Sandbox, SandboxExecutor
from shoal.executor import CallError

TESTS = [([1, 2, 3, 4], 20), ([], 0), ([10**9, -2], 10**18 + 4), (list(range(1000)), 166167000)]
VERDICTS = {"raised": "runtime error", "wall_time": "time limit", "oom": "memory limit", "bad_result": "wrong answer"}
EXPECTED = {
    "right": "def solve(n): return sum(x * x for x in n if x % 2 == 0)",
    "wrong": "def solve(n): return sum(x * x for x in n)",
    "slow": "def solve(n):\n    while True: pass",
    "crashes": "import os\ndef solve(n): os.abort()",
    "cheats": "import sys\ndef solve(n): return sys._getframe(1).f_globals['TESTS']",
    "peeks": "def solve(n): return open('/etc/passwd').read()",
    "escapes": "import os\ndef solve(n):\n    while os.fork() >= 0: pass",
}


def verdict(call, expected):
    try:
        found = call.result()["answer"]
    except CallError as error:
        return VERDICTS.get(error.reason, "crashed"), str(error)
    return ("accepted", "") if type(found) is int and found == expected else ("wrong answer", f"{found!r:.40}")


def main(paths):
    submissions = {Path(path).stem: Path(path).read_text() for path in paths} or EXPECTED
    box = Sandbox(seccomp="strict", tmp="16M", open_files=32)
    with SandboxExecutor(box, max_workers=4, warm=2) as executor:
        limited = executor.with_limits(timeout=2, output="64K", result="64K")
        runs = {
            name: [limited.submit_code(f"{source}\nanswer = solve(numbers)", {"numbers": given}, outputs=["answer"]) for given, _ in TESTS]
            for name, source in submissions.items()
        }
        for name, calls in runs.items():
            graded = [verdict(call, expected) for call, (_, expected) in zip(calls, TESTS, strict=True)]
            passed = sum(word == "accepted" for word, _ in graded)
            worst, why = next((item for item in graded if item[0] != "accepted"), ("accepted", ""))
            print(f"{name:<10} {passed}/{len(TESTS)}  {worst:<14} {why:.90}")


if __name__ == "__main__":
    main(sys.argv[1:])
