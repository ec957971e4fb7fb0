"""What does starting a program cost? shoal and its peers, side by side in one run.

    python bench/spawn.py                    # all questions, about two minutes
    python bench/spawn.py --quick            # a first impression
    python bench/spawn.py --only cell        # one question: plain, flat, cell, threads (may be repeated)

Prints a table with the machine it was measured on, and writes the samples (JSON) and a picture (SVG) to bench/out.
Targets are printed with what was measured, met or not; the exit status does not depend on them.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import picture
import programs
import question_cell
import question_flat
import question_plain
import question_threads
import report
from question import Answer, Bench, Effort

QUESTIONS = {module.KEY: module.ask for module in (question_plain, question_flat, question_cell, question_threads)}
OUT = Path(__file__).parent / "out" / "spawn.json"
FULL = Effort(rounds=40, count=10, seconds=0.4)
QUICK = Effort(rounds=8, count=5, seconds=0.15)


def main() -> int:
    args = _arguments()
    base = QUICK if args.quick else FULL
    effort = Effort(rounds=args.rounds or base.rounds, count=base.count, seconds=base.seconds)
    facts = machine.facts()
    started = time.time()
    answers: list[Answer] = []
    # One directory for everything that is built or written while measuring; it goes away with the run.
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as kept:
        directory = Path(kept)
        directory.chmod(0o755)  # bwrap and crun as an ordinary user have to reach the program in it
        built = programs.prepare(directory)
        for key in args.only or QUESTIONS:
            bench = Bench(built, directory, effort, random.Random(args.seed), _progress(key))
            answers.append(QUESTIONS[key](bench))
            _clear_progress()
    run = {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "took_s": round(time.time() - started, 1),
        "rounds": effort.rounds,
        "launches_per_round": effort.count,
        "seconds_per_rate": effort.seconds,
        "seed": args.seed,
        "load_after": machine.facts()["load"],
    }
    print(report.as_text(facts, answers))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(report.as_json(facts, run, answers))
    drawn = args.json.with_suffix(".svg")
    drawn.write_text(picture.as_svg(facts, answers))
    print(f"\nwritten: {args.json} and {drawn}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: a first impression")
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"rounds per question ({FULL.rounds}, quick {QUICK.rounds})")
    parser.add_argument("--json", type=Path, default=OUT, metavar="FILE", help="samples; the picture goes beside it (bench/out/spawn.json)")
    parser.add_argument("--only", action="append", choices=QUESTIONS, metavar="QUESTION", help=f"one of: {', '.join(QUESTIONS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the random order of the rounds (1)")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError("at least 2 rounds, or there is nothing to compare")
    return value


def _progress(key: str) -> Callable[[int], None]:
    def tick(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{key}: round {done} ", end="", file=sys.stderr, flush=True)

    return tick


def _clear_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
