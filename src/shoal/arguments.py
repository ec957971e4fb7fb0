"""Types of arguments that mean the same everywhere."""

from __future__ import annotations

import os
from typing import TypeAlias

StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
"""A path, as the functions of `os` take it."""
Size: TypeAlias = int | str
"""Bytes, or text such as "512M" and "1GiB": powers of 1,024 either way."""
Duration: TypeAlias = float | int | str
"""Seconds, or text such as "30s" and "1m30s"."""
