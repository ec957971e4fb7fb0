"""The job policy NEW_PROCESS: DENY, as the kernel enforces it: a seccomp filter that every descendant inherits.

Threads stay possible. clone3 hides its flags in memory, where a filter cannot look, so it answers ENOSYS and the C library
falls back to clone. Source: seccomp(2); spec 6.3.
"""

from __future__ import annotations

import errno
import functools
import os
import struct

_LD_W_ABS, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_CLONE_THREAD = 0x00010000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7
_CLONE3 = 435
_CALLS = {"x86_64": (_X86_64, 56, (57, 58)), "aarch64": (_AARCH64, 220, ())}  # arch, clone, fork and vfork
_X32_BIT = 0x40000000


def _statement(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jt, jf, k)


@functools.cache
def deny_new_process_filter() -> bytes:
    """The filter, as packed struct sock_filter. Other ABIs of the processor are killed: their numbers mean other calls."""
    arch, clone, forks = _CALLS[os.uname().machine]
    denied = _statement(_RET, _ERRNO | errno.EPERM)
    program = [
        _statement(_LD_W_ABS, _ARCH),
        _statement(_JEQ, arch, 1, 0),
        _statement(_RET, _KILL),
        _statement(_LD_W_ABS, _NUMBER),
    ]
    if arch == _X86_64:
        program += [_statement(_JSET, _X32_BIT, 0, 1), _statement(_RET, _KILL)]
    for number in forks:
        program += [_statement(_JEQ, number, 0, 1), denied]
    program += [_statement(_JEQ, _CLONE3, 0, 1), _statement(_RET, _ERRNO | errno.ENOSYS)]
    program += [
        _statement(_JEQ, clone, 0, 3),
        _statement(_LD_W_ABS, _FIRST_ARGUMENT),  # little-endian: the low half
        _statement(_JSET, _CLONE_THREAD, 1, 0),
        denied,
        _statement(_RET, _ALLOW),
    ]
    return b"".join(program)
