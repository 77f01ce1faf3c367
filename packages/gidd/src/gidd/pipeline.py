"""Texts in, texts out: generating, infilling, correcting, scoring and proof-reading with a checkpoint.

Results do not depend on ``batch_size``: a sequence draws from a stream of random numbers of its own, given by ``(seed,
i)`` for the i-th sequence of its length, and sequences of different lengths never share a model call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .errors import CheckpointError, ConfigError, DataError
from .likelihood import elbo
from .process import Process
from .sampling import sample, self_correct, token_error_probs

if TYPE_CHECKING:
    from .data.tokenizers import TextTokenizer

T = TypeVar("T")
Model = Callable[[Tensor, Tensor], Tensor]


class Score(NamedTuple):
    """How likely a text is: an upper bound on -ln p, and its standard error over draws of noise.

    nats, stderr : of the whole text;  nats_per_token, bits_per_token, stderr_per_token (nats);  num_tokens.
    """

    nats: float
    stderr: float
    num_tokens: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def bits_per_token(self) -> float:
        return self.nats_per_token / math.log(2)

    @property
    def stderr_per_token(self) -> float:
        return self.stderr / self.num_tokens


class TokenError(NamedTuple):
    """A token of a text and the probability that it is wrong.

    start, end : characters of the text it stands for, ``text[start:end]``;  token : these characters;  id : its id.
    """

    start: int
    end: int
    token: str
    id: int
    probability: float


class Blanks(NamedTuple):
    """A text with gaps between its pieces: tokens in each gap, and of all tokens the ids (L,) and which are known."""

    pieces: list[str]
    gaps: list[int]
    ids: list[int]
    keep: list[bool]


@dataclass
class GiddPipeline:
    """A model with its process and tokenizer.

    Attributes
    ----------
    model : ``model(z (B, L) long, t (B,)) -> logits (B, L, >= V)``; a module is put into evaluation mode.
    max_length : tokens the model takes; by default what its configuration says.

    Examples
    --------
    >>> pipe = GiddPipeline.from_pretrained("runs/kjv/latest")
    >>> texts = pipe.generate(num_samples=4, num_inference_steps=128)
    >>> texts = pipe.self_correction(texts, num_inference_steps=128, temperature=0.1)
    """

    model: Model
    process: Process
    tokenizer: TextTokenizer
    max_length: int = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            self.model.eval()
        if self.tokenizer.vocab_size > self.process.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the process only {self.process.vocab_size}"
            )
        if self.process.mask_id not in (None, self.tokenizer.mask_id):
            raise CheckpointError(
                f"the tokenizer's mask is token {self.tokenizer.mask_id}, the process's {self.process.mask_id}"
            )
        if self.max_length is None:
            self.max_length = getattr(getattr(self.model, "config", None), "max_seq_len", None)
        if self.max_length is None:
            raise ValueError("max_length is needed for a model that has no config.max_seq_len")

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None
    ) -> GiddPipeline:
        """Load a checkpoint folder or Hub repository.

        Parameters
        ----------
        device : default: cuda where there is one, else the CPU.
        dtype : of the weights, a torch dtype or its name; default: as stored.

        Raises
        ------
        CheckpointError
            Nothing there, damaged, or without a tokenizer.
        """
        from .hub import load_checkpoint

        model, process, tokenizer, _ = load_checkpoint(source)
        if tokenizer is None:
            raise CheckpointError(f"{source} has no tokenizer, and texts cannot be read or written: use gidd.sample")
        device = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device=torch.device(device), dtype=_dtype(dtype))
        return cls(model, process, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        if isinstance(self.model, nn.Module):
            for parameter in self.model.parameters():
                return parameter.device
        return torch.device("cpu")

    # --- writing ------------------------------------------------------------------------------------------------------

    def generate(
        self,
        num_samples: int = 1,
        num_inference_steps: int = 128,
        prompts: str | Sequence[str] | None = None,
        *,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> list[str]:
        """New texts; of every prompt, ``num_samples`` continuations, which begin with the prompt.

        Parameters
        ----------
        num_inference_steps : model calls per text.
        prompts : a text begins with it; its tokens are kept as they are.
        length : tokens of a text, prompt included; default ``max_length``.
        seed : of the random numbers; text i draws its own.
        batch_size : texts at a time; does not change them.
        options : of :func:`gidd.sample`: sampler, grid, temperature, top_p, top_k, min_prob, guidance, callback; and
            clean_prompts: the model was trained with clean prompts (p_prompt > 0), whose tokens see only one another.

        Returns
        -------
        list of num_samples * max(1, len(prompts)) texts, those of the first prompt first.

        Raises
        ------
        ValueError
            Numbers out of range, or a prompt that leaves no room.
        """
        _check_count("num_samples", num_samples)
        given = [""] if prompts is None else [prompts] if isinstance(prompts, str) else _texts(prompts, "prompts")
        encoded = [self._encode(prompt, f"prompt {i}") if prompt else [] for i, prompt in enumerate(given)]
        ids = self.generate_ids(
            [prompt for prompt in encoded for _ in range(num_samples)],
            num_inference_steps,
            length=length,
            seed=seed,
            batch_size=batch_size,
            **options,
        )
        return [self.tokenizer.decode(row) for row in ids.tolist()]

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        num_inference_steps: int,
        *,
        length: int | None = None,
        seed: int = 0,
        batch_size: int = 32,
        clean_prompts: bool = False,
        **options: Any,
    ) -> Tensor:
        """(N, length) ids that begin with the ids of each of N prompts; arguments as in :meth:`generate`."""
        length = self.max_length if length is None else length
        _check_count("length", length, 1)
        _check_count("num_inference_steps", num_inference_steps, 1)
        if length > self.max_length:
            raise ValueError(f"length = {length} is more than the model's {self.max_length} tokens")
        kept = torch.zeros(len(prompts), length, dtype=torch.bool)
        values = torch.zeros(len(prompts), length, dtype=torch.long)
        for i, ids in enumerate(prompts):
            if len(ids) >= length:
                raise ValueError(f"prompt {i} has {len(ids)} tokens and leaves no room in a text of {length}")
            kept[i, : len(ids)] = True
            values[i, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        return self._sample(values, kept, num_inference_steps, seed, batch_size, options, clean_prompts)

    def infill(
        self,
        text: str | Sequence[str],
        blank: str = "___",
        *,
        blank_tokens: int | Sequence[int] | None = None,
        num_inference_steps: int = 128,
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> Any:
        """Fill the blanks of a text, or of several; everything else stays as it is, to the letter.

        Parameters
        ----------
        blank : marks a blank. Several in a row are as many blanks.
        blank_tokens : tokens of a blank: one number, or one for every blank of every text; default: as many as there
            are tokens in ``blank`` itself, 1 if the tokenizer cannot read it.
        num_inference_steps, seed, batch_size, options : as in :meth:`generate`.

        Returns
        -------
        str for a str, else list of str.

        Raises
        ------
        ValueError
            A text without a blank or longer than the model.
        """
        _check_count("num_inference_steps", num_inference_steps, 1)
        if not isinstance(blank, str) or not blank:
            raise ValueError(f"blank has to be a non-empty marker; got {blank!r}")
        given = [one.split(blank) for one in ([text] if isinstance(text, str) else _texts(text, "text"))]
        rows = []
        for i, pieces in enumerate(given):
            if len(pieces) < 2:
                raise ValueError(f"text {i} has no blank {blank!r} to fill: {pieces[0][:60]!r}")
            gaps = _gaps(self._tokens_of(blank) if blank_tokens is None else blank_tokens, len(pieces) - 1)
            # Pieces are encoded apart, so that no token reaches into a blank.
            ids: list[int] = []
            keep: list[bool] = []
            for piece, gap in zip(pieces, [*gaps, 0], strict=True):
                known = self.tokenizer.encode(piece) if piece else []
                ids += [*known, *[0] * gap]
                keep += [*[True] * len(known), *[False] * gap]
            self._fits(len(ids), f"text {i} with its blanks")
            rows.append(Blanks(pieces, gaps, ids, keep))

        def fill(group: list[Blanks]) -> list[str]:
            values = torch.tensor([row.ids for row in group])
            kept = torch.tensor([row.keep for row in group])
            out = self._sample(values, kept, num_inference_steps, seed, batch_size, options)
            return [self._filled(row, found) for row, found in zip(group, out, strict=True)]

        filled = by_length(rows, lambda row: len(row.ids), fill)
        return filled[0] if isinstance(text, str) else filled

    def self_correction(
        self,
        texts: Sequence[str],
        num_inference_steps: int = 128,
        temperature: float = 0.1,
        early_stopping: bool = True,
        *,
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> list[str]:
        """Let the model replace tokens it finds wrong; every text keeps its number of tokens.

        Parameters
        ----------
        num_inference_steps : replacement rounds at most.
        temperature : of the proposals.
        early_stopping : stop a text once the model's agreement with it has stopped rising; without it, only when the
            model agrees with everything.
        seed, batch_size : as in :meth:`generate`.
        options : of :func:`gidd.self_correct`: t0, tokens_per_step, patience, strategy, x0_kind, return_best.

        Raises
        ------
        ValueError
            An empty text, or one longer than the model.
        """
        _check_count("num_inference_steps", num_inference_steps)
        _check_count("batch_size", batch_size, 1)
        if not early_stopping:
            options["patience"] = num_inference_steps

        def correct(group: list[list[int]]) -> list[str]:
            generator = _generator(seed)
            out = []
            for rows in _chunks(group, batch_size):
                fixed = self_correct(
                    self.model,
                    self.process,
                    torch.tensor(rows, device=self.device),
                    max_steps=num_inference_steps,
                    temperature=temperature,
                    generator=generator,
                    **options,
                )
                out += [self.tokenizer.decode(row) for row in fixed.tokens.tolist()]
            return out

        return by_length(self._encode_all(texts), len, correct)

    # --- judging ------------------------------------------------------------------------------------------------------

    def score(
        self, texts: Sequence[str], *, num_times: int = 128, seed: int = 0, batch_size: int = 32, **options: Any
    ) -> list[Score]:
        """How likely the model finds each text, without the tokens that begin and end a document.

        Parameters
        ----------
        num_times, options : of :func:`gidd.elbo`: estimator, grid, boundary.
        seed, batch_size : as in :meth:`generate`.

        Raises
        ------
        ValueError
            An empty text, or one longer than the model.
        """
        _check_count("batch_size", batch_size, 1)

        def judge(group: list[list[int]]) -> list[Score]:
            x = torch.tensor(group, device=self.device)
            out = elbo(
                self.model,
                x,
                self.process,
                num_times=num_times,
                generator=_generator(seed),
                batch_size=batch_size,
                **options,
            )
            found = zip(out.nelbo.tolist(), out.stderr.tolist(), out.num_tokens.tolist(), strict=True)
            return [Score(nats, stderr, int(count)) for nats, stderr, count in found]

        return by_length(self._encode_all(texts), len, judge)

    def detect_errors(
        self, texts: Sequence[str], *, t0: float = 0.01, error_rate: float | None = None, batch_size: int = 32
    ) -> list[list[TokenError]]:
        """The probability of every token of every text that it is wrong.

        A process without noise on visible tokens (pure masking) finds nothing: all its probabilities are 0.

        Parameters
        ----------
        t0, error_rate : of :func:`gidd.token_error_probs`.
        batch_size : texts at a time.

        Raises
        ------
        ValueError
            An empty text, or one longer than the model.

        Examples
        --------
        >>> [e.token for e in pipe.detect_errors(["In the beginnyng"])[0] if e.probability > 0.5]
        """
        _check_count("batch_size", batch_size, 1)
        texts = _texts(texts, "texts")
        rows = self._encode_all(texts)

        def doubt(group: list[list[int]]) -> list[list[float]]:
            out: list[list[float]] = []
            for part in _chunks(group, batch_size):
                tokens = torch.tensor(part, device=self.device)
                out += token_error_probs(self.model, self.process, tokens, t0, error_rate).tolist()
            return out

        found = []
        for text, ids, wrong in zip(texts, rows, by_length(rows, len, doubt), strict=True):
            spans = self.tokenizer.backend.encode(text, add_special_tokens=False).offsets
            cells = zip(spans, ids, wrong, strict=True)
            found.append([TokenError(start, end, text[start:end], i, p) for (start, end), i, p in cells])
        return found

    # --- details ------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        values: Tensor,
        kept: Tensor,
        steps: int,
        seed: int,
        batch_size: int,
        options: dict[str, Any],
        clean_prompts: bool = False,
    ) -> Tensor:
        """One generator over all batches: it gives sequence i its seed, however many are drawn at a time."""
        _check_count("batch_size", batch_size, 1)
        generator = _generator(seed)
        out = [values[:0]]
        for start in range(0, len(values), batch_size):
            part = slice(start, start + batch_size)
            drawn = sample(
                with_clean_prompts(self.model, kept[part].to(self.device)) if clean_prompts else self.model,
                self.process,
                (len(values[part]), values.shape[1]),
                steps,
                prompt=values[part].to(self.device),
                frozen=kept[part].to(self.device),
                generator=generator,
                device=self.device,
                **options,
            )
            out.append(drawn.tokens.cpu())
        return torch.cat(out)

    def _filled(self, row: Blanks, ids: Tensor) -> str:
        """The pieces of a text as they were given, between them what the tokens in the gaps say."""
        found = torch.split(ids[~torch.tensor(row.keep)], row.gaps)
        between = [self.tokenizer.decode(tokens.tolist()) for tokens in found]
        return "".join(piece + new for piece, new in zip(row.pieces, [*between, ""], strict=True))

    def _tokens_of(self, blank: str) -> int:
        try:
            return max(1, len(self.tokenizer.encode(blank)))
        except DataError:
            return 1

    def _encode(self, text: str, what: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ValueError(f"{what} has no tokens: {text[:60]!r}")
        self._fits(len(ids), what)
        return ids

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text, f"text {i}") for i, text in enumerate(_texts(texts, "texts"))]

    def _fits(self, length: int, what: str) -> None:
        if length > self.max_length:
            raise ValueError(f"{what} has {length} tokens; the model takes {self.max_length}: cut it into parts")


def with_clean_prompts(model: Model, clean: Tensor) -> Model:
    """The model as it was trained with clean prompts: tokens of a prompt, ``clean`` (B, L), see only one another.

    The model has to take ``attention_mask`` (B, L, L), as all networks of this package do.
    """
    may_look = ~clean[:, :, None] | clean[:, None, :]
    return lambda z, t: model(z, t, attention_mask=may_look)  # type: ignore[call-arg]


def by_length(items: Sequence[T], length: Callable[[T], int], work: Callable[[list[T]], list[Any]]) -> list[Any]:
    """``work`` on the items of each length together, results in the order of the items.

    Padding would change what a model without an attention mask computes, and with it the result.
    """
    groups: dict[int, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(length(item), []).append(i)
    out: list[Any] = [None] * len(items)
    for indices in groups.values():
        for i, result in zip(indices, work([items[i] for i in indices]), strict=True):
            out[i] = result
    return out


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _texts(texts: Any, name: str) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ValueError(f"{name} has to be a list of texts; got a single {type(texts).__name__}")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] has to be a str; got {type(text).__name__}")
    return texts


def _gaps(blank_tokens: int | Sequence[int], count: int) -> list[int]:
    gaps = [blank_tokens] * count if isinstance(blank_tokens, int) else list(blank_tokens)
    if len(gaps) != count or any(not isinstance(g, int) or g < 1 for g in gaps):
        raise ValueError(f"blank_tokens has to give {count} positive numbers, one for each blank; got {blank_tokens!r}")
    return gaps


def _check_count(name: str, value: Any, least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} has to be an integer of at least {least}; got {value!r}")


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConfigError(f"dtype {dtype!r} is no floating-point type of torch: float32, bfloat16, float16, float64")
    return found
