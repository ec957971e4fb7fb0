"""One benchmark run: asks its questions in turn, prints the table with the machine it was measured on, writes JSON and a picture."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import machine
import picture
import programs
import report
from question import Answer, Bench, Effort

OUT = Path(__file__).parent / "out"

Ask = Callable[[Bench], Answer]


def main(name: str, about: str | None, questions: Mapping[str, Ask], full: Effort, quick: Effort) -> int:
    """The command `name`.

    Args:
        about: its help.
        questions: by the word that chooses one.
    """
    args = _arguments(name, about, questions, full, quick)
    base = quick if args.quick else full
    effort = Effort(rounds=args.rounds or base.rounds, count=base.count, seconds=base.seconds)
    facts = machine.facts()
    started = time.time()
    answers: list[Answer] = []
    # One directory for everything that is built or written while measuring; it goes away with the run.
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as kept:
        directory = Path(kept)
        directory.chmod(0o755)  # bwrap and crun as an ordinary user have to reach the program in it
        built = programs.prepare(directory)
        for key in args.only or questions:
            bench = Bench(built, directory, effort, random.Random(args.seed), _progress(key))
            answers.append(questions[key](bench))
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


def _arguments(name: str, about: str | None, questions: Mapping[str, Ask], full: Effort, quick: Effort) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: a first impression")
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"rounds per question ({full.rounds}, quick {quick.rounds})")
    parser.add_argument(
        "--json",
        type=Path,
        default=OUT / f"{name}.json",
        metavar="FILE",
        help=f"samples; the picture goes beside it (bench/out/{name}.json)",
    )
    parser.add_argument("--only", action="append", choices=questions, metavar="QUESTION", help=f"one of: {', '.join(questions)}")
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
