"""Figures: boundaries of both directions, angle and feasibility maps, real-data and coverage plots.

Matplotlib is imported on the first call and drawn without a display. Blue is always X → Y (causal),
orange always Y → X (anticausal).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from .errors import CMaxEntError

if TYPE_CHECKING:
    from .compare import DirectionReport

Array = NDArray[np.float64]

CAUSAL, ANTICAUSAL, INK, MUTED, PALE = "#0B6FA4", "#D2691E", "#222222", "#7A7A7A", "#E4E4E1"
_STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9A9A9A",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
}


def _figure(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """``subplots`` without pyplot, which keeps global state and may open a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise CMaxEntError("plots need matplotlib: pip install 'cmaxent[plot]'") from None
    size = kwargs.pop("figsize")
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*args, **kwargs)


def _context() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise CMaxEntError("plots need matplotlib: pip install 'cmaxent[plot]'") from None
    return mpl.rc_context(_STYLE)  # type: ignore[arg-type,unused-ignore]


def _save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Written under a temporary name and renamed, so that a killed run leaves no half picture."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, dpi=160, format=target.suffix.lstrip(".") or "png", facecolor="white")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------- boundaries
_HALO_WIDTH = 2.5


def _label(axis: Any, x: float, y: float, text: str, colour: str, **kwargs: Any) -> None:
    """Direct label with a white halo, readable over lines."""
    from matplotlib import patheffects

    halo = [patheffects.withStroke(linewidth=_HALO_WIDTH, foreground="white")]
    axis.text(x, y, text, color=colour, path_effects=halo, **kwargs)


def _ellipse(mean: Array, cov: Array, radius: float) -> Array:
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    return mean[:, None] + radius * np.linalg.cholesky(cov) @ np.vstack([np.cos(angle), np.sin(angle)])


def _line_in_box(normal: Array, offset: float, box: float) -> Array | None:
    """End points (2, 2) of normal·x + offset = 0 inside |x_i| ≤ box, lowest point first."""
    points = []
    for fixed in (0, 1):
        free = 1 - fixed
        if abs(normal[free]) < 1e-12:
            continue
        for value in (-box, box):
            other = -(offset + normal[fixed] * value) / normal[free]
            if abs(other) <= box * (1 + 1e-9):
                point = np.empty(2)
                point[fixed], point[free] = value, other
                points.append(point)
    if len(points) < 2:
        return None
    ends = np.array(points)
    far = ends[np.argmax(np.linalg.norm(ends - ends[0], axis=1))]
    return np.array(sorted([ends[0], far], key=lambda p: float(p[1])))


