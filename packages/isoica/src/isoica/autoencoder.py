"""IsometricAutoencoder: an encoder and a decoder in JAX whose derivatives are held near isometry.

The loss is ``|x - D(E(x))|²/tr Cov + λ_d dist²(DD(z), O) + λ_e dist²(DE(x)ᵀ, O)``, z at codes and at convex
combinations of two codes (Gropp et al. 2020; arXiv:2503.15355 for what near isometry is worth). A random start folds
the manifold now and then; the default starts both networks on the coordinates of a rigid alignment.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import storage
from .errors import IsoICAError, ModelFileError
from .isometry import ThetaResult, theta_from_jacobians
from .isometry_jax import squared_distance
from .manifold import RigidAlignment

Array = NDArray[np.float64]
Params = dict[str, Any]

_FORMAT = "isoica/isometric-autoencoder/1"
_CHECKPOINT = "isoica/isometric-autoencoder-training/1"
_CALL = 100  # steps of one compiled call
_WARM_ROWS = 5_000
_WARM_SHARE = 0.3  # of the steps: regression on the coordinates of the first embedding
_ROWS = 4_096  # encoded at a time
_CHANNELS = (16, 32, 32)  # of the convolutions, each of which halves the image


class Spec(NamedTuple):
    """What is fixed while the networks train; hashable."""

    d: int
    columns: int
    hidden: tuple[int, ...]
    image: tuple[int, int, int] | None  # height, width, channels: convolutions
    lambda_dec: float
    lambda_enc: float
    fit_scale: bool


class State(NamedTuple):
    """Weights, averages of Adam and the number of steps done."""

    params: Params
    opt: Any
    step: jax.Array


class IsometricAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Coordinates of a point cloud by an autoencoder whose derivatives are near isometries.

    Parameters
    ----------
    n_components : int
        Dimension d of the code, at most the number of columns.
    hidden : tuple of int
        Widths of the hidden layers; the decoder has them in reverse.
    lambda_dec, lambda_enc : float
        Weights of the two distances from isometry; 0 for both is a plain autoencoder.
    scale : {None, "fit"}
        Distance from isometries, or from multiples of them by a factor that is learnt.
    warm_start_embedding : {"rigid", "isomap"} or None
        Embedding of at most 5,000 rows that both networks are first fitted to; None starts at random.
    max_steps, batch_size, learning_rate : int, int, float
        Adam, with the learning rate down a cosine; the first three tenths of the steps fit the embedding.
    architecture : {"mlp", "conv"}
        "conv" takes rows as images of ``image_shape``, whose sides are multiples of 8.
    image_shape : (height, width) or (height, width, channels), None for square grey images.
    checkpoint_dir : path or None
        Training writes its state there and goes on from it, bit for bit on one device, if data and parameters are the
        same. checkpoint_every : int, steps.
    verbose : int
        1 prints the loss of every call of 100 steps.
    random_state : int, RandomState or None

    Attributes
    ----------
    embedding_ : (n, d) codes of the training data, in the units of X.
    loss_history_ : (calls,) mean loss of every 100 steps; n_steps_ : int
    scale_ : factor of the isometries. n_features_in_ : int

    Raises
    ------
    ValueError
        For NaN or infinite X, fewer columns than components, an image shape that does not fit.

    Examples
    --------
    >>> from isoica import IsometricAutoencoder
    >>> from isoica.datasets import make_near_isometric
    >>> data = make_near_isometric(500, 2, theta=0.05, random_state=0)
    >>> IsometricAutoencoder(2, max_steps=200, random_state=0).fit_transform(data.X).shape
    (500, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        hidden: tuple[int, ...] = (128, 128),
        lambda_dec: float = 0.3,
        lambda_enc: float = 0.1,
        scale: str | None = None,
        warm_start_embedding: str | None = "rigid",
        max_steps: int = 5_000,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        architecture: str = "mlp",
        image_shape: tuple[int, ...] | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1_000,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.lambda_dec = lambda_dec
        self.lambda_enc = lambda_enc
        self.scale = scale
        self.warm_start_embedding = warm_start_embedding
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.architecture = architecture
        self.image_shape = image_shape
        self.checkpoint_dir = checkpoint_dir
        self.checkpoint_every = checkpoint_every
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> IsometricAutoencoder:
        """Train on ``X`` (n, D). Ctrl-C keeps the weights so far, with a warning."""
        self._check_parameters()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        columns = X.shape[1]
        if self.n_components > columns:
            raise IsoICAError(
                f"n_components={self.n_components} exceeds n_features = {columns}; take at most that many"
            )
        self.mean_ = X.mean(axis=0)
        size = float(np.sqrt(np.sum(X.var(axis=0)) / self.n_components))
        if not size > 0:
            raise IsoICAError("all rows of X are equal; there is nothing to embed")
        self.unit_ = size  # codes of an isometry then vary by one along an axis
        self._spec = Spec(
            self.n_components, columns, tuple(self.hidden), self._image(columns), float(self.lambda_dec),
            float(self.lambda_enc), self.scale == "fit",
        )  # fmt: skip
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        seed = int(rng.integers(2**31))
        rows = (X - self.mean_) / size
        warm, targets = self._warm_start(X, rng)
        state = self._train(rows, warm, targets, seed)
        self._params = jax.device_get(state.params)
        self.scale_ = float(np.exp(self._params["log_scale"])) if self.scale == "fit" else 1.0
        self.embedding_ = self.transform(X)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        """:meth:`fit` and return ``embedding_`` (n, d)."""
        return self.fit(X).embedding_

    def transform(self, X: Any) -> Array:
        """Codes (m, d) of points (m, D), in the units of X."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        rows = (X - self.mean_) / self.unit_
        return self.unit_ * self._in_blocks(_encode, rows)

    def inverse_transform(self, Z: Any) -> Array:
        """Points (m, D) of codes (m, d)."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=np.float64)
        if Z.shape[1] != self._spec.d:
            raise IsoICAError(f"Z has {Z.shape[1]} columns, but the model has {self._spec.d} components")
        return self.mean_ + self.unit_ * self._in_blocks(_decode, Z / self.unit_)

    def decode(self, Z: Any) -> Array:
        """The same as :meth:`inverse_transform`."""
        return self.inverse_transform(Z)

    def jacobian(self, X: Any) -> Array:
        """Derivatives (m, d, D) of :meth:`transform` at points (m, D)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._in_blocks(_encoder_jacobian, (X - self.mean_) / self.unit_)

    def theta(self, X: Any, p: float = 2, scale: float | str | None = None) -> ThetaResult:
        """Θ_p of the decoder at the codes of ``X`` (m, D). One-sided, see :func:`isometry.theta_from_jacobians`."""
        codes = self.transform(X) / self.unit_
        return theta_from_jacobians(self._in_blocks(_decoder_jacobian, codes), p, scale=scale)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to an ``.npz`` file without pickle, by renaming a finished temporary file."""
        check_is_fitted(self)
        parameters = self.get_params(deep=False) | {"checkpoint_dir": None}
        if not isinstance(parameters["random_state"], (int, type(None))):
            parameters["random_state"] = None
        header: dict[str, Any] = {
            "parameters": parameters,
            "state": {"scale_": self.scale_, "n_steps_": self.n_steps_, "n_features_in_": self.n_features_in_,
                      "unit_": self.unit_},
        }  # fmt: skip
        if hasattr(self, "feature_names_in_"):
            header["feature_names"] = [str(name) for name in self.feature_names_in_]
        arrays = {"embedding_": self.embedding_, "mean_": self.mean_, "loss_history_": self.loss_history_}
        storage.write(path, _FORMAT, header, arrays | _flat(self._params))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IsometricAutoencoder:
        """The model that :meth:`save` wrote. Raises ModelFileError for any other file."""
        header, arrays = storage.read(path, _FORMAT)
        try:
            lists: dict[str, Any] = {
                name: tuple(v) if isinstance(v, list) else v for name, v in header["parameters"].items()
            }
            model = cls(**lists)
            for name, value in header["state"].items():
                setattr(model, name, value)
            for name in ("embedding_", "mean_", "loss_history_"):
                setattr(model, name, arrays[name])
            columns = int(model.n_features_in_)
            model._spec = Spec(
                model.n_components, columns, tuple(model.hidden), model._image(columns), float(model.lambda_dec),
                float(model.lambda_enc), model.scale == "fit",
            )  # fmt: skip
            like = jax.eval_shape(partial(_init, model._spec), jax.random.key(0))
            model._params = _unflat(like, arrays)
            if "feature_names" in header:
                model.feature_names_in_ = np.array(header["feature_names"], dtype=object)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{path} is not a saved IsometricAutoencoder model: {error}") from None
        return model

    # --- fit, step by step

    def _check_parameters(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "scale": (None, "fit"),
            "warm_start_embedding": ("rigid", "isomap", None),
            "architecture": ("mlp", "conv"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise IsoICAError(f"{name}={getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}")
        for name in ("n_components", "max_steps", "batch_size", "checkpoint_every"):
            if not (isinstance(getattr(self, name), (int, np.integer)) and getattr(self, name) >= 1):
                raise IsoICAError(f"{name}={getattr(self, name)!r}; must be an integer of at least 1")
        if not self.learning_rate > 0:
            raise IsoICAError(f"learning_rate={self.learning_rate!r}; must be positive")
        if not (self.lambda_dec >= 0 and self.lambda_enc >= 0):
            raise IsoICAError(f"lambda_dec={self.lambda_dec!r}, lambda_enc={self.lambda_enc!r}; may not be negative")
        if not self.hidden or min(self.hidden) < 1:
            raise IsoICAError(f"hidden={self.hidden!r}; give one or more positive widths")

    def _image(self, columns: int) -> tuple[int, int, int] | None:
        if self.architecture == "mlp":
            return None
        side = int(np.sqrt(columns))
        shape = (side, side) if self.image_shape is None else tuple(int(s) for s in self.image_shape)
        height, width, channels = (*shape, 1) if len(shape) == 2 else shape
        if height * width * channels != columns or height % 8 or width % 8:
            raise IsoICAError(
                f"image_shape={self.image_shape!r} does not fit {columns} columns; give (height, width) or (height, "
                "width, channels) with sides that are multiples of 8"
            )
        return height, width, channels

    def _warm_start(self, X: Array, rng: np.random.Generator) -> tuple[NDArray[np.intp], Array]:
        """Rows (m,) and their coordinates (m, d) in units of the code; no rows for a random start."""
        if self.warm_start_embedding is None:
            return np.empty(0, np.intp), np.empty((0, self.n_components))
        rows = np.sort(rng.choice(len(X), min(len(X), _WARM_ROWS), replace=False))
        iterations = 300 if self.warm_start_embedding == "rigid" else 0
        model = RigidAlignment(self.n_components, max_iter=iterations, random_state=int(rng.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be exact
            return rows, model.fit_transform(X[rows]) / self.unit_

    def _train(self, rows: Array, warm: NDArray[np.intp], targets: Array, seed: int) -> State:
        spec, total = self._spec, int(self.max_steps)
        first = min(total, round(_WARM_SHARE * total)) if len(warm) else 0
        schedule = optax.cosine_decay_schedule(self.learning_rate, total)
        key = jax.random.key(seed)
        params = _init(spec, jax.random.fold_in(key, 2**31 - 1))
        adam = optax.adam(schedule)
        state = State(params, adam.init(params), jnp.int32(0))
        history: list[float] = []
        print_ = json.dumps([spec, len(rows), total, int(self.batch_size), float(self.learning_rate), seed,
                             float(rows.sum()), float(np.abs(targets).sum())])  # fmt: skip
        file = None if self.checkpoint_dir is None else Path(self.checkpoint_dir) / "isometric_autoencoder.npz"
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                state, history = _resume(file, state, history, print_)
        mesh = Mesh(np.array(jax.devices()), ("samples",))
        spread = mesh if self.batch_size % mesh.size == 0 else None
        data = (jnp.asarray(rows, jnp.float32), jnp.asarray(warm), jnp.asarray(targets, jnp.float32))
        step = int(state.step)
        try:
            while step < total:
                phase = step < first
                length = min(_CALL, (first if phase else total) - step)
                state, losses = _run(
                    state, data, key, spec=spec, schedule=_Schedule(self.learning_rate, total), length=length,
                    batch=int(self.batch_size), warm=phase, mesh=spread,
                )  # fmt: skip
                history.append(float(losses.mean()))
                step += length
                if not np.isfinite(history[-1]):
                    raise IsoICAError(f"the loss is not finite at step {step}; lower learning_rate")
                if self.verbose:
                    print(f"step {step} of {total}: loss {history[-1]:.5f}")
                if file is not None and (step // self.checkpoint_every > (step - length) // self.checkpoint_every):
                    _keep(file, state, history, print_)
        except KeyboardInterrupt:
            warnings.warn(f"interrupted at step {step} of {total}; the weights so far are kept", ConvergenceWarning, 3)
        if file is not None:
            _keep(file, state, history, print_)
        self.loss_history_, self.n_steps_ = np.array(history), step
        return state

    def _in_blocks(self, function: Any, rows: Array) -> Array:
        """function(spec, params, block) over blocks of one size, so that it compiles once; float64."""
        size = min(len(rows), _ROWS)
        out = []
        for start in range(0, len(rows), size):
            index = np.minimum(np.arange(start, start + size), len(rows) - 1)
            out.append(
                np.asarray(function(self._spec, self._params, jnp.asarray(rows[index], jnp.float32)), np.float64)
            )
        return np.concatenate(out)[: len(rows)]

    @property
    def _n_features_out(self) -> int:
        return int(self._spec.d)


# --- networks: plain functions of weights


def _init(spec: Spec, key: jax.Array) -> Params:
    """Weights of both networks, and the logarithm of the scale."""
    keys = iter(jax.random.split(key, 64))

    def dense(into: int, out: int) -> Params:
        return {"w": jax.random.normal(next(keys), (into, out)) / np.sqrt(into), "b": jnp.zeros(out)}

    def conv(into: int, out: int) -> Params:
        return {"w": jax.random.normal(next(keys), (3, 3, into, out)) / np.sqrt(9 * into), "b": jnp.zeros(out)}

    widths, encoder_convs, decoder_convs = spec.hidden, [], []
    flat = spec.columns
    if spec.image is not None:
        height, width, channels = spec.image
        ladder = (channels, *_CHANNELS)
        encoder_convs = [conv(a, b) for a, b in itertools.pairwise(ladder)]
        decoder_convs = [conv(b, a) for a, b in reversed(list(itertools.pairwise(ladder)))]
        flat = (height // 8) * (width // 8) * _CHANNELS[-1]
    sizes = (flat, *widths, spec.d)
    return {
        "encoder": {
            "convs": encoder_convs,
            "layers": [dense(a, b) for a, b in itertools.pairwise(sizes)],
        },
        "decoder": {
            "layers": [dense(a, b) for a, b in zip(sizes[::-1], sizes[-2::-1], strict=False)],
            "convs": decoder_convs,
        },
        "log_scale": jnp.zeros(()),
    }


def _layers(layers: list[Params], x: jax.Array) -> jax.Array:
    for place, layer in enumerate(layers):
        x = x @ layer["w"] + layer["b"]
        if place < len(layers) - 1:
            x = jax.nn.silu(x)
    return x


def _conv(layer: Params, x: jax.Array, stride: int) -> jax.Array:
    out = jax.lax.conv_general_dilated(
        x, layer["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + layer["b"]


@partial(jax.jit, static_argnums=0)
def _encode(spec: Spec, params: Params, x: jax.Array) -> jax.Array:
    net = params["encoder"]
    if spec.image is not None:
        x = x.reshape(-1, *spec.image)
        for layer in net["convs"]:
            x = jax.nn.silu(_conv(layer, x, 2))
        x = x.reshape(len(x), -1)
    return _layers(net["layers"], x)


@partial(jax.jit, static_argnums=0)
def _decode(spec: Spec, params: Params, z: jax.Array) -> jax.Array:
    net = params["decoder"]
    x = _layers(net["layers"], z)
    if spec.image is None:
        return x
    height, width, _ = spec.image
    x = jax.nn.silu(x).reshape(len(x), height // 8, width // 8, -1)
    for place, layer in enumerate(net["convs"]):
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = _conv(layer, x, 1)
        if place < len(net["convs"]) - 1:
            x = jax.nn.silu(x)
    return x.reshape(len(x), -1)


@partial(jax.jit, static_argnums=0)
def _decoder_jacobian(spec: Spec, params: Params, z: jax.Array) -> jax.Array:
    """(n, D, d), one forward derivative for each axis of the code."""
    return jax.vmap(jax.jacfwd(lambda one: _decode(spec, params, one[None])[0]))(z)


@partial(jax.jit, static_argnums=0)
def _encoder_jacobian(spec: Spec, params: Params, x: jax.Array) -> jax.Array:
    """(n, d, D), one backward derivative for each axis of the code."""
    return jax.vmap(jax.jacrev(lambda one: _encode(spec, params, one[None])[0]))(x)


# --- training


class _Schedule(NamedTuple):
    rate: float
    steps: int


def _loss(spec: Spec, params: Params, x: jax.Array, key: jax.Array) -> jax.Array:
    z = _encode(spec, params, x)
    # One code is d units of variance one, so that tr Cov is d.
    loss = jnp.mean(jnp.sum((_decode(spec, params, z) - x) ** 2, axis=1)) / spec.d
    scale = jnp.exp(params["log_scale"]) if spec.fit_scale else 1.0
    if spec.lambda_dec:
        order, mix, which = jax.random.split(key, 3)
        u = jax.random.uniform(mix, (len(z), 1))
        between = u * z + (1 - u) * z[jax.random.permutation(order, len(z))]
        places = jnp.where(jax.random.bernoulli(which, 0.5, (len(z), 1)), z, between)
        loss = loss + spec.lambda_dec * jnp.mean(squared_distance(_decoder_jacobian(spec, params, places), scale))
    if spec.lambda_enc:
        J = jnp.swapaxes(_encoder_jacobian(spec, params, x), 1, 2)
        loss = loss + spec.lambda_enc * jnp.mean(squared_distance(J, 1 / scale))
    return loss


def _warm_loss(spec: Spec, params: Params, x: jax.Array, z: jax.Array) -> jax.Array:
    """Both networks apart: E on the coordinates, D back."""
    codes = jnp.mean(jnp.sum((_encode(spec, params, x) - z) ** 2, axis=1))
    points = jnp.mean(jnp.sum((_decode(spec, params, z) - x) ** 2, axis=1))
    return (codes + points) / spec.d


@partial(jax.jit, static_argnames=("spec", "schedule", "length", "batch", "warm", "mesh"), donate_argnums=0)
def _run(
    state: State,
    data: tuple[jax.Array, jax.Array, jax.Array],
    key: jax.Array,
    *,
    spec: Spec,
    schedule: _Schedule,
    length: int,
    batch: int,
    warm: bool,
    mesh: Mesh | None,
) -> tuple[State, jax.Array]:
    """``length`` steps in one program; draws depend on the key and the number of the step alone."""
    rows, warm_rows, targets = data
    adam = optax.adam(optax.cosine_decay_schedule(schedule.rate, schedule.steps))

    def split(values: jax.Array) -> jax.Array:
        if mesh is None or mesh.size == 1:
            return values
        return jax.lax.with_sharding_constraint(values, NamedSharding(mesh, PartitionSpec("samples")))  # type: ignore[no-untyped-call]

    def step(state: State, _: None) -> tuple[State, jax.Array]:
        draw, noise = jax.random.split(jax.random.fold_in(key, state.step))
        if warm:
            chosen = split(jax.random.randint(draw, (batch,), 0, len(warm_rows)))
            value, grads = jax.value_and_grad(
                lambda p: _warm_loss(spec, p, split(rows[warm_rows[chosen]]), split(targets[chosen]))
            )(state.params)
        else:
            chosen = split(jax.random.randint(draw, (batch,), 0, len(rows)))
            value, grads = jax.value_and_grad(lambda p: _loss(spec, p, split(rows[chosen]), noise))(state.params)
        changes, opt = adam.update(grads, state.opt, state.params)
        return State(optax.apply_updates(state.params, changes), opt, state.step + 1), value

    return jax.lax.scan(step, state, None, length=length)


# --- files


def _flat(tree: Any) -> dict[str, NDArray[Any]]:
    return {f"leaf{place:04d}": np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(tree))}


def _unflat(like: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    leaves, structure = jax.tree.flatten(like)
    found = [arrays[f"leaf{place:04d}"] for place in range(len(leaves))]
    for leaf, array in zip(leaves, found, strict=True):
        if leaf.shape != array.shape:
            raise ValueError(f"a weight has shape {array.shape}, not {leaf.shape}")
    return jax.tree.unflatten(structure, found)


def _keep(file: Path, state: State, history: list[float], print_: str) -> None:
    storage.write(file, _CHECKPOINT, {"of": print_, "history": history}, _flat(jax.device_get(state)))


def _resume(file: Path, state: State, history: list[float], print_: str) -> tuple[State, list[float]]:
    header, arrays = storage.read(file, _CHECKPOINT)
    if header["of"] != print_:
        raise IsoICAError(f"{file} is of a training with other data or parameters; give another checkpoint_dir")
    return jax.tree.map(jnp.asarray, _unflat(state, arrays)), list(header["history"])
