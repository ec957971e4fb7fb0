"""A seccomp program out of what shall become of each system-call number: short, and balanced.

Neighbours with the same outcome are one range, and the ranges are the leaves of a binary tree. A filter is loaded at every launch, and
the kernel then walks it for each of its numbers, to note which of them always pass (those cost nothing later), and compiles it.
So there are two prices: of an instruction 0.18 us, of a step for all numbers 0.8 us. The tree is built for the least of their sum.

libseccomp could make the program from the same rules, but compares number by number. The default filter, median of 300 loads with
nothing else running, of which 11 us go for a filter of one instruction:

    libseccomp, as it comes            403 instructions   262 us
    libseccomp, as a binary tree       495 instructions   111 us
    here                                84 instructions    33 us

Source: seccomp(2); the kernel's Documentation/networking/filter.rst.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

ALLOW, KILL = 0x7FFF0000, 0x80000000
_ERRNO = 0x00050000

_LOAD, _JUMP, _RETURN = 0x20, 0x05, 0x06
_IS, _AT_LEAST, _ANY_OF = 0x15, 0x35, 0x45
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # in struct seccomp_data
_REACH = 255  # of a conditional jump
_ALL = 1 << 32

_STEP_FOR_ONE, _INSTRUCTION = 1, 100  # the two prices, in steps of one number
_CHAIN = 3  # as many numbers are compared one by one before a tree is cheaper
_TRIED = 2  # splits on each side of the middle; trying all takes 50 ms and saves one instruction


class Test(NamedTuple):
    """Looks at 32 bits of an argument; where they do not meet it, the next test decides.

    Of a number at the low half only: the kernel's own prototypes cut these arguments to an int, and a filter that compared 64 bits
    would be passed by with a bit set in the high half, which the kernel then ignores. An address takes a test of each half.

    Attributes:
        how: "is" or "is not" the value; has "any of" its bits, or "none of" them.
        passes: what is decided when it is met.
        high: the other half is looked at.
    """

    argument: int
    how: Literal["is", "is not", "any of", "none of"]
    value: int
    passes: bool
    high: bool = False

    @property
    def place(self) -> int:
        """Of the half in struct seccomp_data, which is little-endian."""
        return _ARGUMENTS + 8 * self.argument + (4 if self.high else 0)


class Check(NamedTuple):
    """Tests in their order; `otherwise` is what is decided when none is met. `refusal` is what a refused call gets."""

    tests: tuple[Test, ...]
    otherwise: bool
    refusal: int


Outcome: TypeAlias = "int | Check"
"""ALLOW, KILL, an `answer()`, or what depends on the arguments."""


def answer(errno: int) -> int:
    """The outcome of a call that is not made and fails with an error number (1 to 4,095), or, with 0, seems to have been made."""
    return _ERRNO | errno


def program(arch: int, outcomes: Mapping[int, Outcome], otherwise: int) -> bytes:
    """Packed struct sock_filter.

    A call of another ABI is killed, whole process: there the same numbers mean other calls.

    Args:
        arch: the AUDIT_ARCH of the numbers.
        outcomes: by number; all other numbers, however high, have the outcome `otherwise`.
    """
    code = _Code()
    root = code.tree(_best_tree(_ranges(outcomes, otherwise)))
    load = code.put_before(root, _LOAD, _NUMBER)
    code.jump(_IS, arch, load, code.outcome(KILL))
    code.put(_LOAD, _ARCH)
    return code.packed()


# --- the tree -------------------------------------------------------------------------------------------------------------------


class _Range(NamedTuple):
    first: int
    last: int
    outcome: Outcome


class _Node(NamedTuple):
    """Compares the number: a leaf of the tree is an outcome."""

    how: int
    value: int
    yes: _Tree
    no: _Tree


_Tree: TypeAlias = "Outcome | _Node"


def _ranges(outcomes: Mapping[int, Outcome], otherwise: int) -> list[_Range]:
    """All 32-bit numbers, in as few ranges as there can be."""
    found: list[_Range] = []
    for number in range(max(outcomes, default=-1) + 1):
        outcome = outcomes.get(number, otherwise)
        if found and found[-1].outcome == outcome:
            found[-1] = found[-1]._replace(last=number)
        else:
            found.append(_Range(number, number, outcome))
    if found and found[-1].outcome == otherwise:
        return [*found[:-1], found[-1]._replace(last=_ALL - 1)]
    return [*found, _Range(found[-1].last + 1 if found else 0, _ALL - 1, otherwise)]


def _best_tree(ranges: list[_Range]) -> _Tree:
    """The tree of the lowest price, as far as it was looked for: splits near the middle of the numbers, and chains."""
    before = [part.first for part in ranges] + [ranges[-1].first + 1]  # the kernel does not walk the endless last range

    @functools.cache
    def best(start: int, end: int) -> tuple[int, _Tree]:
        if end - start == 1:
            return 0, ranges[start].outcome
        step = _INSTRUCTION + _STEP_FOR_ONE * (before[end] - before[start])
        chains = _chains(ranges[start:end]) if end - start <= 2 * _CHAIN + 1 else []
        price, tree = min(((step * length, chain) for length, chain in chains), key=lambda found: found[0], default=(_ALL, None))
        aim = (before[start] + before[end]) / 2
        middle = next((index for index in range(start + 1, end - 1) if before[index] >= aim), end - 1)
        for split in range(max(start + 1, middle - _TRIED), min(end, middle + _TRIED)):
            low, high = best(start, split), best(split, end)
            if step + low[0] + high[0] < price:
                price, tree = step + low[0] + high[0], _Node(_AT_LEAST, ranges[split].first, high[1], low[1])
        assert tree is not None
        return price, tree

    return best(0, len(ranges))[1]


def _chains(ranges: list[_Range]) -> list[tuple[int, _Tree]]:
    """The ways to tell single numbers from all others one by one, with their lengths."""
    found: list[tuple[int, _Tree]] = []
    for common in dict.fromkeys(part.outcome for part in ranges):
        others = [part for part in ranges if part.outcome != common]
        if len(others) <= _CHAIN and all(part.first == part.last for part in others):
            tree: _Tree = common
            for part in others:
                tree = _Node(_IS, part.first, part.outcome, tree)
            found.append((len(others), tree))
    return found


# --- instructions ---------------------------------------------------------------------------------------------------------------


class _Code:
    """Instructions, written from the last to the first since jumps go forward only. A place is counted from the end."""

    def __init__(self) -> None:
        self._written: list[tuple[int, int, int, int]] = []
        self._places: dict[Outcome, int] = {}

    def packed(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._written))

    def put(self, code: int, value: int, yes: int = 0, no: int = 0) -> int:
        """Returns the place."""
        self._written.append((code, yes, no, value))
        return len(self._written) - 1

    def put_before(self, place: int, code: int, value: int) -> int:
        """An instruction after which `place` is next."""
        if self._distance(place) > 0:
            self.put(_JUMP, self._distance(place))
        return self.put(code, value)

    def jump(self, how: int, value: int, yes: int, no: int) -> int:
        """A comparison. What it cannot reach is reached through another jump, which may push the first away by one."""
        no = self._within(no, _REACH - 1)
        yes = self._within(yes, _REACH)
        return self.put(how, value, self._distance(yes), self._distance(no))

    def tree(self, tree: _Tree) -> int:
        if not isinstance(tree, _Node):
            return self.outcome(tree)
        yes = self.tree(tree.yes)
        return self.jump(tree.how, tree.value, yes, self.tree(tree.no))

    def outcome(self, outcome: Outcome) -> int:
        """Written once, however often it is jumped to."""
        if outcome not in self._places:
            self._places[outcome] = self._check(outcome) if isinstance(outcome, Check) else self.put(_RETURN, outcome)
        return self._places[outcome]

    def _check(self, check: Check) -> int:
        passed, refused = self.outcome(ALLOW), self.outcome(check.refusal)
        place = passed if check.otherwise else refused
        for index in reversed(range(len(check.tests))):
            test = check.tests[index]
            met = passed if test.passes else refused
            how = _IS if test.how in ("is", "is not") else _ANY_OF
            place = self.jump(how, test.value, *((met, place) if test.how in ("is", "any of") else (place, met)))
            if index == 0 or check.tests[index - 1].place != test.place:
                place = self.put(_LOAD, test.place)
        return place

    def _distance(self, place: int) -> int:
        return len(self._written) - place - 1

    def _within(self, place: int, reach: int) -> int:
        """The same, where it can be jumped to from the next instruction."""
        return place if self._distance(place) <= reach else self.put(_JUMP, self._distance(place))
