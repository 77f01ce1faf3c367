"""Tokenizers with a mask token, all backed by the ``tokenizers`` library and stored as one ``tokenizer.json``.

Our own tokenizers follow GPT-2: one token, ``<|endoftext|>``, begins a document, ends it and pads. A name of a special
token that occurs in a text is ordinary text: nobody can smuggle a mask into a corpus.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ..errors import ConfigError, DataError
from .sources import LETTERS

log = logging.getLogger(__name__)

MASK, END, UNKNOWN = "[MASK]", "<|endoftext|>", "[UNK]"

# The names a role goes by where the folder has no tokenizer_config.json; the first that is in the vocabulary counts.
_NAMES = {
    "mask": (MASK, "<mask>", "<|mask|>", "<|mdm_mask|>"),
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>"),
    "bos": ("[BOS]", "<s>", "<|startoftext|>", "<|begin_of_text|>", "[CLS]"),
    "eos": ("[EOS]", "</s>", END, "<|end_of_text|>", "[SEP]"),
}


@dataclass(frozen=True)
class TextTokenizer:
    """Text to ids and back, and the ids of the special tokens.

    Attributes
    ----------
    backend : the ``tokenizers.Tokenizer``.
    mask_id : always there.
    pad_id, bos_id, eos_id : None where documents need none (Latin squares); they may be one and the same token.
    """

    backend: Tokenizer
    mask_id: int
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        # Not part of tokenizer.json, hence set here: "[MASK]" in a text is six characters, not the mask.
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()

    @property
    def vocab_size(self) -> int:
        """V: all ids lie below, special tokens included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, without special tokens.

        Raises
        ------
        DataError
            The tokenizer has no id for something in the text.
        """
        try:
            return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library raises bare Exceptions
            raise DataError(f"the tokenizer cannot encode this text: {error}") from error

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids (L,); special tokens are left out unless ``skip_special=False``."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    def document(self, ids: Sequence[int]) -> list[int]:
        """The ids of one document between the tokens that begin and end it, as corpora hold them."""
        begin = [] if self.bos_id is None else [self.bos_id]
        return [*begin, *ids, *([] if self.eos_id is None else [self.eos_id])]

    def save(self, folder: str | Path) -> str:
        """Write ``tokenizer.json`` and, for other libraries, ``tokenizer_config.json``; returns the former's sha256."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = self.backend.to_str(pretty=True).encode()
        (folder / "tokenizer.json").write_bytes(content)
        ids = {"mask": self.mask_id, "pad": self.pad_id, "bos": self.bos_id, "eos": self.eos_id}
        config: dict[str, Any] = {
            f"{r}_token": None if i is None else self.backend.id_to_token(i) for r, i in ids.items()
        }
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        return hashlib.sha256(content).hexdigest()


def char_tokenizer(alphabet: Iterable[str] | None = None) -> TextTokenizer:
    """One token a character.

    Parameters
    ----------
    alphabet : the characters; all others become ``[UNK]``. None: the 27 of a-z and space, to which any text is reduced
        (lower case, everything else one space), V = 29.
    """
    # A BPE without merges cuts into characters and keeps spaces, which the word-based models do not.
    if alphabet is None:
        backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(LETTERS)}, merges=[]))
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.Lowercase(),
                normalizers.Replace("æ", "ae"),
                normalizers.Replace("’", ""),
                normalizers.Replace(Regex("[^a-z]+"), " "),
            ]
        )
    else:
        vocab = {c: i for i, c in enumerate([*sorted(set(alphabet)), UNKNOWN])}
        backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([END, MASK])
    return _with_roles(backend, {})


