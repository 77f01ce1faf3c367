"""Setting lines flush left, flush right, centred or justified."""

from __future__ import annotations

from .wrap import wrap


def align(line: str, width: int, side: str = "left") -> str:
    """A line padded to a width."""
    free = width - len(line)
    if free <= 0:
        return line
    if side == "left":
        return line + " " * free
    if side == "right":
        return " " * free + line
    if side == "centre":
        before = free // 2
        return " " * before + line + " " * (free - before)
    raise ValueError(f"there is no side {side!r}")


def spread(words: list[str], width: int) -> str:
    """Words over the whole width; the first gaps take what cannot be shared evenly."""
    if len(words) == 1:
        return words[0]
    gaps = len(words) - 1
    blanks = width - sum(len(word) for word in words)
    each, extra = divmod(blanks, gaps)
    line = words[0]
    for i, word in enumerate(words[1:]):
        line += " " * (each + 1 if i < extra else each) + word
    return line


def justify(text: str, width: int, last: str = "left") -> list[str]:
    """Lines that fill the width, all but the last."""
    lines = wrap(text, width)
    done = [spread(line.split(), width) for line in lines[:-1]]
    if lines:
        done.append(align(lines[-1], width, last).rstrip())
    return done
