"""What a training run consists of, and how it is written to a checkpoint and brought back from one."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models import pretrained
from . import checkpoint, folder
from .distributed import World, distribute, is_sharded
from .feed import Feed, order_of
from .heldout import Heldout
from .schedule import lr_factor, progress_of

ORDER, VIEWS, PATCHES, COMPONENTS = range(4)  # streams of random numbers
TOKENS = ("token", "pos_embed")  # ends of names of what is not decayed, beside vectors


@dataclass(frozen=True)
class Recipe:
    """What the weights follow from, beside the model and the images; a run is resumed with the same recipe only."""

    epochs: float
    batch_size: int
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    warmup_epochs: float
    warmup: str
    augment: str
    decay_all: bool
    precision: str
    seed: int
    sync_masks: bool


@dataclass
class State:
    """Where a run is. ``sums`` are over the good steps of the current epoch: their number, loss, fvu, masked share."""

    step: int = 0
    seconds: float = 0.0
    lr_scale: float = 1.0
    strikes: int = 0
    recovered: bool = False
    epoch_began: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    history: list[dict[str, Any]] = field(default_factory=list)
    bands: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Run:
    """What the loop works on. ``forward`` is the model, or what shares its gradients between processes."""

    model: Any
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    feed: Feed
    recipe: Recipe
    world: World
    out: Path | None
    accumulate: int
    wall_clock: float | None
    per_epoch: int
    steps: int
    fingerprints: dict[str, str]  # of the space or standardizer, and of the images
    views: torch.Generator  # on the device
    masks: torch.Generator  # on the CPU, for what is drawn per image
    sums: Tensor
    about: dict[str, Any] = field(default_factory=dict)  # for run.json
    heldout: Heldout | None = None
    state: State = field(default_factory=State)
    looks: list[Tensor] = field(default_factory=list)  # whether the gradients of the last steps were not finite

    @property
    def progress(self) -> float:
        """Share that is done; the run ends at 1."""
        return progress_of(self.state.step, self.steps, self.state.seconds, self.wall_clock)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        r = self.recipe
        return r.lr * self.state.lr_scale * lr_factor(self.progress, r.epochs, r.warmup_epochs, r.warmup)

    def order(self, epoch: int) -> np.ndarray:
        """Numbers of the images in the steps of an epoch, over all processes: (steps, batch_size)."""
        return order_of(epoch, len(self.feed), self.per_epoch, self.recipe.batch_size, (self.recipe.seed, ORDER))


def prepare(
    model: Any,
    feed: Feed,
    recipe: Recipe,
    world: World,
    out: Path | None,
    accumulate: int,
    wall_clock: float | None,
    parallel: str,
) -> Run:
    """A run at its first step; the model is on its device, and copied or sharded."""
    model.to(world.device)
    fingerprints = {"scale": _fingerprint(model), "images": feed.fingerprint()}
    sharded = is_sharded(model.network, parallel, world)
    forward = distribute(model, world, sharded)
    # The fused kernel skips a step without waiting for the device; it does not know shards.
    optimizer = torch.optim.AdamW(
        groups(model.network, recipe),
        lr=recipe.lr,
        betas=recipe.betas,
        fused=not sharded and world.device.type in ("cpu", "cuda"),
    )
    _seed_masks(model, recipe, world)
    per_epoch = len(feed) // recipe.batch_size
    return Run(
        model=model, forward=forward, optimizer=optimizer, feed=feed, recipe=recipe, world=world, out=out,
        accumulate=accumulate, wall_clock=wall_clock, per_epoch=per_epoch, fingerprints=fingerprints,
        steps=max(1, round(recipe.epochs * per_epoch)), views=torch.Generator(world.device),
        masks=torch.Generator(),
        sums=torch.zeros(4, dtype=torch.float64, device=world.device),
    )  # fmt: skip


def groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters that are decayed, and those that are not: vectors and tokens, unless ``decay_all``."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, p in network.named_parameters():
        if p.requires_grad:
            (decayed if recipe.decay_all or (p.ndim > 1 and not name.endswith(TOKENS)) else free).append(p)
    both = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def to_resume(out: Path | None, resume: str | Path) -> Path | None:
    """The checkpoint to go on from; None to begin."""
    if resume == "never" or (resume == "auto" and out is None):
        return None
    if resume == "auto":
        assert out is not None
        return checkpoint.latest(out / folder.CHECKPOINTS)
    return checkpoint.find(Path(resume))


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Bring everything to where a checkpoint was taken. Raises CheckpointError if it is of another run."""
    there, here = saved.state["identity"], _identity(run)
    wrong = [f"{name} is {there.get(name)} there, {here[name]} here" for name in here if there.get(name) != here[name]]
    if wrong:
        raise CheckpointError(f"{saved.path} is of another run ({', '.join(wrong)}): resume=never, or another folder")
    checkpoint.load_model(run.model.network, saved.model, saved.path)
    checkpoint.load_optimizer(run.model.network, run.optimizer, saved.optimizer)
    run.state = State(**saved.state["run"])
    run.sums.copy_(torch.tensor(run.state.sums, dtype=torch.float64))
    run.looks.clear()
    samplers = saved.state["samplers"]
    if len(samplers) == run.world.size:
        run.model.sampler.load_state_dict(samplers[run.world.rank])
    else:
        _seed_masks(run.model, run.recipe, run.world, run.state.step)


