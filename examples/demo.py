"""What shoal does, on real input, in under a minute: `make demo` runs this.

Each part starts real programs and prints what happened; nothing in the output is written down in advance. Needs no
root and works as root. Programs that are only compared with (bubblewrap) are left out when they are not installed.
"""

import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import shoal
from shoal import AddNsEntry, CloneFd, Directory, SpawnFlags, TransferFd

README = Path(__file__).resolve().parent.parent / "README.md"
EMPTY_WORLD = SpawnFlags.DEFAULT_LDSVC
SAME_WORLD = SpawnFlags.DEFAULT_LDSVC | SpawnFlags.CLONE_NAMESPACE | SpawnFlags.CLONE_STDIO | SpawnFlags.CLONE_ENVIRON

# Built-in commands only, so that the probe itself needs no file. /proc and /sys are looked at where they are.
PROBE = r"""
count() { [ -e "$1" ] && echo $# || echo 0; }
open=0; for fd in 0 1 2 3 4 5 6 7 8 9; do message=$({ eval "true <&$fd" || eval "true >&$fd"; } 2>&1) && open=$((open + 1)); done
echo "files and directories at /   $(count /*)"
echo "descriptors (0 to 9)         $open"
echo "processes it can see         $(count /proc/[0-9]*)"
echo "network interfaces           $(count /sys/class/net/*)"
"""


def headline(number: int, text: str) -> None:
    print(f"\n\033[1m{number}. {text}\033[0m" if sys.stdout.isatty() else f"\n{number}. {text}", flush=True)


def captured(path: str, argv: list[str], flags: SpawnFlags, *actions: shoal.Action, environ: dict[str, str] | None = None) -> str:
    """Standard output of a program that ends with status 0."""
    read, write = os.pipe()
    with shoal.spawn(path, argv, flags=flags, environ=environ, actions=[TransferFd(write, 1), CloneFd(2, 2), *actions]) as child:
        with open(read) as output:
            text = output.read()
        if child.wait() != 0:
            raise SystemExit(f"{argv[0]} ended with {child.returncode}")
    return text


def found(program: str) -> str:
    path = shutil.which(program)
    if not path:
        raise SystemExit(f"this demonstration needs {program}")
    return path


def one_descriptor() -> None:
    headline(1, f"sort reads {README.name}, and can open no file at all")
    text = os.open(README, os.O_RDONLY)
    lines = captured(found("sort"), ["sort", "-u"], EMPTY_WORLD, TransferFd(text, 0)).splitlines()
    print(
        f"   {len(lines)} different lines came back; descriptor {text} was handed over: it is",
        "still open here" if is_still(text, README.stat()) else "closed here",
    )


def is_still(fd: int, file: os.stat_result) -> bool:
    """Whether `fd` is this file: a number that was given up may be somebody else's by now."""
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def side_by_side() -> None:
    headline(2, "What the same program finds: started with subprocess.run, and started with nothing")
    # One descriptor somebody forgot, as it happens in every large program.
    forgotten = os.open(README, os.O_RDONLY)
    os.set_inheritable(forgotten, True)
    shell = found("sh")
    everything = subprocess.run([shell, "-c", PROBE], stdout=subprocess.PIPE, text=True, check=True, close_fds=False).stdout
    os.set_inheritable(forgotten, False)
    nothing = captured(shell, ["sh", "-c", PROBE], EMPTY_WORLD)
    os.close(forgotten)
    env = found("env")
    variables = subprocess.run([env], stdout=subprocess.PIPE, text=True, check=True).stdout
    none = captured(env, ["env"], EMPTY_WORLD)
    print(f"   {'':29}{'subprocess':>10}   shoal")
    print(f"   {'variables in the environment':29}{len(variables.splitlines()):>10}   {len(none.splitlines()):>5}")
    for left, right in zip(everything.splitlines(), nothing.splitlines(), strict=True):
        print(f"   {left[:29]}{left[29:]:>10}   {right[29:]:>5}")
    print("   (0, 1, 2 are always there: what was not granted is /dev/null. At / there are only the shell's own libraries.)")


def a_python_program() -> None:
    headline(3, "Python, with one directory and its own library")
    script = "import os; print('   sees', sorted(os.listdir('/data'))[:4], '... and the environment', sorted(os.environ))"
    library = sysconfig.get_path("stdlib")
    print(
        captured(
            os.path.realpath(sys.executable),
            ["python3", "-I", "-S", "-c", script],
            EMPTY_WORLD,
            AddNsEntry(library, Directory.open(library)),
            AddNsEntry("/data", Directory.open(README.parent)),
            environ={"PYTHONHOME": sys.base_prefix},
        ),
        end="",
    )


def the_plan() -> None:
    command = ["run", "--explain", "--ro", f"{README}:/README.md", "--", "sort", "/README.md"]
    headline(4, f"Before it runs: shoal {' '.join(command)}".replace(str(README), README.name))
    text = subprocess.run([sys.executable, "-m", "shoal", *command], stdout=subprocess.PIPE, text=True, check=True).stdout
    print("\n".join(f"   {line}" for line in text.splitlines()))


def the_price() -> None:
    headline(5, "The price: start /bin/true and wait for it, median of 200")
    true = found("true")

    def start(flags: SpawnFlags) -> None:
        with shoal.spawn(true, ["true"], flags=flags) as child:
            child.wait()

    def posix_spawn() -> None:
        os.waitpid(os.posix_spawn(true, ["true"], os.environ), 0)

    ways: dict[str, Callable[[], object]] = {
        "subprocess.run": lambda: subprocess.run([true], check=True),
        "os.posix_spawn": posix_spawn,
        "shoal, the caller's world": lambda: start(SAME_WORLD),
        "shoal, an empty world": lambda: start(EMPTY_WORLD),
    }
    if bwrap := shutil.which("bwrap"):
        roots = [option for path in ("/usr", "/lib", "/lib64") if os.path.exists(path) for option in ("--ro-bind", path, path)]
        empty = [bwrap, "--unshare-all", "--clearenv", *roots, true]
        if subprocess.run(empty, capture_output=True, check=False).returncode == 0:
            ways["bwrap, an empty world"] = lambda: subprocess.run(empty, check=True)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(200):  # in turn, so that whatever else the machine does touches all of them alike
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    base = statistics.median(times["subprocess.run"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"   {name:27}{median * 1e3:7.2f} ms   {median / base:5.2f} x subprocess.run")
    print(f"   ({platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}; `make bench` measures properly)")


def main() -> None:
    one_descriptor()
    side_by_side()
    a_python_program()
    the_plan()
    the_price()
    print("\nNext: docs/tutorial.md, `shoal doctor`, `make test`")


if __name__ == "__main__":
    main()
