"""``GiddTrainer``: a configuration, a corpus, one or many processes, checkpoints that a run can go on from."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Corpus, TokenDataset, make_loader, open_corpus
from ..errors import CheckpointError, ConfigError, DataError, GiddError
from ..hub import load_model
from ..likelihood import elbo
from ..models import Backbone
from ..process import Process
from . import checkpoint
from .autoregressive import cross_entropy, next_token_batch
from .config import TrainConfig
from .logs import Journal, Progress
from .noise import NoiseOptions, NoisyBatch, noisy_batch
from .optim import AveragedWeights, learning_rate_factor, make_optimizer, parameter_groups, set_learning_rate
from .parallel import World, distribute, joined, reshard
from .step import Objective, StepResult, train_step

log = logging.getLogger(__name__)

PATIENCE = 5  # steps in a row whose loss is not finite


class TrainingInterrupted(GiddError):
    """A signal ended the training after a checkpoint was written; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"{signal.Signals(signum).name}: saved {folder}; go on with --resume auto")
        self.signum, self.exit_code, self.checkpoint = signum, 128 + signum, folder


class TrainingDiverged(GiddError, FloatingPointError):
    """The loss was not finite in ``PATIENCE`` steps in a row."""


class FitResult(NamedTuple):
    """How a training ended.

    loss, elbo : of the last step, per token.
    validation : {"val_nelbo", "val_nelbo_path", "val_ppl", "val_ppl_path"} of the last validation, or {}; of an
        autoregressive model {"val_nll", "val_ppl"}.
    checkpoint : the last folder written.
    skipped : steps whose loss was not finite.
    """

    step: int
    loss: float
    elbo: float
    validation: dict[str, float]
    checkpoint: Path
    skipped: int


class GiddTrainer:
    """Trains what a :class:`TrainConfig` says.

    Parameters
    ----------
    quiet : no progress on stderr.

    Examples
    --------
    >>> GiddTrainer(load_config("kjv.yaml", ["optimizer.lr=1e-3"])).fit(resume="auto")  # doctest: +SKIP
    """

    def __init__(self, config: TrainConfig, *, quiet: bool = False) -> None:
        self.config, self.quiet = config, quiet

    def fit(self, resume: str | Path | None = None, init_from: str | Path | None = None) -> FitResult:
        """Train until the last step. Under torchrun, in all processes at once.

        Parameters
        ----------
        resume : "auto" goes on from the latest checkpoint in ``out``, if any; a step folder, or the folder of a run,
            goes on from that. The number of processes may be another one.
        init_from : checkpoint or Hub repository whose weights to begin with, e.g. of a masked model to hybridise.
            Without effect where a checkpoint is resumed.

        Raises
        ------
        ConfigError, DataError, CheckpointError
            The parts do not fit; nothing was written.
        TrainingInterrupted
            SIGTERM or SIGINT: the step was finished and a checkpoint written.
        TrainingDiverged
            The loss was not finite in five steps in a row; a checkpoint with the weights before them was written.
        """
        with joined(self.config.device) as world:
            run = _prepare(self.config, world, resume, init_from)
            progress = Progress(run.step, self.config.schedule.steps, self.quiet or not world.main)
            journal = Journal(Path(self.config.out), self.config, run.step) if world.main else None
            try:
                with _signals() as stop:
                    return _fit(run, world, stop, journal, progress)
            finally:
                progress.close()
                if journal is not None:
                    journal.close()


# --- setting up ---------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """All that a run consists of, and how far it is."""

    config: TrainConfig
    corpus: Corpus
    data: TokenDataset
    held_out: TokenDataset | None
    process: Process
    model: Backbone
    objective: Objective
    module: nn.Module  # what to call: the objective, perhaps inside DDP
    optimizer: torch.optim.Optimizer
    parameters: list[Tensor]
    average: AveragedWeights | None
    options: NoiseOptions
    step: int = 0
    samples: int = 0
    updates: int = 0
    skipped: int = 0
    bad: list[int] = field(default_factory=list)  # the steps not finite, of those in a row up to now


