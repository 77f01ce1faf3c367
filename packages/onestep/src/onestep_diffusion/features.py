"""Features in which samples of images are compared: two small classifiers that come with the package, or Inception.

The Fréchet distance is "FID" in Inception's features alone. In those of `digits` and `fashion` it is FD(digits) and
FD(fashion): classifiers trained on the very data set, whose last hidden layer is 64 wide.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from . import nets
from .errors import ConfigError, DataError

NAMES = ("raw", "digits", "fashion", "inception:FILE")
SHIPPED = {"digits": ((8, 8, 1), 16.0), "fashion": ((32, 32, 1), 255.0)}  # shape of the images, and their white
WIDTH = 64  # of the features
BATCH = 512

Images = NDArray[Any]


class Classifier(nnx.Module):
    """Three convolutions down to 4 x 4 places and a hidden layer, which are the features: 87,000 weights."""

    def __init__(self, side: int, *, rngs: nnx.Rngs) -> None:
        strides = (2, 2, 2) if side > 16 else (1, 2, 1)
        widths = (1, 24, 40, 56)
        self.convolutions = nnx.List(
            nnx.Conv(a, b, (3, 3), strides=stride, rngs=rngs)
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.hidden = nnx.Linear(16 * widths[-1], WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 10, rngs=rngs)

    def features(self, x: Array) -> Array:
        """(n, h, w, 1) in [-1, 1] -> (n, 64)."""
        for convolution in self.convolutions:
            x = nnx.silu(convolution(x))
        return nnx.silu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x: Array) -> Array:
        """(n, h, w, 1) in [-1, 1] -> scores (n, 10)."""
        return self.out(self.features(x))


@dataclass(frozen=True)
class Trained:
    """A classifier with its accuracy on images that it was not trained on."""

    net: Classifier
    accuracy: float


def features(x: ArrayLike, name: str = "raw") -> NDArray[np.float64]:
    """(n, d) features of samples in data units.

    name: `raw`, the numbers themselves; `digits` for 8 x 8 images in 0 … 16, as scikit-learn's; `fashion` for 32 x 32
    images in 0 … 255, as Fashion-MNIST's with a border of two; `inception:FILE`, the 2048 of Inception by
    torch-fidelity (extra `fid`) with its weights from a file of yours, for uint8 images or floats in 0 … 255.
    Images may be flattened for `digits` and `fashion`.

    Raises ConfigError for another name, DataError for samples of another shape or that are not finite.
    """
    rows = np.asarray(x)
    if rows.ndim < 2 or len(rows) == 0 or not np.isfinite(rows).all():
        raise DataError(f"samples have to be (n, d) or (n, h, w, c) finite numbers; got {rows.shape} or others in it")
    kind, _, file = name.partition(":")
    if kind == "inception" and file:
        return _inception(rows, Path(file))
    if name == "raw":
        return rows.reshape(len(rows), -1).astype(np.float64)
    if name not in SHIPPED:
        raise ConfigError(f"features: {name!r} is not one of {', '.join(NAMES)}")
    shape, white = SHIPPED[name]
    if rows[0].size != np.prod(shape):
        raise DataError(f"features {name!r} are for images {shape}; got samples of shape {rows.shape[1:]}")
    return _in_batches(_run(name), rows.reshape(-1, *shape).astype(np.float32) * (2 / white) - 1)


def accuracy(name: str) -> float:
    """Of a shipped classifier, on images that it was not trained on."""
    return shipped(name).accuracy


@cache
def shipped(name: str) -> Trained:
    """A classifier that comes with the package: `digits` or `fashion`."""
    path = Path(str(files(__package__) / "assets" / f"features_{name}.safetensors"))
    net = nnx.eval_shape(lambda: Classifier(SHIPPED[name][0][0], rngs=nnx.Rngs(0)))
    graphdef, like = nets.split(net)
    with safe_open(path, "numpy") as found:
        facts = json.loads(found.metadata()["facts"])
        flat = {key: jnp.asarray(found.get_tensor(key), jnp.float32) for key in found.keys()}  # noqa: SIM118
    params = jax.tree_util.tree_map_with_path(lambda place, _: flat[jax.tree_util.keystr(place)], like)
    return Trained(nets.merge(graphdef, params), facts["accuracy"])


def train_classifier(
    train: tuple[Images, Images], test: tuple[Images, Images], *, steps: int, batch: int = 128, seed: int = 0
) -> Trained:
    """Cross-entropy by Adam (1e-3, cosine) on images (n, h, w, 1) in [-1, 1], shifted by up to a pixel."""
    net = Classifier(train[0].shape[1], rngs=nnx.Rngs(seed))
    graphdef, params = nets.split(net)
    adam = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    x, y = jnp.asarray(train[0], jnp.float32), jnp.asarray(train[1])

    def loss(params: Any, images: Array, labels: Array) -> Array:
        scores = nets.merge(graphdef, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    # Not by a scan: on a CPU, XLA's convolutions are 13 times slower inside a loop.
    @partial(jax.jit, donate_argnums=0)
    def update(carry: Any, key: Array) -> Any:
        params, state = carry
        which, shift = jax.random.split(key)
        rows = jax.random.randint(which, (batch,), 0, len(x))
        moves = jax.random.randint(shift, (2,), -1, 2)
        images = jnp.roll(x[rows], moves, (1, 2))
        changes, state = adam.update(jax.grad(loss)(params, images, y[rows]), state)
        return optax.apply_updates(params, changes), state

    carry: Any = (params, adam.init(params))
    for key in jax.random.split(jax.random.key(seed), steps):
        carry = update(carry, key)
    trained = nets.merge(graphdef, carry[0])
    scores = _in_batches(jax.jit(trained), np.asarray(test[0], np.float32))
    return Trained(trained, float((scores.argmax(1) == test[1]).mean()))


def save_classifier(path: Path, trained: Trained, **facts: Any) -> None:
    """Half-precision weights, with the accuracy and where they came from in the header."""
    leaves = jax.tree_util.tree_leaves_with_path(nets.split(trained.net)[1])
    arrays = {jax.tree_util.keystr(place): np.asarray(leaf, np.float16) for place, leaf in leaves}
    save_file(arrays, path, {"facts": json.dumps({"accuracy": trained.accuracy, **facts})})


@cache
def _run(name: str) -> Callable[[Images], Array]:
    graphdef, params = nets.split(shipped(name).net)
    return jax.jit(lambda images: nets.merge(graphdef, params).features(images))


def _in_batches(run: Callable[[Images], Array], images: Images) -> NDArray[np.float64]:
    """Pieces of one size, so that they compile once."""
    size = min(BATCH, len(images))
    padded = np.concatenate([images, np.zeros((-len(images) % size, *images.shape[1:]), images.dtype)])
    done = [np.asarray(run(piece)) for piece in padded.reshape(-1, size, *images.shape[1:])]
    return np.concatenate(done)[: len(images)].astype(np.float64)


def _inception(rows: Images, path: Path) -> NDArray[np.float64]:
    if not path.is_file():
        raise ConfigError(f"features: there is no file {path}; Inception's weights are not part of any package")
    if rows.ndim != 4 or rows.shape[3] not in (1, 3):
        raise DataError(f"Inception takes images (n, h, w, 1 or 3); got samples of shape {rows.shape[1:]}")
    try:
        import torch
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ConfigError("Inception needs torch-fidelity; run: pip install 'onestep-diffusion[fid]'") from None
    try:
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path)).eval()
    except Exception as error:
        raise ConfigError(f"features: {path} does not hold Inception's weights: {str(error).splitlines()[0]}") from None
    done = []
    for start in range(0, len(rows), 64):
        piece = np.clip(np.rint(rows[start : start + 64]), 0, 255).astype(np.uint8)
        image = torch.from_numpy(np.broadcast_to(piece, (*piece.shape[:3], 3)).copy()).permute(0, 3, 1, 2)
        with torch.inference_mode():
            done.append(net(image)[0].numpy())
    return np.concatenate(done).astype(np.float64)