def save(run: Run) -> None:
    """Write a checkpoint and make its weights the run's. CheckpointError in all processes if that fails."""
    if run.out is None:
        return
    # Collected by all processes together, written by one.
    weights = checkpoint.model_tensors(run.model.network)
    optimizer = checkpoint.optimizer_tensors(run.model.network, run.optimizer)
    samplers = run.world.gather(run.model.sampler.state_dict())
    run.state.sums = run.world.mean(run.sums.tolist())
    problem = None
    if run.world.main:
        state = {
            "step": run.state.step,
            "loss": run.state.history[-1]["loss"] if run.state.history else None,
            "identity": _identity(run),
            "samplers": samplers,
            "run": asdict(run.state),
        }
        try:
            checkpoint.save(run.out / folder.CHECKPOINTS, weights, optimizer, state)
            pretrained.save(run.model, run.out, {"train": folder.plain(asdict(run.recipe))}, weights)
            folder.write_run(run.out, run.about | _facts(run))
        except (CheckpointError, OSError) as error:
            problem = str(error)
    problem = run.world.from_main(problem)
    if problem is not None:
        raise CheckpointError(problem)


def _identity(run: Run) -> dict[str, Any]:
    """What has to be the same when a run goes on."""
    model = {f"model.{name}": value for name, value in run.model.config.to_dict().items() if name != "seed"}
    return folder.plain(asdict(run.recipe) | model | run.fingerprints)


def _facts(run: Run) -> dict[str, Any]:
    state, device = run.state, run.world.device
    return {
        "method": type(run.model).__name__,
        "recipe": asdict(run.recipe),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": run.world.size,
        "parameters": sum(p.numel() for p in run.model.network.parameters()),
        "images": {"number": len(run.feed), "shape": list(run.feed.shape)},
        "fingerprints": run.fingerprints,
        "wall_clock": run.wall_clock,
        "steps": run.steps,
        "steps_done": state.step,
        "epochs_done": state.step / run.per_epoch,
        "finished": run.progress >= 1,
        "seconds": state.seconds,
    }


def _fingerprint(model: Any) -> str:
    """Of the space, or of MAE's standardisation."""
    if model.method == "pmae":
        return str(model.fingerprint)
    digest = hashlib.sha256()
    for _, numbers in model.standardizer.named_buffers():
        digest.update(numbers.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _seed_masks(model: Any, recipe: Recipe, world: World, *salt: int) -> None:
    """Each process draws masks of its own, unless they are to be the same."""
    rank = 0 if recipe.sync_masks else world.rank
    model.sampler.generator = np.random.default_rng([recipe.seed, COMPONENTS, rank, *salt])