def _prepare(config: TrainConfig, world: World, resume: str | Path | None, init_from: str | Path | None) -> _Run:
    parts = _num_parts(config, world)
    found = _find(config, resume)
    corpus = open_corpus(config.data.path)
    data = TokenDataset(corpus, "train", config.data.length, config.data.mode, config.seed)
    held_out = None
    if config.validation.every:
        held_out = TokenDataset(corpus, "val", config.data.length, config.data.mode, config.seed)
    process = _process(config, corpus)
    options = NoiseOptions(
        config.loss.p_independent,
        config.loss.p_prompt,
        config.loss.p_infill,
        config.loss.max_empty_frac,
        corpus.pad_id,
    )
    if config.objective == "autoregressive":
        for name in ("p_independent", "p_prompt", "p_infill", "max_empty_frac"):
            if getattr(config.loss, name):
                raise ConfigError(f"loss.{name}: an autoregressive model has no noise; leave it out")
        if config.loss.fused is True:
            raise ConfigError("loss.fused: there is no fused loss of an autoregressive model; use auto or false")
    if options.max_empty_frac and options.pad_id is None:
        raise ConfigError(f"loss.max_empty_frac: the tokenizer of {corpus.path} has no padding token")
    torch.manual_seed(config.seed)
    model = config.model.build(corpus.vocab_size, config.activation_checkpointing)
    if config.data.length > model.config.max_seq_len:
        raise ConfigError(
            f"data.length: {config.data.length} tokens are more than model.max_seq_len={model.config.max_seq_len}"
        )
    if init_from is not None and found is None:
        _begin_with(model, init_from)
    model.to(world.device)
    objective = Objective(
        model,
        process,
        weighting=config.loss.weighting,
        w_max=config.loss.w_max,
        impl=config.loss.impl,
        fused=config.loss.fused,
        precision=config.precision,
        kind=config.objective,
    )
    blocks = list(getattr(model, "blocks", []))
    if config.compile:
        for block in blocks:
            block.compile()
    module = distribute(objective, blocks, config.parallel, world)
    o = config.optimizer
    optimizer = make_optimizer(
        parameter_groups(objective, o.weight_decay, o.aux_lr_factor), o.name, o.lr, o.betas, o.eps
    )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    average = None if o.ema is None else AveragedWeights(parameters, o.ema)
    run = _Run(
        config, corpus, data, held_out, process, model, objective, module, optimizer, parameters, average, options
    )
    if found is not None:
        _resume(run, found, world)
    log.info("%d parameters, %d processes, %d parts per step", model.num_parameters(), world.size, parts)
    return run


def _num_parts(config: TrainConfig, world: World) -> int:
    """Forward passes of each process per step."""
    whole, part = config.data.batch_size, config.data.micro_batch_size
    if whole % world.size:
        raise ConfigError(f"data.batch_size: {whole} sequences cannot be shared evenly by {world.size} processes")
    share = whole // world.size
    if part is not None and share % part:
        raise ConfigError(
            f"data.micro_batch_size: has to divide the {share} sequences of each of {world.size} processes; got {part}"
        )
    return share // (part or share)


def _process(config: TrainConfig, corpus: Corpus) -> Process:
    process = config.process.build(corpus.vocab_size, corpus.mask_id)
    process.validate()
    if config.loss.weighting == "dynamic_released":
        one = torch.zeros(1, dtype=torch.long)
        try:
            process.loss_weight(one, one, torch.tensor([0.5]), "dynamic_released")
        except ValueError as error:
            raise ConfigError(f"loss.weighting: {error}") from None
    return process


def _find(config: TrainConfig, resume: str | Path | None) -> Path | None:
    """The checkpoint to resume from."""
    out = Path(config.out)
    if resume is None:
        if checkpoint.latest_step(out) is not None:
            raise ConfigError(f"out: {out} has checkpoints already; go on with resume=auto, or choose another folder")
        return None
    if str(resume) == "auto":
        return checkpoint.latest_step(out)
    folder = Path(resume)
    if (folder / checkpoint.TRAINER).is_file():
        return folder
    inside = checkpoint.latest_step(folder)
    if inside is None:
        raise CheckpointError(f"{folder} is no checkpoint of a run, and holds none: there is no {checkpoint.TRAINER}")
    return inside


