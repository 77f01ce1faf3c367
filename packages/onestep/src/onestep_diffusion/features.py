"""Features in which samples are compared: the rows themselves, a small classifier's that is shipped, or Inception's.

A Frechet distance is "FID" only in Inception's features, whose weights have to be given; else it is FD(name).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from .checkpoint import read_safetensors
from .errors import ConfigError, DataError

Extract = Callable[[NDArray[Any]], NDArray[Any]]
Tree = dict[str, Array]

SHIPPED = {"digits": (8, 8, 1), "fashion": (32, 32, 1)}  # name -> shape of the images
NAMES = ("raw", *SHIPPED, "inception:FILE")
WEIGHTS = Path(__file__).parent / "weights"


def features_of(name: str, *, shift: float = 0.0, scale: float = 1.0, batch: int = 1000) -> Extract:
    """The function from rows (n, *shape) in data units to features (n, p).

    Args:
        name: `raw` (the rows, flattened), `digits` (8 x 8) and `fashion` (32 x 32), the last hidden layer of shipped
            classifiers of these data sets, or `inception:FILE`, weights as torch-fidelity has them.
        shift, scale: of the data, whose images (x - shift) / scale lie in [-1, 1]; not used by `raw`.

    Raises ConfigError for other names; the function raises DataError for rows of another shape.
    """
    kind, _, path = name.partition(":")
    if name == "raw":
        return lambda rows: np.asarray(rows, np.float64).reshape(len(rows), -1)
    if name in SHIPPED:
        arrays, _ = read_safetensors(WEIGHTS / f"{name}.safetensors")
        params = {key: jnp.asarray(value, jnp.float32) for key, value in arrays.items()}
        return partial(_in_batches, jax.jit(partial(hidden, params)), SHIPPED[name], name, shift, scale, batch)
    if kind == "inception" and path:
        return partial(_in_batches, _inception(path), None, name, shift, scale, batch)
    raise ConfigError(f"features: {name!r} is not one of {', '.join(NAMES)}")


def hidden(params: Tree, x: Array) -> Array:
    """(n, p) activations of the last hidden layer of a shipped classifier at images (n, h, w, 1) in [-1, 1].

    Convolutions of 3 x 3, each but the first halving the image, and the mean over positions.
    """
    layers = sum(key.endswith(".kernel") for key in params) - 1
    for place in range(layers):
        stride = (1, 1) if place == 0 and x.shape[1] < 16 else (2, 2)
        x = jax.lax.conv_general_dilated(
            x, params[f"conv{place}.kernel"], stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.silu(x + params[f"conv{place}.bias"])
    return x.mean(axis=(1, 2))


def logits(params: Tree, x: Array) -> Array:
    """(n, classes) of a shipped classifier."""
    return hidden(params, x) @ params["out.kernel"] + params["out.bias"]


def _in_batches(
    run: Callable[[Any], Any],
    shape: tuple[int, ...] | None,
    name: str,
    shift: float,
    scale: float,
    batch: int,
    rows: NDArray[Any],
) -> NDArray[Any]:
    if rows.ndim != 4 or rows.shape[-1] not in (1, 3) or (shape is not None and rows.shape[1:] != shape):
        wanted = "(n, h, w, 1 or 3)" if shape is None else f"(n, {', '.join(map(str, shape))})"
        raise DataError(f"features {name} are of images {wanted}; got {rows.shape}; use raw")
    x = (np.asarray(rows, np.float32) - np.float32(shift)) / np.float32(scale)
    return np.concatenate([np.asarray(run(x[start : start + batch])) for start in range(0, len(x), batch)])


def _inception(path: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    if not Path(path).is_file():
        raise ConfigError(f"features inception:{path}: no such file; give the weights that torch-fidelity uses")
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)

    def run(x: NDArray[Any]) -> NDArray[Any]:
        pixels = np.clip(np.rint(x * 127.5 + 127.5), 0, 255).astype(np.uint8)
        colour = np.repeat(pixels, 4 - pixels.shape[-1], axis=-1) if pixels.shape[-1] == 1 else pixels
        with torch.no_grad():
            found: NDArray[Any] = net(torch.from_numpy(colour[..., :3].transpose(0, 3, 1, 2).copy()))[0].numpy()
        return found

    return run
