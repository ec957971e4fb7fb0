"""Descriptors in any order: a swap, a cycle of three, two numbers for one file, and a number that moves away.

    python examples/fd_plumbing.py

The whole map is applied at once, so no order of the actions can overwrite what a later one needs. What is not in the
map is gone in the child, and what was transferred is gone here.
"""

import os

import shoal
from shoal import CloneFd, SpawnFlags, TransferFd


def letter(text: str) -> int:
    """A descriptor whose file holds `text`."""
    fd = os.memfd_create(text)
    os.write(fd, text.encode())
    return fd


def child_reads(numbers: list[int], *actions: shoal.Action) -> str:
    """What a child finds at `numbers`, read from each file's beginning."""
    read, write = os.pipe()
    files = " ".join(f"/dev/fd/{number}" for number in numbers)
    shoal.spawn(
        "/bin/sh",
        ["sh", "-c", f"for file in {files}; do cat $file 2>/dev/null || printf -; done"],
        flags=SpawnFlags.CLONE_ALL & ~SpawnFlags.CLONE_STDIO,
        actions=[TransferFd(write, 1), *actions],
    ).wait()
    with open(read) as output:
        return output.read()


def is_still(fd: int, file: os.stat_result) -> bool:
    """Whether `fd` is this file: a number that was given up may be somebody else's by now."""
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def main() -> None:
    a, b, c = letter("A"), letter("B"), letter("C")
    print("as they are:   ", child_reads([a, b, c], CloneFd(a, a), CloneFd(b, b), CloneFd(c, c)))
    print("a swap:        ", child_reads([a, b], CloneFd(a, b), CloneFd(b, a)))
    print("a cycle:       ", child_reads([a, b, c], CloneFd(a, b), CloneFd(b, c), CloneFd(c, a)))
    print("one, twice:    ", child_reads([10, 1000], CloneFd(a, 10), CloneFd(a, 1000)))
    print("not granted:   ", child_reads([a, b], CloneFd(a, a)))
    moved = os.fstat(b)
    print("moved away:    ", child_reads([a], TransferFd(b, a)), "and here it is", "open" if is_still(b, moved) else "closed")
    for fd in (a, c):
        os.close(fd)


if __name__ == "__main__":
    main()