def _begin_with(model: Backbone, source: str | Path) -> None:
    weights = load_model(source).state_dict()
    own = model.state_dict()
    problems = [f"{name} missing" for name in own if name not in weights]
    problems += [f"{name} unexpected" for name in weights if name not in own]
    problems += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{source} does not fit the model section: {'; '.join(problems[:5])}{more}")
    model.load_state_dict(weights)


def _resume(run: _Run, folder: Path, world: World) -> None:
    state = checkpoint.read_trainer_state(folder)
    before, now = state.get("config", {}), run.config.model_dump(mode="json")
    if state.get("process") != run.process.to_dict():
        raise CheckpointError(
            f"{folder} was trained with the process {state.get('process')}, not {run.process.to_dict()}: use init_from"
        )
    if before.get("objective", "diffusion") != run.config.objective:
        raise CheckpointError(f"{folder} was trained with another objective than {run.config.objective}: use init_from")
    for section in ("seed", "model", "data", "optimizer", "schedule", "loss"):
        if before.get(section) != now[section] and world.main:
            log.warning("%s differs from the run resumed: %s, was %s", section, now[section], before.get(section))
    checkpoint.load(folder, run.objective, run.optimizer, run.average, world)
    # The optimizer's state has the old rates and decays in it; the configuration decides.
    o = run.config.optimizer
    fresh = parameter_groups(run.objective, o.weight_decay, o.aux_lr_factor)
    for group, new in zip(run.optimizer.param_groups, fresh, strict=True):
        group.update(weight_decay=new["weight_decay"], lr_factor=new["lr_factor"], betas=o.betas, eps=o.eps)
    run.step, run.samples = state["step"], state["samples"]
    run.updates, run.skipped = int(state["updates"]), int(state["skipped"])


# --- the loop -----------------------------------------------------------------------------------------------------


def _fit(run: _Run, world: World, stop: _Stop, journal: Journal | None, progress: Progress) -> FitResult:
    config, steps = run.config, run.config.schedule.steps
    batches = _batches(run, world)
    window = _Window()
    result = StepResult(math.nan, math.nan, 0, math.nan, True)
    validation: dict[str, float] = {}
    folder = checkpoint.latest_step(config.out) or Path(config.out)
    saver = _Saver(run, world)
    run.objective.train()
    while run.step < steps:
        parts = next(batches)
        lr = config.optimizer.lr * learning_rate_factor(
            run.step, steps, config.schedule.warmup, config.schedule.shape, config.schedule.final
        )
        set_learning_rate(run.optimizer, lr)
        # Dropout is the only draw from torch's own generator.
        torch.manual_seed(_word(config.seed, run.step, world.rank))
        result = train_step(run.module, run.parameters, run.optimizer, parts, config.optimizer.clip, world)
        _count(run, result, world)
        window.add(result)
        if run.step % config.logging.every == 0 or run.step == steps:
            record = window.close(run.step, lr, run.skipped)
            progress.update(run.step, record["loss"], record["tokens_per_s"])
            if journal is not None:
                journal.write(record)
        signum = world.max(stop.signum)
        due = config.validation.every and (run.step % config.validation.every == 0 or run.step == steps)
        if run.held_out is not None and due and not signum:
            validation = _validate(run, run.held_out, world)
            progress.say(f"step {run.step}: validation {next(iter(validation.values())):.4f} nats/token")
            if journal is not None:
                journal.write({"step": run.step, **validation})
            window.restart()
        diverged = len(run.bad) >= PATIENCE
        last = run.step == steps or bool(signum) or diverged
        if last or run.step % config.checkpoint.every == 0:
            folder = saver.save(in_background=config.checkpoint.background and not last)
            window.restart()
        else:
            saver.look()
        if diverged:
            raise TrainingDiverged(_diagnosis(run, folder))
        if signum:
            raise TrainingInterrupted(signum, folder)
    return FitResult(run.step, result.loss, result.elbo, validation, folder, run.skipped)


