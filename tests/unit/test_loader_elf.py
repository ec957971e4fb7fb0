import os
import pickle
import struct
import sys
from pathlib import Path

import elf_image
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.loader import elf
from shoal.loader.elf import ElfImage, ForeignElfError, parse
from shoal.status import SpawnError, Stage, Status

POSSIBLE = (Status.OK, Status.INTERNAL, Status.INVALID_ARGS)
LD_SO = b"/lib64/ld-linux-x86-64.so.2\0"


def parse_bytes(data: bytes, name: str = "prog") -> ElfImage:
    return parse(lambda offset, size: data[offset : offset + size], len(data), name)


def parse_file(path: str) -> ElfImage:
    fd = os.open(path, os.O_RDONLY)
    try:
        return parse(lambda offset, size: os.pread(fd, size, offset), os.fstat(fd).st_size, path)
    finally:
        os.close(fd)


def outcome(data: bytes) -> Status:
    """OK, or the status of the refusal; any other exception goes through."""
    try:
        parse_bytes(data)
    except SpawnError as error:
        return error.status
    return Status.OK


def refused(data: bytes) -> SpawnError:
    with pytest.raises(SpawnError) as caught:
        parse_bytes(data)
    assert "prog" in caught.value.detail
    return caught.value


def patched(data: bytes, offset: int, layout: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


def test_a_dynamic_program_names_its_interpreter_and_what_it_needs():
    image = parse_bytes(elf_image.build(interpreter=LD_SO, needed=[b"libb.so", b"liba.so.1"], runpath=b"$ORIGIN/lib:/opt", kind=2))
    assert image.interpreter == "/lib64/ld-linux-x86-64.so.2"
    assert image.needed == ("libb.so", "liba.so.1")
    assert (image.runpath, image.rpath, image.soname) == ("$ORIGIN/lib:/opt", None, None)
    assert not image.is_static


def test_an_rpath_counts_only_without_a_runpath():
    assert parse_bytes(elf_image.build(rpath=b"/a")).rpath == "/a"
    both = parse_bytes(elf_image.build(rpath=b"/a", runpath=b"/b"))
    assert (both.rpath, both.runpath) == (None, "/b")


def test_a_program_without_interpreter_is_static():
    image = parse_bytes(elf_image.build())
    assert image.is_static
    assert image.needed == ()


def test_flags_stack_filters_and_soname_are_read():
    image = parse_bytes(elf_image.build(soname=b"libx.so.1", entries=[(0x6FFFFFFB, 0x800), (0x7FFFFFFF, 1), (0x7FFFFFFD, 1)], stack=7))
    assert image.soname == "libx.so.1"
    assert image.no_default_libraries
    assert image.executable_stack
    assert (image.filters, image.auxiliary) == (("libx.so.1",), ("libx.so.1",))
    assert not parse_bytes(elf_image.build(stack=6)).executable_stack


def test_names_need_not_be_utf8_but_the_interpreter_must():
    assert os.fsencode(parse_bytes(elf_image.build(needed=[b"lib\xff.so"])).needed[0]) == b"lib\xff.so"
    error = refused(elf_image.build(interpreter=b"/lib/\xff\0"))
    assert error.status is Status.INVALID_ARGS


@pytest.mark.parametrize(
    "interpreter", [b"/lib/ld.so", b"", b"\0", b"/" + b"x" * 5000 + b"\0"], ids=["no NUL", "nothing", "empty", "too long"]
)
def test_an_unusable_interpreter_name_is_invalid_args(interpreter):
    assert refused(elf_image.build(interpreter=interpreter)).status is Status.INVALID_ARGS


def test_the_interpreter_name_ends_at_its_first_zero_byte():
    assert parse_bytes(elf_image.build(interpreter=b"/lib/ld.so\0rest\0")).interpreter == "/lib/ld.so"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither"),
        (b"hello", "neither"),
        (b"\x7fELF", "truncated"),
        (elf_image.build()[:63], "truncated"),
        (elf_image.build()[:100], "truncated"),
        (patched(elf_image.build(), 6, "<B", 2), "version"),
        (patched(elf_image.build(), 16, "<H", 1), "type 1"),
        (patched(elf_image.build(), 16, "<H", 4), "type 4"),
        (patched(elf_image.build(), 54, "<H", 32), "program headers"),
        (patched(elf_image.build(), 56, "<H", 0), "nothing to load"),
        (patched(elf_image.build(), 56, "<H", 0xFFFF), "program headers"),
        (patched(elf_image.build(), 64, "<I", 0), "nothing to load"),
        (patched(elf_image.build(), 32, "<Q", 2**64 - 1), "truncated"),
        (patched(elf_image.build(), 64 + 32, "<Q", 2**63), "truncated"),
        (elf_image.build(needed=[b"liba.so"], tail=bytes(9000))[:4096], "truncated"),
        (elf_image.build(entries=[(1, 10**6)]), "string table"),
    ],
)
def test_a_bad_file_is_internal_and_the_message_says_what_is_wrong(data, says):
    error = refused(data)
    assert (error.status, error.stage) == (Status.INTERNAL, Stage.LOAD)
    assert says in error.detail


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (elf_image.build(machine=40), "ARM (32-bit)"),
        (elf_image.build(machine=999), "machine 999"),
        (patched(elf_image.build(), 4, "<B", 1), "32-bit"),
        (patched(elf_image.build(), 5, "<B", 2), "big-endian"),
    ],
)
def test_a_file_of_another_machine_is_told_apart(data, says):
    with pytest.raises(ForeignElfError, match="not a program for this machine") as caught:
        parse_bytes(data)
    assert says in caught.value.detail
    assert caught.value.status is Status.INTERNAL