def boundary_figure(
    path: str | os.PathLike[str],
    *,
    prevalences: Sequence[float] = (0.2, 0.5),
    correlation: float = 0.2,
    effects: tuple[float, float] = (0.61, 0.3),
) -> None:
    """Boundaries P(Y=1 | x) = ½ of both directions: full information, Cov(X1, X2) missing, E[Y X2] missing.

    Parameters
    ----------
    path : PNG to write.
    prevalences : one row of panels each.
    correlation, effects : Corr(X1, X2) and the correlations of Y with X1 and X2; unit variances, zero means.
    """
    from . import MergedClassifier, Moments

    cases: list[tuple[str, list[tuple[str, str]]]] = [
        ("all pairs known", []),
        ("Cov(X₁, X₂) missing", [("x1", "x2")]),
        ("E[Y X₂] missing", [("y", "x2")]),
    ]
    box = 3.0
    with _context():
        figure, axes = _figure(
            len(prevalences), 3, figsize=(9.6, 3.15 * len(prevalences) + 0.35), sharex=True, sharey=True, squeeze=False
        )
        for row, pi in enumerate(prevalences):
            v = pi * (1 - pi)
            c = np.array(effects) * np.sqrt(v)
            cov = np.array([[1.0, correlation, c[0]], [correlation, 1.0, c[1]], [c[0], c[1], v]])
            known = Moments.from_arrays([0.0, 0.0, pi], cov, names=["x1", "x2", "y"], kinds={"y": "binary"})
            for column, (title, hidden) in enumerate(cases):
                axis = axes[row, column]
                moments = known.hide(hidden) if hidden else known
                fits = {g: MergedClassifier("y", g).fit_moments(moments) for g in ("causal", "anticausal")}
                for radius in (1.0, 2.0):
                    axis.plot(*_ellipse(np.zeros(2), cov[:2, :2], radius), color=PALE, lw=1.2, zorder=1)
                for mean, marker in ((-pi * c / v, "o"), ((1 - pi) * c / v, "D")):
                    visible = mean if not any("y" in pair for pair in hidden) else np.array([mean[0], np.nan])
                    axis.plot(*visible, marker, color=MUTED, ms=4.5, zorder=2)
                _draw_boundaries(axis, fits, box)
                if row == 0:
                    axis.set_title(title)
                axis.set(xlim=(-box, box), ylim=(-box, box), aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
                if column == 0:
                    axis.set_ylabel(f"π = {pi:g}\n\n$X_2$")
                if row == len(prevalences) - 1:
                    axis.set_xlabel("$X_1$")
        axis = axes[0, 0]
        low, high = -prevalences[0], 1 - prevalences[0]
        delta = np.array(effects) / np.sqrt(prevalences[0] * (1 - prevalences[0]))
        _label(
            axis, low * delta[0] - 0.15, low * delta[1] - 0.42, "E[X | Y=0]", MUTED, fontsize=7.5, ha="center", zorder=6
        )
        _label(axis, high * delta[0] + 0.22, high * delta[1] - 0.12, "E[X | Y=1]", MUTED, fontsize=7.5, zorder=6)
        _save(figure, path)


def _draw_boundaries(axis: Any, fits: Mapping[str, Any], box: float) -> None:
    look = {"causal": ("X → Y", CAUSAL, "-"), "anticausal": ("Y → X", ANTICAUSAL, (0, (5, 2)))}
    normals, height = {}, box - 0.62
    crossing = {}  # x1 of each line at the height of the labels
    distance = {}  # signed distance of each line from the mean, along its own normal
    for graph, (_, colour, style) in look.items():
        boundary = fits[graph].decision_boundary()
        normal, offset = np.asarray(boundary.normal), float(boundary.offset)
        line = _line_in_box(normal, offset, box)
        if line is not None:
            axis.plot(*line.T, color=colour, ls=style, lw=2.0, zorder=4, solid_capstyle="butt")
        normals[graph] = normal / np.linalg.norm(normal)
        crossing[graph] = -(offset + normal[1] * height) / normal[0]
        distance[graph] = -offset / float(np.linalg.norm(normal))
    u, w = normals["causal"], normals["anticausal"]
    degrees = float(np.degrees(2 * np.arctan2(np.linalg.norm(u - w), np.linalg.norm(u + w))))
    gap = abs(distance["causal"] - distance["anticausal"])
    verdict = f"{degrees:.1f}° apart" if degrees > 1e-6 else f"parallel, {gap:.2f} apart" if gap > 1e-6 else "identical"
    axis.text(0.03, 0.04, verdict, transform=axis.transAxes, fontsize=8.5, color=INK, va="bottom")
    first = min(
        look, key=lambda g: (round(crossing[g], 6), g == "anticausal")
    )  # its label goes to the left of its line
    for graph, (text, colour, _) in look.items():
        left = graph == first
        _label(
            axis,
            crossing[graph] + (-0.22 if left else 0.22),
            height,
            text,
            colour,
            ha="right" if left else "left",
            va="center",
            fontsize=9,
            zorder=6,
        )


# --------------------------------------------------------------------------------------------- maps
def angle_map(path: str | os.PathLike[str], *, prevalence: float = 0.35, resolution: int = 601) -> None:
    """Angle between the boundaries without Cov(X1, X2), over the correlations of Y with two standardised features.

    The normals are (R1, R2) in the causal and R_i / (1 − R_i²) in the anticausal direction (T7), wherever
    the causal direction has a solution, R1² + R2² < φ(Φ⁻¹(π))² / (π(1−π)) (T2).
    """
    limit = float(norm.pdf(norm.ppf(prevalence)) ** 2 / (prevalence * (1 - prevalence)))
    edge = 0.86
    values = np.linspace(-edge, edge, resolution)
    r1, r2 = np.meshgrid(values, values)
    a1, a2 = r1 / (1 - r1**2), r2 / (1 - r2**2)
    angle = np.degrees(np.arctan2(np.abs(r1 * a2 - r2 * a1), r1 * a1 + r2 * a2))
    inside = r1**2 + r2**2 < limit
    with _context():
        figure, axis = _figure(figsize=(5.7, 4.8))
        mesh = axis.pcolormesh(
            values,
            values,
            np.ma.masked_where(~inside, angle),
            cmap="YlGnBu",
            shading="nearest",
            vmin=0.0,
            rasterized=True,
        )
        circle, radius = np.linspace(0, 2 * np.pi, 300), np.sqrt(limit)
        axis.plot(radius * np.cos(circle), radius * np.sin(circle), color=INK, lw=1.2)
        levels = [2, 4, 6, 8]
        axis.contour(values, values, np.where(inside, angle, np.nan), levels=levels, colors="white", linewidths=0.8)
        half = radius / np.sqrt(2)
        for x, y in ((1.0, 0.0), (0.0, 1.0)):
            axis.plot([-radius * x, radius * x], [-radius * y, radius * y], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        for sign in (1, -1):
            axis.plot([-half, half], [-sign * half, sign * half], color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axis.text(
            0.0,
            0.30,
            "parallel on the dashed lines",
            fontsize=8,
            ha="center",
            va="center",
            color=INK,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
        )
        axis.text(
            edge * 0.98,
            edge * 0.98,
            f"no causal\nsolution:\n$R_1^2+R_2^2\\geq${limit:.2f}",
            ha="right",
            va="top",
            fontsize=8,
            color=MUTED,
        )
        axis.set(xlabel="$R_1$ = Corr(Y, $X_1$)", ylabel="$R_2$ = Corr(Y, $X_2$)", aspect="equal")
        axis.set(
            xlim=(-edge, edge), ylim=(-edge, edge), xticks=[-0.8, -0.4, 0, 0.4, 0.8], yticks=[-0.8, -0.4, 0, 0.4, 0.8]
        )
        axis.set_title(f"Angle between X → Y and Y → X without Cov(X₁, X₂), π = {prevalence:g}", fontsize=10)
        bar = figure.colorbar(mesh, ax=axis, shrink=0.85, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("degrees")
        _save(figure, path)


def feasibility_map(path: str | os.PathLike[str], points: Mapping[str, tuple[float, float]] | None = None) -> None:
    """Largest R² of Y on X that the causal direction can express, φ(Φ⁻¹(π))² / (π(1−π)), against π.

    Parameters
    ----------
    points : label -> (prevalence, R²) of data sets to mark.
    """
    with _context():
        figure, axis = _figure(figsize=(6.2, 3.9))
        pi = np.linspace(0.001, 0.999, 800)
        limit = norm.pdf(norm.ppf(pi)) ** 2 / (pi * (1 - pi))
        axis.fill_between(pi, 0, limit, color=CAUSAL, alpha=0.14, lw=0)
        axis.fill_between(pi, limit, 1, color=ANTICAUSAL, alpha=0.12, lw=0)
        axis.plot(pi, limit, color=CAUSAL, lw=2)
        axis.text(0.5, 0.27, "both directions have a solution", ha="center", color=CAUSAL)
        axis.text(0.5, 0.86, "only Y → X has a solution", ha="center", color=ANTICAUSAL)
        axis.annotate(
            "2/π = 0.637 at prevalence ½", (0.5, 2 / np.pi), (0.5, 0.70), ha="center", fontsize=8.5, color=INK
        )
        for label, (x, y) in (points or {}).items():
            axis.plot(x, y, "o", color=INK, ms=4)
            axis.annotate(label, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7.5)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="prevalence P(Y = 1)", ylabel="R² of Y on X")
        axis.set_title("Moments that a logistic mechanism on a Gaussian cause can have", fontsize=10)
        _save(figure, path)


# ---------------------------------------------------------------------------------- real data, intervals
def paired_dots(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    columns: Mapping[str, tuple[str, str]],
    xlabel: str,
    title: str,
    marks: Mapping[float, str] | None = None,
    xlim: tuple[float, float] | None = None,
) -> None:
    """One row per data set, one dot per method, joined by a line.

    Parameters
    ----------
    table : index = data sets; a column per method.
    columns : column -> (label, colour).
    marks : value -> label of vertical reference lines.
    xlim : values beyond it are drawn as arrows at the edge with their number.
    """
    with _context():
        figure, axis = _figure(figsize=(7.0, max(2.8, 0.31 * len(table) + 1.7)))
        rows = np.arange(len(table))[::-1]
        values = table[list(columns)].to_numpy(dtype=float)
        low, high = xlim or (float(np.nanmin(values)), float(np.nanmax(values)))
        top = len(table) - 0.45
        for value, label in (marks or {}).items():
            axis.plot([value, value], [-0.7, top], color="#B5B5B5", lw=1, zorder=0)
            axis.text(value, top, label, ha="center", va="bottom", fontsize=8, color=MUTED)
        shown = np.clip(values, low, high)
        axis.hlines(rows, np.nanmin(shown, axis=1), np.nanmax(shown, axis=1), color=PALE, lw=3, zorder=1)
        crowd: dict[tuple[int, float], int] = {}  # labels already at this edge of this row
        for k, (label, colour) in enumerate(columns.values()):
            inside = (values[:, k] >= low) & (values[:, k] <= high)
            axis.plot(shown[inside, k], rows[inside], "o", color=colour, ms=6, zorder=3, label=label, clip_on=False)
            for value, row in zip(values[~inside, k], rows[~inside], strict=True):
                if not np.isfinite(value):
                    continue
                edge, mark, sign = (low, "<", 1) if value < low else (high, ">", -1)
                before = crowd.setdefault((int(row), edge), 0)
                crowd[int(row), edge] += 1
                axis.plot(edge, row, mark, color=colour, ms=6, zorder=3, clip_on=False)
                axis.annotate(
                    f"{value:.2f}",
                    (edge, row),
                    xytext=(sign * (6 + 26 * before), 5),
                    textcoords="offset points",
                    ha="left" if sign > 0 else "right",
                    va="center",
                    fontsize=7.5,
                    color=colour,
                )
        axis.set(yticks=rows, yticklabels=[str(i).replace("_", " ") for i in table.index], xlabel=xlabel)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        pad = 0.03 * (high - low)
        axis.set(xlim=(low - pad, high + pad), ylim=(-0.7, len(table) - 0.2))
        axis.set_title(title, pad=14 if marks else 6)
        figure.legend(
            *axis.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(3, len(columns)),
            frameon=False,
            handletextpad=0.2,
        )
        _save(figure, path)


def intervals(
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    xlabel: str,
    title: str,
    band: tuple[float, float],
    nominal: float,
) -> None:
    """Estimates with intervals, one per row, against a target band.

    Parameters
    ----------
    table : index = settings; columns ``value``, ``low``, ``high``, ``direction`` ("causal" or "anticausal").
    """
    with _context():
        figure, axis = _figure(figsize=(6.4, 0.42 * len(table) + 1.2))
        rows = np.arange(len(table))[::-1]
        axis.axvspan(*band, color="#F1F1EE", zorder=0, lw=0)
        for edge, align in zip(band, ("left", "right"), strict=True):
            axis.text(edge, -0.55, f" {edge:g} ", ha=align, va="bottom", fontsize=8, color=MUTED)
        axis.axvline(nominal, color="#9A9A9A", lw=1, zorder=1)
        for row, (_, line) in zip(rows, table.iterrows(), strict=True):
            colour = CAUSAL if line["direction"] == "causal" else ANTICAUSAL
            axis.plot([line["low"], line["high"]], [row, row], color=colour, lw=2, zorder=2, solid_capstyle="butt")
            axis.plot(line["value"], row, "o", color=colour, ms=6, zorder=3)
            axis.text(
                line["value"], row + 0.2, f"{line['value']:.3f}", ha="center", va="bottom", fontsize=8, color=colour
            )
        axis.set(yticks=rows, yticklabels=list(table.index), xlabel=xlabel, ylim=(-0.6, len(table) - 0.2))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_title(title)
        _save(figure, path)


def score_histogram(
    scores: Mapping[str, tuple[Array, Array]],
    path: str | os.PathLike[str],
    *,
    xlabel: str,
    labels: tuple[str, str],
    title: str,
) -> None:
    """Two overlaid histograms per panel: the first sample in blue (causal truth), the second in orange."""
    with _context():
        figure, axes = _figure(1, len(scores), figsize=(3.1 * len(scores) + 0.3, 2.9), squeeze=False)
        for axis, (panel, (causal, anticausal)) in zip(axes[0], scores.items(), strict=True):
            # The two truths differ in scale by an order of magnitude; a signed square root shows both.
            a, b = (np.sign(s) * np.sqrt(np.abs(s)) for s in (causal, anticausal))
            edges = np.histogram_bin_edges(np.concatenate([a, b]), bins=40)
            for values, colour in ((a, CAUSAL), (b, ANTICAUSAL)):
                axis.hist(values, bins=edges, color=colour, alpha=0.75, lw=0)
            axis.axvline(0.0, color=INK, lw=0.8)
            axis.set_title(panel)
            axis.set(yticks=[], xlabel=xlabel)
            axis.spines["left"].set_visible(False)
        handles = [_patch(CAUSAL, labels[0]), _patch(ANTICAUSAL, labels[1])]
        figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, title=title, alignment="left")
        _save(figure, path)


def _patch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


# ------------------------------------------------------------------------------------ direction report
def direction_figure(
    report: DirectionReport, path: str | os.PathLike[str], *, target: str = "y", most: int = 20
) -> None:
    """What changes when the arrow is turned round: standardised weights, and the boundary on the logit's axis.

    Parameters
    ----------
    report : of :func:`cmaxent.compare_directions`, binary target, at least one feasible direction.
    path : PNG, PDF or SVG to write.
    target : its name, for labels.
    most : features shown, those with the largest weights.

    Raises
    ------
    CMaxEntError
        Neither direction is feasible, or the target has more than two classes or is continuous.
    """
    sides = {k: m for k, m in (("causal", report.causal), ("anticausal", report.anticausal)) if m is not None}
    if not sides:
        raise CMaxEntError(
            "neither direction is feasible, so there is nothing to draw: " + "; ".join(report.reasons.values())
        )
    if any(len(getattr(m, "classes_", ())) != 2 for m in sides.values()):
        raise CMaxEntError("the direction figure needs a target with two classes")
    weights = pd.DataFrame({k: _standardised_weights(m) for k, m in sides.items()})
    weights = weights.loc[weights.abs().max(axis=1).sort_values(ascending=False).index[:most]]
    with _context():
        figure, (left, right) = _figure(
            1, 2, figsize=(9.4, max(2.9, 0.27 * len(weights) + 1.3)), gridspec_kw={"width_ratios": [1.15, 1.0]}
        )
        rows = np.arange(len(weights))[::-1]
        left.axvline(0.0, color="#B5B5B5", lw=1, zorder=0)
        left.hlines(rows, weights.min(axis=1), weights.max(axis=1), color=PALE, lw=3, zorder=1)
        names = {"causal": f"X → {target}", "anticausal": f"{target} → X"}
        for direction, colour in (("causal", CAUSAL), ("anticausal", ANTICAUSAL)):
            if direction in sides:
                left.plot(weights[direction], rows, "o", color=colour, ms=6, zorder=3, label=names[direction])
        left.set(
            yticks=rows,
            yticklabels=list(weights.index),
            xlabel="weight per standard deviation (log odds)",
            ylim=(-0.7, len(weights) - 0.3),
        )
        left.tick_params(axis="y", length=0)
        left.spines["left"].set_visible(False)
        left.set_title(
            "Weights" if not np.isfinite(report.angle) else f"Weights: normals {np.degrees(report.angle):.2g}° apart"
        )

        z = np.linspace(-3.6, 3.6, 400)
        right.fill_between(z, norm.pdf(z), color=PALE, lw=0)
        t = {"causal": report.t_causal, "anticausal": report.t_anticausal}
        drawn = [d for d in sides if np.isfinite(t[d])]
        leftmost = min(drawn, key=t.__getitem__, default="")  # its label goes to the left of its line
        for direction in drawn:
            colour = CAUSAL if direction == "causal" else ANTICAUSAL
            inside = float(np.clip(t[direction], -3.4, 3.4))
            right.plot(
                [inside, inside], [0, 0.46], color=colour, lw=2, ls="-" if direction == "causal" else (0, (5, 2))
            )
            text = f"{names[direction]}\n{t[direction]:.2f} SD" + (" (off scale)" if inside != t[direction] else "")
            at_left = direction == leftmost and (len(drawn) > 1 or inside > 0)
            side = -0.1 if at_left else 0.1
            right.text(
                inside + side, 0.46, text, color=colour, ha="right" if at_left else "left", va="top", fontsize=8.5
            )
        right.set(xlim=(-3.6, 3.6), ylim=(0, 0.5), yticks=[], xlabel="x along the normal, SDs from the mean")
        right.spines["left"].set_visible(False)
        right.set_box_aspect(0.62)
        right.set_anchor("N")
        share = report.disagreement
        right.set_title("Boundary" if not np.isfinite(share) else f"Boundary: {100 * share:.2g} % of x change class")
        reasons = [f"{names[d]} is infeasible: {_wrapped(reason)}" for d, reason in report.reasons.items()]
        if reasons:
            figure.suptitle("\n".join(reasons), x=0.01, ha="left", fontsize=8.5, color=INK)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, handletextpad=0.2
        )
        _save(figure, path)


def _wrapped(text: str, width: int = 125, most: int = 4) -> str:
    import textwrap

    lines = textwrap.wrap(text, width)
    return "\n".join(lines[:most]) + (" …" if len(lines) > most else "")


def _standardised_weights(model: Any) -> pd.Series:
    scale = np.sqrt(np.diag(model.completed_cov_))
    names = [n for n in model.moments_.names if n != model.target]
    return pd.Series(np.asarray(model.coef_[0]) * scale, index=names)
