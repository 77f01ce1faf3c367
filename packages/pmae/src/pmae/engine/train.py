"""Pre-training: one loop, from images and a model to checkpoints and a folder that :func:`pmae.load` reads.

Every random number belongs to (seed, step, process): order of the images, crops and flips, dropped tokens. Masks come
from the model's sampler, whose state is in the checkpoints. A run that is stopped and resumed is the run that was not.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import NumericalError, ShapeError
from . import checkpoint, folder, tracking
from .augment import random_views
from .distributed import joined, synced
from .feed import Feed, to_unit
from .heldout import heldout_of, look
from .hints import warn_if_stuck, warn_of_views
from .run import PATCHES, VIEWS, Recipe, Run, prepare, restore, save, to_resume
from .schedule import WARMUPS, default_warmup, scaled_lr

log = logging.getLogger("pmae")

AUGMENTS = ("crop+flip", "flip", "none")
PRECISIONS = ("fp32", "bf16")
STRIKES = 3  # steps in a row without a finite gradient before the run goes back
LOOK = 16  # steps on a GPU between two looks at its numbers: a look makes it wait

Progress = Callable[[float, dict[str, Any] | None], None]


@dataclass(frozen=True)
class TrainResult:
    """A run that has ended.

    Attributes
    ----------
    out : its folder, None if nothing was written
    epochs, steps : done; fewer than asked for if the wall clock shortened the schedule, or it was stopped
    seconds : of training, those before a resume included
    history : one record per epoch: epoch, step, progress, loss, fvu, masked_share, lr, images_per_s, seconds, skipped;
        and heldout_fvu after the epochs in which held-out images were looked at
    bands : a record for each of those: epoch, step, fvu, and bands, which is the fvu of components such as "11-30"
    images_per_s : over the whole run
    interrupted : a signal ended it, after saving
    """

    out: Path | None
    epochs: float
    steps: int
    seconds: float
    history: list[dict[str, Any]]
    bands: list[dict[str, Any]]
    images_per_s: float
    interrupted: bool


def fit(
    model: Any,
    images: Any,
    epochs: float,
    out: str | Path | None = None,
    resume: str | Path = "auto",
    *,
    batch_size: int = 256,
    lr: float | None = None,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.95),
    warmup_epochs: float | None = None,
    warmup: str = "linear",
    augment: str = "crop+flip",
    decay_all: bool = False,
    precision: str = "fp32",
    compile: bool = False,
    seed: int = 0,
    wall_clock: float | None = None,
    stop_after: float | None = None,
    accumulate: int = 1,
    sync_masks: bool | None = None,
    parallel: str = "auto",
    checkpoint_every: float = 300.0,
    heldout: Any = None,
    heldout_every: int = 1,
    track: str | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "auto",
    layout: str = "NCHW",
    about: dict[str, Any] | None = None,
) -> TrainResult:
    """Train a :class:`pmae.PMAE` or :class:`pmae.PixelMAE`, on one device or, under `torchrun`, on several.

    Parameters
    ----------
    images : (N, C, H, W) uint8 or float in [0, 1], and all else that :func:`pmae.images.as_source` reads
    epochs : length of the schedule; the last batch of an epoch is dropped if it is not full
    out : folder for weights, checkpoints, metrics.jsonl and run.json; None writes nothing
    resume : "auto" goes on from the latest checkpoint in ``out``, "never" begins anew; or the path of a run or of one
        of its checkpoints
    batch_size : images per optimisation step, over all processes and accumulated parts; at most N
    lr : peak; None is 1.5e-4 · batch_size / 256
    warmup_epochs : None is 40, or a tenth of the epochs if that is less
    warmup : "linear" or "exp10" (the released code's)
    augment : "crop+flip" (a fifth to all of the area), "flip" or "none"
    decay_all : decay vectors and tokens as well, as the paper did
    precision : "bf16" computes in bfloat16 where that is safe; projections, weights and optimiser are float32
    wall_clock : seconds that training may take, those before a resume included. A run too slow for it goes through
        the whole schedule in fewer steps; it is then no longer reproducible bit by bit.
    stop_after : end after this epoch of the unchanged schedule, as an interruption would
    accumulate : parts of a batch that are computed one after another; changes nothing but memory
    sync_masks : all processes hide the same components, otherwise each draws its own; None is the model's setting
    parallel : several processes copy the model ("ddp") or shard it ("fsdp2"); "auto" shards from ViT-L on
    checkpoint_every : seconds between checkpoints
    heldout : images that are not trained on, in any form that ``images`` may have; of a PMAE. What is unexplained of
        each band of components goes to bands.jsonl, on at most 512 of them and 32 masks that stay the same
    heldout_every : epochs between such looks; there is one at the end of the run in any case
    track : "tensorboard" also writes the records there, to the folder ``tensorboard`` of the run (extra ``track``)
    about : more facts for run.json, such as the name of the data
    progress : called after a step with the share that is done, and after an epoch with its record

    SIGINT and SIGTERM end the run after the current step, saved (``interrupted``); a second one ends it at once. Steps
    whose gradient is not finite are skipped; after 3 in a row the run goes back to the last checkpoint with half the
    learning rate, once. No global random state is used or changed.

    Raises ShapeError, DataError, ValueError; CheckpointError if ``out`` holds another run or cannot be written;
    ModuleNotFoundError for a tracker that is not installed; NumericalError.
    """
    _one_of("augment", augment, AUGMENTS)
    _one_of("precision", precision, PRECISIONS)
    _one_of("warmup", warmup, WARMUPS)
    _positive(epochs=epochs, batch_size=batch_size, lr=lr, wall_clock=wall_clock, stop_after=stop_after)
    _positive(accumulate=accumulate)
    path = None if out is None else Path(out)
    tracking.check(track, path)
    if path is not None and model.method == "pmae":
        model.space.check_savable()
    world = joined(device)
    with _signals() as stopped:
        feed = Feed(images, world.device, layout)
        if tuple(feed.shape) != tuple(model.image_shape):
            raise ShapeError(f"images have shape {tuple(feed.shape)}, the model is for {tuple(model.image_shape)}")
        batch_size = _batch(batch_size, len(feed), world.size * accumulate)
        recipe = Recipe(
            epochs=epochs, batch_size=batch_size, lr=scaled_lr(batch_size) if lr is None else lr,
            weight_decay=weight_decay, betas=(betas[0], betas[1]), warmup=warmup, augment=augment, decay_all=decay_all,
            warmup_epochs=default_warmup(epochs) if warmup_epochs is None else warmup_epochs,
            precision=precision, seed=seed, sync_masks=model.config.sync_masks if sync_masks is None else sync_masks,
        )  # fmt: skip
        found = world.gather(to_resume(path, resume))[0]
        run = prepare(model, feed, recipe, world, path, accumulate, wall_clock, parallel)
        run.about.update(about or {})
        if heldout is not None:
            run.heldout = heldout_of(model, heldout, heldout_every, seed, layout)
        if found is not None:
            restore(run, checkpoint.load(found))
        if path is not None and (found is None or found.resolve().parents[1] != path.resolve()):
            if world.main:
                folder.begin(path)  # only now that nothing can be refused any more
            save(run)
        if compile:
            model.network.compile()
            model.bucketed = True
        stop_at = run.steps if stop_after is None else min(run.steps, round(stop_after * run.per_epoch))
        was_training = model.training
        model.train()
        try:
            with tracking.tracked(track, run, progress) as tell:
                interrupted = _loop(run, stop_at, stopped, checkpoint_every, tell)
        finally:
            model.train(was_training)
    state = run.state
    return TrainResult(
        path, state.step / run.per_epoch, state.step, state.seconds, state.history, state.bands,
        state.step * batch_size / max(state.seconds, 1e-9), interrupted,
    )  # fmt: skip


def _loop(run: Run, stop_at: int, stopped: threading.Event, every: float, tell: Progress | None) -> bool:
    """Train until the schedule, ``stop_at`` or a signal ends it; whether it was a signal."""
    world = run.world
    began = time.monotonic() - run.state.seconds
    saved = run.state.seconds
    interrupted = False
    while run.progress < 1 and run.state.step < stop_at and not interrupted:
        state = run.state
        epoch, first = divmod(state.step, run.per_epoch)
        # Of every step this process has each so-manieth image: a slice of these then has the mask it has in the whole.
        for pixels in run.feed.batches(run.order(epoch)[first:, world.rank :: world.size]):
            lr = _step(run, pixels)
            state.step += 1
            state.seconds, signalled = world.most(time.monotonic() - began, float(stopped.is_set()))
            interrupted = signalled > 0
            ends = interrupted or run.progress >= 1 or state.step >= stop_at
            whole = state.step % run.per_epoch == 0
            due = state.seconds - saved >= every
            if (whole or ends or due or world.device.type == "cpu" or len(run.looks) >= LOOK) and _failed(run):
                _go_back(run)
                break
            record = _close_epoch(run, lr) if whole or ends else None
            if tell is not None and world.main:
                tell(run.progress, record)
            if ends or (due and not state.strikes):  # skipped steps may mean that the weights are the fault
                save(run)
                saved = state.seconds
            if ends:
                break
    if run.progress >= 1 and run.state.step < run.steps and world.main:
        log.warning(
            "the wall clock of %g s shortened the schedule from %g epochs to %.1f",
            run.wall_clock, run.recipe.epochs, run.state.step / run.per_epoch,
        )  # fmt: skip
    return interrupted


def _step(run: Run, pixels: Tensor) -> float:
    """One optimisation step on this process's images of it; the learning rate that it took."""
    recipe, device, model, lr = run.recipe, run.world.device, run.model, run.lr
    seeds = [_seed(recipe.seed, stream, run.state.step, run.world.rank) for stream in (VIEWS, PATCHES)]
    views = _views(pixels, recipe.augment, run.views.manual_seed(seeds[0]))
    if run.state.step == 0 and run.world.main:
        warn_of_views(model, to_unit(pixels), views)
    masks = _masks(model, len(views), run.masks.manual_seed(seeds[1]))
    each = masks.ndim == 2 and len(masks) == len(views)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    for part in range(run.accumulate):
        own = slice(part, None, run.accumulate)
        with synced(run.forward, part == run.accumulate - 1):
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                out = run.forward(views[own], mask=masks[own] if each else masks, generator=run.masks)
            (out.loss / run.accumulate).backward()
        numbers = torch.stack([out.loss.detach(), out.fvu.detach(), out.loss.new_tensor(out.masked_share)])
        total += numbers.double() / run.accumulate
    # After the exchange of gradients, so that all processes see the same.
    norm: Any = nn.utils.get_total_norm([p.grad for p in model.network.parameters() if p.grad is not None])
    bad = ~torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    _update(run.optimizer, lr, bad)
    numbers = torch.cat([total.new_ones(1), total])
    run.sums += torch.where(bad, torch.zeros_like(numbers), numbers)
    run.looks.append(bad)
    return lr


def _masks(model: Any, batch: int, generator: torch.Generator) -> Tensor:
    """Components to hide, in slices of the batch or per image; MAE's patches, per image."""
    if model.method == "mae":
        patches: Tensor = model.sampler.sample(batch, generator)
        return patches
    wanted = model.config.masks_per_batch
    components: Tensor = model.sampler.sample(batch if wanted == "sample" else min(wanted, batch))
    return components


def _update(optimizer: torch.optim.Optimizer, lr: float, bad: Tensor) -> None:
    """A step, unless the gradient is bad."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    if optimizer.defaults["fused"]:
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # as GradScaler has it
        optimizer.step()
    elif not bool(bad):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _views(pixels: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Float32 (B, C, H, W) in [0, 1], cropped and flipped."""
    if augment == "crop+flip":
        return random_views(pixels, generator)
    images = to_unit(pixels)
    if augment == "flip":
        flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images


def _failed(run: Run) -> bool:
    """Look at the last steps: count those that were skipped, and say whether there were too many in a row."""
    failed = False
    for bad in torch.stack(run.looks).tolist():
        run.state.strikes = run.state.strikes + 1 if bad else 0
        failed |= run.state.strikes >= STRIKES
    run.looks.clear()
    return failed


def _go_back(run: Run) -> None:
    """Reload the last checkpoint with half the learning rate; NumericalError the second time, or if there is none."""
    failed = run.state
    if failed.recovered or run.out is None:
        said = "" if run.out is None else f"; {_dump(run)} has the images of these steps"
        raise NumericalError(f"no finite gradient in {STRIKES} steps in a row, up to step {failed.step}{said}")
    found = checkpoint.latest(run.out / folder.CHECKPOINTS)
    assert found is not None  # one is written before the first step
    log.warning("no finite gradient in %d steps in a row: back to %s, half the learning rate", STRIKES, found.name)
    restore(run, checkpoint.load(found))
    run.state.lr_scale, run.state.recovered, run.state.strikes = run.state.lr_scale / 2, True, 0


def _dump(run: Run) -> Path:
    """Numbers of the images in the last steps, for who looks for the one that is to blame."""
    assert run.out is not None
    path, last = run.out / "nonfinite.json", run.state.step
    steps = {s: run.order(s // run.per_epoch)[s % run.per_epoch].tolist() for s in range(max(0, last - LOOK), last)}
    if run.world.main:
        checkpoint.write_atomically(path, json.dumps({"lr": run.lr, "images_of_step": steps}) + "\n")
    return path


def _close_epoch(run: Run, lr: float) -> dict[str, Any]:
    """The record of an epoch that has ended, or of as much of it as there was; also written."""
    state, per_epoch = run.state, run.per_epoch
    good, *sums = run.world.mean(run.sums.tolist())
    loss, fvu, share = (s / good if good else None for s in sums)
    done = (state.step - 1) % per_epoch + 1
    whole = done == per_epoch
    took = max(state.seconds - state.epoch_began, 1e-9)
    record = {
        "epoch": state.step // per_epoch if whole else round(state.step / per_epoch, 4), "step": state.step,
        "progress": run.progress, "loss": loss, "fvu": fvu, "masked_share": share, "lr": lr,
        "images_per_s": done * run.recipe.batch_size / took, "seconds": state.seconds, "skipped": done - round(good),
    }  # fmt: skip
    if state.history and state.history[-1]["step"] > state.step - done:
        state.history.pop()  # the beginning of this epoch, before the run was stopped
    state.history.append(record)
    if whole:
        run.sums.zero_()
        state.epoch_began = state.seconds
    held = run.heldout
    if held is not None and (run.progress >= 1 or (whole and state.step // per_epoch % held.every == 0)):
        # All processes look: where the network is sharded, none could alone.
        found = look(run.model, held)
        record["heldout_fvu"] = found["fvu"]
        state.bands.append({"epoch": record["epoch"], "step": state.step, **found})
    if run.world.main:
        if run.out is not None:
            folder.write_records(run.out / folder.METRICS, state.history)
            if state.bands:
                folder.write_records(run.out / folder.BANDS, state.bands)
        warn_if_stuck(state.history)
    return record


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one has its usual effect."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        stopped.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _batch(wanted: int, n: int, parts: int) -> int:
    """The batch size, no larger than the data and the same in all parts."""
    if wanted % parts:
        raise ValueError(f"batch_size={wanted}: has to be a multiple of {parts}, the processes times accumulate")
    if wanted > n:
        wanted = n // parts * parts
        log.warning("batch_size is %d, as there are only %d images", wanted, n)
    if not wanted:
        raise ValueError(f"{n} images are too few for {parts} parts of a batch")
    return wanted


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: one of {', '.join(known)}")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value}: has to be larger than 0")
