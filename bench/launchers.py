"""The peers: each starts a program, waits for it, checks that it ended with 0, and leaves nothing open.

They all hand over the same: standard input, output and error (which are /dev/null in the worker that calls them) and
nothing else. subprocess and shoal close the other descriptors themselves, posix_spawn relies on close-on-exec, which
Python sets on everything it opens: the child sees the same either way. Peers in the caller's world also hand over the
environment; those that make an empty world hand over none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
from timing import CaseFailed

Launch = Callable[[], None]
Maker = Callable[[str, Path], Launch]  # program, a directory that outlives the launches


def _check(name: str, status: int) -> None:
    if status != 0:
        raise CaseFailed(f"{name}: the program ended with {status}")


def subprocess_run(program: str, directory: Path) -> Launch:
    def launch() -> None:
        _check("subprocess.run", subprocess.run([program], check=False).returncode)

    return launch


def subprocess_popen(program: str, directory: Path) -> Launch:
    def launch() -> None:
        _check("subprocess.Popen", subprocess.Popen([program]).wait())

    return launch


def _by(module: Any, how: str) -> Maker:
    """A way to start a program that the standard module and shoal.subprocess have alike. `module`: gives it, when it is needed."""

    def maker(program: str, directory: Path) -> Launch:
        from_module = module()
        ways: dict[str, Callable[[], int]] = {
            "run": lambda: from_module.run([program]).returncode,
            "run, captured": lambda: from_module.run([program], capture_output=True).returncode,
            "Popen, waited for with a timeout": lambda: from_module.Popen([program]).wait(60),
        }
        way = ways[how]
        return lambda: _check(how, way())

    return maker


def _drop_in() -> Any:
    from shoal import subprocess as drop_in

    return drop_in


def posix_spawn(program: str, directory: Path) -> Launch:
    return _posix_spawn_of("os.posix_spawn", [program], lambda: os.environ)


def _posix_spawn_of(name: str, argv: list[str], environ: Callable[[], object]) -> Launch:
    def launch() -> None:
        pid = os.posix_spawn(argv[0], argv, environ())  # type: ignore[arg-type]
        _check(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    return launch


def _subprocess_run_of(name: str, argv: list[str]) -> Launch:
    """In an empty environment."""

    def launch() -> None:
        _check(name, subprocess.run(argv, check=False, env={}).returncode)

    return launch


def shoal_plain(program: str, directory: Path) -> Launch:
    import shoal

    flags = shoal.SpawnFlags.CLONE_ALL

    def launch() -> None:
        with shoal.spawn(program, [program], flags=flags) as process:
            _check("shoal.spawn", process.wait())

    return launch


def shoal_cell(program: str, directory: Path) -> Launch:
    import shoal

    flags = shoal.SpawnFlags.DEFAULT_LDSVC

    def launch() -> None:
        with shoal.spawn(program, [program], flags=flags) as process:
            _check("shoal cell", process.wait())

    return launch


def shoal_cold_cell(program: str, directory: Path) -> Launch:
    """As `shoal cell`, with every cell made when it is needed. For a worker of its own: the setting is the process's."""
    import shoal

    shoal.cells.limit(0)
    return shoal_cell(program, directory)


def shoal_run(program: str, directory: Path) -> Launch:
    import shoal

    box = shoal.Sandbox()

    def launch() -> None:
        _check("shoal.run", shoal.run([program], sandbox=box).returncode)

    return launch


def shoal_cold_run(program: str, directory: Path) -> Launch:
    """As `shoal.run`, with every cell made when it is needed. For a worker of its own: the setting is the process's."""
    import shoal

    shoal.cells.limit(0)
    return shoal_run(program, directory)


def handed(program: str, directory: Path) -> Launch:
    from handed import Handed

    launch = Handed(program, directory)
    _settled.append(launch.settle)
    return launch


_settled: list[Callable[[], None]] = []


def settle() -> None:
    """Wait until nothing is made in the background, so that the next peer has the machine for itself."""
    for each in _settled:
        each()
    if (cells := sys.modules.get("shoal.cells")) is not None:
        cells.wait_ready()


def _bwrap_argv(program: str) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise CaseFailed("bwrap is not installed")
    binds = [part for path in [*programs.closure(program), program] for part in ("--ro-bind", path, path)]
    return [bwrap, "--unshare-all", "--clearenv", *binds, "--", program]


def _bwrap_sandbox_argv(program: str) -> list[str]:
    """What `shoal.Sandbox()` gives, as far as bwrap's options go."""
    plain = _bwrap_argv(program)
    return [
        *plain[:-2],
        *(
            "--tmpfs",
            "/tmp",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--die-with-parent",
            "--new-session",
            "--hostname",
            "box",
            "--cap-drop",
            "ALL",
        ),
        *(part for name, value in (("PATH", "/usr/bin:/bin"), ("HOME", "/tmp")) for part in ("--setenv", name, value)),
        *plain[-2:],
    ]


def bwrap_sandbox(program: str, directory: Path) -> Launch:
    return _subprocess_run_of("bwrap", _bwrap_sandbox_argv(program))


def bwrap_run(program: str, directory: Path) -> Launch:
    return _subprocess_run_of("bwrap", _bwrap_argv(program))


