"""Prepared corpora: a folder with memory-mapped tokens, document offsets, the tokenizer, and a description of them.

=================  ==================================================================================================
tokens.bin         all training documents, then all validation documents; little-endian uint16 or uint32
index.npy          int64; where each document of a split begins, counted from the split's first token, and where the
                   last one ends: (documents + 1) numbers for "train", then as many for "val"
tokenizer.json     the tokenizer (and tokenizer_config.json), so that the folder can be copied to an offline machine
meta.json          vocabulary size, ids of the special tokens, counts, sizes and sha256 sums
=================  ==================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .sources import check_share, documents, latin_squares
from .tokenizers import TextTokenizer, char_tokenizer, gpt2_tokenizer, latin_tokenizer, load_tokenizer, train_bpe

log = logging.getLogger(__name__)

FORMAT = "gidd-corpus/1"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Corpus:
    """A prepared folder, opened; nothing is read before it is asked for."""

    path: Path
    meta: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """V, special tokens included."""
        return int(self.meta["vocab_size"])

    @property
    def mask_id(self) -> int:
        """The id of the mask, which no document contains."""
        return int(self.meta["mask_id"])

    @property
    def pad_id(self) -> int | None:
        """The id that fills up short sequences, if there is one."""
        return None if self.meta["pad_id"] is None else int(self.meta["pad_id"])

    def num_documents(self, split: str) -> int:
        """How many documents a split has."""
        return int(self._split(split)["documents"])

    def num_tokens(self, split: str) -> int:
        """How many tokens a split has, those that begin and end documents included."""
        return int(self._split(split)["tokens"])

    def tokens(self, split: str) -> NDArray[Any]:
        """(num_tokens,) memory-mapped, read-only ids of a split ("train" or "val")."""
        start = 0 if split == "train" else self.num_tokens("train")
        return self._tokens[start : start + self.num_tokens(split)]

    def offsets(self, split: str) -> NDArray[np.int64]:
        """(num_documents + 1,) int64: document i is ``tokens(split)[offsets[i] : offsets[i + 1]]``."""
        start = 0 if split == "train" else self.num_documents("train") + 1
        return self._index[start : start + self.num_documents(split) + 1]

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that the corpus was made with."""
        return load_tokenizer(self.path)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        return dict(self.meta["splits"][split])

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return np.memmap(self.path / "tokens.bin", dtype=np.dtype(self.meta["dtype"]).newbyteorder("<"), mode="r")

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        return np.load(self.path / "index.npy", mmap_mode="r", allow_pickle=False)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memmap would carry the whole corpus to every worker.
        return Corpus, (self.path, self.meta)


def prepare(
    source: str,
    tokenizer: str,
    out: str | Path,
    *,
    held_out: float = 0.05,
    limit: int | None = None,
    num_squares: int = 50_000,
    seed: int = 0,
    train_chars: int = 100_000_000,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Corpus:
    """Tokenize a source into a folder; it appears under its name only when it is complete.

    Parameters
    ----------
    source : "kjv", "latin:N", "python-stdlib", "files:GLOB" or "hf:NAME[:SUBSET]" (see :func:`.documents`).
    tokenizer : "char" (for kjv the letters a-z and space, else all characters of the training text), "bpe:N", "gpt2",
        or the path of a tokenizer.json. Latin squares have their own and ignore it.
    out : the folder to create.
    held_out : the share that becomes the split "val".
    limit : read at most this many documents.
    num_squares, seed : how many Latin squares to draw, validation included, and from which seed.
    train_chars : "char" and "bpe:N" look at this many characters of the training text.
    overwrite : replace an existing folder.
    progress : called with the number of tokens written so far.

    Raises
    ------
    ConfigError
        A malformed source or tokenizer.
    DataError
        The source is missing or has no text, or ``out`` exists already.

    Examples
    --------
    >>> corpus = prepare("latin:5", "char", "data/latin5", num_squares=1000)  # doctest: +SKIP
    >>> corpus.tokens("val").reshape(-1, 25)  # doctest: +SKIP
    """
    out = Path(out)
    check_share(held_out)
    if out.exists() and not overwrite:
        raise DataError(f"{out} exists already: remove it, or overwrite it explicitly")
    description = {"source": source, "tokenizer": tokenizer, "held_out": held_out}
    if source.startswith("latin:"):
        match = re.fullmatch(r"latin:(\d+)", source)
        if match is None or int(match[1]) < 2:
            raise ConfigError(f"source {source!r} needs an order of at least 2, as in latin:5")
        order = int(match[1])
        used = latin_tokenizer(order)
        stream = _squares(order, num_squares, seed, held_out)
        description |= {"tokenizer": "latin", "order": order, "seed": seed}
    else:
        used = _tokenizer(tokenizer, source, held_out, limit, train_chars)
        stream = _encoded(used, documents(source, held_out=held_out, limit=limit))
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        folder.chmod(0o755)
        _write(folder, stream, used, description, progress)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
            out.rename(old / "corpus")
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return open_corpus(out)


def open_corpus(path: str | Path, *, verify: bool = False) -> Corpus:
    """Open a prepared folder, in a time that does not depend on its size.

    Sizes, the index's ends and the tokenizer's sha256 are always checked; ``verify=True`` reads all files and compares
    their sums as well.

    Raises
    ------
    DataError
        A file is missing, truncated or not the one described, or there are no training tokens.
    """
    path = Path(path)
    try:
        meta = json.loads((path / "meta.json").read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path} is no prepared corpus (no meta.json): make one with `gidd data prepare`") from error
    except ValueError as error:
        raise DataError(f"{path / 'meta.json'} is damaged: {error}; prepare the corpus again") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise DataError(f"{path} has the format {found!r}; this version reads {FORMAT!r}")
    corpus = Corpus(path, meta)
    try:
        _check(corpus, verify)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / 'meta.json'} is incomplete: {error!r}; prepare the corpus again") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}; prepare the corpus again") from error
    return corpus


