"""Pattern: one regular expression, matched in time that grows with the text and never with the powers of it.

Called by: query.py and parse.py. Touches: nothing. Imports google-re2 when the first pattern is made.
Why not `re`: it backtracks, so a client could stop the manager with a pattern such as (a*)*b, and no subset of what `re` takes is safe for
long texts short of what RE2 is. The price is what no automaton can do: references back and looking around are syntax errors here.
What a pattern costs is bounded three times: the memory of its automaton (PATTERN_MEMORY), the steps of a look-up that uses it (`steps`),
and, for watches, the sum of all `weight`s (Limits.pattern_weight).
Source: https://github.com/google/re2/wiki/Syntax; PCRE, unanchored, in the source.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.manager.errors import ManagerError
from shoal.manager.names.limits import PATTERN_MEMORY
from shoal.manager.names.record import check_unicode, quoted, shortened, shown

_PREFIX_BYTES: Final = 32
_LEAST_WEIGHT: Final = 32
_CALL_STEPS: Final = 8
_INSTRUCTIONS_A_STEP: Final = 128


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression, as in `r'^job[0-9]+$'`. It is searched for anywhere in a text: write `^` and `$` yourself.

    Attributes:
        source: the expression, in RE2's syntax.
        prefix: what each text begins with that it is found in. Empty where nothing is known.
        weight: the instructions of its compiled form: what matching one character may cost.
    Raises:
        TypeError: not text.
        ManagerError: OCT_ERR_PARSER_FAIL, no expression, or too large a one; OCT_ERR_ENGINE_FAIL, google-re2 is not installed.
    """

    source: str
    prefix: str = field(init=False, repr=False, compare=False)
    weight: int = field(init=False, repr=False, compare=False)
    _compiled: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise TypeError(f"a pattern is text, not {type(self.source).__name__}")
        check_unicode(self.source)
        compiled = _compile(self.source)
        object.__setattr__(self, "_compiled", compiled)
        object.__setattr__(self, "prefix", _prefix(self.source, compiled))
        object.__setattr__(self, "weight", max(int(compiled.programsize), 0) + _LEAST_WEIGHT)

    def found_in(self, text: str) -> bool:
        """Whether the expression matches somewhere in `text`."""
        return self._compiled.search(text.encode()) is not None

    def steps(self, text: str) -> int:
        """What found_in() may cost, in the steps that Limits.look_up_steps counts."""
        return _CALL_STEPS + self.weight * len(text) // _INSTRUCTIONS_A_STEP

    def __str__(self) -> str:
        return "r" + quoted(self.source)

    def __reduce__(self) -> tuple[Any, ...]:
        return Pattern, (self.source,)


def _compile(source: str) -> Any:
    re2 = _engine()
    options = re2.Options()
    options.max_mem = PATTERN_MEMORY
    options.never_capture = True
    options.log_errors = False  # to standard error, that is
    try:
        return re2.compile(source, options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ManagerError("OCT_ERR_PARSER_FAIL", f"{shown(source)} is no regular expression: {shortened(text)}") from None


def _engine() -> Any:
    try:
        import re2
    except ImportError:
        raise ManagerError(
            "OCT_ERR_ENGINE_FAIL", "regular expressions need google-re2; install it with: pip install 'shoal[manager]'"
        ) from None
    return re2


def _prefix(source: str, compiled: Any) -> str:
    """What lies between two bounds begins with what both begin with. The bounds hold only if the expression begins with `^` for sure."""
    if not source.startswith("^") or source[1:2] in tuple("*?{") or "|" in source:
        return ""
    try:
        least, most = compiled.possiblematchrange(_PREFIX_BYTES)
    except _engine().error:
        return ""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(least, most, strict=False))
    return bytes(first for first, _ in alike).decode(errors="ignore")
