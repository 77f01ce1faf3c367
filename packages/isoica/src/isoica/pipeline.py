"""NearIsometricICA: an almost isometric embedding, then linear ICA, and one report on how far to trust both."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import storage
from .alignment import chart_derivatives
from .errors import IsoICAError, ModelFileError
from .isometry import theta_from_jacobians
from .linear import PerturbedICA
from .manifold import RigidAlignment
from .neighbours import Dimension, intrinsic_dimension, neighbours_of, tangent_places
from .report import IdentifiabilityReport, make_report
from .rigidity import rigidity_constants

Array = NDArray[np.float64]

logger = logging.getLogger("isoica")

_FORMAT = "isoica/near-isometric-ica/1"
_KEPT = 5000  # sources kept for report()
_STATE = ("n_components_", "theta_", "theta_stderr_", "theta_floor_", "stretch_", "n_features_in_")
_SAVABLE = {"RigidAlignment": "manifold", "IsometricAutoencoder": "autoencoder"}


@dataclass(frozen=True)
class NearIsometryReport:
    """Both certificates: how far from isometry the embedding is, and what that costs the sources.

    theta, theta_stderr, theta_floor : Θ_2 of the embedding, its standard error, and what noise and curvature alone give
        (NaN where not known). One-sided: a mixing can be further from isometry than any chart of its image shows.
    deviation_detected : theta above 1.5 floors.
    k_aff : rigidity constant K of the recovered source laws in their natural units, stretch : L/ℓ of the embedding.
    residual : ``ε = K (1 + L/ℓ) Θ``, how far from affine in the latents the embedding can be, root mean square.
    sd : (k,) standard deviations of the sources in the units of the data; amplification : their largest ratio. Errors
        on a thin axis are amplified by it.
    eta : ``ε/(σ_min(A) - ε)``, the perturbation of linear ICA that follows; infinite where ε reaches σ_min.
    ica : report of the linear half at this eta.
    """

    theta: float
    theta_stderr: float
    theta_floor: float
    deviation_detected: bool
    k_aff: float
    stretch: float
    residual: float
    sd: Array
    amplification: float
    eta: float
    ica: IdentifiabilityReport
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN and infinity become None."""
        numbers = ("theta", "theta_stderr", "theta_floor", "k_aff", "stretch", "residual", "amplification", "eta")
        return {
            **{n: float(v) if np.isfinite(v := getattr(self, n)) else None for n in numbers},
            "deviation_detected": self.deviation_detected,
            "sd": self.sd.tolist(),
            "warnings": self.warnings,
            "ica": self.ica.to_dict(),
        }

    def to_text(self) -> str:
        """A page to read."""
        if np.isnan(self.theta_floor):
            verdict = "what noise alone gives is not known"
        else:
            found = "a deviation from isometry" if self.deviation_detected else "no deviation from isometry detected"
            verdict = f"floor {self.theta_floor:.4f}: {found}"
        lines = [
            f"embedding: theta = {self.theta:.4f} +- {self.theta_stderr:.4f}, {verdict}",
            "  one-sided: the mixing may be further from isometry than its best chart shows; no data can exclude it.",
            f"  if theta is all: within {self.residual:.4f} of affine in the latents (K = {self.k_aff:.3f}, L/l = "
            f"{self.stretch:.3f}), for linear ICA a perturbation eta <= {self.eta:.4f}",
            f"  source scales {np.array2string(self.sd, precision=3)}: errors on the thinnest are amplified "
            f"{self.amplification:.2f} times",
            *[f"warning: {w}" for w in self.warnings],
        ]
        return "\n".join([*lines, self.ica.to_text()])


