"""The training loss and the ELBO per token, at the cost of a cross-entropy."""

from .api import GiddLossOutput, fused_linear_gidd_loss, gidd_loss

__all__ = ["GiddLossOutput", "fused_linear_gidd_loss", "gidd_loss"]