def bwrap_command(program: str, directory: Path) -> Launch:
    return _posix_spawn_of("bwrap", _bwrap_sandbox_argv(program), dict)


def shoal_command(program: str, directory: Path) -> Launch:
    command = Path(sys.executable).with_name("shoal")
    if not command.exists():
        raise CaseFailed(f"there is no {command}")
    return _posix_spawn_of("shoal run", [str(command), "run", "--", program], lambda: os.environ)


def python_command(program: str, directory: Path) -> Launch:
    return _posix_spawn_of("python", [sys.executable, "-c", "pass"], lambda: os.environ)


def bwrap_posix_spawn(program: str, directory: Path) -> Launch:
    return _posix_spawn_of("bwrap", _bwrap_argv(program), dict)


def sandlock(program: str, directory: Path) -> Launch:
    try:
        from sandlock import Sandbox, StdioMode  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise CaseFailed(f"sandlock cannot be imported: {error}") from error
    # Its rules allow files in place, they do not make a new root; a path goes in as it is after symbolic links.
    readable = sorted({os.path.realpath(path) for path in [*programs.closure(program), program]})
    inherit = StdioMode.INHERIT

    def launch() -> None:
        box = Sandbox(fs_readable=readable, clean_env=True)
        result = box.popen([program], stdin=inherit, stdout=inherit, stderr=inherit).wait()
        _check("sandlock", result.exit_code)

    return launch


def sandlock_sandbox(program: str, directory: Path) -> Launch:
    """As above, with a directory to write to and the devices; what it has no means for (a private /tmp, /proc) is left out."""
    try:
        from sandlock import Sandbox, StdioMode  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise CaseFailed(f"sandlock cannot be imported: {error}") from error
    places = [*programs.closure(program), program, "/dev/null", "/dev/zero", "/dev/urandom"]
    readable = sorted({os.path.realpath(path) for path in places})
    inherit = StdioMode.INHERIT

    def launch() -> None:
        box = Sandbox(fs_readable=readable, clean_env=True)
        _check("sandlock", box.popen([program], stdin=inherit, stdout=inherit, stderr=inherit).wait().exit_code)

    return launch


def crun(program: str, directory: Path) -> Launch:
    path = shutil.which("crun")
    if path is None:
        raise CaseFailed("crun is not installed")
    if os.geteuid() != 0:
        raise CaseFailed("crun: the bundle made here is for root")
    bundle = directory / f"crun-{os.getpid()}-{Path(program).name}"
    (bundle / "rootfs").mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(_oci_config(program)))
    argv = [path, "--root", str(bundle / "state"), "--cgroup-manager", "disabled", "run", "--bundle", str(bundle), "shoal-bench"]
    once = subprocess.run(argv, check=False, capture_output=True, text=True)
    if once.returncode != 0:
        raise CaseFailed(f"crun does not run here: {once.stderr.strip() or once.returncode}")
    return _posix_spawn_of("crun", argv, dict)


def _oci_config(program: str) -> dict[str, object]:
    binds = [
        {"destination": path, "source": path, "type": "bind", "options": ["bind", "ro", "nosuid", "nodev"]}
        for path in [*programs.closure(program), program]
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {"terminal": False, "user": {"uid": 0, "gid": 0}, "args": [program], "env": [], "cwd": "/", "noNewPrivileges": True},
        "root": {"path": "rootfs", "readonly": False},
        "mounts": binds,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")]},
    }


MAKERS: dict[str, Maker] = {
    "shoal.spawn": shoal_plain,
    "subprocess.run": subprocess_run,
    "subprocess.Popen": subprocess_popen,
    "os.posix_spawn": posix_spawn,
    "shoal cell": shoal_cell,
    "shoal cell, none ahead": shoal_cold_cell,
    "shoal.run": shoal_run,
    "shoal.run, none ahead": shoal_cold_run,
    "a cell handed over (the floor)": handed,
    "bwrap sandbox (subprocess.run)": bwrap_sandbox,
    "shoal run, the command": shoal_command,
    "bwrap, the command": bwrap_command,
    "python -c pass": python_command,
    "sandlock sandbox": sandlock_sandbox,
    "bwrap (subprocess.run)": bwrap_run,
    "bwrap (os.posix_spawn)": bwrap_posix_spawn,
    "sandlock": sandlock,
    "crun (os.posix_spawn)": crun,
}
for _how in ("run", "run, captured", "Popen, waited for with a timeout"):
    MAKERS[f"shoal.subprocess.{_how}"] = _by(_drop_in, _how)
    MAKERS.setdefault(f"subprocess.{_how}", _by(lambda: subprocess, _how))


def make(peer: str, program: str, directory: Path) -> Launch:
    """A function that starts `program` once through `peer` and returns when it has ended.

    Raises:
        CaseFailed: the peer is not here or does not work here; the text says which.
    """
    try:
        launch = MAKERS[peer](program, directory)
        launch()
        settle()
    except CaseFailed:
        raise
    except Exception as error:  # a peer that breaks in its own way must not take the others with it
        raise CaseFailed(f"{peer}: {type(error).__name__}: {error}") from error
    return launch
