"""Storage: training state in an orbax directory, trained models as one safetensors file. No pickle is read or written.

Orbax writes a checkpoint beside its place and renames it when it is whole. It does not notice altered bytes in arrays,
so a checksum of each is kept with the state; a damaged checkpoint is named, and the one before it is used.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from . import nets
from .denoiser import Denoiser, Generator, Model, Ratio
from .errors import CheckpointError, ConfigError, OnestepError

FORMAT = "onestep-diffusion/1"
KINDS: dict[str, type[Model]] = {"denoiser": Denoiser, "generator": Generator, "ratio": Ratio}

State = Any  # a pytree of arrays and typed random keys


class Restored(NamedTuple):
    """What `Checkpoints.restore` found; skipped says which newer checkpoints were damaged and how."""

    step: int
    state: State
    cursor: Any
    skipped: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one training run: the last three and the best, in a directory of their own.

    Use as a context manager, or call `close`: saving goes on in the background.

    Args:
        directory: made if missing.
        config: what the run depends on, as JSON; stored in every checkpoint, and compared on `restore`.
        kind: what is trained, say `teacher` or `student`.
        free: keys of config that may differ on `restore`, say the number of steps.
        keep: how many of the last to keep.
        read_only: change nothing in the directory.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        kind: str,
        free: Collection[str] = (),
        keep: int = 3,
        read_only: bool = False,
    ) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns about layouts that are not ours to choose
        self.directory = Path(directory).absolute()
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.kind, self.free, self.read_only = kind, frozenset(free), read_only
        if read_only and not self.directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory of checkpoints")
        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=lambda m: -m["metric"], n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, step: int, state: State, *, cursor: Any = None, metric: float | None = None) -> None:
        """Write in the background; the state may be donated or changed at once.

        Args:
            state: any pytree of arrays and typed random keys.
            cursor: position in the data, as JSON.
            metric: what makes a checkpoint the best, smaller is better; None and NaN never are.
        """
        meta = {
            "format": FORMAT,
            "kind": self.kind,
            "config": self.config,
            "cursor": cursor,
            "checksums": checksums(state),
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)),
            metrics={"metric": float(metric)} if metric is not None and metric == metric else None,
        )

    def restore(self, like: State) -> Restored | None:
        """The newest checkpoint that is whole, None if there is none at all.

        Args:
            like: a state of the same structure; arrays come back with its dtypes and on its devices.

        A damaged one is named in a warning, and set aside under another name, so that training goes on from the one
        before it. Raises ConfigError, with the differences, for a checkpoint of another configuration, and
        CheckpointError for one of another kind, or if none is whole.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        skipped: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                meta = self._meta(step)
                self._compare(meta)
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                state = self._manager.restore(step, args=args)["state"]
                _verify(state, meta["checksums"])
            except OnestepError:
                raise  # whole, but of something else: an older one would not help
            except Exception as error:  # orbax and tensorstore raise whatever met the damage
                skipped[step] = f"{self.directory / str(step)} is damaged ({_first_line(error)})"
                continue
            for text in skipped.values():
                warnings.warn(f"checkpoint {text}; using {self.directory / str(step)}", stacklevel=2)
            if not self.read_only:
                self._set_aside(skipped)
            return Restored(step, state, meta["cursor"], tuple(skipped.values()))
        if skipped:
            raise CheckpointError("no checkpoint is whole: " + "; ".join(skipped.values()))
        return None

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the checkpoints there are, in order."""
        return tuple(sorted(self._manager.all_steps()))

    def wait(self) -> None:
        """Until all is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the directory."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _meta(self, step: int) -> dict[str, Any]:
        meta: dict[str, Any] = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{self.directory} is of format {meta['format']!r}; this version reads {FORMAT!r}")
        return meta

    def _compare(self, meta: Mapping[str, Any]) -> None:
        if meta["kind"] != self.kind:
            raise CheckpointError(f"{self.directory} holds checkpoints of a {meta['kind']}, not of a {self.kind}")
        found = config_diff(meta["config"], self.config, free=self.free)
        if found:
            raise ConfigError(f"{self.directory} belongs to another configuration: " + "; ".join(found))

    def _set_aside(self, steps: Collection[int]) -> None:
        for step in steps:
            os.replace(self.directory / str(step), self.directory / f"damaged-{step}-{os.getpid()}")
        self._manager.reload()


