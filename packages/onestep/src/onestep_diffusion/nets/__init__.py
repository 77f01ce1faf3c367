"""Networks: denoisers, and the ratio networks that are their encoders.

All are functions of preconditioned inputs, net(c_in x, c_noise, labels), as F of EDM is; `osd.denoise` and
`osd.log_ratio` put them into the method's units. They are built from plain dicts, {"net": "mlp", "dim": 2}, and
`split` and `merge` pass between a network and a nested dict of arrays, which is all that training sees.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import nnx

from ..errors import ConfigError
from .adm_unet import ADMUNet, ADMUNetRatio
from .dit import DiT, DiTRatio
from .layers import NoRngs
from .mlp import MLPDenoiser, MLPRatio
from .song_unet import SongUNet, SongUNetRatio

__all__ = [
    "NETS",
    "PRESETS",
    "ADMUNet",
    "ADMUNetRatio",
    "DiT",
    "DiTRatio",
    "MLPDenoiser",
    "MLPRatio",
    "SongUNet",
    "SongUNetRatio",
    "abstract",
    "build",
    "config",
    "count_parameters",
    "merge",
    "preset",
    "preset_of",
    "settings_of",
    "split",
]

Params = dict[str, Any]  # nested by attribute; leaves are arrays

NETS: dict[str, Any] = {
    "mlp": MLPDenoiser,
    "mlp_ratio": MLPRatio,
    "song_unet": SongUNet,
    "song_unet_ratio": SongUNetRatio,
    "adm_unet": ADMUNet,
    "adm_unet_ratio": ADMUNetRatio,
    "dit": DiT,
    "dit_ratio": DiTRatio,
}

# Settings beside those that follow from the data, see `preset`.
PRESETS: dict[str, dict[str, Any]] = {
    "mlp": {"net": "mlp"},
    "unet8": {"net": "song_unet", "base": 32, "mult": (1, 2), "blocks": 1, "attention": ()},
    "unet32": {"net": "song_unet", "base": 64, "mult": (1, 2, 2), "blocks": 2},
    "cifar10": {"net": "song_unet", "dropout": 0.13},
    "imagenet64": {"net": "adm_unet", "dropout": 0.1},
    "latent": {"net": "dit"},
}


def preset(name: str, shape: Sequence[int], labels: int = 0) -> dict[str, Any]:
    """The config of a preset for samples of this shape, (d,) or (h, w, c), in this many classes.

    Raises ConfigError for an unknown preset and for data it does not fit.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset: {name!r} is not one of {', '.join(PRESETS)}")
    chosen = PRESETS[name] | {"labels": labels}
    if chosen["net"] == "mlp":
        if len(shape) != 1:
            raise ConfigError(f"preset {name} takes vectors (d,); got samples of shape {tuple(shape)}")
        return chosen | {"dim": int(shape[0])}
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ConfigError(f"preset {name} takes square images (h, h, c); got samples of shape {tuple(shape)}")
    return chosen | {"image_size": int(shape[0]), "channels": int(shape[2])}


def preset_of(net: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset for networks of this kind, and the settings, but the precision, that make it this config's."""
    name = next(name for name, found in PRESETS.items() if found["net"] == net["net"])
    return name, {key: value for key, value in net.items() if key not in ("net", "precision")}


def build(config: Mapping[str, Any], *, rngs: nnx.Rngs | NoRngs) -> Any:
    """A network with fresh weights from {"net": name, setting: value, ...}. Compiles slowly under jit: call it outside.

    Raises ConfigError for an unknown network or setting, a missing one, and values out of range.
    """
    settings = dict(config)
    name = settings.pop("net", None)
    if name not in NETS:
        raise ConfigError(f"net: {name!r} is not one of {', '.join(NETS)}")
    known = _settings(NETS[name])
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in settings]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}")
    return NETS[name](**settings, rngs=rngs)


def abstract(config: Mapping[str, Any]) -> Any:
    """The same network with shapes in place of weights: no memory, no arithmetic; do not change it."""
    return _abstract(json.dumps(dict(config), sort_keys=True))


def config(net: Any) -> dict[str, Any]:
    """The dict that `build` makes a network of this architecture from; it goes through JSON unchanged."""
    name = next((name for name, kind in NETS.items() if type(net) is kind), None)
    if name is None:
        raise ConfigError(f"{type(net).__name__} is not one of {', '.join(kind.__name__ for kind in NETS.values())}")
    values = {setting: getattr(net, setting) for setting in _settings(type(net))}
    return {"net": name, **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}


def split(net: Any) -> tuple[Any, Params]:
    """(graphdef, params): the architecture, hashable, and its weights, a nested dict of f32 arrays."""
    graphdef, state = nnx.split(net)
    return graphdef, nnx.to_pure_dict(state)


def merge(graphdef: Any, params: Params) -> Any:
    """The network of this architecture and these weights; works under jit, grad and vmap."""
    return nnx.merge(graphdef, params)


def count_parameters(module: Any) -> int:
    """Number of weights of a network, an abstract one, or anything that has its network as `net`."""
    leaves = jax.tree.leaves(nnx.state(getattr(module, "net", module), nnx.Param))
    return sum(int(np.prod(leaf.shape)) for leaf in leaves)


@cache
def _abstract(config: str) -> Any:
    return nnx.eval_shape(lambda: build(json.loads(config), rngs=NoRngs()))


def settings_of(net: str) -> tuple[str, ...]:
    """The settings that networks of this name take."""
    return tuple(_settings(NETS[net]))


def _settings(kind: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in ("self", "rngs")}
