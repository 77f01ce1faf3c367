"""Codes of mechanisms, partitions and graphs, all in bits."""

from .graph_codes import parent_set_bits
from .nml import log2_multinomial_nml
from .partition_codes import crp_bits, log2_stirling2, stirling_bits

__all__ = ["crp_bits", "log2_multinomial_nml", "log2_stirling2", "parent_set_bits", "stirling_bits"]
