"""What a frozen or fine-tuned encoder is worth on labelled images."""

from .features import extract
from .finetune import finetune
from .knn import PAPER_K, knn_probe
from .linear import linear_probe
from .mlp import mlp_probe
from .probe import KINDS, probe
from .result import ProbeResult

__all__ = ["KINDS", "PAPER_K", "ProbeResult", "extract", "finetune", "knn_probe", "linear_probe", "mlp_probe", "probe"]