def _batches(run: _Run, world: World) -> Iterator[list[NoisyBatch]]:
    """This process's share of every global batch from ``run.samples`` on, in parts, with noise."""
    data, seed = run.config.data, run.config.seed
    num_parts = _num_parts(run.config, world)
    size = data.batch_size // world.size // num_parts
    loader = iter(
        make_loader(
            run.data,
            size,
            rank=world.rank,
            world_size=world.size,
            seed=seed,
            workers=data.workers,
            endless=True,
            start=run.samples,
            pin_memory=world.device.type == "cuda",
        )
    )
    step = run.step
    while True:
        parts = []
        for i in range(num_parts):
            batch = next(loader)
            tokens, mask = (batch[name].to(world.device, non_blocking=True) for name in ("tokens", "loss_mask"))
            if run.config.objective == "autoregressive":
                parts.append(next_token_batch(tokens, mask, run.process))
                continue
            first = (i * world.size + world.rank) * size
            parts.append(noisy_batch(tokens, mask, run.process, seed, step, first, data.batch_size, run.options))
        yield parts
        step += 1


def _count(run: _Run, result: StepResult, world: World) -> None:
    """Step and samples go on whatever happened, so that a bad batch is not tried again."""
    if result.finite:
        if run.average is not None:
            run.average.update(run.updates)
        run.updates += 1
        run.bad = []
    else:
        if world.main:
            log.warning(
                "step %d skipped: loss %g, gradient norm %g, %d tokens",
                run.step,
                result.loss,
                result.grad_norm,
                result.tokens,
            )
        run.skipped += 1
        run.bad = [*run.bad, run.step]
    run.step += 1
    run.samples += run.config.data.batch_size


def _diagnosis(run: _Run, folder: Path) -> str:
    first, last = run.bad[0], run.bad[-1]
    end = run.samples
    start = end - len(run.bad) * run.config.data.batch_size
    return (
        f"the loss was not finite in {len(run.bad)} steps in a row, {first} to {last} (samples {start} to {end - 1} "
        f"of the stream); {folder} has the weights before them: lower optimizer.lr or optimizer.clip, or use "
        "precision=fp32"
    )


class _Saver:
    """Saves at once, or in the background, one checkpoint at a time; where that fails, at once and with patience."""

    def __init__(self, run: _Run, world: World) -> None:
        self.run, self.world = run, world
        self.out, self.keep = Path(run.config.out), run.config.checkpoint.keep
        self.group = world.group() if run.config.checkpoint.background else None
        self.pending: checkpoint.Background | None = None

    def save(self, in_background: bool) -> Path:
        """The folder that is, or will be, written."""
        self._finish()
        run = self.run
        contents = _contents(run, self.world)
        if in_background:
            self.pending = checkpoint.begin(self.out, run.step, contents, self.world, self.group)
        if self.pending is None:
            return checkpoint.save(self.out, run.step, contents, self.keep, self.world)
        return self.out / f"step-{run.step}"

    def look(self) -> None:
        """Publish what has been written by now."""
        if self.pending is not None and self.pending.done(self.world) and not self._finish():
            checkpoint.save(self.out, self.run.step, _contents(self.run, self.world), self.keep, self.world)

    def _finish(self) -> bool:
        pending, self.pending = self.pending, None
        return pending is None or checkpoint.finish(pending, self.keep, self.world)


def _contents(run: _Run, world: World) -> checkpoint.Contents:
    return checkpoint.Contents(
        objective=run.objective,
        model=run.model,
        process=run.process,
        kind=run.config.objective,
        tokenizer=run.corpus.tokenizer(),
        optimizer=run.optimizer,
        average=run.average,
        trainer_state={
            "step": run.step,
            "samples": run.samples,
            "updates": run.updates,
            "skipped": run.skipped,
            "world_size": world.size,
            "torch": torch.__version__,
            "process": run.process.to_dict(),
            "config": run.config.model_dump(mode="json"),
        },
    )


