"""E1 to E4: the theorems about boundaries, checked on random moment problems and against scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from ..datasets import (
    MomentProblem,
    gaussian_causal,
    lda_anticausal,
    load_real,
    logistic_gaussian,
    moment_problem,
    star,
)
from .common import angle, array_moments, fit, problem_moments
from .profiles import Profile
from .report import DERIVED, Artifact, Claim, Experiment, Metric, t_interval

Array = NDArray[np.float64]


def run_e1(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C1 and C3: X → Y with full information is logistic regression, parallel to the anticausal answer."""
    from sklearn.linear_model import LogisticRegression

    from .. import MergedClassifier, plots

    residuals, angles = [], []
    for _ in range(profile.problems):
        problem = moment_problem(rng, int(rng.integers(1, 51)))
        moments = problem_moments(problem)
        causal, anticausal = fit(moments, "causal"), fit(moments, "anticausal")
        residuals.append(_moment_error(problem, causal.coef_[0], float(causal.intercept_[0])))
        angles.append(angle(causal.coef_[0], anticausal.coef_[0]))

    gaps = []
    for _ in range(20):
        sample = gaussian_causal(rng, 2000, 5)
        ours = MergedClassifier("y", "causal", p_x="empirical").fit(sample.X, sample.y)
        peer = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=200).fit(sample.X, sample.y)
        gaps.append(_relative(np.append(ours.coef_, ours.intercept_), np.append(peer.coef_, peer.intercept_)))

    slopes = []
    for _ in range(profile.slope_seeds):
        sample = gaussian_causal(rng, max(profile.slope_sizes), 5)
        log_gap = []
        for n in profile.slope_sizes:
            # disjoint rows would be wasteful and nested ones correlate: take a random window
            start = int(rng.integers(0, len(sample.y) - n + 1))
            X, y = sample.X[start : start + n], sample.y[start : start + n]
            peer = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200).fit(X, y)
            log_gap.append(np.log(_relative(fit(array_moments(X, y), "causal").coef_[0], peer.coef_[0])))
        slopes.append(np.polyfit(np.log(profile.slope_sizes), log_gap, 1)[0])
    slope, slope_ci = float(np.mean(slopes)), t_interval(slopes)
    sizes = f"n from {profile.slope_sizes[0]:g} to {profile.slope_sizes[-1]:g}, {profile.slope_seeds} replicates"

    grid = _direction_grid(profile.grid)
    half = np.isclose(grid["prevalence"], 0.5)
    shift = (grid["t_causal"] - grid["t_anticausal"]).abs()
    result = Experiment()
    many = f"{profile.problems} random problems, d from 1 to 50"
    result.claims += [
        Claim(
            id="C1-moments",
            statement="With all bivariate distributions known, X → Y has a logistic solution with those moments",
            paper="logistic regression",
            measured=max(residuals),
            op="<=",
            value=1e-9,
            n=profile.problems,
            note=f"largest error of E[Y] and Cov(X,Y) over {many}, correlation scale, by independent quadrature",
        ),
        Claim(
            id="C1-empirical",
            statement="With the empirical law of X the causal direction is unpenalised logistic regression",
            paper="logistic regression",
            measured=max(gaps),
            op="<=",
            value=1e-5,
            n=len(gaps),
            note="largest relative coefficient difference to sklearn LogisticRegression(C=inf), n = 2000, d = 5",
        ),
        Claim(
            id="C1-slope-low",
            statement="The gap between MAXENT-p(x) and logistic regression shrinks like n^(-1/2): slope at least -0.65",
            source=DERIVED,
            measured=slope,
            op=">=",
            value=-0.65,
            n=profile.slope_seeds,
            ci=slope_ci,
            unit="per log n",
            note=f"t interval; {sizes}",
        ),
        Claim(
            id="C1-slope-high",
            statement="The gap between MAXENT-p(x) and logistic regression shrinks like n^(-1/2): slope at most -0.35",
            source=DERIVED,
            measured=slope,
            op="<=",
            value=-0.35,
            n=profile.slope_seeds,
            ci=slope_ci,
            unit="per log n",
            note=f"t interval; {sizes}",
        ),
        Claim(
            id="C3-parallel",
            statement="With full information both directions have parallel boundaries",
            paper="equal slopes",
            measured=max(max(angles), float(grid["angle"].max())),
            op="<=",
            value=1e-8,
            n=len(angles) + len(grid),
            unit="rad",
            note=f"largest angle over {many}, and a {profile.grid}×{profile.grid} grid over π and q",
        ),
        Claim(
            id="C3-equal-half",
            statement="At π = 1/2 the two boundaries are the same",
            paper="offset may differ",
            measured=float(shift[half].max()),
            op="<=",
            value=1e-8,
            n=int(half.sum()),
            unit="SD",
            note="largest |t_C − t_A| over the grid's row π = 1/2",
        ),
        Claim(
            id="C3-differ-elsewhere",
            statement="At any other π the two boundaries differ",
            paper="offset may differ",
            measured=float(shift[~half].min()),
            op=">",
            value=1e-8,
            n=int((~half).sum()),
            unit="SD",
            note="smallest |t_C − t_A| over the grid without π = 1/2; q from 5 % to 95 % of its bound",
        ),
        Claim(
            id="C3-scale",
            statement="The causal logit is never flatter than the anticausal one",
            source=DERIVED,
            paper="scale may differ",
            measured=float(grid["ratio"].min()),
            op=">=",
            value=1.0,
            n=len(grid),
            note="smallest scale ratio over the grid",
        ),
        Claim(
            id="C3-distance",
            statement="The causal boundary is never farther from the mean than the anticausal one",
            source=DERIVED,
            measured=float((grid["t_causal"].abs() - grid["t_anticausal"].abs()).max()),
            op="<=",
            value=1e-10,
            n=len(grid),
            unit="SD",
            note="largest |t_C| − |t_A| over the grid (T4, derived here)",
        ),
    ]
    result.metrics.append(Metric("E1 largest scale ratio on the grid", float(grid["ratio"].max()), "", "lower"))
    plots.feasibility_map(out / "feasibility.png")
    result.artifacts.append(
        Artifact("feasibility.png", "Where the causal direction has a solution: R² against prevalence")
    )
    return result


