"""What goes between an executor and a call: the frames, and how a value looks in them.

To a call goes one frame, the function with its arguments, as a pickle: from who is trusted to who is not. What comes back is never a
pickle. It is msgpack, in which a value is what it looks like, with these additions:

* a map with text for keys is a dict; a map with one of the numbers below as its only key is another container;
* an extension is a leaf: its code tells which, and its content is plain bytes. No extension holds msgpack in turn.

So whoever decodes needs no recursion of its own, and there is no class, function or module that a message could name.
Source: msgpack's specification; Python's struct.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

HEAD: Final = struct.Struct("<IB")
"""Of each frame from a call: how many bytes follow, and what they are."""
ORDER: Final = struct.Struct("<QQQB")
"""Of the frame to a call: how many bytes of pickle follow, and of the limits before them; how long a result may be; whether the pickle
comes as a memory file instead."""
INLINE_BYTES: Final = 32 << 10
"""A longer pickle goes as a memory file: what is sent has to fit into a socket's buffer, since nobody waits for room."""
KNOWN: Final = struct.pack("=i", 0)
"""Tells a copy that its owner knows of it: what op WAIT_READY waits for."""
REPORT: Final = struct.Struct("=iii")
"""struct report of src/native/op.h: stage, op index, errno."""


class Kind(enum.IntEnum):
    """What a frame from a call is."""

    RESULT = 1
    RAISED = 2
    UNFIT = 3
    """It returned something that cannot be told."""
    PROGRESS = 4
    UNREAD = 5
    """The call itself could not be rebuilt inside."""


class Container(enum.IntEnum):
    """The only key of a map that is no dict with text for keys."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    DICT = 4
    """Keys and values in turn."""


class Leaf(enum.IntEnum):
    """The code of an extension."""

    INT = 1
    """Beyond 64 bits: two's complement, little endian."""
    COMPLEX = 2
    DATETIME = 3
    DATE = 4
    TIME = 5
    TIMEDELTA = 6
    DECIMAL = 7
    UUID = 8
    BYTEARRAY = 9
    ARRAY = 10
    SCALAR = 11
    """Both of numpy: dtype, shape and content."""


DEPTH_MOST: Final = 100
"""Containers within containers."""
ITEMS_MOST: Final = 2_000_000
"""Values in one result, all containers together: each takes some 50 bytes of memory, however short its message is."""
PROGRESS_BYTES: Final = 4 << 10
RAISED_BYTES: Final = 256 << 10
TEXT_CHARACTERS: Final = 8 << 10
"""Of an exception's text; TRACEBACK_CHARACTERS: of its traceback."""
TRACEBACK_CHARACTERS: Final = 64 << 10

INT_BYTES_MOST: Final = 1 << 20
COMPLEX: Final = struct.Struct("<dd")
DATETIME: Final = struct.Struct("<HBBBBBIiB")
"""Year, month, day, hour, minute, second, microsecond, offset from UTC in seconds, and flags: 1 has an offset, 2 fold."""
NAIVE: Final = -(1 << 31)
DATE: Final = struct.Struct("<HBB")
TIME: Final = struct.Struct("<BBBIiB")
TIMEDELTA: Final = struct.Struct("<iII")
ARRAY_DIMENSIONS_MOST: Final = 32

CHANNEL_LOST, NOT_THE_CALL = 70, 71
"""Exit statuses of a copy: what it was told by or tells by was closed from inside; it is a fork that the call has made, and which went
on to return as if it were the call."""
