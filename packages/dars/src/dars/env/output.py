"""What a command printed, made fit to be shown."""

from __future__ import annotations

import os
import re
from typing import BinaryIO

READ_WHOLE = 8 << 20  # bytes; of more, only both ends are read
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[PX^_][^\x1b]*\x1b\\|[ -/]+[0-~]|[0-~])")


def shorten(text: str, limit: int, missing: int = 0, head: float = 0.6) -> tuple[str, bool]:
    """First 60 % and last 40 % of ``limit`` characters of a text, and whether anything was left out.

    missing : characters that were already left out in the middle of ``text``.
    """
    if len(text) <= limit and not missing:
        return text, False
    first = min(int(head * limit), len(text) // 2 if missing else len(text))
    last = min(limit - int(head * limit), len(text) - first)
    elided = len(text) - first - last + missing
    return f"{text[:first]}\n[... {elided} characters elided ...]\n{text[len(text) - last :]}", True


def read_output(file: BinaryIO, limit: int) -> tuple[str, bool]:
    """Text of a file of raw output: without ANSI codes, what is not UTF-8 replaced, shortened to ``limit``."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    missing = max(0, size - READ_WHOLE)
    raw = file.read(min(size, READ_WHOLE // 2 if missing else READ_WHOLE))
    if missing:
        file.seek(size - READ_WHOLE // 2)
        raw += file.read()
    return as_text(raw, limit, missing)


def as_text(raw: bytes, limit: int, missing: int = 0) -> tuple[str, bool]:
    """The same of bytes, of which ``missing`` were left out in the middle."""
    return shorten(ANSI.sub("", raw.decode(errors="replace")), limit, missing)


def read_ends(stream: BinaryIO) -> tuple[bytes, int]:
    """All of a stream that cannot be sought in, or both ends of a long one and how many bytes are missing between."""
    half = READ_WHOLE // 2
    head, tail, missing = bytearray(), bytearray(), 0
    while piece := stream.read(1 << 16):
        room = half - len(head)
        head += piece[:room]
        tail += piece[room:]
        if len(tail) > 2 * half:
            missing += len(tail) - half
            del tail[:-half]
    missing += max(0, len(tail) - half)
    return bytes(head + tail[-half:]), missing
