import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.loader import ldcache
from shoal.loader.elf import HOST_MACHINE, MACHINES

X86 = MACHINES["x86_64"]
LEVELS = ["x86-64-v2", "x86-64-v3"]


def build(entries, *, old=False, levels=LEVELS, order=2) -> bytes:
    """A cache of (name, path, flags, level) as ldconfig writes it; `old` puts the format of before glibc 2.32 in front."""
    front = b""
    if old:
        front = struct.pack("<11sxI", b"ld.so-1.7.0", 1) + struct.pack("<iII", 3, 0, 0)
        front = front.ljust((len(front) + 7) & ~7, b"\0")
    strings = bytearray()
    strings_at = 48 + 24 * len(entries)

    def put(text: str) -> int:
        strings.extend(text.encode() + b"\0")
        return strings_at + len(strings) - len(text) - 1

    level_at = [put(level) for level in levels]
    table = b""
    for name, path, flags, level in entries:
        hwcap = 0 if level is None else 1 << 62 | levels.index(level)
        table += struct.pack("<iIIIQ", flags, put(name), put(path), 0, hwcap)
    size = len(strings)
    while (len(front) + strings_at + len(strings)) % 4:
        strings.append(0)
    extension_at = len(front) + strings_at + len(strings)
    header = struct.pack("<20sIIB3xI12x", b"glibc-ld.so.cache1.1", len(entries), size, order, extension_at)
    section_at = extension_at + 8 + 16
    extension = struct.pack("<IIIIII", 0xEAA42174, 1, 1, 0, section_at, 4 * len(levels))
    extension += b"".join(struct.pack("<I", at) for at in level_at)
    return front + header + table + bytes(strings) + extension


ENTRIES = [
    ("libz.so.1", "/lib/glibc-hwcaps/x86-64-v3/libz.so.1", 0x0303, "x86-64-v3"),
    ("libz.so.1", "/lib/glibc-hwcaps/x86-64-v2/libz.so.1", 0x0303, "x86-64-v2"),
    ("libz.so.1", "/lib/libz.so.1", 0x0303, None),
    ("libz.so.1", "/lib32/libz.so.1", 0x0003, None),
    ("libarm.so", "/arm/libarm.so", 0x0A03, None),
]


@pytest.mark.parametrize("old", [False, True], ids=["new format", "behind the old format"])
def test_a_name_leads_to_the_best_file_this_processor_can_run(old):
    cache = ldcache.parse(build(ENTRIES, old=old), X86)
    assert cache.lookup("libz.so.1") == "/lib/libz.so.1"
    assert cache.lookup("libz.so.1", lambda: ["x86-64-v2"]) == "/lib/glibc-hwcaps/x86-64-v2/libz.so.1"
    assert cache.lookup("libz.so.1", lambda: ["x86-64-v4", "x86-64-v3", "x86-64-v2"]) == "/lib/glibc-hwcaps/x86-64-v3/libz.so.1"
    assert cache.lookup("libz.so.2") is None


def test_entries_of_other_machines_do_not_exist():
    assert ldcache.parse(build(ENTRIES), X86).lookup("libarm.so") is None
    assert ldcache.parse(build(ENTRIES), MACHINES["aarch64"]).lookup("libarm.so") == "/arm/libarm.so"
    assert len(ldcache.parse(build(ENTRIES), 3)) == 0


def test_entries_for_dropped_capability_bits_are_passed_over():
    data = bytearray(build([("liba.so", "/lib/tls/liba.so", 0x0303, None), ("liba.so", "/lib/liba.so", 0x0303, None)]))
    struct.pack_into("<Q", data, 48 + 16, 1 << 63)
    assert ldcache.parse(bytes(data), X86).lookup("liba.so") == "/lib/liba.so"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ld.so-1.7.0",
        b"glibc-ld.so.cache1.1",
        build(ENTRIES)[:100],
        build(ENTRIES, order=3),
        b"ld.so-1.7.0\0\xff\xff\xff\xff",
        bytes(500),
    ],
)
def test_a_corrupt_file_is_an_empty_one(data):
    assert len(ldcache.parse(data, X86)) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=8), st.integers(0, 500), st.booleans())
def test_nothing_in_a_cache_makes_it_fail(changes, cut, old):
    data = bytearray(build(ENTRIES, old=old))
    for offset, value in changes:
        data[offset % len(data)] = value
    cache = ldcache.parse(bytes(data[: cut or None]), X86)
    found = cache.lookup("libz.so.1", lambda: LEVELS)
    assert found is None or found.startswith("/")


@pytest.mark.skipif(not Path("/etc/ld.so.cache").exists(), reason="no /etc/ld.so.cache on this system")
@pytest.mark.skipif(shutil.which("ldconfig", path="/sbin:/usr/sbin") is None, reason="no ldconfig to compare with")
def test_this_system_s_cache_reads_as_ldconfig_prints_it():
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin")
    printed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}).stdout
    word = {MACHINES["x86_64"]: "x86-64", MACHINES["aarch64"]: "AArch64"}[HOST_MACHINE]
    expected = {}
    for name, path in re.findall(rf"^\t(\S+) \(libc6,{word}\) => (\S+)$", printed, re.MULTILINE):
        expected.setdefault(name, path)
    cache = ldcache.parse(Path("/etc/ld.so.cache").read_bytes(), HOST_MACHINE)
    assert expected
    assert {name: cache.lookup(name) for name in expected} == expected
