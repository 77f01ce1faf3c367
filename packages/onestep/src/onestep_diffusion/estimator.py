"""The whole method behind scikit-learn's contract: rows of numbers in, a one-step generator of such rows out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from .certificate import Certificate, certify
from .checkpoint import load_model, save_model
from .config import NEEDS_TEACHER, StudentConfig, TeacherConfig, parse_strategy
from .data import make_dataset
from .denoiser import Denoiser, Generator, Model, Ratio
from .errors import CheckpointError, ConfigError, DataError
from .train import train_student, train_teacher
from .verify import refit_ratio, resample, verifier_log_ratio

HELD_OUT = 0.1  # of the rows, for the calibration of the ratio
FEWEST_HELD_OUT = 20

_MODELS = {"generator_": "generator", "ratio_": "ratio", "teacher_": "denoiser"}  # attribute -> file


class OneStepGenerator(BaseEstimator):
    """A generator of rows like those it was fitted to, in one network evaluation each.

    Parameters
    ----------
    method, divergence, init : str
        See `StudentConfig`. A teacher is trained if the method or the initialisation needs one; `init="random"` and
        `init="warmup:1000"` with `method="ratio"` do without.
    hidden, blocks : int
        Width and residual blocks of teacher and generator.
    teacher_steps, steps, batch_size : int
        Updates of the teacher and of the generator, rows in each.
    refit_steps : int
        Updates of the ratio after training, before it may choose among candidates and score samples. 0: none.
    random_state : int, RandomState or None
        An integer makes fits and samples repeatable.

    Attributes
    ----------
    generator_ : Generator
        With averaged weights.
    ratio_ : Ratio or None
        Log density ratio of data and generator, calibrated on a tenth of the rows, which nothing was trained on. As
        training left it if there were fewer than 200 rows or refit_steps = 0, and then None for methods without one.
    teacher_ : Denoiser or None
    history_ : list of dict
        What training logged.
    scale_, shift_ : float
        Networks see (X - shift_) / scale_.
    classes_ : ndarray or None
        Of y, if it was given.
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, _ = load_digits(return_X_y=True)
    >>> model = OneStepGenerator(random_state=0).fit(X)  # doctest: +SKIP
    >>> model.sample(16, candidates=4).shape  # doctest: +SKIP
    (16, 64)

    References
    ----------
    W. Chen et al., DiffRatio: Training One-Step Diffusion Models Without Teacher Supervision, arXiv:2502.08005.
    """

    def __init__(
        self,
        method: str = "ratio",
        divergence: str = "rkl",
        init: str = "teacher",
        *,
        hidden: int = 128,
        blocks: int = 3,
        teacher_steps: int = 3000,
        steps: int = 2000,
        batch_size: int = 128,
        refit_steps: int = 3000,
        random_state: Any = 0,
    ) -> None:
        self.method = method
        self.divergence = divergence
        self.init = init
        self.hidden = hidden
        self.blocks = blocks
        self.teacher_steps = teacher_steps
        self.steps = steps
        self.batch_size = batch_size
        self.refit_steps = refit_steps
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Train teacher, generator and ratio on rows X (n, d); y (n,): classes, to sample them apart.

        Raises ValueError for rows that are not finite numbers, constant or fewer than two, and for illegal settings;
        DivergedError if training fails.
        """
        if not isinstance(self.refit_steps, int | np.integer) or self.refit_steps < 0:
            raise ConfigError(f"refit_steps has to be an integer, zero or more; got {self.refit_steps!r}")
        if parse_strategy(self.init)[0] in ("single_level", "off_level"):
            raise ConfigError(f"init={self.init!r} needs a second teacher; use `train_student` with one")
        rows = validate_data(self, X, dtype="numeric", ensure_min_samples=2)
        self.classes_, labels = None, None
        if y is not None:
            if np.shape(y) != (len(rows),):
                raise DataError(f"y has to be ({len(rows)},), one class a row; got {np.shape(y)}")
            self.classes_, labels = np.unique(np.asarray(y), return_inverse=True)
        seed = self._seed(self.random_state)
        student = StudentConfig(
            method=self.method,
            divergence=self.divergence,
            init=self.init,
            net_kwargs={"hidden": self.hidden, "blocks": self.blocks},
            steps=self.steps,
            batch_size=self.batch_size,
            conditional=labels is not None,
        )
        teacher = TeacherConfig(
            net_kwargs=student.net_kwargs,
            steps=self.teacher_steps,
            batch_size=self.batch_size,
            conditional=labels is not None,
        )
        refit = self.refit_steps > 0 and round(HELD_OUT * len(rows)) >= FEWEST_HELD_OUT
        data = make_dataset(rows, labels, name="X", held_out=HELD_OUT if refit else 0.0, seed=seed)
        alone = parse_strategy(self.init)[0] in ("random", "warmup") and self.method not in NEEDS_TEACHER
        self.teacher_ = None if alone else train_teacher(data, teacher, seed=seed)
        found = train_student(data, self.teacher_, student, seed=seed)
        self.generator_, self.ratio_, self.history_ = found.generator_ema, found.ratio, found.history
        if refit:
            self.ratio_ = refit_ratio(self.generator_, self.ratio_, data, steps=self.refit_steps, seed=seed)
        self.scale_, self.shift_ = data.scale, data.shift
        return self

    def sample(
        self, n: int = 1, candidates: int = 1, random_state: Any = None, labels: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """(n, d) rows, each chosen by the ratio among `candidates` (sampling-importance-resampling).

        random_state: None takes the estimator's. labels: one class for all or (n,), of `classes_`; None: as in y.
        Raises ValueError for arguments out of range, and for candidates > 1 without a ratio.
        """
        check_is_fitted(self)
        if candidates < 1 or n < 1:
            raise ConfigError(f"n={n} and candidates={candidates} have to be at least 1")
        seed = self._seed(self.random_state if random_state is None else random_state)
        classes = self.generator_.draw_labels(n, seed, self._indices(labels, n))
        classes = None if classes is None else np.repeat(classes, candidates)
        x = self.generator_.sample(n * candidates, seed, classes)
        if candidates > 1:
            log_r = verifier_log_ratio(self._ratio(), x, labels=classes, seed=seed)
            x = x[resample(log_r, group=candidates, seed=seed)]
        return x.astype(float)

    def score_samples(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.float64]:
        """(n,) log p_data - log p_generator at rows X after noise ratio_.sigma_v; positive looks like data.

        y: their classes, if there are any. The mean of it over data says how far the generator is from them.
        """
        ratio, rows = self._ratio(), self._rows(X)
        return verifier_log_ratio(ratio, rows, labels=self._row_labels(y, rows))

    def certify(self, X: ArrayLike, y: ArrayLike | None = None, *, level: float = 0.95, seed: int = 0) -> Certificate:
        """Lower bounds on the generator's distance from held-out rows X (n, d), at noise ratio_.sigma_v and below.

        X must not have been given to `fit`. y: their classes, if there are any.
        """
        ratio, rows = self._ratio(), self._rows(X)
        of_data = self._row_labels(y, rows)
        of_samples = self.generator_.draw_labels(len(rows), seed, of_data)
        samples = self.generator_.sample(len(rows), seed, of_samples)
        pairs: list[tuple[NDArray[Any], NDArray[np.int32] | None]] = [(rows, of_data), (samples, of_samples)]
        log_r = [
            verifier_log_ratio(ratio, x, labels=labels, draws=1, seed=seed + place)
            for place, (x, labels) in enumerate(pairs)
        ]
        return certify(*log_r, level=level, seed=seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder of safetensors and JSON; `load` reads it. Raises ConfigError for a RandomState parameter."""
        check_is_fitted(self)
        if not isinstance(self.random_state, int | np.integer | None):
            raise ConfigError("random_state has to be an integer or None to be saved")
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; save needs a folder")
        for attribute, name in _MODELS.items():
            model: Model | None = getattr(self, attribute)
            if model is None:
                (folder / f"{name}.safetensors").unlink(missing_ok=True)
            else:
                save_model(folder / f"{name}.safetensors", model)
        classes = None if self.classes_ is None else self.classes_.tolist()
        facts = {"parameters": self.get_params(), "classes_": classes, "n_features_in_": self.n_features_in_}
        temporary = folder / ".estimator.json.tmp"
        temporary.write_text(json.dumps(facts | {"history_": self.history_}, default=int) + "\n", encoding="utf-8")
        os.replace(temporary, folder / "estimator.json")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote; CheckpointError if it is missing or damaged."""
        folder = Path(path)
        try:
            facts = json.loads((folder / "estimator.json").read_text(encoding="utf-8"))
            model = cls(**facts.pop("parameters"))
            model.n_features_in_, model.history_ = facts["n_features_in_"], facts["history_"]
            model.classes_ = None if facts["classes_"] is None else np.array(facts["classes_"])
        except FileNotFoundError:
            raise CheckpointError(f"{folder} holds no estimator: estimator.json is missing") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder}/estimator.json is damaged ({type(error).__name__})") from None
        for attribute, name in _MODELS.items():
            there = name == "generator" or (folder / f"{name}.safetensors").exists()
            setattr(model, attribute, load_model(folder, name) if there else None)
        model.scale_, model.shift_ = model.generator_.scale, model.generator_.shift
        return model

    # Annotations of what fit sets, for readers and type checkers.
    generator_: Generator
    ratio_: Ratio | None
    teacher_: Denoiser | None
    history_: list[dict[str, Any]]
    scale_: float
    shift_: float
    classes_: NDArray[Any] | None
    n_features_in_: int

    @staticmethod
    def _seed(random_state: Any) -> int:
        if isinstance(random_state, int | np.integer):
            return int(random_state)
        return int(check_random_state(random_state).randint(2**31 - 1))

    def _ratio(self) -> Ratio:
        check_is_fitted(self)
        if self.ratio_ is None:
            raise ConfigError(f"method={self.method!r} has no ratio without refit_steps > 0 and 200 rows")
        return self.ratio_

    def _rows(self, X: ArrayLike) -> NDArray[np.float64]:
        rows: NDArray[np.float64] = validate_data(self, X, dtype="numeric", reset=False)
        return rows

    def _row_labels(self, y: ArrayLike | None, rows: NDArray[Any]) -> NDArray[np.int32] | None:
        if self.classes_ is not None and y is None:
            raise ConfigError("fitted with classes: y is needed, one class a row")
        return self._indices(y, len(rows))

    def _indices(self, labels: ArrayLike | None, n: int) -> NDArray[np.int32] | None:
        """Classes as places in `classes_`."""
        if labels is None:
            return None
        if self.classes_ is None:
            raise ConfigError("classes were given, but the generator was fitted without")
        wanted = np.asarray(labels)
        place = np.searchsorted(self.classes_, wanted).clip(0, len(self.classes_) - 1)
        if (self.classes_[place] != wanted).any():
            raise ConfigError(f"labels have to be among {', '.join(map(str, self.classes_))}; got {labels}")
        return np.broadcast_to(place, (n,)).astype(np.int32)
