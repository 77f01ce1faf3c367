"""The authors' checkpoints at the paper's own scale: perplexity, generative perplexity, correction, zero-shot tasks.

Needs the network (or a filled Hugging Face cache), a GPU, and a prepared folder of OpenWebText; nothing here is run by
the other profiles.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import TokenDataset, open_corpus
from ..errors import ConfigError
from ..eval.causal import CausalLMJudge
from ..eval.text_metrics import padded, unigram_entropy
from ..likelihood import elbo
from ..pipeline import GiddPipeline
from ..process import HybridProcess
from ..sampling import self_correct
from .profiles import Profile
from .report import PAPER, Claim, Experiment, Metric, bootstrap_difference


def run_released(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """Claims 2, 4, 6 and 7 on ``profile.released``."""
    if profile.data is None:
        raise ConfigError(
            "the profile needs held-out text: gidd data prepare --source hf:Skylion007/openwebtext --tokenizer gpt2 "
            "--out DIR, then --data DIR"
        )
    corpus = open_corpus(profile.data)
    judge = CausalLMJudge.from_pretrained(profile.released_judge, device, torch.bfloat16 if device == "cuda" else None)
    experiment = Experiment()
    bounds: dict[float, float] = {}
    gains: dict[float, np.ndarray] = {}
    for source in profile.released:
        pipe = GiddPipeline.from_pretrained(source, device=device)
        process = pipe.process
        if not isinstance(process, HybridProcess):
            raise ConfigError(f"{source}: its process is a {type(process).__name__}, the paper's is a HybridProcess")
        p_u, name = process.p_uniform, f"released, {Path(source).name}"
        dataset = TokenDataset(corpus, "val", pipe.max_length, mode="pack")
        x = torch.stack([dataset[i]["tokens"] for i in range(min(profile.released_texts, len(dataset)))]).to(device)
        found = elbo(pipe.model, x, process, num_times=128, batch_size=16, generator=torch.Generator().manual_seed(0))
        bounds[p_u] = float(found.nelbo.mean()) / x.shape[1]
        path = float(found.nelbo_path.mean()) / x.shape[1]
        error = float(found.nelbo.std()) / len(x) ** 0.5 / x.shape[1]
        experiment.metrics += [
            Metric(f"{name}: perplexity (bound)", math.exp(bounds[p_u]), "", "lower"),
            Metric(f"{name}: perplexity (path integral, the paper's number)", math.exp(path), "", "lower"),
            Metric(f"{name}: standard error of the bound", error, "nat/token", "lower"),
        ]
        gains[p_u] = _corrected(experiment, profile, pipe, process, judge, name, int(rng.integers(2**31)))
        if profile.released_tasks:
            _tasks(experiment, profile, pipe, name)
    _claims(experiment, bounds, gains, rng)
    return experiment


def _corrected(
    experiment: Experiment,
    profile: Profile,
    pipe: GiddPipeline,
    process: HybridProcess,
    judge: CausalLMJudge,
    name: str,
    seed: int,
) -> np.ndarray:
    """(N,) nats per token of the judge that correction takes off."""
    ids = pipe.generate_ids([[]] * profile.released_samples, profile.released_steps, seed=seed, batch_size=16)
    generator, parts, rises = torch.Generator().manual_seed(seed), [], []
    for part in torch.split(ids, 32):
        fixed = self_correct(
            pipe.model, process, part.to(pipe.device), max_steps=profile.released_corrections, generator=generator
        )
        parts.append(fixed.tokens.cpu())
        rises.append((fixed.final_accuracy - fixed.initial_accuracy).cpu().numpy())
    before = _judged(experiment, pipe, judge, ids, f"{name}, before correction")
    after = _judged(experiment, pipe, judge, torch.cat(parts), f"{name}, after correction")
    rise = float(np.concatenate(rises).mean())
    experiment.metrics.append(Metric(f"{name}: gain of self-accuracy", rise, "", "higher"))
    return before - after


def _judged(experiment: Experiment, pipe: GiddPipeline, judge: CausalLMJudge, ids: Tensor, name: str) -> np.ndarray:
    texts = [pipe.tokenizer.decode(row) for row in ids.tolist()]
    nats = judge.nll(*padded(judge.encode(texts)))
    experiment.metrics += [
        Metric(f"{name}: generative perplexity", math.exp(float(nats.mean())), "", "lower"),
        Metric(f"{name}: unigram entropy", float(unigram_entropy(ids.numpy()).mean()), "nat", "higher"),
    ]
    return nats


def _tasks(experiment: Experiment, profile: Profile, pipe: GiddPipeline, name: str) -> None:
    import lm_eval

    from ..integrations.lm_eval import GiddLM

    found = lm_eval.simple_evaluate(
        GiddLM(pipe, num_times=32, batch_size=32), tasks=list(profile.released_tasks), limit=profile.released_limit
    )
    scores = []
    for task in profile.released_tasks:
        values = found["results"][task]
        key = "acc_norm,none" if "acc_norm,none" in values else "acc,none"
        error = values.get(key.replace(",", "_stderr,"), math.nan)
        scores.append(values[key])
        experiment.metrics += [
            Metric(f"{name}, {task}: accuracy", values[key], "", "higher"),
            Metric(f"{name}, {task}: standard error", error if isinstance(error, float) else math.nan, "", "lower"),
        ]
    experiment.metrics.append(Metric(f"{name}, mean accuracy", float(np.mean(scores)), "", "higher"))


def _claims(
    experiment: Experiment, bounds: dict[float, float], gains: dict[float, np.ndarray], rng: np.random.Generator
) -> None:
    noisy = [p_u for p_u in gains if p_u > 0]
    if 0.0 not in gains or not noisy:
        return
    most = max(noisy)
    experiment.claims += [
        Claim(
            id="released-cost",
            statement=f"Uniform noise costs likelihood: p_u = {most:g} against mask-only",
            source=f"{PAPER}, Table 2",
            paper="24.38 against 23.05 (PPL)",
            measured=bounds[most] - bounds[0.0],
            op=">=",
            value=0.0,
            n=len(bounds),
            unit="nat/token",
        ),
        Claim(
            id="released-difference",
            statement="Correction makes samples likelier to the judge at p_u > 0, more than mask-only",
            source=f"{PAPER}, Fig. 5",
            paper="214 → 93.3 at p_u = .2, worse when mask-only",
            measured=float(gains[most].mean() - gains[0.0].mean()),
            op=">",
            value=0.0,
            n=len(gains[most]),
            ci=bootstrap_difference(rng, gains[most], gains[0.0]),
            unit="nat/token",
        ),
    ]