def _moment_error(problem: MomentProblem, coef: Array, intercept: float) -> float:
    """Largest error of E[Y] and of Cov(X, Y) under the fitted law, in units of standard deviations."""
    tau = float(np.sqrt(coef @ problem.cov @ coef))
    pi, slope = logistic_gaussian(intercept + float(coef @ problem.mean), tau)
    v = problem.prevalence * (1.0 - problem.prevalence)
    c = problem.cov @ coef * slope  # Stein
    return float(
        max(abs(pi - problem.prevalence), np.abs((c - problem.cov_xy) / np.sqrt(v * np.diag(problem.cov))).max())
    )


def _relative(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def _direction_grid(points: int) -> pd.DataFrame:
    """Angle, scale ratio and standardised boundaries over prevalence × q, on one fixed two-feature covariance."""
    rng = np.random.default_rng(12)  # the geometry does not depend on it: any covariance gives the same figures
    rows = []
    for pi in np.linspace(0.02, 0.98, points):
        for share in np.linspace(0.05, 0.95, points):
            problem = moment_problem(rng, 2, prevalence=float(pi), share=float(share))
            moments = problem_moments(problem)
            causal, anticausal = fit(moments, "causal"), fit(moments, "anticausal")
            t = []
            for model in (causal, anticausal):
                w = model.coef_[0]
                t.append(-(float(model.intercept_[0]) + w @ problem.mean) / np.sqrt(w @ problem.cov @ w))
            ratio = np.linalg.norm(causal.coef_) / np.linalg.norm(anticausal.coef_)
            rows.append((pi, share, angle(causal.coef_[0], anticausal.coef_[0]), ratio, t[0], t[1]))
    return pd.DataFrame(rows, columns=["prevalence", "share", "angle", "ratio", "t_causal", "t_anticausal"])


def run_e2(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C2: Y → X with full information is linear discriminant analysis, for two and three classes."""
    from sklearn.datasets import load_iris, load_wine
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from .. import MergedClassifier

    sample = lda_anticausal(rng, profile.lda_rows, 10)
    breast = load_real("breast_cancer_mean")
    binary = {"sampled": (sample.X, sample.y), breast.name: (breast.X.to_numpy(), breast.y)}
    three = {"iris": load_iris(return_X_y=True), "wine": load_wine(return_X_y=True)}

    def worst(sets: dict[str, tuple[Array, NDArray[np.int64]]]) -> float:
        gaps = []
        for X, y in sets.values():
            ours = MergedClassifier("y", "anticausal").fit(X, y)
            peer = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
            gaps.append(float(np.abs(ours.predict_proba(X) - peer.predict_proba(X)).max()))
        return max(gaps)

    note = "largest difference of predict_proba to sklearn LinearDiscriminantAnalysis(solver='lsqr')"
    return Experiment(
        claims=[
            Claim(
                id="C2-binary",
                statement="With all bivariate distributions known, Y → X is linear discriminant analysis (2 classes)",
                paper="LDA",
                measured=worst(binary),
                op="<=",
                value=1e-8,
                n=len(binary),
                note=f"{note}; {', '.join(binary)}",
            ),
            Claim(
                id="C2-three",
                statement="With all bivariate distributions known, Y → X is linear discriminant analysis (3 classes)",
                paper="LDA",
                measured=worst(three),
                op="<=",
                value=1e-8,
                n=len(three),
                note=f"{note}; {', '.join(three)}",
            ),
        ]
    )


def run_e3(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C4: with Cov(X1, X2) unknown the slopes differ, exactly as T7 says."""
    from .. import max_linear_r2, plots

    pi, sd = 0.35, np.array([2.0, 0.5])
    v = pi * (1 - pi)
    axis = np.linspace(-0.75, 0.75, profile.grid)
    angles = np.full((profile.grid, profile.grid), np.nan)
    formula_error: list[float] = []
    implied_error: list[float] = []
    product_error: list[float] = []
    on_lines: list[float] = []
    off_lines: list[float] = []
    for i, r1 in enumerate(axis):
        for j, r2 in enumerate(axis):
            if r1**2 + r2**2 >= 0.999 * max_linear_r2(pi) or (r1 == 0 and r2 == 0):
                continue
            c = np.array([r1, r2]) * np.sqrt(v) * sd
            cov = np.array([[sd[0] ** 2, np.nan], [np.nan, sd[1] ** 2]])
            problem = MomentProblem(np.array([1.0, -2.0]), cov, pi, c, float("nan"))
            moments = problem_moments(problem)
            causal, anticausal = fit(moments, "causal"), fit(moments, "anticausal")
            angles[i, j] = angle(causal.coef_[0], anticausal.coef_[0])
            expected = angle(c / sd**2, c / (v * sd**2 - c**2))  # T7
            formula_error.append(abs(angles[i, j] - expected))
            axis_or_diagonal = bool(np.isclose(abs(r1), abs(r2)) or np.isclose(r1, 0.0) or np.isclose(r2, 0.0))
            (on_lines if axis_or_diagonal else off_lines).append(angles[i, j])
            scale = sd[0] * sd[1]
            implied_error.append(abs(float(anticausal.completed_cov_[0, 1]) - c[0] * c[1] / v) / scale)
            implied_error.append(abs(float(causal.completed_cov_[0, 1])) / scale)
            product_error.append(
                _product_of_experts_error(problem, anticausal.coef_[0], float(anticausal.intercept_[0]), rng)
            )
    points = f"π = {pi}, {len(formula_error)} feasible points of a {profile.grid}×{profile.grid} grid over (R1, R2)"
    result = Experiment()
    result.claims += [
        Claim(
            id="C4-formula",
            statement="With Cov(X1,X2) unknown the normals are c_i/Σ_ii (causal) and c_i/(vΣ_ii − c_i²) (anticausal)",
            paper="slopes differ",
            measured=max(formula_error),
            op="<=",
            value=1e-8,
            n=len(formula_error),
            unit="rad",
            note=f"largest error; {points}",
        ),
        Claim(
            id="C4-zero-on-lines",
            statement="The slopes agree where |R1| = |R2| or one of them is zero",
            source=DERIVED,
            measured=max(on_lines),
            op="<=",
            value=1e-8,
            n=len(on_lines),
            unit="rad",
            note=f"largest angle on those lines; {points}",
        ),
        Claim(
            id="C4-differ-elsewhere",
            statement="Everywhere else the slopes differ",
            paper="slopes differ",
            measured=min(off_lines),
            op=">",
            value=1e-8,
            n=len(off_lines),
            unit="rad",
            note=f"smallest angle off those lines; {points}",
        ),
        Claim(
            id="C4-dependence",
            statement="Causal takes X1 and X2 as independent, anticausal infers Cov(X1,X2) = c1 c2 / v",
            paper="causal: independent; anticausal: dependent",
            measured=max(implied_error),
            op="<=",
            value=1e-8,
            n=len(implied_error),
            note="largest error of the implied correlation",
        ),
        Claim(
            id="C4-product",
            statement="The anticausal logit is the sum of the single-feature LDA logits minus the prior logit",
            source=DERIVED,
            measured=max(product_error),
            op="<=",
            value=1e-8,
            n=len(product_error),
            note="largest error at random x (T7, derived here)",
        ),
    ]
    result.metrics.append(
        Metric("E3 largest angle on the grid", float(np.degrees(np.nanmax(angles))), "degree", "lower")
    )
    plots.boundary_figure(out / "boundaries.png")
    plots.angle_map(out / "angle_map.png", prevalence=pi)
    result.artifacts += [
        Artifact(
            "boundaries.png", "Boundaries of both directions: full information, Cov(X1,X2) missing, E[YX2] missing"
        ),
        Artifact("angle_map.png", "Angle between the two boundaries when Cov(X1,X2) is missing"),
    ]
    return result


def _product_of_experts_error(problem: MomentProblem, coef: Array, intercept: float, rng: np.random.Generator) -> float:
    v, pi = problem.prevalence * (1 - problem.prevalence), problem.prevalence
    x = problem.mean + rng.normal(size=(5, 2)) * np.sqrt(np.diag(problem.cov))
    delta, within = problem.cov_xy / v, np.diag(problem.cov) - problem.cov_xy**2 / v
    middle = problem.mean + (0.5 - pi) * delta
    experts = logit(pi) + (x - middle) * delta / within  # (5, 2) bivariate LDA logits
    product = experts.sum(axis=1) - logit(pi)
    return float(np.abs(x @ coef + intercept - product).max() / max(1.0, np.abs(product).max()))


def run_e4(profile: Profile, rng: np.random.Generator, out: Path) -> Experiment:
    """C5: features never seen with Y get no weight in one block, and their due weight in a star."""
    weights, angles, implied = [], [], []
    for _ in range(profile.problems):
        d = int(rng.integers(2, 11))
        problem = moment_problem(rng, d)
        hidden = sorted(rng.choice(d, size=int(rng.integers(1, d)), replace=False).tolist())
        seen = [i for i in range(d) if i not in hidden]
        moments = problem_moments(problem).hide([("y", f"x{i + 1}") for i in hidden])
        causal, anticausal = fit(moments, "causal"), fit(moments, "anticausal")
        for model in (causal, anticausal):
            weights.append(float(np.abs(model.coef_[0, hidden]).max()))
            transmitted = problem.cov[np.ix_(hidden, seen)] @ np.linalg.solve(
                problem.cov[np.ix_(seen, seen)], problem.cov_xy[seen]
            )
            got = model.implied_moments_.subset([*(f"x{i + 1}" for i in hidden), "y"]).cov[-1, :-1]
            scale = np.sqrt(problem.cov[hidden, hidden] * problem.prevalence * (1 - problem.prevalence))
            implied.append(float(np.abs((got - transmitted) / scale).max()))
        angles.append(angle(causal.coef_[0], anticausal.coef_[0]))

    delta, pi = np.array([1.2, 0.9]), 0.4
    truth = pi * (1 - pi) * delta[1]
    estimates = []
    for _ in range(profile.star_seeds):
        sample = star(rng, profile.star_rows, delta, prevalence=pi)
        hidden_moments = array_moments(sample.X, sample.y).hide([("y", "x2")])
        model = fit(hidden_moments, "anticausal-star")
        estimates.append(float(model.implied_moments_.subset(["x2", "y"]).cov[0, 1]))
    error = float(np.std(estimates, ddof=1) / np.sqrt(len(estimates)))
    z = abs(float(np.mean(estimates)) - truth) / error
    many = f"{profile.problems} random problems, d from 2 to 10, both directions"
    return Experiment(
        claims=[
            Claim(
                id="C5-ignored",
                statement="A feature whose moment with Y is unknown gets exactly zero weight in both directions",
                paper="X2 is ignored (causal)",
                measured=max(weights),
                op="<=",
                value=0.0,
                n=len(weights),
                note=f"largest |weight|; {many}",
            ),
            Claim(
                id="C5-parallel",
                statement="The slopes of both directions are then equal",
                paper="equal slopes",
                measured=max(angles),
                op="<=",
                value=1e-8,
                n=len(angles),
                unit="rad",
                note=f"largest angle; {many}",
            ),
            Claim(
                id="C5-implied",
                statement="Both imply the covariance with Y that the known features transmit",
                source=DERIVED,
                measured=max(implied),
                op="<=",
                value=1e-8,
                n=len(implied),
                note=f"largest error, correlation scale; {many}",
            ),
            Claim(
                id="C5-star",
                statement="Without an edge X1–X2 the anticausal star recovers the hidden Cov(X2,Y) from Cov(X1,X2)",
                source=DERIVED,
                paper="anticausal infers",
                measured=z,
                op="<=",
                value=3.0,
                n=profile.star_seeds,
                unit="SE",
                note=f"|mean − truth| / SE over {profile.star_seeds} samples of {profile.star_rows} rows; "
                f"mean {np.mean(estimates):.5f}, truth {truth:.5f}",
            ),
        ]
    )
