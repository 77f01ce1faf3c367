"""Training: from a configuration and a corpus to checkpoints (`GiddTrainer`), or in memory (`train_model`)."""

from .autoregressive import next_token_nll
from .checkpoint import latest_step
from .config import TrainConfig, load_config
from .memory import train_model
from .noise import NoiseOptions, NoisyBatch, noisy_batch, stratified_times
from .optim import LaProp, learning_rate_factor
from .trainer import FitResult, GiddTrainer, TrainingDiverged, TrainingInterrupted

__all__ = [
    "FitResult",
    "GiddTrainer",
    "LaProp",
    "NoiseOptions",
    "NoisyBatch",
    "TrainConfig",
    "TrainingDiverged",
    "TrainingInterrupted",
    "latest_step",
    "learning_rate_factor",
    "load_config",
    "next_token_nll",
    "noisy_batch",
    "stratified_times",
    "train_model",
]
