"""What a hostile call sends: frames and messages that no honest one would. To be called inside a sandbox, where there is no rig: each
function brings what it needs along."""

from __future__ import annotations


def send_raw(data: bytes, then: str = "exit") -> None:
    """Write bytes to where results go, and end, go on, or return as if nothing had happened."""
    import os
    import time

    view = memoryview(data)
    while view:
        view = view[os.write(3, view) :]
    if then == "exit":
        os._exit(0)
    while then == "stay":
        time.sleep(60)


def frame(kind: int, message: bytes, size: int | None = None) -> bytes:
    """A frame; `size` is what it claims."""
    import struct

    return struct.pack("<IB", len(message) if size is None else size, kind) + message
