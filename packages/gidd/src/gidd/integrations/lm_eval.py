"""Models of ours in EleutherAI's evaluation harness, ``lm_eval``: importing this module registers the model "gidd".

A diffusion model has a bound on the likelihood of a text, not the likelihood of a token given those before. What it
says about a continuation depends on what it was trained on:

* "joint", for models that never saw a clean prompt (the paper's): the whole text is noised, and ln p(continuation |
  context) is taken for the difference of the bounds of the text and of the context alone. That is exact up to the
  slack of the bounds, and no bound itself.
* "conditional", for models trained with clean prompts (the follow-up's, p_prompt > 0): only the continuation is noised;
  this is a bound.

All options of a context see the same noise at the same times, so that what they have in common cancels when they are
compared; times come from a quadrature rule instead of draws. Both make rankings need few model calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..likelihood import fractions, path_integrand, reconstruction_term, times_on_grid
from ..models import Backbone, ScalingTransformer
from ..pipeline import GiddPipeline, Model, by_length, with_clean_prompts
from ..process import Process
from ..sampling import Streams
from ..sampling.predict import clean_logits
from ..train.checkpoint import TRAINER, read_trainer_state

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise ConfigError("GiddLM needs lm_eval: pip install 'gidd-diffusion[harness]'") from None

MODES = ("joint", "conditional")
T = TypeVar("T")


class Request(NamedTuple):
    """Ids of context and continuation, the first of them to be judged, and the seed of the noise."""

    ids: tuple[int, ...]
    start: int
    seed: int


@register_model("gidd")
class GiddLM(LM):
    """``lm_eval.api.model.LM`` on a checkpoint.

    Parameters
    ----------
    pretrained : checkpoint folder or Hub repository, or a :class:`gidd.pipeline.GiddPipeline`.
    mode : "joint" or "conditional", see above; default: conditional where the checkpoint was trained with clean
        prompts, else joint.
    p_prompt : share of sequences that had a clean prompt in training; default: what the checkpoint of our trainer says;
        for others 0.2 for :class:`ScalingTransformer` (the follow-up's recipe), else 0.
    num_times : times at which the bound is measured.
    boundary : add the reconstruction term and the tail, without which the path integral is no bound.
    batch_size : sequences per model call; does not change results. "auto" is 32.
    device, dtype : of the model.
    seed : of the noise and of generated texts.
    num_inference_steps : model calls of a generated text.
    max_gen_toks : tokens that are generated where the task does not say.

    Raises
    ------
    ConfigError
        An unknown mode, or "conditional" for a model that never saw a clean prompt.

    Examples
    --------
    >>> lm = GiddLM("runs/owt/latest", num_times=32)
    >>> lm_eval.simple_evaluate(lm, tasks=["piqa"])
    """

    def __init__(
        self,
        pretrained: str | Path | GiddPipeline,
        *,
        mode: str | None = None,
        p_prompt: float | None = None,
        num_times: int = 32,
        boundary: bool = True,
        batch_size: int | str = 32,
        device: str | None = None,
        dtype: str | None = None,
        seed: int = 0,
        num_inference_steps: int = 128,
        max_gen_toks: int = 128,
        max_batch_size: int | None = None,  # what lm_eval's command line passes to every model
    ) -> None:
        super().__init__()
        if isinstance(pretrained, GiddPipeline):
            self.pipeline = pretrained
        else:
            self.pipeline = GiddPipeline.from_pretrained(pretrained, device=device, dtype=dtype)
        if p_prompt is None:
            p_prompt = _p_prompt(pretrained, self.pipeline)
        self.mode = mode or ("conditional" if p_prompt > 0 else "joint")
        if self.mode not in MODES:
            raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if self.mode == "conditional" and not p_prompt > 0:
            raise ConfigError(
                "mode 'conditional' shows the model a clean context, which it was not trained on (p_prompt = 0): "
                "use mode 'joint', or say p_prompt if it was"
            )
        self.batch_size = 32 if str(batch_size).startswith("auto") else int(batch_size)
        self.num_times, self.boundary, self.seed = int(num_times), bool(boundary), int(seed)
        self.num_inference_steps, self.max_gen_toks = int(num_inference_steps), int(max_gen_toks)
        for name in ("batch_size", "num_times", "num_inference_steps", "max_gen_toks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} has to be positive; got {getattr(self, name)}")
        self._device = self.pipeline.device
        self.pipeline.process.validate()

    @property
    def max_length(self) -> int:
        """Tokens the model takes."""
        return self.pipeline.max_length

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint of the tokenizer: the harness keys its caches of requests with it."""
        return hashlib.sha256(self.pipeline.tokenizer.backend.to_str().encode()).hexdigest()[:16]

    # --- what the harness calls ---------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p(continuation | context), whether greedy decoding finds it) of every request (context, continuation).

        Greedy decoding fills the masked continuation, the surest token first; False for processes without a mask.
        Contexts that do not fit lose their beginning.
        """
        pairs = [self._request(*request.args) for request in requests]
        value = self._values(pairs)
        greedy = by_length(pairs, lambda r: len(r.ids), self._greedy)
        out = [(float(v), bool(g)) for v, g in zip(value, greedy, strict=True)]
        for request, answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return out

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p(text), a lower bound, of every request (text,); every token counts once.

        Texts longer than the model are cut into parts of equal size that do not see each other.
        """
        parts, owner = [], []
        for i, request in enumerate(requests):
            (text,) = request.args
            ids = self.pipeline.tokenizer.encode(text)
            count = -(-len(ids) // self.max_length)
            edges = [len(ids) * j // count for j in range(count + 1)] if count else []
            # Every part has noise of its own, so that its errors cancel in an average over parts and texts.
            parts += [Request(tuple(ids[a:b]), 0, self._seed_of(f"{a}:{text}")) for a, b in pairwise(edges)]
            owner += [i] * count
        total = [0.0] * len(requests)
        for i, value in zip(owner, self._values(parts), strict=True):
            total[i] += value
        for request, answer in zip(requests, total, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return total

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of every request (context, settings), cut before the first of ``settings["until"]``.

        Settings: until, max_gen_toks (or max_length), do_sample, temperature (0 unless do_sample), top_p, top_k,
        steps.
        """
        jobs = [self._generation(*request.args) for request in requests]
        out = _by_group(jobs, lambda job: (job.length, job.steps, repr(job.options)), self._generate)
        for request, answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return out

    # --- likelihood ---------------------------------------------------------------------------------------------------

    def _request(self, context: str, continuation: str) -> Request:
        # As other models of the harness do it: spaces before the continuation belong to its first token.
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        encode = self.pipeline.tokenizer.encode
        ids = encode(context + continuation)
        if not ids:
            raise ValueError(f"the continuation {continuation[:60]!r} has no tokens")
        start = min(len(encode(context)) if context else 0, len(ids) - 1)
        if len(ids) - start > self.max_length:
            raise ValueError(
                f"the continuation has {len(ids) - start} tokens; the model takes {self.max_length}: "
                f"{continuation[:60]!r}"
            )
        cut = max(0, len(ids) - self.max_length)
        kept = tuple(ids[cut:])
        # The seed belongs to the context: all its options see the same noise.
        return Request(kept, start - cut, self._seed_of(context))

    def _seed_of(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(repr((self.seed, text)).encode()).digest()[:7], "big")

    def _values(self, requests: list[Request]) -> list[float]:
        """ln p(ids[start:] | ids[:start]) of every request."""
        if self.mode == "conditional":
            return [-nats for nats in self._nelbo(requests)]
        whole = [Request(r.ids, 0, r.seed) for r in requests]
        contexts = [Request(r.ids[: r.start], 0, r.seed) for r in requests if r.start]
        distinct = list(dict.fromkeys([*whole, *contexts]))
        bound = dict(zip(distinct, self._nelbo(distinct), strict=True))
        return [
            (bound[Request(r.ids[: r.start], 0, r.seed)] if r.start else 0.0) - bound[w]
            for r, w in zip(requests, whole, strict=True)
        ]

    def _nelbo(self, requests: list[Request]) -> list[float]:
        return by_length(requests, lambda r: len(r.ids), self._nelbo_of_equal_length)

    @torch.no_grad()
    def _nelbo_of_equal_length(self, requests: list[Request]) -> list[float]:
        """Every (request, time) pair is a row of its own: a batch holds several times of the same text."""
        process, device = self.pipeline.process, self.pipeline.device
        x = torch.tensor([r.ids for r in requests], device=device)
        seeds = torch.tensor([r.seed for r in requests], device=device)
        starts = torch.tensor([r.start for r in requests], device=device)
        keep = torch.arange(x.shape[1], device=device) >= starts[:, None]
        t, weight, kind = _plan(process, self.num_times, self.boundary)
        total = torch.zeros(len(x), dtype=torch.float64, device=device)
        pairs = torch.cartesian_prod(torch.arange(len(x)), torch.arange(len(t)))
        for terms, evaluate in ((kind == 0, path_integrand), (kind == 1, _early)):
            chosen = pairs[terms[pairs[:, 1]]].to(device)
            for begin in range(0, len(chosen), self.batch_size):
                row, at = chosen[begin : begin + self.batch_size].unbind(1)
                own = t.to(device)[at]
                z = _noisy(process, x[row], own, seeds[row], at, self.max_length)
                z = torch.where(keep[row], z, x[row])
                model = self._model(~keep[row])
                found = evaluate(model, x[row], z, own, keep[row], process)
                total.index_add_(0, row, found.double() * weight.to(device)[at])
        return [float(v) for v in total]

    def _model(self, clean: Tensor) -> Model:
        """The network; if it knows clean prompts (B, L), they look at clean tokens only, as in its training."""
        return with_clean_prompts(self.pipeline.model, clean) if self._clean_prompts else self.pipeline.model

    @property
    def _clean_prompts(self) -> bool:
        return self.mode == "conditional" and isinstance(self.pipeline.model, Backbone)

    @torch.no_grad()
    def _greedy(self, requests: list[Request]) -> list[bool]:
        process, device = self.pipeline.process, self.pipeline.device
        if process.mask_id is None:
            return [False] * len(requests)
        answers: list[bool] = []
        for begin in range(0, len(requests), self.batch_size):
            part = requests[begin : begin + self.batch_size]
            x = torch.tensor([r.ids for r in part], device=device)
            starts = torch.tensor([r.start for r in part], device=device)
            given = torch.arange(x.shape[1], device=device) < starts[:, None]
            answers += _decodes_to(self._model, process, x, given).tolist()
        return answers

    # --- generation ---------------------------------------------------------------------------------------------------

    def _generation(self, context: str, settings: dict[str, Any]) -> Generation:
        settings = dict(settings)
        until = settings.get("until") or []
        room = int(settings.get("max_gen_toks") or settings.get("max_length") or self.max_gen_toks)
        room = max(1, min(room, self.max_length - 1))
        ids = self.pipeline.tokenizer.encode(context) if context else []
        ids = ids[max(0, len(ids) - (self.max_length - room)) :]
        sampling = bool(settings.get("do_sample", float(settings.get("temperature") or 0.0) > 0))
        options: dict[str, Any] = {"temperature": float(settings.get("temperature", 1.0)) if sampling else 0.0}
        options |= {name: settings[name] for name in ("top_p", "top_k") if sampling and settings.get(name)}
        steps = int(settings.get("steps", self.num_inference_steps))
        return Generation(ids, len(ids) + room, steps, [until] if isinstance(until, str) else list(until), options)

    def _generate(self, jobs: list[Generation]) -> list[str]:
        first = jobs[0]
        tokens = self.pipeline.generate_ids(
            [job.prompt for job in jobs],
            first.steps,
            length=first.length,
            seed=self.seed,
            batch_size=self.batch_size,
            clean_prompts=self._clean_prompts,
            **first.options,
        ).tolist()
        tokenizer = self.pipeline.tokenizer
        out = []
        for job, row in zip(jobs, tokens, strict=True):
            new = row[len(job.prompt) :]
            if tokenizer.eos_id is not None and tokenizer.eos_id in new:
                new = new[: new.index(tokenizer.eos_id)]
            out.append(_cut(tokenizer.decode(new), job.until))
        return out


class Generation(NamedTuple):
    """What to generate: ids to begin with, total length, model calls, where to stop, options of the sampler."""

    prompt: list[int]
    length: int
    steps: int
    until: list[str]
    options: dict[str, Any]


def _p_prompt(source: str | Path | GiddPipeline, pipeline: GiddPipeline) -> float:
    """Share of clean prompts in training."""
    if not isinstance(source, GiddPipeline) and (Path(source) / TRAINER).is_file():
        return float(read_trainer_state(Path(source))["config"]["loss"]["p_prompt"])
    return 0.2 if isinstance(pipeline.model, ScalingTransformer) else 0.0


# --- the estimator ----------------------------------------------------------------------------------------------------


def _plan(process: Process, num_times: int, boundary: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Times (n,), weights (n,) and kinds (n,) of a bound's terms: 0 for the integrand, 1 for the reconstruction."""
    t, weight = times_on_grid("auto", process, fractions(num_times, "quadrature", 0))
    if not boundary:
        return t, weight, torch.zeros(len(t), dtype=torch.long)
    eps, early = process.t_eps, max(2, num_times // 8)
    late = torch.tensor([1 - eps / 2], dtype=torch.float64)
    times = torch.cat([t, late, torch.full((early,), eps, dtype=torch.float64)])
    weights = torch.cat([weight, torch.tensor([eps], dtype=torch.float64), torch.full((early,), 1 / early).double()])
    return times, weights, torch.tensor([0] * (len(t) + 1) + [1] * early)


def _noisy(process: Process, x: Tensor, t: Tensor, seeds: Tensor, at: Tensor, longest: int) -> Tensor:
    """z ~ q_t(. | x) for rows x (N, L) at times t (N,), the at-th term of a sequence with that seed.

    Position l of term j reads the same random numbers whatever the length of the text: rows that share a seed and a
    prefix get the same noise on it.
    """
    streams = Streams(seeds).skip(at * (3 * longest))
    keep, which, where = streams.uniform(3, longest)[:, :, : x.shape[1]].unbind(1)
    noise = process.noise_from(t[:, None], which, where.contiguous())
    return torch.where(keep < process.alpha(t)[:, None], x, noise)


def _early(model: Model, x: Tensor, z: Tensor, t: Tensor, keep: Tensor, process: Process) -> Tensor:
    return reconstruction_term(model, x, z, keep, process)


def _decodes_to(model_for: Callable[[Tensor], Model], process: Process, x: Tensor, given: Tensor) -> Tensor:
    """(B,) whether filling the positions of x that are not given, the surest first, gives x."""
    assert process.mask_id is not None
    z = torch.where(given, x, process.mask_id)
    agrees = torch.ones(len(x), dtype=torch.bool, device=x.device)
    while True:
        active = (agrees & (z == process.mask_id).any(1)).nonzero()[:, 0]
        if len(active) == 0:
            return agrees
        now, masked = z[active], z[active] == process.mask_id
        # A sequence is as noisy as it has masks.
        t = masked.double().mean(1)
        level = t.float().clamp(process.t_eps, 1 - process.t_eps)
        logits = clean_logits(_at_level(model_for(given[active]), level), now, 0.5, process)
        sure, guess = logits.softmax(-1).max(-1)
        place = sure.masked_fill(~masked, -1.0).argmax(1)
        right = guess.gather(1, place[:, None])[:, 0] == x[active].gather(1, place[:, None])[:, 0]
        agrees[active] = right
        z[active, place] = x[active, place]


def _at_level(model: Model, level: Tensor) -> Model:
    """The model at times (B,) of our own."""
    return lambda z, _: model(z, level)


def _by_group(items: Sequence[T], key: Callable[[T], Any], work: Callable[[list[T]], list[Any]]) -> list[Any]:
    """``work`` on the items of each key together, results in the order of the items."""
    numbers: dict[Any, int] = {}
    which = [numbers.setdefault(key(item), len(numbers)) for item in items]
    return by_length(list(zip(which, items, strict=True)), lambda p: p[0], lambda part: work([i for _, i in part]))


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [text.find(stop) for stop in until if stop]
    return text[: min([e for e in ends if e >= 0], default=len(text))]