def _validate(run: _Run, dataset: TokenDataset, world: World) -> dict[str, float]:
    """The ELBO per token of the first validation sequences: the same draws every time, on any number of processes.

    Of an autoregressive model, the cross-entropy.
    """
    v, autoregressive = run.config.validation, run.config.objective == "autoregressive"
    num = min(v.sequences, len(dataset))
    batches = [range(start, min(start + v.batch_size, num)) for start in range(0, num, v.batch_size)]
    total = torch.zeros(3, dtype=torch.float64)
    run.objective.eval()
    with nullcontext() if run.average is None else run.average.applied():
        # Sharded models need all processes in every pass: those that have no batch left repeat one, for nothing.
        for first in range(0, len(batches), world.size):
            number = first + world.rank
            batch = dataset.__getitems__(batches[min(number, len(batches) - 1)])
            tokens, mask = (batch[name].to(world.device) for name in ("tokens", "loss_mask"))
            if autoregressive:
                sums = _next_token_sums(run, tokens, mask)
            else:
                out = elbo(
                    run.objective,
                    tokens,
                    run.process,
                    num_times=v.num_times,
                    loss_mask=mask,
                    generator=torch.Generator().manual_seed(_word(run.config.seed, number)),
                )
                sums = torch.stack([out.nelbo.sum(), out.nelbo_path.sum(), out.num_tokens.sum().double()])
            if number < len(batches):
                total += sums.cpu()
        reshard(run.objective)
    run.objective.train()
    nelbo, path, count = world.sum(*total.tolist())
    if not count:
        raise DataError(f"{run.corpus.path}: none of the first {num} validation sequences has a token that counts")
    nelbo, path = nelbo / count, path / count
    if autoregressive:
        return {"val_nll": nelbo, "val_ppl": math.exp(min(nelbo, 700.0))}
    ppl = {name: math.exp(min(value, 700.0)) for name, value in (("val_ppl", nelbo), ("val_ppl_path", path))}
    return {"val_nelbo": nelbo, "val_nelbo_path": path, **ppl}


@torch.no_grad()
def _next_token_sums(run: _Run, tokens: Tensor, mask: Tensor) -> Tensor:
    """Nats twice, and the number of tokens that count, in float64."""
    batch = next_token_batch(tokens, mask, run.process)
    logits = run.objective(batch.z, batch.t, batch.attention_mask)
    nats = cross_entropy(logits, tokens, run.process)[mask].double().sum()
    return torch.stack([nats, nats, mask.sum().double()])


class _Window:
    """Means over the steps since the last record."""

    def __init__(self) -> None:
        self.results: list[StepResult] = []
        self.seconds, self.since = 0.0, time.monotonic()

    def add(self, result: StepResult) -> None:
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        self.results.append(result)

    def restart(self) -> None:
        """Leave out the time that other things took."""
        self.since = time.monotonic()

    def close(self, step: int, lr: float, skipped: int) -> dict[str, Any]:
        used = [r for r in self.results if r.finite]
        tokens = sum(r.tokens for r in self.results)

        def mean(name: str) -> float | None:
            return sum(getattr(r, name) for r in used) / len(used) if used else None

        record = {
            "step": step,
            "loss": mean("loss"),
            "elbo": mean("elbo"),
            "grad_norm": mean("grad_norm"),
            "lr": lr,
            "tokens_per_s": tokens / max(self.seconds, 1e-9),
            "skipped": skipped,
        }
        self.results, self.seconds = [], 0.0
        return record


def _word(*numbers: int) -> int:
    """A seed that depends on all of some numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


# --- signals ------------------------------------------------------------------------------------------------------


class _Stop:
    """Number of the signal that came, 0 for none."""

    signum = 0


@contextmanager
def _signals() -> Iterator[_Stop]:
    """Within, SIGTERM and SIGINT are noted; a second one of them does what it did before."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
