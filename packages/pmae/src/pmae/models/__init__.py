"""Networks of masked autoencoding: encoders, decoders, and the two methods PMAE and MAE."""

from .torchvision_operators import declare_missing

declare_missing()  # before anything imports timm

from .autoencoder import PMAE, PixelMAE, PMAEOutput, load  # noqa: E402
from .config import PRESETS, TRAINING, PMAEConfig  # noqa: E402

__all__ = ["PMAE", "PRESETS", "TRAINING", "PMAEConfig", "PMAEOutput", "PixelMAE", "load"]
