"""The flag OMP: the functions for workers of a program are registered, as the linker has placed them."""

import shutil
import subprocess

import pytest

from shoal.manager import ManagerError
from shoal.manager.client import NEW_DOMAIN, OMP

SOURCE = """
static void first(void) __asm__("Main._omp_fn.0");
static void second(void) __asm__("_work._omp_fn.1");
static void other(void) __asm__("omp_fnord");
int data__omp_fn __asm__("data._omp_fn.2") = 3;
__attribute__((noinline, used)) static void first(void) { __asm__ volatile(""); }
__attribute__((noinline, used)) static void second(void) { __asm__ volatile(""); }
__attribute__((noinline, used)) static void other(void) { __asm__ volatile(""); }
int main(void) { first(); second(); other(); return 6; }
"""
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None or shutil.which("nm") is None, reason="needs gcc and nm")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omp")
    (folder / "main.c").write_text(SOURCE)
    subprocess.run(["gcc", "-o", folder / "Worker", folder / "main.c"], check=True)
    return folder / "Worker"


def spawn(manager, program, flags=OMP):
    return manager.spawn_program(manager.cores()[0], program, [program.name], flags=flags)


def refused(manager, program, flags=OMP):
    with pytest.raises(ManagerError) as caught:
        spawn(manager, program, flags)
    assert manager.domains() == []
    assert manager.names.names("r'[.]omp[.]'") == []
    return caught.value


def addresses(program):
    listed = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    found = (line.split() for line in listed.splitlines())
    return {words[2]: int(words[0], 16) for words in found if len(words) == 3 and words[1] in "tT"}


def test_each_is_registered_by_its_name_and_its_address(manager, program):
    assert spawn(manager, program, OMP | NEW_DOMAIN).wait().code == 6
    names = manager.names.names("r'^worker[.]omp[.]'")
    assert names == ["worker.omp.0", "worker.omp.1", "worker.omp.2"]
    assert manager.names.get("worker.omp.0").attributes == {"count": 2}
    known = addresses(program)
    found = {manager.names.get(name).attributes["sym"]: manager.names.get(name).attributes["addr"] for name in names[1:]}
    assert found == {"main._omp_fn.0": known["Main._omp_fn.0"], "work._omp_fn.1": known["_work._omp_fn.1"]}


def test_without_the_flag_nothing_is_registered(manager, program):
    assert spawn(manager, program, 0).wait().code == 6
    assert manager.names.names("r'[.]omp[.]'") == []


def test_what_is_registered_already_stays(manager, program):
    manager.names.register("worker.omp.0 { count: 77 }")
    assert spawn(manager, program).wait().code == 6
    assert manager.names.names("r'[.]omp[.]'") == ["worker.omp.0"]
    assert manager.names.get("worker.omp.0").attributes == {"count": 77}


def test_a_program_without_symbols_has_none(manager, program, tmp_path):
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    assert spawn(manager, stripped).wait().code == 6
    assert manager.names.get("stripped.omp.0").attributes == {"count": 0}


@pytest.mark.parametrize("name", ["2048", "proc_mgmt", "spawn", "with blank"])
def test_a_name_that_no_record_can_have_is_refused(manager, program, tmp_path, name):
    shutil.copy(program, tmp_path / name)
    error = refused(manager, tmp_path / name)
    assert error.code == "SPAWN_ERR_GET_CMDLINE_ARGS"
    assert f"{name}.omp.0" in error.message


@pytest.mark.parametrize("damage", ["script", "sections beyond the end", "names nowhere", "huge table", "truncated"])
def test_what_has_no_tables_that_can_be_right_is_refused(manager, program, tmp_path, damage):
    data = bytearray(program.read_bytes())
    at = int.from_bytes(data[40:48], "little")
    count = int.from_bytes(data[60:62], "little")
    table = next(at + 64 * n for n in range(count) if data[at + 64 * n + 4] == 2)
    if damage == "script":
        data = bytearray(b"#!/bin/sh\nexit 6\n" + b" " * 64)
    elif damage == "sections beyond the end":
        data[40:48] = (len(data) + 1).to_bytes(8, "little")
    elif damage == "names nowhere":
        data[table + 40 : table + 44] = (0xFFFF).to_bytes(4, "little")
    elif damage == "huge table":
        data[table + 32 : table + 40] = (1 << 60).to_bytes(8, "little")
    else:
        data = data[: at + 100]
    (tmp_path / "damaged").write_bytes(data)
    (tmp_path / "damaged").chmod(0o755)
    assert refused(manager, tmp_path / "damaged").code == "SPAWN_ERR_LOAD"


def test_what_could_not_be_started_leaves_no_records(manager, program, tmp_path):
    data = program.read_bytes()
    at = data.index(b".so", data.index(b"ld-linux"))
    lost = tmp_path / "lost"
    lost.write_bytes(data[:at] + b".no" + data[at + 3 :])
    lost.chmod(0o755)
    assert refused(manager, lost).code == "SPAWN_ERR_LOAD"


def test_bits_that_mean_nothing_are_refused(manager, program):
    assert refused(manager, program, 4).code == "SPAWN_ERR_GET_CMDLINE_ARGS"