def test_the_last_page_may_be_missing_as_mapping_fills_it_with_zeros():
    data = elf_image.build(tail=bytes(5000))
    assert parse_bytes(data[:5000]).is_static


def test_a_failed_read_is_a_spawn_error():
    def read(offset: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(SpawnError, match="cannot read prog") as caught:
        parse(read, 100, "prog")
    assert caught.value.status is Status.IO


def test_a_file_that_shrinks_while_it_is_read_is_truncated():
    data = elf_image.build(needed=[b"liba.so"])
    with pytest.raises(SpawnError, match="cannot be read whole"):
        parse(lambda offset, size: data[offset : min(offset + size, 100)], len(data))


def test_many_names_in_one_long_string_cost_no_more_than_their_bound():
    data = elf_image.build(needed=[b"x" * 60000], entries=[(1, 1)] * 5000)
    assert "too long together" in refused(data).detail


def test_a_foreign_error_crosses_processes():
    with pytest.raises(ForeignElfError) as caught:
        parse_bytes(elf_image.build(machine=40))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.detail) == (ForeignElfError, caught.value.detail)


def test_real_files_of_this_machine_are_read():
    python = parse_file(os.path.realpath(sys.executable))
    assert python.machine == elf.HOST_MACHINE
    assert python.interpreter is None or Path(python.interpreter).exists()
    assert parse_file("/bin/true").needed


SEEDS = [
    elf_image.build(interpreter=LD_SO, needed=[b"liba.so", b"libb.so"], soname=b"libc.so", rpath=b"/x", runpath=b"/y", stack=6),
    Path("/bin/true").read_bytes(),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), max_size=12), st.integers(0, 60000))
def test_whatever_a_file_holds_only_spawn_errors_come_out(data, changes, cut):
    changed = bytearray(data)
    for offset, value in changes:
        changed[offset % len(changed)] = value
    assert outcome(bytes(changed[: cut or None])) in POSSIBLE


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 120), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
@example(SEEDS[0], 4, 2**64 - 1)
def test_extreme_numbers_anywhere_are_survived(data, word, value):
    changed = patched(data, word * 8 % (len(data) - 8), "<Q", value)
    assert outcome(changed) in POSSIBLE


@given(st.binary(max_size=300))
def test_random_bytes_behind_the_magic_are_survived(data):
    refused(elf.MAGIC + data[:40])
    assert outcome(elf_image.build()[:64] + data) in POSSIBLE
