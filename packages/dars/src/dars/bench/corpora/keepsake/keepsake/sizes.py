"""Sizes: of values, and as people write them."""

from __future__ import annotations

UNITS = {"": 1, "k": 1000, "m": 1000 * 1000, "ki": 1024, "mi": 1024 * 1024}


def parse_size(text: str) -> int:
    """Number of a text such as "12", "4k" or "1.5 Mi"."""
    digits = text.strip()
    cut = len(digits)
    while cut > 0 and not (digits[cut - 1].isdigit() or digits[cut - 1] == "."):
        cut -= 1
    number, unit = digits[:cut], digits[cut:].strip().lower()
    if not number or unit not in UNITS:
        raise ValueError(f"{text!r} is no size")
    return int(float(number) * UNITS[unit])


def size_of(value: object) -> int:
    """A text or collection counts its items, all else counts one."""
    if isinstance(value, (str, bytes, list, tuple, dict, set)):
        return max(1, len(value))
    return 1
