"""Any causal order of blocks, fitted from moments block by block with the earlier ones frozen (spec 2.6).

One file per concept, each importing only from those before it: :mod:`~cmaxent.chain.state` (what is fixed),
:mod:`~cmaxent.chain.projection` (moments without a common mechanism), :mod:`~cmaxent.chain.gaussian` (Gaussian blocks),
:mod:`~cmaxent.chain.mixture` (the law of what is placed), :mod:`~cmaxent.chain.discrete` (discrete nodes) and
:mod:`~cmaxent.chain.fit` (the order, and the target's predictor).
"""

from .fit import ChainFit, fit_chain, fit_chain_classifier

__all__ = ["ChainFit", "fit_chain", "fit_chain_classifier"]
