"""What a child shares with its maker. Source: FDIO_SPAWN_* in fdio's spawn.h; spec 1.1."""

import enum


class SpawnFlags(enum.IntFlag, boundary=enum.KEEP):
    """Bits that share parts of the caller with the child. Unassigned bits are ignored, never an error."""

    CLONE_JOB = 0x0001
    """The child receives a handle to its job (`shoal.startup.job()`)."""
    DEFAULT_LDSVC = 0x0002
    """The child receives the ELF interpreter and its shared libraries. A dynamic program needs this."""
    CLONE_NAMESPACE = 0x0004
    """The child lives in the caller's world: the same files, processes and network."""
    CLONE_STDIO = 0x0008
    """The child receives descriptors 0, 1, 2, each where it is open, not close-on-exec, and no action took its number; else /dev/null."""
    CLONE_ENVIRON = 0x0010
    """The child receives the caller's environment. Ignored when `environ` is given."""
    CLONE_UTC_CLOCK = 0x0020
    """The child receives the caller's UTC clock, read-only."""
    CLONE_ALL = 0xFFFF
    """All of the above, and every bit assigned later."""
