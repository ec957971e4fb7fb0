"""What this machine is: the facts without which a duration says nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path


def facts() -> dict[str, str]:
    """Name to value, in the order to print. Every value is read now."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    virtual = bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE))
    return {
        "kernel": f"{platform.release()} {platform.machine()}",
        "cpu": (model.group(1) if model else "unknown") + (" (virtual machine)" if virtual else ""),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{memory_available_bytes() / 2**30:.1f} GiB available",
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libc": " ".join(platform.libc_ver()),
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
        "mounts": str(len(Path("/proc/self/mountinfo").read_text().splitlines())),
        "huge pages": _bracketed(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "shoal": _distribution("shoal"),
        "bwrap": _tool("bwrap"),
        "crun": _tool("crun"),
        "sandlock": _distribution("sandlock"),
    }


def memory_available_bytes() -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def memory_used_bytes() -> int:
    """What processes and the kernel hold for them. Not what is available: that changes with what the kernel gives back meanwhile."""
    held = ("AnonPages", "Shmem", "Slab", "KernelStack", "PageTables", "Percpu")
    found = dict(re.findall(r"^(\w+):\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return sum(int(found.get(name, 0)) for name in held) * 1024


def _bracketed(path: Path) -> str:
    try:
        found = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return "unknown"
    return found.group(1) if found else "unknown"


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return "not installed"
    printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return re.sub(r"^\D*", "", printed) or "unknown version"


def _distribution(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
