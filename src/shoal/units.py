"""Sizes and durations as people write them: "512M", "1GiB", "30s", "1m30s". Standard library only."""

import re

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?\s*", re.IGNORECASE)
_SCALE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|h|m|s|d)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(value: int | str) -> int:
    """A number of bytes. Text takes K, M, G, T, P (powers of 1,024), each with an optional B or iB.

    Raises:
        TypeError: neither int nor str.
        ValueError: negative, or text that is not a size.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"a size is a number of bytes or text such as '512M', not {type(value).__name__}")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if not match:
            raise ValueError(f"{value!r} is not a size; write a number of bytes, or for example '64K', '512M', '1GiB'")
        return int(float(match[1]) * _SCALE[match[2].upper()]) if "." in match[1] else int(match[1]) * _SCALE[match[2].upper()]
    if value < 0:
        raise ValueError(f"a size cannot be negative: {value}")
    return value


def parse_duration(value: float | str) -> float:
    """A number of seconds. Text takes us, ms, s, m, h, d, also joined: "1m30s".

    Raises:
        TypeError: neither a number nor str.
        ValueError: negative, not finite, or text that is not a duration.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"a duration is a number of seconds or text such as '30s', not {type(value).__name__}")
    if isinstance(value, str):
        text = value.strip().lower()
        parts = _PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * _SECONDS[unit] for number, unit in parts)
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{value!r} is not a duration; write seconds, or for example '500ms', '30s', '1m30s'") from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"a duration must be finite and not negative: {value}")
    return float(value)