def config_diff(stored: Mapping[str, Any], given: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """One line for each key whose value differs and which is not free: `key was A, is B`."""
    keys = sorted((stored.keys() | given.keys()) - set(free))
    pairs = [(key, stored.get(key), given.get(key)) for key in keys]
    return [f"{key} was {was!r}, is {now!r}" for key, was, now in pairs if was != now]


def save_model(path: str | os.PathLike[str], model: Model, *, dtype: str = "float32") -> Path:
    """Write a Denoiser, Generator or Ratio to one safetensors file, which holds its settings, too.

    Args:
        path: a name that ends in .safetensors, or a folder, which gets `<kind>.safetensors`.
        dtype: of the stored weights; `float16` halves the file and keeps three digits.

    The settings are also written beside it as .json, for people; `load_model` reads the file's own header. Both are
    replaced at once or not at all. Returns the path of the weights.
    """
    kind = next((name for name, cls in KINDS.items() if type(model) is cls), None)
    if kind is None:
        raise CheckpointError(f"cannot save a {type(model).__name__}; it has to be one of {', '.join(KINDS)}")
    path = Path(path)
    if path.suffix != ".safetensors":
        path = path / f"{kind}.safetensors"
    settings = {field.name: getattr(model, field.name) for field in fields(model) if field.name != "net"}
    config = {"format": FORMAT, "kind": kind, "net": nets.config(model.net), **settings}
    leaves = jax.tree_util.tree_leaves_with_path(model.params)
    with np.errstate(over="ignore"):  # found below
        arrays = {dotted(place): np.asarray(leaf, dtype) for place, leaf in leaves}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise CheckpointError(f"{path}: {_some(broken)} not finite in {dtype}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, safetensors_bytes(arrays, metadata={"config": json.dumps(config)}))
    _write(path.with_suffix(".json"), (json.dumps(config, indent=1) + "\n").encode())
    return path


def load_model(path: str | os.PathLike[str], kind: str | None = None, *, precision: str | None = None) -> Any:
    """Read what `save_model` wrote.

    Args:
        path: a file, or a folder with `<kind>.safetensors`.
        kind: `denoiser` | `generator` | `ratio`, what is wanted; None takes what a file holds.
        precision: `f32` | `bf16` to compute in another precision than it was trained in.

    Raises CheckpointError for a missing or damaged file, one of another kind or of another program.
    """
    path = Path(path)
    if path.is_dir():
        if kind is None:
            raise CheckpointError(f"{path} is a folder; say which of {', '.join(KINDS)} to load from it")
        if not (path / f"{kind}.safetensors").is_file():
            there = sorted(name for name in KINDS if (path / f"{name}.safetensors").is_file())
            raise CheckpointError(f"{path} holds no {kind}; it holds {', '.join(there) or 'no model'}")
        path = path / f"{kind}.safetensors"
    arrays, metadata = read_safetensors(path)
    if "config" not in metadata:
        raise CheckpointError(f"{path} was not written by onestep-diffusion; use `convert` for weights of EDM")
    try:
        config = json.loads(metadata["config"])
        found, form = config.pop("kind"), config.pop("format")
        net_config = config.pop("net")
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: its settings are damaged ({_first_line(error)})") from None
    if form != FORMAT or found not in KINDS:
        raise CheckpointError(f"{path} holds a {found!r} of format {form!r}; this version reads {FORMAT!r}")
    if kind is not None and found != kind:
        raise CheckpointError(f"{path} holds a {found}, not a {kind}")
    if precision is not None:
        net_config["precision"] = precision
    try:
        net = nets.abstract(net_config)
        return KINDS[found](net=fill(net, arrays, path), **config)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: its settings are not those of a {found} ({_first_line(error)})") from None


def fill(net: Any, arrays: Mapping[str, np.ndarray], path: object) -> Any:
    """The abstract network with these f32 weights, named by their path with dots.

    Raises CheckpointError, which names path and tensors, for missing ones, others, and other shapes.
    """
    graphdef, params = nets.split(net)
    wanted = {dotted(place): leaf.shape for place, leaf in jax.tree_util.tree_leaves_with_path(params)}
    missing, unknown = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if missing or unknown:
        raise CheckpointError(f"{path} {misfit(missing, unknown)}")
    wrong = [
        f"{name} {arrays[name].shape} for {shape}" for name, shape in wanted.items() if arrays[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(f"{path} has tensors of other shapes: {_some(wrong)}")
    filled = jax.tree_util.tree_map_with_path(lambda place, _: jnp.asarray(arrays[dotted(place)], jnp.float32), params)
    return nets.merge(graphdef, filled)


def misfit(missing: Collection[str], unknown: Collection[str]) -> str:
    """What is wrong with a set of tensors, as the end of a sentence."""
    lines = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown {_some(unknown)}"] * bool(unknown)
    return " and ".join(lines)


def dotted(place: tuple[Any, ...]) -> str:
    """A leaf's path in nested dicts as one name, say enc.32x32_conv.kernel."""
    return ".".join(entry.key for entry in place)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, metadata) of a file; CheckpointError if it is missing or no safetensors file."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="flax") as file:  # numpy has no bfloat16 of its own
            return {name: np.asarray(file.get_tensor(name)) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file, or a damaged one ({_first_line(error)})") from None


def _write(path: Path, data: bytes) -> None:
    """To a temporary name in the same folder, then rename: readers see the old file or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def checksums(state: State) -> dict[str, int]:
    """One number below 2^32 for each array, by its path; none for an empty tree."""
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    return dict(zip(leaves, map(int, jax.device_get(_checksum(list(leaves.values())))), strict=True))


@jax.jit
def _checksum(leaves: list[Array]) -> list[Array]:
    """Sum of words times odd numbers, modulo 2^32: any single altered word shows. Runs where the arrays are."""

    def one(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32).ravel()
        return jnp.sum(words * (2 * jnp.arange(words.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

    return [one(leaf) for leaf in leaves]


def _verify(state: State, stored: Mapping[str, int]) -> None:
    found = checksums(state)
    altered = sorted(name for name in found.keys() | stored.keys() if found.get(name) != stored.get(name))
    if altered:
        raise ValueError(f"{_some(altered)} altered")


def _some(names: Collection[str], limit: int = 3) -> str:
    return ", ".join(list(names)[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
