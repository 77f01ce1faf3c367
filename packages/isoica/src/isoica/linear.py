"""PerturbedICA: linear ICA of ``X = A S + η h(S)`` as a scikit-learn estimator that knows its own limits."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from scipy import linalg
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

from . import storage
from .asymptotics import Diagnostics, diagnose
from .contrasts import LOGCOSH, Array, Contrast, minimax_contrast, reflect, resolve
from .errors import HeavyTailWarning, IsoICAError, ModelFileError, UnidentifiedWarning
from .report import IdentifiabilityReport, make_report
from .solvers import (
    Far,
    Pass,
    Solution,
    deflation,
    far_from,
    fixed_point,
    numpy_pass,
    polar_factor,
    saddle_test,
    stability,
    symmetric,
)  # fmt: skip
from .theory import WhatIf, what_if
from .whitening import Chunks, limits_of, moments, white_chunks, whitening_matrix

__all__ = ["Contrast", "PerturbedICA"]

logger = logging.getLogger("isoica")

_FORMAT = "isoica/perturbed-ica/1"
_ARRAYS = (
    "components_", "mixing_", "mean_", "whitening_", "rotation_", "alpha_", "alpha_se_", "kappa_", "stderr_",
    "stability_", "unidentified_subspace_",
)  # fmt: skip
_SCALARS = ("n_iter_", "converged_", "gradient_norm_", "objective_", "n_features_in_", "n_samples_", "n_effective_")
_LARGE = 1e9  # n·k² from which it pays to look for an accelerator
_KEPT = 20_000  # recovered training sources kept for report(): enough for the bound, small enough for any model


class PerturbedICA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Linear ICA with error bars for sampling and for a nonlinear misspecification of the mixing.

    Parameters
    ----------
    n_components : int or None
        Number of sources; None takes the numerical rank of X.
    contrast : {"logcosh", "cube", "gauss", "skew", "minimax"}, Contrast or sequence of them
        ``"minimax"`` learns, per component, the spline of least worst-case sensitivity from a logcosh fit.
    algorithm : {"symmetric", "deflation"}
    solver : {"lbfgs", "fastica"}
        Both stop on the largest entry of the gradient; ``"fastica"`` is the classical fixed point.
    whiten : "unit-variance" or False
        False: X is already white (mean 0, covariance identity).
    max_iter, tol : int, float
        ``tol`` bounds the largest gradient entry.
    n_restarts : int
        Random starts; the best objective wins and ``stability_`` compares them.
    saddle_check : bool
        After convergence turn every pair of components by 45° and go on from there if the objective is better.
    bias_weight : float in [0, 1]
        For ``"minimax"``: 0 minimises the variance, 1 the worst-case bias; see ``contrasts.bias_weight_for(n, eta)``.
    backend : {"auto", "numpy", "jax"}
        ``"auto"`` takes JAX for large data (n·k² from 1e9) on an accelerator; its passes use all devices.
    dtype : {"float64", "float32"}
        Of the stored white data; sums are always float64.
    batch_size : int or None
        With a number, X (a memory map, say) is read that many rows at a time and no white copy is kept.
    winsorize : float in [0, 0.5) or None
        Fit to X with every column clipped at this quantile and its complement, against heavy tails: 1e-3, say.
        ``transform`` takes X as it is.
    verbose : int
        1 logs every 10th iteration, 2 every one.
    random_state : int, RandomState or None

    Attributes
    ----------
    components_ : (k, p) unmixing, ``S = (X - mean_) @ components_.T``; sources have variance 1.
    mixing_ : (p, k) pseudo-inverse of ``components_``; the largest entry of each column is positive.
    whitening_ : (k, p), rotation_ : (k, k) : ``components_ = rotation_ @ whitening_``.
    alpha_, alpha_se_ : (k,) non-Gaussianity margins ``E[S g(S)] - E g'(S)`` and their standard errors.
    kappa_, stderr_ : (k, k) entry ij: leakage of source j into estimate i, per unit of perturbation and by sampling.
    stability_ : (k,) agreement of the restarts in [-1, 1]; NaN for a single run.
    unidentified_subspace_ : (p, p) projector on the mixing directions that are not told from Gaussian; 0 below two.
    n_iter_, converged_, gradient_norm_, objective_, n_features_in_, contrasts_, extraction_order_

    Components come in decreasing order of ``|alpha_|/alpha_se_``.

    Raises
    ------
    ValueError
        For NaN or infinite X, a constant column, too few samples, more components than the rank of X.

    Notes
    -----
    Robust here means robust to misspecification of the model, not to outliers. Source of the setting: Buchholz and
    Schölkopf, ICML 2024; the constants are our own.

    Examples
    --------
    >>> from isoica import PerturbedICA
    >>> from isoica.datasets import make_perturbed_linear
    >>> data = make_perturbed_linear(5000, d=3, eta=0.05, random_state=0)
    >>> model = PerturbedICA(random_state=0).fit(data.X)
    >>> model.transform(data.X).shape
    (5000, 3)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        contrast: str | Contrast | Sequence[str | Contrast] = "logcosh",
        algorithm: str = "symmetric",
        solver: str = "lbfgs",
        whiten: str | bool = "unit-variance",
        max_iter: int = 500,
        tol: float = 1e-6,
        n_restarts: int = 1,
        saddle_check: bool = True,
        bias_weight: float = 1.0,
        backend: str = "auto",
        dtype: str = "float64",
        batch_size: int | None = None,
        winsorize: float | None = None,
        verbose: int = 0,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.contrast = contrast
        self.algorithm = algorithm
        self.solver = solver
        self.whiten = whiten
        self.max_iter = max_iter
        self.tol = tol
        self.n_restarts = n_restarts
        self.saddle_check = saddle_check
        self.bias_weight = bias_weight
        self.backend = backend
        self.dtype = dtype
        self.batch_size = batch_size
        self.winsorize = winsorize
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PerturbedICA:
        """Fit to ``X`` (n, p), optionally with non-negative weights (n,). Ctrl-C keeps the best rotation so far."""
        self._check_parameters()
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        n = len(X) if weights is None else int(np.count_nonzero(weights))
        if n <= (self.n_components or 1):
            raise IsoICAError(f"n_samples = {n} is too few for {self.n_components or 1} components; need more")
        n_effective = float(n) if weights is None else float(weights.sum() ** 2 / (weights**2).sum())
        rows = self.batch_size or max(1, 2**22 // X.shape[1])
        limits = limits_of(X, self.winsorize) if self.winsorize else None
        mean, cov = moments(X, weights, rows, limits)
        K = self._whiten(X, mean, cov, n)
        mean = mean if self.whiten else np.zeros(len(mean))
        k = len(K)
        if n < 10 * k:
            warnings.warn(
                f"{n} samples for {k} components: below 10 per component, estimates are noise", UserWarning, 2
            )

        chunks = white_chunks(X, mean, K, weights, self.dtype, self.batch_size, limits)
        passes = self._passes(chunks, n, k)
        self.n_samples_, self.n_effective_ = n, n_effective
        solution, contrasts, self.stability_ = self._solve(chunks, passes, k)
        found = diagnose(chunks, solution.W, contrasts, self.algorithm, n_effective)
        self._store(solution, contrasts, found, K, mean)
        stride = -(-len(X) // _KEPT)
        self._sources: Array | None = self.transform(np.asarray(X[::stride]))
        self._warn(solution, found)
        return self

    def transform(self, X: Any) -> Array:
        """Sources (n, k) of ``X`` (n, p)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return np.asarray((X - self.mean_) @ self.components_.T, dtype=self.dtype)

    def inverse_transform(self, S: Any) -> Array:
        """Observations (n, p) of sources ``S`` (n, k), without the perturbation."""
        check_is_fitted(self)
        S = check_array(S, dtype=[np.float64, np.float32])
        if S.shape[1] != len(self.components_):
            raise IsoICAError(f"S has {S.shape[1]} columns, but the model has {len(self.components_)} components")
        return np.asarray(S @ self.mixing_.T + self.mean_, dtype=self.dtype)

    def report(
        self, X: Any = None, eta: float | None = None, level: float = 0.95, n_permutations: int = 200
    ) -> IdentifiabilityReport:
        """Which components are identified, and how far to trust them.

        Parameters
        ----------
        X : (n, p) or None
            Data on which the perturbation is bounded from below; None takes (a part of) the training data.
        eta : assumed size of the perturbation ‖A⁻¹h‖η for ``n_star``; None takes the estimated lower bound.
        level : of the one-sided lower bound on η.
        """
        check_is_fitted(self)
        S = self._sources if X is None else self.transform(X)
        return make_report(self, S, eta, level, n_permutations)

    def what_if(self, X: Any = None, eta: float = 0.1, pair: tuple[int, int] | None = None) -> WhatIf:
        """What a perturbation of size ``eta`` could do to these sources at worst, shown on this data set.

        ``X`` (n, p); None takes (a part of) the training data. ``pair`` (i, j): leak source j into estimate i; None
        takes the pair of identified components with the largest ``kappa_``. See :func:`theory.what_if`.
        """
        check_is_fitted(self)
        S = self._sources if X is None else self.transform(X)
        if S is None:
            raise IsoICAError("a loaded model has no data; pass X")
        if pair is None:
            weak = np.abs(self.alpha_) < 3 * self.alpha_se_
            shown = np.where(weak[:, None] | weak, 0.0, np.nan_to_num(self.kappa_, posinf=0.0))
            if not shown.any():
                raise IsoICAError("fewer than two components are identified; give the pair to look at")
            i, j = divmod(int(np.argmax(shown)), len(shown))
            pair = i, j
        contrast = getattr(self, "contrasts_", self.contrast)
        return what_if(S, eta, contrast, self.algorithm, pair=pair, order=self.extraction_order_.tolist())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to an ``.npz`` file without pickle, by renaming a finished temporary file."""
        check_is_fitted(self)
        parameters = {k: _plain(v) for k, v in self.get_params(deep=False).items()}
        header: dict[str, Any] = {"parameters": parameters, "state": {k: _plain(getattr(self, k)) for k in _SCALARS}}
        if hasattr(self, "feature_names_in_"):
            header["feature_names"] = [str(x) for x in self.feature_names_in_]
        storage.write(path, _FORMAT, header, {name: getattr(self, name) for name in (*_ARRAYS, "extraction_order_")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PerturbedICA:
        """The model that :meth:`save` wrote. Raises ModelFileError for any other file."""
        header, arrays = storage.read(path, _FORMAT)
        try:
            model = cls(**header["parameters"])
            for name in (*_ARRAYS, "extraction_order_"):
                setattr(model, name, arrays[name])
            for name, value in header["state"].items():
                setattr(model, name, value)
            if "feature_names" in header:
                model.feature_names_in_ = np.array(header["feature_names"], dtype=object)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"{path} is not a saved PerturbedICA model: {error}") from None
        model._sources = None
        return model

    # --- fit, step by step

    def _check_parameters(self) -> None:
        choices = {
            "algorithm": ("symmetric", "deflation"),
            "solver": ("lbfgs", "fastica"),
            "whiten": ("unit-variance", False),
            "backend": ("auto", "numpy", "jax"),
            "dtype": ("float64", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise IsoICAError(f"{name}={getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}")
        for name in ("max_iter", "n_restarts"):
            if not getattr(self, name) >= 1:
                raise IsoICAError(f"{name}={getattr(self, name)!r}; must be at least 1")
        if self.n_components is not None and not self.n_components >= 1:
            raise IsoICAError(f"n_components={self.n_components!r}; must be at least 1 or None")
        if self.batch_size is not None and not self.batch_size >= 1:
            raise IsoICAError(f"batch_size={self.batch_size!r}; must be at least 1 or None")
        if self.winsorize is not None and not 0 <= self.winsorize < 0.5:
            raise IsoICAError(f"winsorize={self.winsorize!r}; must lie in [0, 0.5) or be None")
        if not self.tol > 0:
            raise IsoICAError(f"tol={self.tol!r}; must be positive")
        if not 0 <= self.bias_weight <= 1:
            raise IsoICAError(f"bias_weight={self.bias_weight!r}; must lie in [0, 1]")

    def _whiten(self, X: Array, mean: Array, cov: Array, n: int) -> Array:
        p = X.shape[1]
        constant = np.flatnonzero(np.diag(cov) <= (np.finfo(np.float64).eps * np.abs(mean)) ** 2 * 4)
        if constant.size:
            names = getattr(self, "feature_names_in_", np.arange(p))
            shown = ", ".join(str(names[c]) for c in constant[:5])
            raise IsoICAError(f"X has {constant.size} constant column(s): {shown}; remove them")
        if self.whiten is False:
            if np.max(np.abs(cov - np.eye(p))) > 0.1 or np.max(np.abs(mean)) > 0.1:
                raise IsoICAError('whiten=False needs X with mean 0 and covariance identity; use "unit-variance"')
            if self.n_components not in (None, p):
                raise IsoICAError(f"whiten=False keeps all {p} columns; n_components={self.n_components} cannot be met")
            return np.eye(p)
        K, rank = whitening_matrix(cov, n, self.n_components)
        if self.n_components is None and rank < p:
            warnings.warn(f"X has {p} columns but numerical rank {rank}; {rank} components are fitted", UserWarning, 3)
        return K

    def _passes(self, chunks: Chunks, n: int, k: int) -> tuple[Pass, Far]:
        """The pass to converge with, and what is cheaper far from the optimum."""
        make: Callable[..., Pass] = numpy_pass
        if self.backend == "jax" or (self.backend == "auto" and n * k * k >= _LARGE):
            try:
                module = import_module(".jax_pass", __package__)
                if self.backend == "jax" or module.accelerated():
                    make = partial(module.jax_pass, keep=self.batch_size is None)
            except ImportError as error:
                if self.backend == "jax":
                    raise IsoICAError(f'backend="jax" cannot be used here ({error}); use "numpy" or "auto"') from None
        return make(chunks), far_from(chunks, n, make(chunks, "float32") if self.dtype == "float64" else None)

    def _solve(self, chunks: Chunks, passes: tuple[Pass, Far], k: int) -> tuple[Solution, list[Contrast], Array]:
        rng = check_random_state(self.random_state)
        minimax = isinstance(self.contrast, str) and self.contrast == "minimax"
        contrasts = [LOGCOSH] * k if minimax else resolve(self.contrast, k)
        runs: list[Solution] = []
        for _ in range(self.n_restarts):
            runs.append(self._run(chunks, passes, rng.normal(size=(k, k)), contrasts))
            if runs[-1].interrupted:
                break
        best = _best(runs, contrasts)
        solution = runs[best]
        agreement = stability([r.W for r in runs], best)
        if minimax and not solution.interrupted:
            for _ in range(2):
                contrasts = self._splines(chunks, solution.W)
                spent = solution.n_iter
                solution = self._run(chunks, passes, solution.W, contrasts)
                solution.n_iter += spent
                if solution.interrupted:
                    break
        return solution, contrasts, agreement

    def _run(
        self,
        chunks: Chunks,
        passes: tuple[Pass, Far],
        W: Array,
        contrasts: list[Contrast],
    ) -> Solution:
        pass_, far = passes
        options: dict[str, Any] = {"tol": self.tol, "max_iter": self.max_iter, "on_iter": self._log}
        if self.solver == "fastica":
            return fixed_point(pass_, W, contrasts, algorithm=self.algorithm, **options)
        W = polar_factor(W)
        options["far"] = far
        if self.algorithm == "deflation":
            return deflation(pass_, W, contrasts, **options)
        saddle = saddle_test(chunks, contrasts, self.n_samples_) if self.saddle_check else None
        return symmetric(pass_, W, contrasts, saddle=saddle, **options)

    def _splines(self, chunks: Chunks, W: Array) -> list[Contrast]:
        parts = [(W @ Z.astype(np.float64), w) for Z, w in chunks()]
        Y = np.concatenate([y for y, _ in parts], axis=1)
        weights = None if parts[0][1] is None else np.concatenate([np.asarray(w, np.float64) for _, w in parts])
        return [minimax_contrast(y, weights, self.bias_weight) for y in Y]

    def _log(self, n_iter: int, objective: float, gradient: float) -> None:
        if self.verbose and (self.verbose > 1 or n_iter % 10 == 0):
            logger.info("iteration %d: objective %.8g, largest gradient entry %.2e", n_iter, objective, gradient)

    def _store(self, solution: Solution, contrasts: list[Contrast], found: Diagnostics, K: Array, mean: Array) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.nan_to_num(np.abs(found.margins.alpha) / found.alpha_se)
        order = np.argsort(-z, kind="stable")
        components = solution.W[order] @ K
        mixing = linalg.pinv(components)
        largest = mixing[np.argmax(np.abs(mixing), axis=0), np.arange(len(order))]
        sign = np.where(largest < 0, -1.0, 1.0)
        self.rotation_ = sign[:, None] * solution.W[order]
        self.components_, self.mixing_ = sign[:, None] * components, mixing * sign
        self.whitening_, self.mean_ = K, mean
        # The contrast that sees -S as the fitted one saw S: what was learnt about the component stays true.
        self.contrasts_ = [
            reflect(contrasts[i]) if flip < 0 else contrasts[i] for i, flip in zip(order, sign, strict=True)
        ]
        odd = np.array([_even(contrasts[i]) and flip < 0 for i, flip in zip(order, sign, strict=True)])
        self.alpha_ = np.where(odd, -1.0, 1.0) * found.margins.alpha[order]
        self.alpha_se_ = found.alpha_se[order]
        self.kappa_, self.stderr_ = found.kappa[np.ix_(order, order)], found.stderr[np.ix_(order, order)]
        self.stability_ = self.stability_[order]
        self.extraction_order_ = order
        self.n_iter_, self.converged_ = max(1, solution.n_iter), solution.converged
        self.gradient_norm_, self.objective_ = solution.gradient, solution.objective
        weak = np.abs(self.alpha_) < 3 * self.alpha_se_
        basis = linalg.orth(self.mixing_[:, weak]) if weak.sum() >= 2 else np.zeros((len(mean), 0))
        self.unidentified_subspace_ = basis @ basis.T

    def _warn(self, solution: Solution, found: Diagnostics) -> None:
        if solution.interrupted:
            warnings.warn("fit was interrupted; the best rotation so far is kept", ConvergenceWarning, 3)
        elif not solution.converged:
            warnings.warn(
                f"not converged after {solution.n_iter} iterations: largest gradient entry {solution.gradient:.1e} > "
                f"tol {self.tol:.1e}; raise max_iter or tol, or remove components near Gaussian",
                ConvergenceWarning,
                3,
            )
        heavy = np.flatnonzero(found.share[self.extraction_order_] > 0.5)
        if heavy.size and self.n_samples_ > 10:
            warnings.warn(
                f"five samples hold more than half of a contrast moment in component(s) {heavy.tolist()}: "
                "set winsorize, as to 1e-3, or use a bounded contrast",
                HeavyTailWarning,
                3,
            )
        weak = np.flatnonzero(np.abs(self.alpha_) < 3 * self.alpha_se_)
        if weak.size >= 2:
            warnings.warn(
                f"components {weak.tolist()} cannot be told from Gaussian (|alpha| < 3 standard errors): only their "
                "span is identified, see unidentified_subspace_",
                UnidentifiedWarning,
                3,
            )

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _best(runs: list[Solution], contrasts: list[Contrast]) -> int:
    if len(runs) == 1:
        return 0
    # E G of a Gaussian, so that runs with different signs can be compared.
    x, weight = np.polynomial.hermite_e.hermegauss(60)
    gaussian = np.array([weight @ c.G(x) for c in contrasts]) / np.sqrt(2 * np.pi)
    return int(np.argmin([r.objective + float(r.signs @ gaussian) for r in runs]))


def _even(contrast: Contrast) -> bool:
    u = np.array([0.1, 0.35, 0.8, 1.3, 2.1, 3.4])
    return bool(np.allclose(contrast.g(-u), contrast.g(u), rtol=1e-12, atol=0))


def _plain(value: Any) -> Any:
    if isinstance(value, Contrast):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else None
