"""From GWAS summary statistics and an LD panel to a joint predictor of case status.

A GWAS prints one effect per SNP, each estimated alone; a panel holds the correlations between SNPs. After both have
been brought to the same counted allele they are moments like any others: Cov(X_j, Y) from the effect and the
prevalence (spec 2.9), Cov(X) from the panel. Features are called ``rs1_A``: the dosage of allele A of SNP rs1.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .errors import CMaxEntError
from .graph import _listed
from .moments import Moments
from .storage import DAMAGED
from .tables import CHUNK, Chunk, TextTable

Array = NDArray[np.float64]

# Column names, lower case, in order of preference: GWAS-SSF, LDSC .sumstats, PLINK, METAL.
_ALIASES = {
    "snp": ("rsid", "rs_id", "snp", "snpid", "id", "markername", "variant_id"),
    "effect": ("effect_allele", "a1", "allele1", "alt"),
    "other": ("other_allele", "a2", "allele2", "ref"),
    "beta": ("beta", "log_odds", "logor", "effect", "b"),
    "odds_ratio": ("odds_ratio", "or"),
    "z": ("z", "zscore", "z_stat"),
    "frequency": ("effect_allele_frequency", "eaf", "a1_freq", "freq", "frq", "af"),
    "n": ("n", "obs_ct", "n_total", "neff"),
}
_NUMBERS = ("beta", "odds_ratio", "z", "frequency", "n")
_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


@dataclass(frozen=True)
class LDPanel:
    """Correlations between SNPs of a reference panel, in counts of ``effect`` alleles.

    Attributes
    ----------
    snps, effect, other : p identifiers and alleles.
    corr : (p, p).
    frequency : (p,) of the ``effect`` allele, or None.
    """

    snps: tuple[str, ...]
    effect: tuple[str, ...]
    other: tuple[str, ...]
    corr: Array
    frequency: Array | None = None


@dataclass(frozen=True)
class Harmonised:
    """Effects on the panel's alleles, in the panel's order.

    Attributes
    ----------
    index : (m,) positions in the panel.
    beta : (m,) log odds ratio or linear effect per counted allele, or the z-score where ``is_z``.
    frequency, n : (m,) of the counted allele, and sample size; NaN unknown.
    counts : number of SNPs used, flipped (swapped alleles), other_strand, and of those left out: ambiguous, mismatched,
        duplicated, missing (no effect), not_in_panel, not_in_sumstats.
    """

    index: NDArray[np.intp]
    beta: Array
    frequency: Array
    n: Array
    is_z: bool
    counts: dict[str, int]


# --- reading -------------------------------------------------------------------------------------------------


def read_ld(path: str | os.PathLike[str], snps: str | os.PathLike[str] | None = None) -> LDPanel:
    """An LD panel.

    Parameters
    ----------
    path : ``.npz`` with arrays ``ld`` or ``corr`` (p, p), ``snp``, ``a1``, ``a2`` and optionally ``maf`` or ``freq``
        (the frequency of a1, as PLINK writes it); or a text file with a (p, p) matrix separated by white space.
    snps : for a text matrix, a table with a header SNP A1 A2 [MAF], or a PLINK ``.bim``; default the file beside
        ``path`` with suffix ``.snps`` or ``.bim``.
    """
    path = Path(path)
    if not path.is_file():
        raise CMaxEntError(f"{path}: no such file")
    if path.suffix == ".npz":
        return _panel_from_npz(path)
    corr = _dense_text(path)
    beside = [Path(snps)] if snps is not None else [path.with_suffix(s) for s in (".snps", ".bim")]
    table = next((p for p in beside if p.is_file()), None)
    if table is None:
        raise CMaxEntError(
            f"{path}: a text matrix needs its SNPs and alleles: no such file {_listed(map(str, beside))}"
        )
    if table.suffix == ".bim":
        frame = pd.read_csv(
            table, sep=r"\s+", header=None, dtype=str, names=["chr", "snp", "cm", "pos", "effect", "other"]
        )
        frequency = None
    else:
        frame = _read_columns(table, ("snp", "effect", "other"))
        name = next((c for c in frame.columns if c.lower() in ("maf", *_ALIASES["frequency"])), None)
        frequency = None if name is None else _numbers(frame[name], table, name, lambda row: f"line {row + 2}")
    return _panel(path, frame["snp"], frame["effect"], frame["other"], corr, frequency)


def _panel_from_npz(path: Path) -> LDPanel:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key.lower(): file[key] for key in file.files}
    except DAMAGED as error:
        raise CMaxEntError(f"{path}: not an .npz file of plain arrays or damaged ({error})") from None

    def pick(*names: str) -> NDArray[Any] | None:
        return next((arrays[n] for n in names if n in arrays), None)

    corr, snps = pick("ld", "corr", "r"), pick("snp", "snps", "id", "ids", "rsid")
    effect, other = pick("a1", "effect_allele", "alleles1"), pick("a2", "other_allele", "alleles2")
    alleles = pick("alleles")
    if effect is None and other is None and alleles is not None and alleles.ndim == 2 and alleles.shape[1] == 2:
        effect, other = alleles[:, 0], alleles[:, 1]
    if corr is None or snps is None or effect is None or other is None:
        missing = [n for n, a in (("ld", corr), ("snp", snps), ("a1", effect), ("a2", other)) if a is None]
        raise CMaxEntError(f"{path}: lacks array {_listed(missing)}; it has {_listed(arrays)}")
    frequency = pick("freq", "af", "frequency", "maf")
    return _panel(path, snps.astype(str), effect.astype(str), other.astype(str), corr, frequency)


def _panel(
    path: Path,
    snps: Iterable[str],
    effect: Iterable[str],
    other: Iterable[str],
    corr: ArrayLike,
    frequency: ArrayLike | None,
) -> LDPanel:
    names, a1, a2 = tuple(snps), tuple(str(a).upper() for a in effect), tuple(str(a).upper() for a in other)
    R = np.array(corr, dtype=float)
    p = len(names)
    if R.shape != (p, p) or len(a1) != p or len(a2) != p:
        raise CMaxEntError(
            f"{path}: {p} SNPs, {len(a1)} and {len(a2)} alleles, and a matrix of shape {R.shape} do not fit together"
        )
    if len(set(names)) < p:
        raise CMaxEntError(
            f"{path}: SNPs have to be distinct; repeated: "
            f"{_listed([n for n in dict.fromkeys(names) if names.count(n) > 1])}"
        )
    finite = np.isfinite(R).all(axis=1)
    if not finite.all():
        raise CMaxEntError(
            f"{path}: the correlations of {_listed([names[i] for i in np.flatnonzero(~finite)])} are not all numbers: "
            "leave these SNPs out"
        )
    gap = np.abs(R - R.T).max(initial=0.0)
    if gap > 1e-4:
        i, j = (int(v) for v in np.argwhere(np.abs(R - R.T) == gap)[0])
        raise CMaxEntError(
            f"{path}: the matrix is not symmetric: row {i + 1}, column {j + 1} is {R[i, j]:g}, "
            f"but the mirrored entry is {R[j, i]:g}"
        )
    if np.abs(R).max(initial=0.0) > 1 + 1e-6 or np.abs(R.diagonal() - 1).max(initial=0.0) > 1e-3:
        raise CMaxEntError(
            f"{path}: not a correlation matrix: the diagonal has to be 1 and entries within [-1, 1] "
            "(r, not r^2, not covariance)"
        )
    R = np.clip((R + R.T) / 2, -1, 1)
    np.fill_diagonal(R, 1.0)
    if frequency is None:
        return LDPanel(names, a1, a2, R)
    f = np.asarray(frequency, dtype=float)
    if f.shape != (p,) or not ((f > 0) & (f < 1)).all():
        raise CMaxEntError(f"{path}: allele frequencies have to be {p} numbers strictly between 0 and 1")
    return LDPanel(names, a1, a2, R, f)


def _dense_text(path: Path) -> Array:
    rows: list[list[float]] = []
    with open(path, encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            values = text.replace(",", " ").split()
            if not values:
                continue
            for column, value in enumerate(values, start=1):
                try:
                    float(value)
                except ValueError:
                    raise CMaxEntError(f"{path}: line {line}, column {column}: {value!r} is not a number") from None
            if rows and len(values) != len(rows[0]):
                raise CMaxEntError(f"{path}: line {line} has {len(values)} numbers, line 1 has {len(rows[0])}")
            rows.append([float(v) for v in values])
    if not rows or len(rows) != len(rows[0]):
        raise CMaxEntError(
            f"{path}: has {len(rows)} rows of {len(rows[0]) if rows else 0} numbers: a correlation matrix is square"
        )
    return np.array(rows)


def read_sumstats(path: str | os.PathLike[str], keep: Iterable[str] | None = None) -> pd.DataFrame:
    """GWAS-SSF or ``.sumstats``, separated by tabs, commas or spaces, also ``.gz``, under our column names.

    Parameters
    ----------
    keep : read only these SNPs; files of ten million lines then need little memory.

    Returns
    -------
    DataFrame
        Columns snp, effect, other, beta (log odds or linear) or z, and frequency and n where the file has them. The
        attribute ``attrs["read"]`` counts all lines.
    """
    path = Path(path)
    wanted = None if keep is None else set(keep)
    frame = _read_columns(path, ("snp", "effect", "other"), numbers=True, keep=wanted)
    if "odds_ratio" in frame and "beta" not in frame:
        odds = frame.pop("odds_ratio")
        if (odds <= 0).any():
            row = int(np.flatnonzero((odds <= 0).to_numpy())[0])
            raise CMaxEntError(
                f"{path}: SNP {frame['snp'].iloc[row]}: an odds ratio has to be positive; found {odds.iloc[row]:g} "
                "(is it a log odds ratio?)"
            )
        frame["beta"] = np.log(odds)
    if "beta" not in frame and not ("z" in frame and "n" in frame):
        raise CMaxEntError(f"{path}: line 1: no effects: needs a column beta or odds_ratio, or both z and n")
    return frame


def _read_columns(
    path: Path, required: Sequence[str], *, numbers: bool = False, keep: set[str] | None = None
) -> pd.DataFrame:
    """Recognised columns under our names; others only where ``numbers`` is False."""
    if not path.is_file():
        raise CMaxEntError(f"{path}: no such file")
    table = TextTable(path)
    lower = {c.lower().lstrip("#"): c for c in table.columns}
    found = {ours: next((lower[a] for a in names if a in lower), None) for ours, names in _ALIASES.items()}
    for ours in required:
        if found[ours] is None:
            raise CMaxEntError(
                f"{path}: line 1: no column for the {'SNP' if ours == 'snp' else ours + ' allele'}: expected one of "
                f"{', '.join(_ALIASES[ours])}; the file has {_listed(table.columns)}"
            )
    parts, read = [], 0
    for part in table.chunks(CHUNK, text=table.columns):
        read += len(part.frame)
        chosen = (
            part.frame[found["snp"]].isin(keep).to_numpy() if keep is not None else np.ones(len(part.frame), dtype=bool)
        )
        made = {ours: part.frame[theirs] for ours, theirs in found.items() if theirs is not None and ours in required}
        if numbers:
            made |= {ours: _chunk_numbers(part, found[ours], path) for ours in _NUMBERS if found[ours] is not None}
        else:
            made |= {c: part.frame[c] for c in table.columns if c not in found.values() or c == found["frequency"]}
        parts.append(pd.DataFrame(made)[chosen])
    if not read:
        raise CMaxEntError(f"{path}: holds a header and no rows")
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs["read"] = read
    return frame


def _chunk_numbers(part: Chunk, name: str | None, path: Path) -> pd.Series:
    assert name is not None
    return pd.Series(_numbers(part.frame[name], path, name, part.place), index=part.frame.index)


def _numbers(series: pd.Series, path: Path, name: str, place: Any) -> Array:
    numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    stray = (np.isnan(numbers) & series.notna().to_numpy()) | np.isinf(numbers)
    if stray.any():
        row = int(np.flatnonzero(stray)[0])
        raise CMaxEntError(
            f"{path}: {place(row)}, column {name}: {series.iloc[row]!r} is not a finite number; correct it or write NA"
        )
    return numbers


# --- harmonising ---------------------------------------------------------------------------------------------


def harmonise(stats: pd.DataFrame, panel: LDPanel) -> Harmonised:
    """Bring effects to the panel's counted alleles.

    Strand-ambiguous SNPs (A/T and C/G) are dropped, because the other strand reads the same; SNPs that occur twice are
    dropped altogether; swapped alleles change the sign of the effect; alleles read from the other strand are
    complemented.
    """
    position = {snp: i for i, snp in enumerate(panel.snps)}
    counts = dict.fromkeys(
        (
            "used",
            "flipped",
            "other_strand",
            "ambiguous",
            "mismatched",
            "duplicated",
            "missing",
            "not_in_panel",
            "not_in_sumstats",
        ),
        0,
    )
    in_panel = stats["snp"].isin(position)
    counts["not_in_panel"] = int(stats.attrs.get("read", len(stats)) - in_panel.sum())
    frame = stats[in_panel]
    counts["not_in_sumstats"] = len(panel.snps) - frame["snp"].nunique()
    repeated = frame["snp"].duplicated(keep=False)
    counts["duplicated"] = int(frame.loc[repeated, "snp"].nunique())
    frame = frame[~repeated]
    is_z = "beta" not in frame
    needed = ["z", "n"] if is_z else ["beta"]
    missing = frame[needed].isna().any(axis=1) | frame[["effect", "other"]].isna().any(axis=1)
    counts["missing"] = int(missing.sum())
    frame = frame[~missing]

    index, sign, swapped = [], [], []
    keep = []
    for row, (snp, a, b) in enumerate(zip(frame["snp"], frame["effect"], frame["other"], strict=True)):
        at = position[snp]
        verdict = _alignment(str(a).upper(), str(b).upper(), panel.effect[at], panel.other[at])
        if isinstance(verdict, str):
            counts[verdict] += 1
            continue
        flip, strand = verdict
        counts["flipped"] += flip
        counts["other_strand"] += strand
        index.append(at)
        sign.append(-1.0 if flip else 1.0)
        swapped.append(flip)
        keep.append(row)
    counts["used"] = len(keep)
    if not keep:
        raise CMaxEntError(
            f"no SNP is left: {counts['not_in_panel']} not in the panel, {counts['ambiguous']} strand-ambiguous, "
            f"{counts['mismatched']} with other alleles, "
            f"{counts['duplicated']} duplicated, {counts['missing']} without an effect"
        )
    frame = frame.iloc[keep]
    order = np.argsort(index)
    flips = np.array(swapped)[order]

    def column(name: str) -> Array:
        if name not in frame:
            return np.full(len(keep), np.nan)
        return frame[name].to_numpy(dtype=float)[order]

    frequency = column("frequency")
    outside = ~np.isnan(frequency) & ~((frequency > 0) & (frequency < 1))
    if outside.any():
        at = int(np.array(index)[order][np.flatnonzero(outside)[0]])
        raise CMaxEntError(
            f"SNP {panel.snps[at]}: the effect allele frequency is {frequency[outside][0]:g}; "
            "it has to lie strictly between 0 and 1"
        )
    frequency = np.where(flips, 1 - frequency, frequency)
    at_panel = np.array(index, dtype=np.intp)[order]
    if panel.frequency is not None:
        frequency = np.where(np.isnan(frequency), panel.frequency[at_panel], frequency)
    effect = column("z" if is_z else "beta") * np.array(sign)[order]
    return Harmonised(at_panel, effect, frequency, column("n"), is_z, counts)


def _alignment(a: str, b: str, panel_a: str, panel_b: str) -> tuple[bool, bool] | str:
    """(alleles swapped, other strand), or why the SNP is dropped."""
    if _COMPLEMENT.get(a) == b or _COMPLEMENT.get(panel_a) == panel_b:
        return "ambiguous"
    for strand in (False, True):
        if strand and not (a in _COMPLEMENT and b in _COMPLEMENT):
            break
        x, y = (_COMPLEMENT[a], _COMPLEMENT[b]) if strand else (a, b)
        if (x, y) == (panel_a, panel_b):
            return False, strand
        if (y, x) == (panel_a, panel_b):
            return True, strand
    return "mismatched"


# --- moments -------------------------------------------------------------------------------------------------


def gwas_moments(
    effects: Harmonised,
    panel: LDPanel,
    *,
    prevalence: float,
    scale: str = "logit",
    shrinkage: float = 0.05,
    sample_prevalence: float | None = None,
    target: str = "y",
) -> Moments:
    """Moments of case status and dosages.

    Parameters
    ----------
    prevalence : P(Y=1) in the population to predict for.
    scale : "logit" for log odds ratios, "linear" for effects on P(Y=1); z-scores are turned into log odds ratios.
    shrinkage : gamma in (1 - gamma) R + gamma I, which a panel of few people needs.
    sample_prevalence : share of cases in the GWAS, for z-scores; default ``prevalence``.

    Notes
    -----
    Var(X_j) = 2 f (1 - f) and E[X_j] = 2 f (Hardy-Weinberg). A z-score of n people with case share s corresponds to the
    log odds ratio z / sqrt(n s (1 - s) Var(X_j)), to first order in the effect.
    """
    if not 0 < prevalence < 1:
        raise CMaxEntError(f"prevalence of {target} has to lie strictly between 0 and 1; got {prevalence:g}")
    if not 0 <= shrinkage <= 1:
        raise CMaxEntError(f"shrinkage has to lie in [0, 1]; got {shrinkage:g}")
    names = [f"{panel.snps[i]}_{panel.effect[i]}" for i in effects.index]
    unknown = np.isnan(effects.frequency)
    if unknown.any():
        raise CMaxEntError(
            f"{_listed([names[i] for i in np.flatnonzero(unknown)])}: the allele frequency is in neither the summary "
            "statistics nor the LD panel (array 'maf'): add it to one of them"
        )
    f = effects.frequency
    variance = 2 * f * (1 - f)
    beta = effects.beta
    if effects.is_z:
        if scale != "logit":
            raise CMaxEntError("z-scores are turned into log odds ratios: scale='linear' does not apply")
        share = prevalence if sample_prevalence is None else sample_prevalence
        if not 0 < share < 1:
            raise CMaxEntError(f"sample prevalence has to lie strictly between 0 and 1; got {share:g}")
        if not (effects.n > 0).all():
            raise CMaxEntError(
                f"{_listed([names[i] for i in np.flatnonzero(~(effects.n > 0))])}: the sample size n has to be positive"
            )
        beta = beta / np.sqrt(effects.n * share * (1 - share) * variance)
    R = panel.corr[np.ix_(effects.index, effects.index)] * (1 - shrinkage)
    np.fill_diagonal(R, 1.0)
    sd = np.sqrt(variance)
    n = float(np.median(effects.n[effects.n > 0])) if (effects.n > 0).any() else None
    made = Moments.from_marginal_effects(
        beta, var=R * np.outer(sd, sd), prevalence=prevalence, target=target, names=names, scale=scale, n=n
    )
    return Moments.from_arrays(
        np.concatenate([[prevalence], 2 * f]), made.cov, names=made.names, kinds=made.kinds, n=n, levels=made.levels
    )


__all__ = ["Harmonised", "LDPanel", "gwas_moments", "harmonise", "read_ld", "read_sumstats"]
