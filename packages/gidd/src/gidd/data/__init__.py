"""Corpora: sources, tokenizers, prepared folders and the loader."""

from .loader import TokenDataset, make_loader
from .prepared import Corpus, info, open_corpus, prepare
from .sources import SOURCES, documents, kjv_text, latin_squares, letters_only, python_stdlib_files
from .tokenizers import (
    TextTokenizer,
    char_tokenizer,
    gpt2_tokenizer,
    latin_tokenizer,
    load_tokenizer,
    train_bpe,
)

__all__ = [
    "SOURCES",
    "Corpus",
    "TextTokenizer",
    "TokenDataset",
    "char_tokenizer",
    "documents",
    "gpt2_tokenizer",
    "info",
    "kjv_text",
    "latin_squares",
    "latin_tokenizer",
    "letters_only",
    "load_tokenizer",
    "make_loader",
    "open_corpus",
    "prepare",
    "python_stdlib_files",
    "train_bpe",
]
