"""A model of some size on a real corpus: few-step quality, correction, and what batching the correction saves."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from ..data import Corpus, TokenDataset, make_loader, open_corpus, prepare
from ..eval.ngram import NGramJudge
from ..likelihood import elbo
from ..models import DiT, DiTConfig
from ..process import HybridProcess
from ..sampling import sample, self_correct
from ..train import train_model
from .plots import draw_text
from .profiles import Profile
from .report import PAPER, TARGET, Artifact, Claim, Experiment, Metric, bootstrap_difference, judge_metrics

ORDER = 4
NOISE = (0.0, 0.2)
HELD_OUT = 64


def run_corpus(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Claims 4 to 6 on ``profile.data``, by default the source code of Python's standard library."""
    corpus = _corpus(profile, out)
    length, seed = profile.corpus_length, int(rng.integers(2**31))
    judge = NGramJudge.from_corpus(corpus, ORDER)
    held_out = TokenDataset(corpus, "val", length, mode="pack")
    windows = torch.stack([held_out[i]["tokens"] for i in range(min(HELD_OUT, len(held_out)))])
    read = float(judge.nll(windows.numpy()).mean())
    experiment = Experiment(
        metrics=[Metric(f"corpus, held-out under the {ORDER}-gram judge", read, "nat/token", "lower")]
    )
    sampled: dict[tuple[float, str], dict[int, np.ndarray]] = {}
    corrected: dict[tuple[float, str], dict[int, np.ndarray]] = {}
    for p_u in NOISE:
        process = HybridProcess(corpus.vocab_size, corpus.mask_id, p_u)
        torch.manual_seed(seed)
        hidden, layers, heads = profile.corpus_widths
        config = DiTConfig(vocab_size=corpus.vocab_size, hidden=hidden, layers=layers, heads=heads, max_seq_len=length)
        model = DiT(config).to(device)
        if device == "cuda":
            for block in model.blocks:
                block.compile()
        training = TokenDataset(corpus, "train", length, mode="pack", seed=seed)
        loader = make_loader(training, profile.corpus_batch, seed=seed, endless=True)
        began = time.perf_counter()
        train_model(
            model,
            process,
            (batch["tokens"] for batch in loader),
            profile.corpus_steps,
            lr=profile.corpus_rate,
            warmup=profile.corpus_steps // 20,
            precision="bf16" if device == "cuda" else "fp32",
            seed=seed,
        )
        model.eval()
        tokens = profile.corpus_steps * profile.corpus_batch * length
        name = f"corpus, p_u = {p_u:g}"
        found = elbo(
            model, windows.to(device), process, num_times=64, generator=torch.Generator().manual_seed(0), batch_size=32
        )
        experiment.metrics += [
            Metric(f"{name}: training speed", tokens / (time.perf_counter() - began), "token/s", "higher"),
            Metric(f"{name}: bound", float(found.nelbo.mean()) / length, "nat/token", "lower"),
            Metric(f"{name}: path ELBO", float(found.nelbo_path.mean()) / length, "nat/token", "lower"),
        ]
        for grid in ("linear", "power:3") if p_u else ("linear",):
            for steps in profile.corpus_times:
                generator = torch.Generator().manual_seed(seed + steps)
                shape = (profile.corpus_samples, length)
                drawn = sample(model, process, shape, steps, grid=grid, generator=generator, device=device).tokens
                fixed = self_correct(
                    model, process, drawn, max_steps=profile.corpus_corrections, generator=generator
                ).tokens
                for when, text, curves in (("before", drawn, sampled), ("after", fixed, corrected)):
                    ids = text.cpu().numpy()
                    judged = curves.setdefault((p_u, grid), {})[steps] = judge.nll(ids)
                    at = f"{name}, {steps} steps, {grid}"
                    experiment.metrics += judge_metrics(at, when, ids, judged, "nat/token")
        if p_u:
            _batching(experiment, profile, model, process, drawn, device)
    _difference(experiment, sampled, corrected, rng)
    if draw_text(sampled, corrected, read, out / "corpus.png"):
        experiment.artifacts.append(Artifact("corpus.png", "Corpus: judged quality over sampling steps"))
    return experiment


def _corpus(profile: Profile, out: Path) -> Corpus:
    if profile.data is not None:
        return open_corpus(profile.data)
    folder = out / "corpus"
    if not folder.exists():
        prepare("python-stdlib", profile.corpus_tokenizer, folder)
    return open_corpus(folder)


def _difference(
    experiment: Experiment,
    sampled: dict[tuple[float, str], dict[int, np.ndarray]],
    corrected: dict[tuple[float, str], dict[int, np.ndarray]],
    rng: np.random.Generator,
) -> None:
    gains = {
        p_u: np.concatenate([found - corrected[p_u, grid][steps] for steps, found in sampled[p_u, grid].items()])
        for p_u, grid in ((0.0, "linear"), (max(NOISE), "power:3"))
    }
    hybrid, masked = gains[max(NOISE)], gains[0.0]
    nothing = np.zeros(1)
    for identifier, statement, a, b, op in (
        ("corpus-correction-hybrid", "Correction makes a corpus sample likelier at p_u = .2", hybrid, nothing, ">"),
        ("corpus-correction-masked", "and no likelier for a mask-only model", masked, nothing, "<="),
        ("corpus-difference", "Uniform noise in training is what makes correction work", hybrid, masked, ">"),
    ):
        experiment.claims.append(
            Claim(
                id=identifier,
                statement=statement,
                source=f"{PAPER}, Fig. 5 (gen. PPL)",
                paper="214 → 93.3; mask-only gets worse",
                measured=float(a.mean() - b.mean()),
                op=op,
                value=0.0,
                n=len(a),
                ci=bootstrap_difference(rng, a, b),
                unit="nat/token",
                note=f"{ORDER}-gram judge",
            )
        )


def _batching(
    experiment: Experiment, profile: Profile, model: DiT, process: HybridProcess, drawn: torch.Tensor, device: str
) -> None:
    """Correction of a batch beside the loop over its sequences, the same number of corrections for both."""
    texts, steps = drawn[:32], min(16, profile.corpus_corrections)

    def timed(groups: list[torch.Tensor]) -> float:
        began = time.perf_counter()
        for group in groups:
            self_correct(model, process, group, max_steps=steps, generator=torch.Generator().manual_seed(0))
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed([texts[:1]])
    one, many = timed([text[None] for text in texts]), timed([texts])
    experiment.claims.append(
        Claim(
            id="corpus-batching",
            statement="Correction of 32 sequences at once beats one by one",
            source=TARGET,
            measured=one / many,
            op=">=",
            value=15.0 if device == "cuda" else 2.0,
            n=1,
            unit="×",
            note=f"{len(texts)} sequences of {texts.shape[1]}, {steps} corrections, {device}",
        )
    )
