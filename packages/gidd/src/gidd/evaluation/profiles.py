"""The evaluation profiles: each is one value, read like a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

GRIDS = ("linear", "power:3")  # times of the samplers


def own_grid(p_u: float) -> str:
    """What grid="auto" is for a HybridProcess."""
    return GRIDS[1] if p_u else GRIDS[0]


@dataclass(frozen=True)
class Profile:
    """Sizes of the experiments; steps are fixed numbers, not time limits.

    Attributes
    ----------
    name, experiments : what is run.
    joints : random toy joints of the exact identities.
    d3pm_steps : (coarse, fine) numbers of steps of the discrete-time bound.
    loss_rows, loss_vocab, loss_repeats : the loss benchmark.
    latin_order, latin_steps, latin_batch, latin_seeds, latin_noise : Latin squares; noise lists p_u.
    latin_samples, latin_times : squares sampled, at how many steps.
    latin_corrected, latin_corrections : after which numbers of steps they are corrected, and for how long.
    latin_widths : (hidden, layers, heads).
    latin_more : share of the steps for which mask-only models are continued under uniform noise; 0 for not at all.
    text_steps, text_batch, text_length, text_seeds, text_noise : King James text, characters.
    text_widths, text_rate : (hidden, layers, heads), learning rate.
    text_samples, text_times, text_corrections : as for the squares.
    text_held_out : (windows, times) of the likelihood of held-out text.
    text_curve : further numbers of steps, sampled without correction.
    kernel_tokens : numbers of tokens of the kernel table.
    speed_rows, speed_columns : tokens and vocabulary of sampling and correction.
    speed_widths, speed_vocab, speed_batch, speed_length, speed_steps : training speed of one of the paper's networks.
    data : prepared corpus; None makes one of the Python standard library with ``corpus_tokenizer``.
    corpus_widths, corpus_length, corpus_batch, corpus_steps, corpus_rate : what is trained on it.
    corpus_samples, corpus_times, corpus_corrections : as for the squares.
    released, released_judge, released_tasks : the authors' checkpoints, a causal language model, tasks of lm_eval.
    released_texts, released_samples, released_steps, released_corrections, released_limit : how many of each.
    workers : models trained at the same time, one thread each.
    """

    name: str
    experiments: tuple[str, ...]
    joints: int
    d3pm_steps: tuple[int, int]
    loss_rows: int
    loss_vocab: int
    loss_repeats: int
    latin_order: int
    latin_steps: int
    latin_batch: int
    latin_seeds: int
    latin_noise: tuple[float, ...]
    latin_samples: int
    latin_times: tuple[int, ...]
    latin_corrected: tuple[int, ...]
    latin_corrections: int
    latin_widths: tuple[int, int, int]
    latin_more: float
    text_steps: int
    text_batch: int
    text_length: int
    text_seeds: int
    text_noise: tuple[float, ...]
    text_widths: tuple[int, int, int]
    text_rate: float
    text_samples: int
    text_times: tuple[int, ...]
    text_curve: tuple[int, ...]
    text_corrections: int
    text_held_out: tuple[int, int]
    workers: int
    kernel_tokens: tuple[int, ...] = (8_192, 32_768)
    speed_rows: int = 512
    speed_columns: int = 1_024
    speed_widths: tuple[int, int, int] = (768, 12, 12)  # small
    speed_vocab: int = 50_258  # GPT-2 and a mask
    speed_batch: int = 64
    speed_length: int = 512
    speed_steps: int = 40
    data: str | None = None
    corpus_tokenizer: str = "bpe:4096"
    corpus_widths: tuple[int, int, int] = (512, 8, 8)  # tiny
    corpus_length: int = 256
    corpus_batch: int = 128
    corpus_steps: int = 3_000
    corpus_rate: float = 1e-3
    corpus_samples: int = 128
    corpus_times: tuple[int, ...] = (8, 32, 128)
    corpus_corrections: int = 128
    released: tuple[str, ...] = tuple(
        f"dvruette/gidd-{s}-p_unif-{p}" for s in ("small", "base") for p in (0.0, 0.1, 0.2)
    )
    released_judge: str = "google/gemma-2-9b"
    released_tasks: tuple[str, ...] = (
        "arc_easy", "arc_challenge", "boolq", "hellaswag", "openbookqa", "piqa", "winogrande",
    )  # fmt: skip
    released_texts: int = 1_000
    released_samples: int = 256
    released_steps: int = 128
    released_corrections: int = 128
    released_limit: int | None = None


QUICK = Profile(
    name="quick",
    experiments=("exact", "loss", "latin"),
    joints=3,
    d3pm_steps=(128, 1024),
    loss_rows=256,
    loss_vocab=50_304,
    loss_repeats=3,
    latin_order=5,
    latin_steps=250,
    latin_batch=128,
    latin_seeds=1,
    latin_noise=(0.0, 0.2),
    latin_samples=128,
    latin_times=(4, 8),
    latin_corrected=(4, 8),
    latin_corrections=50,
    latin_widths=(64, 3, 4),
    latin_more=0.0,
    text_steps=0,
    text_batch=0,
    text_length=0,
    text_seeds=0,
    text_noise=(),
    text_widths=(64, 2, 4),
    text_rate=1.5e-3,
    text_samples=0,
    text_times=(),
    text_curve=(),
    text_corrections=0,
    text_held_out=(64, 64),
    workers=2,
)
FULL = replace(
    QUICK,
    name="full",
    experiments=("exact", "loss", "speed", "latin", "text"),
    joints=10,
    d3pm_steps=(512, 4096),
    loss_rows=256,
    loss_repeats=5,
    latin_steps=400,
    latin_batch=64,
    latin_seeds=3,
    latin_noise=(0.0, 0.1, 0.2),
    latin_samples=128,
    latin_times=(4, 8, 16, 32),
    latin_corrected=(4, 32),
    latin_more=0.25,
    text_steps=800,
    text_batch=16,
    text_length=64,
    text_seeds=3,
    text_noise=(0.0, 0.1, 0.2),
    text_samples=48,
    text_times=(16, 32),
    text_curve=(4, 8),
    text_corrections=48,
)
GPU = replace(
    FULL,
    name="gpu",
    experiments=("exact", "kernels", "speed", "throughput", "corpus"),
    loss_repeats=10,
    workers=1,
)
PAPER = replace(GPU, name="paper", experiments=("exact", "kernels", "speed", "throughput", "released"))
PROFILES = {profile.name: profile for profile in (QUICK, FULL, GPU, PAPER)}
