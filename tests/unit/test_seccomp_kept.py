"""System-call filters: where one comes from, and how it is kept from one process to the next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shoal import NotSupportedError
from shoal.sandbox import seccomp
from shoal.sandbox.seccomp import Filter, Seccomp, filter_for, make_filter


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, on disk and in memory."""
    folder = tmp_path_factory.mktemp("runtime")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    seccomp._kept_or_made.cache_clear()
    yield folder / "shoal"
    seccomp._kept_or_made.cache_clear()


def test_off_is_no_filter_and_an_unknown_mode_is_an_error() -> None:
    assert filter_for("off") is None
    with pytest.raises(ValueError, match=r"seccomp='on': it is 'default', 'strict', 'off' or a shoal\.Seccomp"):
        filter_for("on")


def test_the_same_mode_is_the_same_object() -> None:
    assert filter_for("default") is filter_for("default")
    assert filter_for("default") is filter_for(Seccomp())
    assert filter_for("default") is not filter_for("strict")


def fresh(mode: str | Seccomp) -> Filter:
    """As a new process would get it."""
    seccomp._kept_or_made.cache_clear()
    made = filter_for(mode)
    assert made is not None
    return made


def forget_how_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> Filter:
        raise AssertionError("it was made again")

    monkeypatch.setattr(seccomp, "make_filter", nothing)


@pytest.mark.parametrize("mode", ["default", "strict", Seccomp(allow=["read"]), Seccomp(allow=[])])
def test_a_filter_is_kept_for_the_next_process(mode: str | Seccomp, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fresh(mode)
    (kept,) = cache.iterdir()
    assert (cache.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o600)
    forget_how_to_make(monkeypatch)
    found = fresh(mode)
    assert (found, found.names) == (made, made.names)


def test_a_kept_filter_is_used_only_for_what_it_was_made_for(cache: Path) -> None:
    fresh("strict")
    (strict,) = cache.iterdir()
    right = fresh("default")
    (default,) = set(cache.iterdir()) - {strict}
    strict.rename(default)
    assert fresh("default") == right


def _loosen(kept: Path) -> None:
    kept.chmod(0o644)


def _give_away(kept: Path) -> None:
    os.chown(kept, 12345, 12345)


def _open_the_folder(kept: Path) -> None:
    kept.parent.chmod(0o770)


def _give_the_folder_away(kept: Path) -> None:
    os.chown(kept.parent, 12345, 12345)


def _link(kept: Path) -> None:
    kept.rename(kept.parent / "elsewhere")
    kept.symlink_to("elsewhere")


def _link_the_folder(kept: Path) -> None:
    kept.parent.rename(kept.parent.parent / "elsewhere")
    kept.parent.symlink_to("elsewhere")


def _fifo(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept, 0o600)


def _change(kept: Path) -> None:
    data = bytearray(kept.read_bytes())
    data[-5] ^= 1
    kept.write_bytes(data)


def _cut(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-8])


def _cut_to_pieces(kept: Path) -> None:
    kept.write_bytes(b"shS1")


def _empty(kept: Path) -> None:
    kept.write_bytes(b"")


AS_ROOT = pytest.mark.root


@pytest.mark.parametrize(
    "spoil",
    [
        _loosen,
        pytest.param(_give_away, marks=AS_ROOT),
        _open_the_folder,
        pytest.param(_give_the_folder_away, marks=AS_ROOT),
        _link,
        _link_the_folder,
        _fifo,
        _change,
        _cut,
        _cut_to_pieces,
        _empty,
    ],
)
def test_a_kept_filter_that_another_could_have_written_or_that_is_damaged_is_not_used(
    spoil: Callable[[Path], None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fresh("default")
    (kept,) = cache.iterdir()
    spoil(kept)
    with monkeypatch.context() as during:
        forget_how_to_make(during)
        with pytest.raises(AssertionError, match="made again"):
            fresh("default")
    assert fresh("default") == right


@pytest.mark.parametrize("where", ["/dev/null/cache", "/proc/self/cache", "relative/cache"])
def test_where_nothing_can_be_kept_a_filter_is_made_each_time(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", where)
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.chdir(tmp_path)
    assert fresh("default") == make_filter(Seccomp(), os.uname().machine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_nothing_is_made_in_a_directory_that_belongs_to_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, 12345, 12345)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fresh("default")
    assert list(tmp_path.iterdir()) == []


def test_filters_made_up_without_end_take_a_bounded_number_of_files(cache: Path) -> None:
    made = fresh("default")
    for number in range(600):
        seccomp._keep(f"key {number}", made)
    assert len(list(cache.iterdir())) <= 256


def python(code: str, **environ: str) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ASK = """
import shoal
from shoal.sandbox.seccomp import Seccomp, filter_for
def ask(what):
    try: print(what().label)
    except shoal.NotSupportedError as error: print(error)
ask(lambda: filter_for("default"))
print(filter_for("off"))
Seccomp(deny=["ptrace"])
ask(lambda: Seccomp(deny=["ptrac"]))
"""


@pytest.fixture
def without_libseccomp(tmp_path: Path) -> str:
    """A library path on which a file that is no library comes first."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libseccomp.so.2").write_bytes(b"")
    return str(tmp_path / "lib")


def test_without_libseccomp_the_error_says_what_to_install_and_off_still_works(without_libseccomp: str) -> None:
    lines = python(ASK, LD_LIBRARY_PATH=without_libseccomp).splitlines()
    assert lines[0].startswith("libseccomp.so.2 is not installed, so that there is no table of the system calls")
    assert "apt-get install libseccomp2" in lines[0]
    assert "seccomp='off'" in lines[0]
    assert lines[1] == "None"
    assert lines[2] == lines[0]


def test_without_libseccomp_a_filter_kept_from_before_works(without_libseccomp: str) -> None:
    python(ASK.replace('"ptrac"', '"ptrace"').replace(".label", ""))
    assert python(ASK, LD_LIBRARY_PATH=without_libseccomp).splitlines()[0] == "default"


def test_a_python_without_ctypes_says_so() -> None:
    assert "this Python cannot load libraries" in python("import sys; sys.modules['ctypes'] = None\n" + ASK).splitlines()[0]


def test_another_processor_is_told_which_there_are() -> None:
    with pytest.raises(NotSupportedError, match="made for x86_64 and aarch64, and this is riscv64"):
        seccomp._kept_or_made(Seccomp(), "riscv64")


def test_a_process_with_a_kept_filter_loads_nothing_costly() -> None:
    code = (
        "import sys, shoal.spawning, shoal.sandbox\n"
        "before = set(sys.modules)\n"
        "from shoal.sandbox.seccomp import filter_for\n"
        "filter_for('default')\n"
        "print(*set(sys.modules) - before)"
    )
    python(code)
    assert set(python(code).split()) <= {"shoal.sandbox.seccomp", "shoal.xdg", "binascii"}
