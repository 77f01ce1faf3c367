"""A patch verifier: a byte-level transformer that scores functions, and its training on pairs of a function and the
same one with a fault. It needs torch: only those who use it import it.
"""

from __future__ import annotations

import io
import math
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import TaskError
from ..storage import write_atomic

Texts = NDArray[np.uint8]  # (texts, length); 0 after the end of a text
FORMAT = "dars-verifier/1"
ALIGN = 64  # widths of a batch are multiples: attention with a mask is fastest then
SORTED = 32  # batches that are made of texts of similar length together
WARM, DECAY = 0.05, 0.05


class Block(nn.Module):
    """Attention over the whole text, then the same two layers at every byte; each is added to what goes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, real: Tensor, turn: Tensor) -> Tensor:
        """x (batch, length, width), real (batch, 1, 1, length), turn (length, width of a head / 2) complex."""
        shape = (*x.shape[:2], 3, self.heads, x.shape[2] // self.heads)
        q, k, v = self.qkv(self.before(x)).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, attn_mask=real)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.mlp(x)


class Verifier(nn.Module):
    """Bytes of a function -> score, higher for those without a fault.

    Every byte is given a suspicion; the score is minus the log of the mean of their exponentials: one suspicious place
    is enough, and the length as such does not count.
    """

    angles: Tensor

    def __init__(self, layers: int = 8, width: int = 512, length: int = 640, heads: int = 8) -> None:
        super().__init__()
        self.length, self.heads = length, heads
        self.bytes = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.suspicion = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.register_buffer("angles", angles(length, width // heads), persistent=False)

    def forward(self, texts: Tensor) -> Tensor:
        """Scores (batch,) of bytes (batch, at most length); 0 is padding."""
        real = texts != 0
        x = self.bytes(texts)
        turn = torch.polar(torch.ones_like(self.angles), self.angles)[: texts.shape[1]]
        for block in self.blocks:
            x = block(x, real[:, None, None], turn)
        suspicion = self.suspicion(x).squeeze(-1).float().masked_fill(~real, -math.inf)
        return real.sum(dim=1).log() - suspicion.logsumexp(dim=1)


def angles(length: int, width: int) -> Tensor:
    """Angles (length, width / 2) of rotary positions (arXiv:2104.09864, eq. 15)."""
    return torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, width, 2) / width)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of the last axis as complex numbers, turned by their places, in the precision of ``x``."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).type_as(x)


def save(verifier: Verifier, path: str | Path) -> None:
    """Write the size and the weights, as npz."""
    size = [len(verifier.blocks), verifier.bytes.embedding_dim, verifier.length, verifier.heads]
    weights = {name: weight.detach().cpu().numpy() for name, weight in verifier.state_dict().items()}
    data = io.BytesIO()
    np.savez(data, format=np.array(FORMAT), size=np.array(size), **weights)
    write_atomic(Path(path), data.getvalue())


def load(path: str | Path) -> Verifier:
    """Read a verifier, to the processor; TaskError if the file is missing, damaged or holds no verifier."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["format"]) != FORMAT:
                raise TaskError(f"{path} has the format {stored['format']}; this version reads {FORMAT}")
            verifier = Verifier(*map(int, stored["size"]))
            names = [name for name in stored.files if name not in ("format", "size")]
            verifier.load_state_dict({name: torch.from_numpy(stored[name]) for name in names})
    except OSError as error:
        raise TaskError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, zipfile.BadZipFile):
        raise TaskError(f"{path} is no verifier: make one with dars reviewer fit-verifier") from None
    if not all(torch.isfinite(weight).all() for weight in verifier.parameters()):
        raise TaskError(f"{path} holds weights that are no numbers: train it again")
    return verifier


# --- texts ------------------------------------------------------------------------------------------------------------


def pack(texts: Sequence[bytes], length: int) -> Texts:
    """One row a text.

    Raises
    ------
    TaskError
        A text is empty or does not fit.
    """
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        if not 0 < len(text) <= length:
            raise TaskError(f"a text has {len(text)} bytes; the verifier reads 1 to {length}")
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def scores(verifier: Verifier, texts: Texts, batch: int = 512) -> NDArray[np.float64]:
    """Scores (texts,); a text's score does not depend on the others."""
    order = np.argsort((texts != 0).sum(axis=1), kind="stable")
    found = np.empty(len(texts))
    verifier.eval()
    with torch.inference_mode(), _precision(verifier):
        for start in range(0, len(texts), batch):
            rows = order[start : start + batch]
            found[rows] = verifier(_to(verifier, texts[rows])).cpu().numpy()
    return found


def _to(verifier: Verifier, texts: Texts) -> Tensor:
    """The texts on the verifier's device, without the columns that none of them reaches."""
    longest = int((texts != 0).sum(axis=1).max())
    width = min(texts.shape[1], -(-longest // ALIGN) * ALIGN)
    there = torch.from_numpy(np.ascontiguousarray(texts[:, :width])).to(verifier.angles.device, non_blocking=True)
    return there.int()


def _precision(verifier: Verifier) -> torch.autocast:
    """bfloat16 for the matrix products of a GPU; norms, softmax and the score are of 32 bits everywhere."""
    device = verifier.angles.device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes
    ----------
    losses : of every step; log 2 is guessing.
    read : bytes, padding left out.  seconds : from the first step to the last.
    """

    losses: NDArray[np.float64]
    read: int
    seconds: float


def train(
    verifier: Verifier,
    originals: Texts,
    mutants: Texts,
    owner: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    pairs: int = 128,
    seconds: float = 400.0,
    steps: int = 100_000,
    rate: float = 3e-4,
) -> Training:
    """Teach a verifier to score each function above its mutants, until time or steps are used up.

    The loss of a pair is log(1 + exp(score of the mutant - score of the original)). AdamW; ``rate`` is risen to, then
    left by a cosine over whichever of the two limits comes first.

    Parameters
    ----------
    owner : place in ``originals`` of what each row of ``mutants`` was made from.
    pairs : in a batch.
    """
    device = verifier.angles.device
    optimizer = torch.optim.AdamW(
        verifier.parameters(), rate, betas=(0.9, 0.98), weight_decay=DECAY, fused=device.type == "cuda"
    )
    losses: list[Tensor] = []
    read, began = 0, time.perf_counter()
    verifier.train()
    for step, rows in enumerate(_batches((mutants != 0).sum(axis=1), pairs, rng)):
        gone = max(step / steps, (time.perf_counter() - began) / seconds)
        if gone >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate * min(gone / WARM + 1e-3, 0.5 + 0.5 * math.cos(math.pi * gone))
        texts = np.concatenate([originals[owner[rows]], mutants[rows]])
        with _precision(verifier):
            right, wrong = verifier(_to(verifier, texts)).chunk(2)
        loss = F.softplus(wrong - right).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(verifier.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
        read += int((texts != 0).sum())
        if step % 16 == 15 and device.type == "cuda":
            torch.cuda.synchronize()  # else the clock runs ahead of the work
    found = torch.stack(losses).double().cpu().numpy() if losses else np.zeros(0)
    return Training(found, read, time.perf_counter() - began)


def _batches(lengths: NDArray[np.int64], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Rows of batches without end, every row once a round; lengths within a batch are similar, so little is padding."""
    while True:
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), size * SORTED):
            block = order[start : start + size * SORTED]
            block = block[np.argsort(lengths[block], kind="stable")]
            batches = np.array_split(block, -(-len(block) // size))
            for place in rng.permutation(len(batches)):
                yield batches[place]
