"""Fuzz the record language: whatever the text, it is a query or a ManagerError, and a query is said by its own text.

    python tests/fuzz/names_query.py                   # a minute, led by coverage if atheris is installed (pip install atheris)
    python tests/fuzz/names_query.py --seconds 3600 --seed 7
    python tests/fuzz/names_query.py FILE...           # again with what failed

A text that fails is written to a file in the current directory, and the exit status is 1. Without atheris texts are made by cutting and
joining examples. tests/unit/test_names_fuzz.py runs it for a moment.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shoal.manager import ManagerError
from shoal.manager.names import Query, Record, Registry
from shoal.manager.names.parse import parse, parse_format

SLOWEST_S = 5.0  # for one text: far above what any takes, far below what a pattern that goes back over its text would
PARSE_CODES = {"OCT_ERR_PARSER_FAIL", "OCT_ERR_QUERY_SIZE"}
STORE_CODES = PARSE_CODES | {
    "OCT_ERR_CONSTRAINT_MISMATCH",
    "OCT_ERR_IDCAP_INVOKE",
    "OCT_ERR_LIMIT",
    "OCT_ERR_MAX_SUBSCRIPTIONS",
    "OCT_ERR_NO_RECORD",
    "OCT_ERR_NO_RECORD_NAME",
    "OCT_ERR_NOT_OWNER",
    "PROC_MGMT_ERR_NOT_MONITOR",
}
EXAMPLES = [
    "job7",
    "job7 { owner: 'ana', prio: 3 }",
    "_ { prio >= 2, prio < 9, owner: _ }",
    "r'^job[0-9]+$' { owner: r'^a', up: true, down != false }",
    "a { b: 'it''s', c: -0.5, d: .5, e: -12, f: up.1, g == 1, h: r'it''s' }",
    "a { b: 9223372036854775807, c: -9223372036854775808, d: 0.0000001, e: 100000000000000000000000.0 }",
    "r'(a*)*b|^(x+x+)+y$|\\pL{3}|[^a-z\\d]|(?i)k|a{2,5}?|\\bx\\b|(?P<n>x)'",
    "%s { iref: %d, load: %f }",
    "_ { }",
    "proc_mgmt { iref: 0 }",
    "idcapid.0123456789abcdef0123456789abcdef { tty: 'é\n\t𝔘' }",
]
TOKENS = [*"'{}:,_<-.0é\x00(^$|\\", "''", "r'", "%s", "true", "false", "==", "!=", ">=", ")*", "{9}"]


class Target:
    """What every text is tried on."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.session = self.registry.open_session()
        for number in range(5):
            self.registry.set(self.session, parse(f"job{number} {{ owner: 'user{number}', prio: {number}, up: true, load: 0.{number} }}"))
        self.records = self.registry.find(self.session, Query(None))

    def __call__(self, data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        begun = time.monotonic()
        self.try_format(text)
        query = self.try_parse(text)
        if query is not None:
            again = parse(str(query))
            assert (again, str(again)) == (query, str(query)), f"{query} is read as {again}"
            assert [type(each.operand) for each in again.constraints] == [type(each.operand) for each in query.constraints], str(query)
            for record in self.records:
                query.matches(record.name, record.attributes)
            self.try_operations(query)
        assert time.monotonic() - begun < SLOWEST_S, "it took too long"

    def try_parse(self, text: str) -> Query | None:
        try:
            return parse(text)
        except ManagerError as error:
            check(error, PARSE_CODES)
            return None

    def try_format(self, text: str) -> None:
        try:
            parse_format(text)
            Record("job7", {"iref": 1, "load": 0.5}).read(text)
        except ManagerError as error:
            check(error, PARSE_CODES | {"OCT_ERR_INVALID_FORMAT", "OCT_ERR_UNKNOWN_ATTRIBUTE"})

    def try_operations(self, query: Query) -> None:
        registry, session = self.registry, self.registry.open_session("fuzzer")
        for act in (registry.watch, registry.subscribe, registry.set, registry.get, registry.names, registry.publish, registry.remove):
            try:
                act(session, query)
            except ManagerError as error:
                check(error, STORE_CODES)
        registry.close_session(session)
        left = [record for record in registry.find(self.session, Query(None)) if record not in self.records]
        assert left == [], f"left behind: {left}"


def check(error: ManagerError, codes: set[str]) -> None:
    assert error.code in codes, error
    assert len(str(error)) < 1_000, "an error shows all of what a client sent"


def mutated(random_: random.Random) -> bytes:
    """A text made of the examples: cut, joined, and with tokens put in and taken out."""
    text = random_.choice(EXAMPLES)
    for _ in range(random_.randint(0, 8)):
        at = random_.randint(0, len(text))
        what = random_.randrange(5)
        if what == 0:
            text = text[:at] + random_.choice(TOKENS) + text[at:]
        elif what == 1:
            text = text[:at] + text[at + random_.randint(1, 4) :]
        elif what == 2:
            other = random_.choice(EXAMPLES)
            text = text[:at] + other[random_.randint(0, len(other)) :]
        elif what == 3:
            text = text[:at] + text[at : at + random_.randint(1, 6)] * random_.randint(2, 300) + text[at:]
        else:
            text = text[:at] + chr(random_.choice([random_.randrange(128), random_.randrange(0xD800), 0x1D518])) + text[at:]
    data = bytearray(text.encode())
    if data and random_.random() < 0.1:
        data[random_.randrange(len(data))] = random_.randrange(256)
    return bytes(data)


def by_mutation(target: Callable[[bytes], None], seconds: float, seed: int) -> int:
    random_ = random.Random(seed)
    end = time.monotonic() + seconds
    count = 0
    while time.monotonic() < end:
        data = mutated(random_)
        count += 1
        try:
            target(data)
        except BaseException:
            failed = Path(f"failed-{seed}-{count}.txt")
            failed.write_bytes(data)
            print(f"failed on {data!r}, written to {failed}", file=sys.stderr)
            raise
    print(f"{count} texts in {seconds:g} s, seed {seed}: all are queries or errors")
    return 0


def by_coverage(target: Callable[[bytes], None], seconds: float, seed: int) -> int:
    import atheris

    folder = Path("fuzz-corpus")
    folder.mkdir(exist_ok=True)
    for number, example in enumerate(EXAMPLES):
        (folder / f"example-{number}").write_text(example)
    words = folder / "words.dict"
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token.encode()) + '"\n' for token in TOKENS))
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(folder), f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-dict={words}", "-max_len=4096"], target)
    atheris.Fuzz()
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="only try these")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plain", action="store_true", help="without atheris, even if it is installed")
    options = parser.parse_args(arguments)
    target = Target()
    for path in options.files:
        target(path.read_bytes())
    if options.files:
        return 0
    try:
        import atheris  # noqa: F401
    except ImportError:
        options.plain = True
    return (by_mutation if options.plain else by_coverage)(target, options.seconds, options.seed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
