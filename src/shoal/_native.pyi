"""Types of the C core. See src/native/op.h for what a packed plan is."""

OPS: tuple[str, ...]
PLAN_MAGIC: int
PLAN_SHARE_FDS: int
PLAN_COLLECT: int
STAGE_CLONE: int
STAGE_ENTER: int
STAGE_OPS: int
STAGE_EXEC: int

def launch(
    plan: bytes, argv: bytes, argc: int, envp: bytes | None, envc: int, /
) -> tuple[int, int, int, int, int, tuple[int, ...] | None]: ...
def wait(pidfd: int, options: int, /) -> tuple[int, int, int, float, float, int] | None: ...
def find_duplicate(fd: int, others: bytes, /) -> int: ...
def hand_over(
    sock: int, pidfd: int, plan: bytes, argv: bytes, argc: int, envp: bytes, envc: int, fds: bytes, /
) -> tuple[int, int, int]: ...
def inherited() -> bytes: ...
def landlock_abi() -> int: ...
