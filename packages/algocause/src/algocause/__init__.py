"""Causal structure from compression across environments (arXiv:2502.04210)."""

__version__ = "0.1.0"