def latin_tokenizer(order: int) -> TextTokenizer:
    """The symbols "0" to "order-1", separated by spaces, and the mask: V = order + 1."""
    backend = Tokenizer(models.WordLevel(vocab={str(i): i for i in range(order)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([MASK])
    return TextTokenizer(backend, mask_id=order)


def train_bpe(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Byte-level BPE like GPT-2's, trained on ``texts``; ``vocab_size`` counts the two special tokens.

    Raises
    ------
    ConfigError
        ``vocab_size`` does not leave room for the 256 bytes and the special tokens.
    """
    if vocab_size < 258:
        raise ConfigError(f"bpe:{vocab_size} is too small: 256 bytes and 2 special tokens need at least bpe:258")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END, MASK], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer=trainer)
    size = backend.get_vocab_size()
    if size < vocab_size:
        log.warning("the text supports only %d of the %d BPE tokens asked for", size, vocab_size)
    return _with_roles(backend, {})


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Read a ``tokenizer.json``, or the folder around it; a missing mask or end-of-text token is added and logged.

    Which token plays which role is read from ``tokenizer_config.json`` and ``special_tokens_map.json`` beside it.

    Raises
    ------
    DataError
        There is no such file, or it is no tokenizer.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise DataError(f"no tokenizer at {file}: give a tokenizer.json, a folder with one, char, bpe:N or gpt2")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{file} is no tokenizer: {error}") from error
    config: dict[str, Any] = {}
    for beside in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file.parent / beside).is_file():
            try:
                config |= json.loads((file.parent / beside).read_text("utf-8"))
            except (ValueError, TypeError) as error:
                raise DataError(f"{file.parent / beside} is no JSON object") from error
    roles = {}
    for role, other in (("mask", ""), ("pad", ""), ("bos", "cls_token"), ("eos", "sep_token")):
        token = config.get(f"{role}_token") or config.get(other)
        roles[role] = token["content"] if isinstance(token, dict) else token
    # A null says that documents need no such token; a missing entry says nothing.
    if "eos_token" in config and not (roles["pad"] or roles["bos"] or roles["eos"]):
        return TextTokenizer(backend, _add_mask(backend, _find(backend, roles["mask"], _NAMES["mask"])))
    return _with_roles(backend, roles)


def gpt2_tokenizer() -> TextTokenizer:
    """GPT-2's tokenizer with a mask token added: V = 50,258, as in the paper. Downloaded once, then cached."""
    try:
        backend = Tokenizer.from_pretrained("openai-community/gpt2")
    except Exception as error:  # whatever the network or the cache raise
        raise DataError(
            "cannot fetch the tokenizer gpt2 from the Hugging Face Hub; offline, give the path of its tokenizer.json"
        ) from error
    return _with_roles(backend, {})


# --- special tokens -----------------------------------------------------------------------------------------------


def _with_roles(backend: Tokenizer, named: dict[str, str | None]) -> TextTokenizer:
    """Find every role's token; missing ones stand in for each other, and the last resort is a new end-of-text token."""
    ids = {role: _find(backend, named.get(role), names) for role, names in _NAMES.items()}
    if ids["bos"] is None and ids["eos"] is None:
        log.warning("the tokenizer has no token that ends a document: %s is added", END)
        backend.add_special_tokens([END])
        ids["eos"] = backend.token_to_id(END)
    eos = ids["bos"] if ids["eos"] is None else ids["eos"]
    bos = eos if ids["bos"] is None else ids["bos"]
    pad = eos if ids["pad"] is None else ids["pad"]
    return TextTokenizer(backend, _add_mask(backend, ids["mask"]), pad_id=pad, bos_id=bos, eos_id=eos)


def _add_mask(backend: Tokenizer, mask_id: int | None) -> int:
    if mask_id is not None:
        return mask_id
    log.warning("the tokenizer has no mask token: %s is added", MASK)
    backend.add_special_tokens([MASK])
    added = backend.token_to_id(MASK)
    assert added is not None
    return added


def _find(backend: Tokenizer, name: str | None, otherwise: tuple[str, ...]) -> int | None:
    if name:
        return backend.token_to_id(name)
    # Only tokens that were declared special: a vocabulary may hold "<s>" as a piece of ordinary text.
    special = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
    return next((special[n] for n in otherwise if n in special), None)
