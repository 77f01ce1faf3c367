"""PMAE as a scikit-learn transformer: images in, features of a frozen encoder out."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .engine.distributed import pick_device
from .engine.train import fit
from .models import PMAE, PMAEConfig
from .space import fit_space

PATCHES = 4  # along the shorter side of an image, at least


class PMAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pre-train a masked autoencoder in component space on X; transform gives its encoder's features.

    Parameters
    ----------
    n_epochs : of pre-training
    preset : name of a :class:`pmae.PMAEConfig` preset
    basis : masking space, as in :func:`pmae.fit_space`
    ratio : hidden share of the variance
    pool : "avg", "cls" or "cls+avg"
    image_shape : (H, W), (H, W, C) of the rows of a flat X, in this order; None: a flat X of a square number of
        features is a square grey image, and a single row of pixels otherwise
    patch_size : side of a patch; None chooses one that divides the image
    batch_size, lr, augment : as in :func:`pmae.fit`
    device : "auto", "cpu", "cuda"
    random_state : int, RandomState or None

    Attributes
    ----------
    model_ : the trained :class:`pmae.PMAE`
    history_ : a record of every epoch, see :class:`pmae.engine.TrainResult`
    image_shape_ : (C, H, W)
    low_, high_ : the range of X that becomes [0, 1]
    n_features_in_ : only of a flat X

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:100]
    >>> PMAETransformer(n_epochs=1, random_state=0).fit_transform(X).shape
    (100, 64)
    """

    def __init__(
        self,
        n_epochs: int = 50,
        preset: str = "tiny",
        basis: str = "pca",
        ratio: float = 0.15,
        pool: str = "avg",
        image_shape: tuple[int, ...] | None = None,
        patch_size: int | None = None,
        batch_size: int = 64,
        lr: float = 1e-3,
        augment: str = "flip",
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_epochs = n_epochs
        self.preset = preset
        self.basis = basis
        self.ratio = ratio
        self.pool = pool
        self.image_shape = image_shape
        self.patch_size = patch_size
        self.batch_size = batch_size
        self.lr = lr
        self.augment = augment
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the space and train the network.

        X : (N, H, W), (N, H, W, C) or (N, D); uint8, or finite numbers of any range, which is mapped to [0, 1]. The
            standardisation undoes the choice of a range. y : not used.
        """
        X = self._validated(X, reset=True)
        if math.prod(X.shape[1:]) < 2:
            raise ValueError("an image of 1 feature(s) has nothing to hide: at least 2 are needed")
        self.low_, self.high_ = _range(X)
        images = self._images(X)
        self.image_shape_: tuple[int, int, int] = images.shape[1:]
        seed = int(check_random_state(self.random_state).randint(2**31))
        _, height, width = self.image_shape_
        config = PMAEConfig(
            preset=self.preset, ratio=self.ratio, seed=seed,
            patch_size=patch_for(height, width) if self.patch_size is None else self.patch_size,
        )  # fmt: skip
        place = pick_device(self.device)
        space = fit_space(images, basis=self.basis, device=place, seed=seed)
        self.model_ = PMAE(config, space)
        result = fit(
            self.model_, images, self.n_epochs, batch_size=min(self.batch_size, len(images)), lr=self.lr,
            augment=self.augment, seed=seed, device=place,
        )  # fmt: skip
        self.history_ = result.history
        self._n_features_out = self._features(images[:1]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features, float32 (N, d)."""
        check_is_fitted(self)
        images = self._images(self._validated(X, reset=False))
        if images.shape[1:] != self.image_shape_:
            raise ValueError(f"X has images of shape {images.shape[1:]}, fitted were {self.image_shape_}")
        starts = range(0, len(images), self.batch_size)
        return np.concatenate([self._features(images[i : i + self.batch_size]) for i in starts])

    def _validated(self, X: Any, reset: bool) -> np.ndarray:
        """X as a finite array of at least two dimensions, and in fit of at least two images."""
        few = {"ensure_min_samples": 2} if reset else {}
        found = validate_data(self, X, reset=reset, allow_nd=True, dtype="numeric", **few)
        if found.ndim > 4:
            raise ValueError(f"X has shape {found.shape}: (N, H, W), (N, H, W, C) or (N, D)")
        return found

    def _images(self, X: np.ndarray) -> np.ndarray:
        """(N, C, H, W) float32, on the [0, 1] scale where the images of fit are."""
        if X.ndim == 2:
            shape = self.image_shape or _square(X.shape[1])
            if math.prod(shape) != X.shape[1]:
                raise ValueError(f"X has {X.shape[1]} features, image_shape={shape} needs {math.prod(shape)}")
            X = X.reshape(len(X), *shape)
        X = X[..., None] if X.ndim == 3 else X
        scaled = (X.astype(np.float64) - self.low_) / (self.high_ - self.low_)
        return np.ascontiguousarray(np.moveaxis(scaled, -1, 1), dtype=np.float32)

    def _features(self, images: np.ndarray) -> np.ndarray:
        """Of at most ``batch_size`` images; filled up to that number, so that rounding does not depend on theirs."""
        self.model_.eval()
        full = np.zeros((self.batch_size, *images.shape[1:]), dtype=np.float32)
        full[: len(images)] = images
        with torch.no_grad():
            found = self.model_.features(torch.from_numpy(full).to(self.model_.space.mean.device), pool=self.pool)
        features: np.ndarray = found[: len(images)].float().cpu().numpy()
        return features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def patch_for(height: int, width: int, largest: int = 8) -> int:
    """The largest patch that divides both sides and leaves some patches along each, as far as there is one."""
    most = min(largest, max(1, min(height, width) // PATCHES))
    return max(size for size in range(1, most + 1) if height % size == width % size == 0)


def _square(features: int) -> tuple[int, int]:
    side = math.isqrt(features)
    return (side, side) if side * side == features else (1, features)


def _range(X: np.ndarray) -> tuple[float, float]:
    if X.dtype == np.uint8:
        return 0.0, 255.0
    low, high = float(X.min()), float(X.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high if high > low else low + 1
