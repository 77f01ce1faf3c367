"""Networks. Everything else in the package takes any callable ``model(z, t) -> logits``; these come with it."""

from .backbone import HFBackbone
from .base import Backbone, ModelConfig
from .dit import DiT, DiTConfig
from .scaling import PrefixCache, ScalingConfig, ScalingTransformer

__all__ = [
    "Backbone",
    "DiT",
    "DiTConfig",
    "HFBackbone",
    "ModelConfig",
    "PrefixCache",
    "ScalingConfig",
    "ScalingTransformer",
]
