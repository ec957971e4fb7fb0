"""Source lines for tracebacks from inside. A call cannot see the program's own files, so its traceback has names and numbers only.

What comes from inside may be made up, so lines are shown only of files that this process has loaded as code, or keeps the lines of already
(a cell of a notebook). Nothing else is ever opened for it.
"""

from __future__ import annotations

import linecache
import re
import sys

_FRAME = re.compile(r'(?P<indent>[ |+]*)  File "(?P<file>[^"\n]+)", line (?P<number>\d{1,9})(?:, in .*)?')
_MOST_FRAMES = 200


def with_source_lines(text: str) -> str:
    """A traceback, with the source line below each frame that has none."""
    lines = text.split("\n")
    if not any(_FRAME.fullmatch(line) for line in lines):
        return text
    known = _loaded()
    shown: list[str] = []
    frames = 0
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        shown.append(line)
        frame = _FRAME.fullmatch(line)
        if frame is None or frames == _MOST_FRAMES:
            continue
        indent = frame["indent"] + "    "
        if below.startswith(indent) and below != indent:
            continue  # it has one
        file = frame["file"]
        if file in known or file in linecache.cache:
            frames += 1
            source = linecache.getline(file, int(frame["number"])).strip()
            if source:
                shown.append(indent + source)
    return "\n".join(shown)


def _loaded() -> set[str]:
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str):
            found.add(file)
    return found
