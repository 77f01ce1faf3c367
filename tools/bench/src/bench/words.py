"""Figures as people read them: times, sizes, numbers, and a ratio as words such as "3.4× faster"."""

from collections.abc import Mapping
from typing import Any

TIME_UNITS = {"s", "sec", "second", "seconds", "ms", "us", "µs", "μs", "ns", "min", "h"}
SIZE_UNITS = {"b", "byte", "bytes", "kb", "mb", "gb", "kib", "mib", "gib"}
SAME_WITHIN = 1.05  # a ratio nearer to 1 than this is called the same


def seconds(value: float | None) -> str:
    """A time: '12.3 s', '4 min 05 s', '2 h 10 min'."""
    if value is None:
        return "–"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(value: float | None) -> str:
    """An amount of memory in MiB or GiB."""
    if value is None:
        return "–"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def size(value: int) -> str:
    """A file's size."""
    for unit, step in (("MiB", 2**20), ("KiB", 2**10)):
        if value >= step:
            return f"{value / step:.1f} {unit}"
    return f"{value} bytes"


def number(value: float | None) -> str:
    """Four significant digits, whole numbers whole, a true minus sign."""
    if value is None:
        return "–"
    if float(value).is_integer() and abs(value) < 1e7:
        text = f"{value:.0f}"
    elif value and not 1e-3 <= abs(value) < 1e7:
        text = f"{value:.3g}"
    else:
        text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return text.replace("-", "−")


def times(gain: float) -> str:
    """A gain of at least 1 as a factor: 1.24×, 3.4×, 120×."""
    return f"{gain:.2f}×" if gain < 2 else f"{gain:.1f}×" if gain < 10 else f"{gain:.0f}×"


def comparison(item: Mapping[str, Any], gain: float | None) -> str:
    """'3.4× faster', '1.2× slower', 'about the same': ours against the peer, in the unit's own word."""
    if gain is None:
        return "no ratio"
    if 1 / SAME_WITHIN < gain < SAME_WITHIN:
        return "about the same"
    better = gain > 1
    unit = item.get("unit", "").lower().strip()
    if unit in TIME_UNITS or (item["better"] == "higher" and unit.endswith(("/s", "per second"))):
        word = "faster" if better else "slower"
    elif unit in SIZE_UNITS:
        word = "smaller" if better == (item["better"] == "lower") else "larger"
    else:
        raised = better == (item["better"] == "higher")
        word = f"{'higher' if raised else 'lower'} ({'better' if better else 'worse'})"
    return f"{times(gain if better else 1 / gain)} {word}"
