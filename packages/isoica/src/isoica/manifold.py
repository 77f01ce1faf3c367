"""RigidAlignment: the embedding of a point cloud that is closest to an isometry, with charts in both directions."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from . import storage
from .alignment import (
    Solver,
    align,
    chart_derivatives,
    landmark_isomap,
    laplacian,
    laplacian_solver,
    locally_linear,
)
from .charts import Atlas
from .errors import IsoICAError, ModelFileError
from .isometry import polar, theta_from_jacobians
from .neighbours import Neighbourhoods, blocks, connect, neighbours_of, tangent_places

Array = NDArray[np.float64]

_FORMAT = "isoica/rigid-alignment/1"
_STATE = ("energy_", "n_iter_", "converged_", "n_neighbors_", "noise_", "lengths_", "theta_", "theta_stderr_",
          "theta_floor_", "n_features_in_")  # fmt: skip
_ARRAYS = ("embedding_", "rotations_", "tangents_", "derivatives_", "energies_")


class RigidAlignment(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Coordinates z of a point cloud near a d-dimensional manifold that minimise the distance Θ_2 from isometry.

    Minimises ``Σ_i Σ_j |(z_j - z_i) - R_i t_ij|²`` over z and orthogonal R_i, t_ij the place of neighbour j in the
    tangent plane at i. Where the latents reached the data by a near isometry, z are the latents up to a rigid motion
    and an error of the order of Θ_2.

    Parameters
    ----------
    n_components : int
        Dimension d of the manifold, at most the number of columns.
    n_neighbors : int or "auto"
        "auto" takes ``max(12, 4d)``; more where there is noise. Reduced with a warning where there are fewer points.
    init : {"isomap", "hlle", "ltsa", "pca"}
        Landmark Isomap; Hessian or tangent-space LLE after their affine ambiguity is removed; PCA, which folds what is
        strongly curved.
    n_landmarks : int
        Of Isomap.
    lengths : {"auto", "chord", "projected"}
        Length of t_ij: the distance in space (error κ²r²/24 for curvature κ), or its projection (κ²r²/6, but robust to
        noise). "auto" decides by whether noise or curvature puts neighbours off the tangent planes.
    max_iter, tol : int, float
        Iterations, 0 for the initial embedding as it is; stops at a relative decrease of the energy below ``tol``.
    connect : {"mst", "error"}
        What to do with a neighbour graph in several parts: bridge it and warn, or raise.
    eigen_solver : {"auto", "direct", "amg", "cg"}
        Of the Laplacian systems. "direct" factorises; "amg" uses pyamg where it is installed; "auto" chooses by size.
    n_jobs : int or None
        Of the neighbour search; does not change the result.
    random_state : int, RandomState or None
        Of the landmarks.

    Attributes
    ----------
    embedding_ : (n, d), mean 0, in the units of X.
    theta_, theta_stderr_ : Θ_2 of the chart over its local least-squares derivatives, and its standard error by a
        jackknife over 20 patches. A lower bound in kind: the mixing itself may be further from isometry.
    theta_floor_ : the same statistic for an exact isometry with the same noise and curvature.
    deviation_detected_ : bool, ``theta_ > 1.5 theta_floor_``.
    rotations_ : (n, d, d); tangents_ : (n, D, d); derivatives_ : (n, d, d) of the chart in the tangent planes.
    energy_, energies_, n_iter_, converged_ : final energy, all of them, iterations.
    noise_ : estimated standard deviation per coordinate off the manifold. lengths_ : "chord" or "projected".
    n_neighbors_, n_features_in_

    Raises
    ------
    ValueError
        For NaN or infinite X, fewer columns than components, too few different points.

    Notes
    -----
    ``transform`` and ``inverse_transform`` blend the rigid charts of the nearest points; on training points they return
    what was fitted. Memory is O(n(kd + Dd)). The setting is Buchholz and Schölkopf, ICML 2024 (arXiv:2503.15355).

    Examples
    --------
    >>> from isoica import RigidAlignment
    >>> from isoica.datasets import make_near_isometric
    >>> data = make_near_isometric(400, 2, theta=0.05, random_state=0)
    >>> RigidAlignment(2, random_state=0).fit_transform(data.X).shape
    (400, 2)
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        n_neighbors: int | str = "auto",
        init: str = "isomap",
        n_landmarks: int = 256,
        lengths: str = "auto",
        max_iter: int = 300,
        tol: float = 1e-7,
        connect: str = "mst",
        eigen_solver: str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.n_neighbors = n_neighbors
        self.init = init
        self.n_landmarks = n_landmarks
        self.lengths = lengths
        self.max_iter = max_iter
        self.tol = tol
        self.connect = connect
        self.eigen_solver = eigen_solver
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> RigidAlignment:
        """Embed ``X`` (n, D). Ctrl-C keeps the best places so far."""
        self._check_parameters()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        d = self.n_components
        if d > X.shape[1]:
            raise IsoICAError(f"n_components={d} exceeds n_features = {X.shape[1]}; take at most that many")
        # Equal points have no direction from one to the other; one of them stands for all.
        unique, inverse = np.unique(X, axis=0, return_inverse=True)
        points, back = (X, None) if len(unique) == len(X) else (unique, np.ravel(inverse))
        k = self._neighbours(len(points), len(X))
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))

        hood = tangent_places(points, neighbours_of(points, k, self.n_jobs), d, self.lengths)
        start = self._start(points, hood, k, rng)
        hood = connect(points, hood, self.connect)
        solve = laplacian_solver(laplacian(hood), d, self.eigen_solver)
        found = align(hood, start, solve, self.max_iter, self.tol)
        z, R, self.converged_ = found.z, found.rotations, found.converged
        self.energies_, self.energy_ = np.array(found.energies), found.energies[-1]
        self.n_iter_ = max(1, len(found.energies) - 1)
        self.noise_, self.lengths_ = hood.noise, "chord" if hood.chord else "projected"
        G = chart_derivatives(hood, z)
        square = theta_from_jacobians(G).per_sample ** 2
        self.theta_, self.theta_stderr_ = float(np.sqrt(square.mean())), _jackknife(square, z)
        self.theta_floor_ = _floor(points, hood, z, R, k, solve, rng)
        self._charts(points, z, R @ np.swapaxes(hood.tangents, 1, 2))
        self.embedding_, self.rotations_, self.tangents_, self.derivatives_ = (
            v if back is None else v[back] for v in (z, R, hood.tangents, G)
        )
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Array:
        """:meth:`fit` and return ``embedding_`` (n, d)."""
        return self.fit(X).embedding_

    def transform(self, X: Any) -> Array:
        """Coordinates (m, d) of points (m, D)."""
        check_is_fitted(self)
        return self._encoder(validate_data(self, X, dtype=np.float64, reset=False))

    def jacobian(self, X: Any) -> Array:
        """Derivatives (m, d, D) of :meth:`transform` at points (m, D)."""
        check_is_fitted(self)
        return self._encoder.jacobian(validate_data(self, X, dtype=np.float64, reset=False))

    def inverse_transform(self, Z: Any) -> Array:
        """Points (m, D) on the manifold at coordinates (m, d)."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=np.float64)
        if Z.shape[1] != self.embedding_.shape[1]:
            raise IsoICAError(f"Z has {Z.shape[1]} columns, but the model has {self.embedding_.shape[1]} components")
        return self._decoder(Z)

    def theta_p_(self, p: float = 2) -> float:
        """Θ_p of the chart over its local least-squares derivatives."""
        check_is_fitted(self)
        return theta_from_jacobians(self.derivatives_, p).value

    @property
    def deviation_detected_(self) -> bool:
        """Whether ``theta_`` exceeds 1.5 times what noise and curvature alone give."""
        return bool(self.theta_ > 1.5 * self.theta_floor_)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to an ``.npz`` file without pickle, by renaming a finished temporary file."""
        check_is_fitted(self)
        parameters = self.get_params(deep=False)
        if not isinstance(parameters["random_state"], (int, type(None))):
            parameters["random_state"] = None
        header: dict[str, Any] = {"parameters": parameters, "state": {name: getattr(self, name) for name in _STATE}}
        if hasattr(self, "feature_names_in_"):
            header["feature_names"] = [str(name) for name in self.feature_names_in_]
        charts = {"points": self._encoder.centres, "places": self._encoder.values, "maps": self._encoder.maps}
        storage.write(path, _FORMAT, header, {**{name: getattr(self, name) for name in _ARRAYS}, **charts})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RigidAlignment:
        """The model that :meth:`save` wrote. Raises ModelFileError for any other file."""
        header, arrays = storage.read(path, _FORMAT)
        try:
            model = cls(**header["parameters"])
            for name in _STATE:
                setattr(model, name, header["state"][name])
            for name in _ARRAYS:
                setattr(model, name, arrays[name])
            if "feature_names" in header:
                model.feature_names_in_ = np.array(header["feature_names"], dtype=object)
            model._charts(arrays["points"], arrays["places"], arrays["maps"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path} is not a saved RigidAlignment model: {error}") from None
        return model

    # --- fit, step by step

    def _check_parameters(self) -> None:
        choices = {
            "init": ("isomap", "hlle", "ltsa", "pca"),
            "lengths": ("auto", "chord", "projected"),
            "connect": ("mst", "error"),
            "eigen_solver": ("auto", "direct", "amg", "cg"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise IsoICAError(f"{name}={getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}")
        if not self.n_components >= 1:
            raise IsoICAError(f"n_components={self.n_components!r}; must be at least 1")
        if self.n_neighbors != "auto" and not (not isinstance(self.n_neighbors, str) and self.n_neighbors >= 1):
            raise IsoICAError(f'n_neighbors={self.n_neighbors!r}; use "auto" or a number of at least 1')
        if not (self.max_iter >= 0 and self.tol >= 0):
            raise IsoICAError(f"max_iter={self.max_iter!r}, tol={self.tol!r}; neither may be negative")

    def _neighbours(self, n: int, given: int) -> int:
        d = self.n_components
        if n < d + 2:
            raise IsoICAError(
                f"n_samples = {given} with {n} different points is too few for {d} components; need {d + 2}"
            )
        k = max(12, 4 * d) if isinstance(self.n_neighbors, str) else int(self.n_neighbors)
        if k <= d:
            raise IsoICAError(f"n_neighbors={k} cannot span a tangent plane of {d} dimensions; take at least {d + 1}")
        if k > n - 1:
            warnings.warn(f"n_neighbors={k} is reduced to {n - 1}, all other points", UserWarning, 3)
            k = n - 1
        self.n_neighbors_ = k
        return k

    def _start(self, X: Array, hood: Neighbourhoods, k: int, rng: np.random.Generator) -> Array:
        d = self.n_components
        if self.init == "isomap":
            return landmark_isomap(hood, d, self.n_landmarks, rng)
        if self.init == "pca":
            centred = X - X.mean(axis=0)
            return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:d].T)
        method = "hessian" if self.init == "hlle" else "ltsa"
        return locally_linear(X, hood, d, method, k, int(rng.integers(2**31)), self.n_jobs)

    def _charts(self, X: Array, z: Array, maps: Array) -> None:
        k = self.n_neighbors_
        self._encoder = Atlas.build(X, z, maps, k)
        self._decoder = Atlas.build(z, X, np.swapaxes(maps, 1, 2), k)

    @property
    def _n_features_out(self) -> int:
        return int(self.embedding_.shape[1])


def _jackknife(square: Array, z: Array, patches: int = 20) -> float:
    """Standard error of the root mean square by leaving out one patch of neighbouring points at a time."""
    count = min(patches, len(z))
    order = [np.arange(len(z))]
    while len(order) < count:  # halve the largest patch along its longest side
        part = order.pop(int(np.argmax([len(p) for p in order])))
        side = int(np.argmax(np.ptp(z[part], axis=0)))
        part = part[np.argsort(z[part, side], kind="stable")]
        order += [part[: len(part) // 2], part[len(part) // 2 :]]
    total = square.sum()
    left = np.array([(total - square[p].sum()) / (len(square) - len(p)) for p in order])
    values = np.sqrt(np.maximum(left, 0.0))
    return float(np.sqrt((count - 1) / count * np.sum((values - values.mean()) ** 2)))


def _floor(
    X: Array, hood: Neighbourhoods, z: Array, R: Array, k: int, solve: Solver, rng: np.random.Generator
) -> float:
    """Θ_2 of the chart that noise and curvature alone would give, by simulating an exact isometry once.

    Its true displacements are those of the embedding, ``R_iᵀ(z_j - z_i)``. To them is added what the estimated noise
    and the curvature do to tangent places: the places seen from noisy copies of the smoothed points, less the geodesics
    between the smoothed points. The chart is then fitted as it was fitted to the data.
    """
    d, index = z.shape[1], hood.index[:, :k]
    near = np.column_stack([index, np.arange(len(X))])
    maps, smooth = R @ np.swapaxes(hood.tangents, 1, 2), np.empty_like(X)
    for part in blocks(len(X), near.shape[1] * d * X.shape[1]):
        step = z[part, None] - z[near[part]]
        smooth[part] = np.mean(X[near[part]] + np.einsum("mkdD,mkd->mkD", maps[near[part]], step), axis=1)
    flat, chord = (tangent_places(smooth, index, d, lengths) for lengths in ("projected", "chord"))
    noisy = smooth + hood.noise * rng.normal(size=X.shape)
    seen = tangent_places(noisy, index, d, "chord" if hood.chord else "projected")
    p, c = (np.linalg.norm(h.places, axis=2) for h in (flat, chord))
    # p = r(1 - κ²r²/6) and c = r(1 - κ²r²/24) give the arc r = c + (c - p)/3 to higher order. With chords this third is
    # taken whole: what curvature does to directions, of the same order, is not simulated.
    r = c + (c - p) * (1.0 if hood.chord else 1 / 3)
    arc = flat.places * np.divide(r, p, out=np.ones_like(p), where=p > 0)[:, :, None]
    error = seen.places @ _between(seen, hood) - arc @ _between(flat, hood)
    places = (z[hood.index] - z[:, None]) @ R
    places[:, :k] += error
    null = replace(hood, places=places)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a floor needs two digits
        found = align(null, z, solve, max_iter=50, tol=1e-5)
    return theta_from_jacobians(chart_derivatives(null, found.z)).value


def _between(a: Neighbourhoods, b: Neighbourhoods) -> Array:
    """The turn (n, d, d) of coordinates in the tangent planes of ``a`` into those of ``b``."""
    return polar(np.swapaxes(a.tangents, 1, 2) @ b.tangents)[0]