class NearIsometricICA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Nonlinear ICA of ``X = f(S)`` for an almost isometric mixing f: embed, then unmix linearly.

    Parameters
    ----------
    n_components : int or "auto"
        Number of sources. "auto" takes the rounded TwoNN estimate of the intrinsic dimension, or the gap of the local
        PCA where that is smaller, and logs both at warning level.
    embedding : {"rigid", "isomap", "hlle", "ltsa", "autoencoder"} or estimator
        "rigid": :class:`RigidAlignment`. "isomap", "hlle", "ltsa": its initial embeddings as they are, with the same
        charts. "autoencoder": :class:`IsometricAutoencoder`. An estimator is cloned and given ``n_components`` where it
        has such a parameter.
    ica : PerturbedICA or None
        Cloned; None for the default with ``random_state``.
    random_state : int, RandomState or None

    Attributes
    ----------
    embedding_estimator_, ica_ : the fitted halves.
    theta_, theta_stderr_, theta_floor_, stretch_ : of the embedding, see :class:`NearIsometryReport`.
    n_components_ : int. dimension_ : both estimates, or None where the number was given.
    report_ : :class:`NearIsometryReport` on the training data.
    n_features_in_

    Raises
    ------
    ValueError
        For NaN or infinite X, fewer columns than components, too few different points.

    Notes
    -----
    The setting is Buchholz and Schölkopf, ICML 2024 (arXiv:2503.15355); the constants in the report are our own.

    Examples
    --------
    >>> from isoica import NearIsometricICA
    >>> from isoica.datasets import make_near_isometric
    >>> from isoica.metrics import mcc
    >>> data = make_near_isometric(1000, 2, theta=0.05, random_state=0)
    >>> mcc(data.S, NearIsometricICA(2, random_state=0).fit_transform(data.X)) > 0.99
    True
    """

    def __init__(
        self, n_components: int | str = 2, *, embedding: Any = "rigid", ica: Any = None, random_state: Any = None
    ) -> None:
        self.n_components = n_components
        self.embedding = embedding
        self.ica = ica
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> NearIsometricICA:
        """Fit to ``X`` (n, D)."""
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.dimension_: Dimension | None = None
        if isinstance(self.n_components, str):
            if self.n_components != "auto":
                raise IsoICAError(f'n_components={self.n_components!r}; use a number or "auto"')
            self.dimension_ = found = intrinsic_dimension(X)
            logger.warning(
                'n_components="auto": TwoNN %.2f, gap of the local PCA after %d; %d taken%s', found.two_nn,
                found.local_pca, found.taken, "" if found.agree else ", the smaller",
            )  # fmt: skip
        self.n_components_ = int(self.n_components) if self.dimension_ is None else self.dimension_.taken
        self.embedding_estimator_ = self._embedding()
        Z = np.asarray(self.embedding_estimator_.fit_transform(X), dtype=np.float64)
        self.ica_ = PerturbedICA(random_state=self.random_state) if self.ica is None else clone(self.ica)
        self.ica_.fit(Z)
        self._measure(X, Z)
        self._sources = self.ica_.transform(Z[:: -(-len(Z) // _KEPT)])
        self._report: NearIsometryReport | None = None
        return self

    def transform(self, X: Any) -> Array:
        """Sources (m, k) of ``X`` (m, D)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.ica_.transform(self.embedding_estimator_.transform(X)))

    def inverse_transform(self, S: Any) -> Array:
        """Observations (m, D) of sources ``S`` (m, k), where the embedding has an inverse."""
        check_is_fitted(self)
        if not hasattr(self.embedding_estimator_, "inverse_transform"):
            raise IsoICAError(f"{type(self.embedding_estimator_).__name__} has no inverse_transform")
        S = check_array(S, dtype=np.float64)
        return np.asarray(self.embedding_estimator_.inverse_transform(self.ica_.inverse_transform(S)))

    def report(
        self, X: Any = None, eta: float | None = None, level: float = 0.95, n_permutations: int = 200
    ) -> NearIsometryReport:
        """Both certificates; arguments as in :meth:`PerturbedICA.report`, ``eta`` by default from the embedding."""
        check_is_fitted(self)
        S = self._sources if X is None else self.transform(X)
        notes = []
        sd = np.linalg.norm(self.ica_.mixing_, axis=0)
        smallest = float(np.linalg.svd(self.ica_.mixing_, compute_uv=False)[-1])
        k_aff = _affine_constant(self._sources * sd)
        residual = k_aff * (1 + self.stretch_) * self.theta_
        implied = residual / (smallest - residual) if residual < smallest else float("inf")
        if not np.isfinite(k_aff):
            implied = float("nan")
            notes.append("no rigidity constant: the sources have too many dimensions or too few values")
        elif not np.isfinite(implied):
            notes.append(
                f"the embedding may be {residual:.3g} from affine, as much as its thinnest axis, {smallest:.3g}: "
                "nothing is guaranteed"
            )
        detected = bool(self.theta_ > 1.5 * self.theta_floor_)
        if np.isnan(self.theta_floor_):
            notes.append("the part of noise and curvature in theta is not known for this embedding")
        amplification = float(sd.max() / sd.min())
        if amplification > 5:
            notes.append(f"a source is {amplification:.0f} times thinner than another: its errors are as much larger")
        used = implied if eta is None else eta
        ica = make_report(self.ica_, S, used if np.isfinite(used) else None, level, n_permutations)
        return NearIsometryReport(
            self.theta_, self.theta_stderr_, self.theta_floor_, detected, k_aff, self.stretch_, residual, sd,
            amplification, implied, ica, notes,
        )  # fmt: skip

    @property
    def report_(self) -> NearIsometryReport:
        """:meth:`report` on the training data, made once."""
        check_is_fitted(self)
        if self._report is None:
            self._report = self.report()
        return self._report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to an ``.npz`` file without pickle, by renaming a finished temporary file.

        Raises IsoICAError where the embedding is an estimator of another package.
        """
        check_is_fitted(self)
        kind = type(self.embedding_estimator_).__name__
        if kind not in _SAVABLE:
            raise IsoICAError(
                f"an embedding of type {kind} cannot be saved without pickle; use one of {list(_SAVABLE)}"
            )
        header: dict[str, Any] = {
            "embedding": kind,
            "parameters": {
                "n_components": self.n_components,
                "embedding": self.embedding if isinstance(self.embedding, str) else None,
                "random_state": self.random_state if isinstance(self.random_state, int) else None,
            },
            "state": {name: getattr(self, name) for name in _STATE},
            "dimension": None if self.dimension_ is None else [self.dimension_.two_nn, self.dimension_.local_pca],
        }
        if hasattr(self, "feature_names_in_"):
            header["feature_names"] = [str(name) for name in self.feature_names_in_]
        arrays = {"sources": self._sources}
        with TemporaryDirectory() as folder:
            for name, half in (("embedding", self.embedding_estimator_), ("ica", self.ica_)):
                file = Path(folder, name)
                half.save(file)
                arrays[name] = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        storage.write(path, _FORMAT, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NearIsometricICA:
        """The model that :meth:`save` wrote. Raises ModelFileError for any other file."""
        header, arrays = storage.read(path, _FORMAT)
        try:
            kind = header["embedding"]
            embedding = getattr(import_module(f".{_SAVABLE[kind]}", __package__), kind)
            halves: dict[str, Any] = {}
            with TemporaryDirectory() as folder:
                for name, half in (("embedding", embedding), ("ica", PerturbedICA)):
                    file = Path(folder, name)
                    file.write_bytes(arrays[name].tobytes())
                    halves[name] = half.load(file)
            model = cls(**header["parameters"])
            if model.embedding is None:
                model.embedding = halves["embedding"]
            for name in _STATE:
                setattr(model, name, header["state"][name])
            model.dimension_ = header["dimension"] and Dimension(*header["dimension"])
            model._sources = arrays["sources"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is not a saved NearIsometricICA model: {error}") from None
        if "feature_names" in header:
            model.feature_names_in_ = np.array(header["feature_names"], dtype=object)
        model.embedding_estimator_, model.ica_, model._report = halves["embedding"], halves["ica"], None
        return model

    # --- fit, step by step

    def _embedding(self) -> Any:
        d = self.n_components_
        if not isinstance(self.embedding, str):
            estimator = clone(self.embedding)
            return estimator.set_params(n_components=d) if "n_components" in estimator.get_params() else estimator
        if self.embedding == "rigid":
            return RigidAlignment(d, random_state=self.random_state)
        if self.embedding in ("isomap", "hlle", "ltsa"):
            return RigidAlignment(d, init=self.embedding, max_iter=0, random_state=self.random_state)
        if self.embedding == "autoencoder":
            return import_module(".autoencoder", __package__).IsometricAutoencoder(d, random_state=self.random_state)
        raise IsoICAError(
            f'embedding={self.embedding!r}; use "rigid", "isomap", "hlle", "ltsa", "autoencoder" or an estimator'
        )

    def _measure(self, X: Array, Z: Array) -> None:
        """Θ_2 of the embedding in the tangent planes, its standard error and floor, and L/ℓ."""
        embedding = self.embedding_estimator_
        if isinstance(embedding, RigidAlignment):
            G = embedding.derivatives_
            self.theta_, self.theta_stderr_ = embedding.theta_, embedding.theta_stderr_
            self.theta_floor_ = embedding.theta_floor_
        else:
            k = min(max(12, 4 * Z.shape[1]), len(X) - 1)
            G = chart_derivatives(tangent_places(X, neighbours_of(X, k), Z.shape[1], "auto"), Z)
            # What another embedding means by a unit is not known: one metric is free.
            found = theta_from_jacobians(G, metric="fit")
            G = G @ np.linalg.inv(np.linalg.cholesky(found.metric)).T
            self.theta_, self.theta_stderr_, self.theta_floor_ = found.value, found.stderr, float("nan")
        sigma = np.linalg.svd(G, compute_uv=False)
        # Extremes of a least-squares derivative are noise; one point in a hundred may lie outside.
        low, high = np.quantile(sigma[:, -1], 0.01), np.quantile(sigma[:, 0], 0.99)
        self.stretch_ = float(high / low) if low > 0 else float("inf")

    @property
    def _n_features_out(self) -> int:
        return len(self.ica_.components_)


def _affine_constant(sources: Array) -> float:
    """K_aff of independent latents with the marginals of ``sources`` (n, k), in their units; NaN if there is none."""
    for degree in (4, 3, 2):
        try:
            return rigidity_constants(sources, sources.shape[1], degree, unit_variance=False).aff
        except IsoICAError:
            continue
    return float("nan")