def info(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """What a prepared folder holds, as a flat dictionary; all checksums are verified unless ``verify=False``."""
    corpus = open_corpus(path, verify=verify)
    meta = {k: v for k, v in corpus.meta.items() if k not in ("splits", "files")}
    for split in SPLITS:
        meta |= {f"{split}_{name}": value for name, value in corpus.meta["splits"][split].items()}
    size = sum(int(f["bytes"]) for f in corpus.meta["files"].values())
    return {"path": str(corpus.path), **meta, "bytes": size, "verified": verify}


# --- from a source to ids ---------------------------------------------------------------------------------------

# What the streams below yield: split, ids, bytes of the text they stand for.
_Stream = Iterator[tuple[str, list[int], int]]


def _tokenizer(name: str, source: str, held_out: float, limit: int | None, train_chars: int) -> TextTokenizer:
    def training_text() -> Iterator[str]:
        seen = 0
        for split, text in documents(source, held_out=held_out, limit=limit):
            if split == "train":
                yield text[: train_chars - seen]
                seen += len(text)
                if seen >= train_chars:
                    return

    if name == "char":
        return char_tokenizer() if source == "kjv" else char_tokenizer(set().union(*training_text()))
    if name == "gpt2":
        return gpt2_tokenizer()
    if name.startswith("bpe:"):
        if not name[4:].isdigit():
            raise ConfigError(f"tokenizer {name!r} needs a vocabulary size, as in bpe:4096")
        return train_bpe(training_text(), int(name[4:]))
    return load_tokenizer(name)


def _encoded(tokenizer: TextTokenizer, stream: Iterable[tuple[str, str]]) -> _Stream:
    """Documents of some text, in batches so that the tokenizer's threads have something to share."""
    for batch in _batches(((split, text) for split, text in stream if text.strip()), 1 << 20):
        texts = [text for _, text in batch]
        for (split, text), ids in zip(batch, tokenizer.encode_batch(texts), strict=True):
            yield split, tokenizer.document(ids), len(text.encode("utf-8", "surrogatepass"))


def _batches(stream: Iterable[tuple[str, str]], chars: int) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for pair in stream:
        batch.append(pair)
        size += len(pair[1])
        if size >= chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _squares(order: int, num: int, seed: int, held_out: float) -> _Stream:
    squares = latin_squares(order, num, seed)
    train = num - round(held_out * num)
    for number, square in enumerate(squares):
        yield ("train" if number < train else "val"), square.tolist(), len(" ".join(map(str, square)))


# --- files ------------------------------------------------------------------------------------------------------


def _write(
    folder: Path,
    stream: _Stream,
    tokenizer: TextTokenizer,
    description: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    lengths = {split: array("q") for split in SPLITS}
    text_bytes = dict.fromkeys(SPLITS, 0)
    digest = hashlib.sha256()
    written = 0
    with (folder / "tokens.bin").open("wb") as train, tempfile.TemporaryFile(dir=folder) as val:
        files: dict[str, Any] = {"train": train, "val": val}
        while chunk := list(islice(stream, 1024)):
            for split, ids, size in chunk:
                lengths[split].append(len(ids))
                text_bytes[split] += size
                written += len(ids)
            for split in SPLITS:
                data = np.array([i for s, ids, _ in chunk if s == split for i in ids], dtype=dtype).tobytes()
                files[split].write(data)
                if split == "train":
                    digest.update(data)
            if progress is not None:
                progress(written)
        if not lengths["train"]:
            raise DataError(f"source {description['source']!r} has no text for the split 'train'")
        if not lengths["val"]:
            log.warning("source %r leaves nothing for the split 'val'", description["source"])
        val.seek(0)
        while block := val.read(1 << 24):
            train.write(block)
            digest.update(block)
        _sync(train)
    offsets = [np.concatenate([[0], np.cumsum(np.asarray(lengths[split], dtype=np.int64))]) for split in SPLITS]
    with (folder / "index.npy").open("wb") as file:
        np.save(file, np.concatenate(offsets).astype("<i8"))
        _sync(file)
    meta = {
        "format": FORMAT,
        **description,
        "tokenizer_sha256": tokenizer.save(folder),
        "vocab_size": tokenizer.vocab_size,
        "mask_id": tokenizer.mask_id,
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
        "splits": {
            split: {
                "documents": len(lengths[split]),
                "tokens": sum(lengths[split]),
                "text_bytes": text_bytes[split],
                "shortest": min(lengths[split], default=0),
                "longest": max(lengths[split], default=0),
            }
            for split in SPLITS
        },
        "files": {
            "tokens.bin": {"bytes": (folder / "tokens.bin").stat().st_size, "sha256": digest.hexdigest()},
            "index.npy": {"bytes": (folder / "index.npy").stat().st_size, "sha256": _sha256(folder / "index.npy")},
        },
    }
    with (folder / "meta.json").open("w", encoding="utf-8") as text:
        text.write(json.dumps(meta, indent=2) + "\n")
        _sync(text)


def _check(corpus: Corpus, verify: bool) -> None:
    path, meta = corpus.path, corpus.meta
    if meta["dtype"] not in ("uint16", "uint32"):
        raise DataError(f"{path / 'meta.json'} has the dtype {meta['dtype']!r}, which is not uint16 or uint32")
    for name, expected in meta["files"].items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != expected["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes instead of {expected['bytes']}"
            raise DataError(f"{path / name} {state}: copy it again or prepare the corpus again")
        if verify and _sha256(path / name) != expected["sha256"]:
            raise DataError(f"{path / name} is not the file that meta.json describes (sha256 differs)")
    if not (path / "tokenizer.json").is_file() or _sha256(path / "tokenizer.json") != meta["tokenizer_sha256"]:
        raise DataError(f"{path / 'tokenizer.json'} is not the tokenizer that the corpus was made with")
    total = sum(corpus.num_tokens(split) for split in SPLITS)
    if corpus.num_tokens("train") < 1:
        raise DataError(f"{path} has no training tokens")
    if total * np.dtype(meta["dtype"]).itemsize != meta["files"]["tokens.bin"]["bytes"]:
        raise DataError(f"{path / 'meta.json'} counts {total} tokens, which is not what tokens.bin holds")
    index = corpus._index
    if index.dtype != np.int64 or index.shape != (sum(corpus.num_documents(split) + 1 for split in SPLITS),):
        raise DataError(f"{path / 'index.npy'} does not list the documents that meta.json counts")
    for split in SPLITS:
        offsets = corpus.offsets(split)
        if offsets[0] != 0 or offsets[-1] != corpus.num_tokens(split):
            raise DataError(f"{path / 'index.npy'} does not cover the tokens of the split {split!r}")
        if verify and (offsets[1:] < offsets[:-1]).any():
            raise DataError(f"{path / 'index.npy'} is not sorted in the split {split!r}")
        if verify and len(corpus.tokens(split)) and int(corpus.tokens(split).max()) >= corpus.vocab_size:
            raise DataError(f"{path / 'tokens.bin'} holds ids outside the vocabulary of {corpus.vocab_size}")
    if not 0 <= corpus.mask_id < corpus.vocab_size:
        raise DataError(f"{path / 'meta.json'} has the mask {corpus.mask_id} outside the vocabulary")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(file: BinaryIO | Any) -> None:
    file.flush()
    os.fsync(file.fileno())
