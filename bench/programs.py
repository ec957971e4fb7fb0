"""The programs that are started: one dynamic, one static, and the list of files the dynamic one needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths of what was found or built. `floor` is the C launcher, the others do nothing and exit with 0."""

    dynamic: str
    static: str
    floor: str

    def items(self) -> list[tuple[str, str]]:
        return [("static", self.static), ("dynamic", self.dynamic)]


def prepare(directory: Path) -> Programs:
    """Build what has to be built in `directory`. Raises SystemExit with the command to type when gcc is missing."""
    if shutil.which("gcc") is None:
        raise SystemExit("bench: gcc is needed for the static program and the C floor (apt-get install gcc libc6-dev)")
    source = directory / "nothing.c"
    source.write_text("int main(void) { return 0; }\n")
    static, floor = directory / "nothing", directory / "floor"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(static), str(source)], check=True)
    subprocess.run(["gcc", "-O2", "-Wall", "-o", str(floor), str(HERE / "floor.c")], check=True)
    dynamic = shutil.which("true") or "/bin/true"
    if not closure(dynamic):
        raise SystemExit(f"bench: {dynamic} is not a dynamic program here")
    return Programs(dynamic=dynamic, static=str(static), floor=str(floor))


def closure(path: str) -> list[str]:
    """The ELF interpreter and the shared libraries `path` needs; empty for a static program."""
    printed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    if printed.returncode != 0:
        return []
    return re.findall(r"(?:^\s+|=> )(/\S+) \(0x", printed.stdout, re.MULTILINE)
