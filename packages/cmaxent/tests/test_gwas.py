"""Summary statistics and LD: alleles end up on one side, effects become moments, moments a joint predictor."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cmaxent import MergedClassifier, Moments, load
from cmaxent.datasets import gwas_model
from cmaxent.errors import CMaxEntError
from cmaxent.gwas import LDPanel, gwas_moments, harmonise, read_ld, read_sumstats

PANEL = LDPanel(
    snps=("rs1", "rs2", "rs3", "rs4", "rs5", "rs6", "rs7"),
    effect=("A", "A", "C", "A", "C", "G", "A"),
    other=("G", "G", "T", "T", "G", "T", "C"),
    corr=np.eye(7),
    frequency=np.full(7, 0.3),
)

SSF = """\
chromosome\tbase_pair_location\teffect_allele\tother_allele\tbeta\tstandard_error\teffect_allele_frequency\tp_value\trsid\tn
1\t100\tA\tG\t0.10\t0.01\t0.30\t1e-9\trs1\t1000
1\t200\tG\tA\t0.20\t0.01\t0.70\t1e-9\trs2\t1000
1\t300\tG\tA\t0.30\t0.01\t0.20\t1e-9\trs3\t1000
1\t400\tA\tT\t0.40\t0.01\t0.40\t1e-9\trs4\t1000
1\t500\tG\tC\t0.50\t0.01\t0.40\t1e-9\trs5\t1000
1\t600\tA\tC\t0.60\t0.01\t0.10\t1e-9\trs6\t#NA
1\t700\tA\tG\t0.70\t0.01\t0.10\t1e-9\trs7\t1000
1\t800\tA\tG\t0.80\t0.01\t0.10\t1e-9\trs8\t1000
"""


def save_panel(path, panel):
    arrays = {"ld": panel.corr, "snp": np.array(panel.snps), "a1": np.array(panel.effect), "a2": np.array(panel.other)}
    np.savez(path, **arrays, maf=panel.frequency)


def test_alleles_are_matched_flipped_complemented_or_dropped(tmp_path):
    """rs1 as is; rs2 swapped; rs3 other strand (G/A = C/T); rs4, rs5 dropped; rs6 swapped on the other strand."""
    path = tmp_path / "s.tsv"
    path.write_text(SSF)
    got = harmonise(read_sumstats(path, PANEL.snps), PANEL)
    assert [PANEL.snps[i] for i in got.index] == ["rs1", "rs2", "rs3", "rs6"]
    np.testing.assert_allclose(got.beta, [0.1, -0.2, 0.3, -0.6])
    np.testing.assert_allclose(got.frequency, [0.3, 0.3, 0.2, 0.9])
    np.testing.assert_array_equal(got.n, [1000, 1000, 1000, np.nan])
    assert got.counts == {
        "used": 4,
        "flipped": 2,
        "other_strand": 2,
        "ambiguous": 2,
        "mismatched": 1,
        "duplicated": 0,
        "missing": 0,
        "not_in_panel": 1,
        "not_in_sumstats": 0,
    }


def test_duplicates_and_missing_effects_are_dropped_with_a_count(tmp_path):
    path = tmp_path / "s.txt.gz"
    lines = "SNP A1 A2 BETA FRQ\nrs1 A G .1 .2\nrs2 A G .1 .2\nrs2 A G .1 .2\nrs3 C T NA .2\n"
    path.write_bytes(gzip.compress(lines.encode()))
    got = harmonise(read_sumstats(path), PANEL)
    assert (got.counts["used"], got.counts["duplicated"], got.counts["missing"]) == (1, 1, 1)
    assert got.counts["not_in_sumstats"] == 4


def test_insertions_match_by_spelling_only():
    panel = LDPanel(("rs1", "rs2"), ("AT", "A"), ("A", "AT"), np.eye(2), np.full(2, 0.2))
    stats = pd.DataFrame({"snp": ["rs1", "rs2"], "effect": ["at", "TT"], "other": ["a", "A"], "beta": [0.1, 0.2]})
    got = harmonise(stats, panel)
    assert (got.counts["used"], got.counts["mismatched"]) == (1, 1)


def test_covariance_of_the_worked_log_odds_ratio():
    """β = .25, Var = .42 (f = .3), π = .3 give c = .0219295260."""
    stats = pd.DataFrame({"snp": ["rs1"], "effect": ["A"], "other": ["G"], "beta": [0.25]})
    moments = gwas_moments(harmonise(stats, PANEL), PANEL, prevalence=0.3)
    assert moments.names == ("y", "rs1_A")
    np.testing.assert_allclose(moments.cov[0, 1], 0.0219295260, atol=1e-10)
    np.testing.assert_allclose(moments.cov[1, 1], 0.42)
    np.testing.assert_allclose(moments.mean, [0.3, 0.6])
    linear = gwas_moments(harmonise(stats, PANEL), PANEL, prevalence=0.3, scale="linear")
    np.testing.assert_allclose(linear.cov[0, 1], 0.42 * 0.25)


def test_shrinkage_touches_correlations_only():
    R = np.full((7, 7), 0.5) + 0.5 * np.eye(7)
    panel = LDPanel(PANEL.snps, PANEL.effect, PANEL.other, R, PANEL.frequency)
    stats = pd.DataFrame({"snp": ["rs1", "rs2"], "effect": "A", "other": "G", "beta": [0.1, 0.1]})
    moments = gwas_moments(harmonise(stats, panel), panel, prevalence=0.3, shrinkage=0.2)
    np.testing.assert_allclose(moments.cov[1:, 1:], 0.42 * np.array([[1, 0.4], [0.4, 1]]))


def test_flipping_an_allele_in_the_file_changes_nothing(tmp_path):
    """The same study written with the other allele as effect allele gives the same moments."""
    R = np.full((7, 7), 0.3) + 0.7 * np.eye(7)
    panel = LDPanel(PANEL.snps, PANEL.effect, PANEL.other, R, PANEL.frequency)
    stats = pd.DataFrame(
        {
            "snp": ["rs1", "rs2", "rs3"],
            "effect": ["A", "A", "C"],
            "other": ["G", "G", "T"],
            "beta": [0.1, -0.2, 0.3],
            "frequency": 0.2,
        }
    )
    swapped = stats.rename(columns={"effect": "other", "other": "effect"}).assign(
        beta=-stats["beta"], frequency=1 - stats["frequency"]
    )
    a, b = (gwas_moments(harmonise(s, panel), panel, prevalence=0.2) for s in (stats, swapped))
    np.testing.assert_allclose(a.cov, b.cov, rtol=1e-12)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)


def test_z_scores_and_odds_ratios_give_the_log_odds_ratios(tmp_path):
    """In large samples z ≈ log OR · sqrt(n s (1 - s) Var)."""
    (tmp_path / "or.tsv").write_text(f"SNP\tA1\tA2\tOR\nrs1\tA\tG\t{np.exp(0.1)}\n")
    z = 0.1 * np.sqrt(10_000 * 0.5 * 0.5 * 0.42)
    (tmp_path / "z.sumstats").write_text(f"SNP\tA1\tA2\tZ\tN\nrs1\tA\tG\t{z}\t10000\n")
    odds = gwas_moments(harmonise(read_sumstats(tmp_path / "or.tsv"), PANEL), PANEL, prevalence=0.3)
    scores = harmonise(read_sumstats(tmp_path / "z.sumstats"), PANEL)
    assert scores.is_z
    from_z = gwas_moments(scores, PANEL, prevalence=0.3, sample_prevalence=0.5)
    np.testing.assert_allclose(from_z.cov, odds.cov, rtol=1e-12)
    assert from_z.n == 10_000


def test_panels_from_npz_and_text_agree(tmp_path):
    R = np.eye(7)
    R[0, 1] = R[1, 0] = 0.4
    panel = LDPanel(PANEL.snps, PANEL.effect, PANEL.other, R, PANEL.frequency)
    save_panel(tmp_path / "p.npz", panel)
    np.savetxt(tmp_path / "p.ld", R)
    table = pd.DataFrame({"SNP": panel.snps, "A1": panel.effect, "A2": panel.other, "MAF": panel.frequency})
    table.to_csv(tmp_path / "p.snps", sep="\t", index=False)
    a, b = read_ld(tmp_path / "p.npz"), read_ld(tmp_path / "p.ld")
    assert (a.snps, a.effect, a.other) == (b.snps, b.effect, b.other)
    np.testing.assert_array_equal(a.corr, b.corr)
    np.testing.assert_array_equal(a.frequency, b.frequency)


BAD_STATS = {
    "SNP\tA1\tA2\nrs1\tA\tG\n": "s.tsv: line 1: no effects: needs a column beta or odds_ratio, or both z and n",
    "SNP\tA1\tBETA\nrs1\tA\t.1\n": "s.tsv: line 1: no column for the other allele: expected one of "
    "other_allele, a2, allele2, ref; "
    "the file has SNP, A1, BETA",
    "SNP\tA1\tA2\tBETA\nrs1\tA\tG\t.1\nrs2\tA\tG\tx\n": "s.tsv: line 3 (the header is line 1), column BETA: 'x' "
    "is not a finite "
    "number; correct it or write NA",
    "SNP\tA1\tA2\tBETA\nrs1\tA\tG\n": "s.tsv: line 2 (the header is line 1) has 3 fields, the header has 4: "
    "write missing values as "
    "empty fields and quote text that holds the separator",
    "SNP\tA1\tA2\tOR\nrs1\tA\tG\t-0.1\n": "s.tsv: SNP rs1: an odds ratio has to be positive; found -0.1 (is it "
    "a log odds ratio?)",
    "SNP\tA1\tA2\tBETA\nrs9\tA\tG\t.1\n": "no SNP is left: 1 not in the panel, 0 strand-ambiguous, 0 with other "
    "alleles, "
    "0 duplicated, 0 without an effect",
    "SNP\tA1\tA2\tBETA\tFRQ\nrs1\tA\tG\t.1\t1.2\n": "SNP rs1: the effect allele frequency is 1.2; it has to lie "
    "strictly between 0 and 1",
}


@pytest.mark.parametrize("text", BAD_STATS)
def test_bad_summary_statistics_give_one_line(run, text):
    Path("s.tsv").write_text(text)
    save_panel("ld.npz", PANEL)
    code, out, err = run("gwas", "s.tsv", "--ld", "ld.npz", "--prevalence", 0.1, "-o", "f.npz")
    assert (code, out, err) == (2, "", f"error: {BAD_STATS[text]}\n")


def test_bad_panels_give_one_line(run):
    Path("s.tsv").write_text(SSF)
    arrays = {
        "snp": np.array(PANEL.snps),
        "a1": np.array(PANEL.effect),
        "a2": np.array(PANEL.other),
        "maf": PANEL.frequency,
    }
    asymmetric = np.eye(7)
    asymmetric[1, 2] = 0.3
    for ld, message in (
        (asymmetric, "the matrix is not symmetric: row 2, column 3 is 0.3, but the mirrored entry is 0"),
        (2 * np.eye(7), "not a correlation matrix: the diagonal has to be 1"),
        (np.eye(6), "7 SNPs, 7 and 7 alleles, and a matrix of shape (6, 6) do not fit together"),
        (
            np.where(np.eye(7) > 0, 1, np.nan),
            "the correlations of rs1, rs2, rs3, rs4, rs5, rs6, rs7 are not all numbers",
        ),
    ):
        np.savez("ld.npz", ld=ld, **arrays)
        code, _, err = run("gwas", "s.tsv", "--ld", "ld.npz", "--prevalence", 0.1, "-o", "f.npz")
        assert code == 2
        assert err.startswith(f"error: ld.npz: {message}")
        assert err.count("\n") == 1
    np.savez("ld.npz", ld=np.eye(7))
    assert run("gwas", "s.tsv", "--ld", "ld.npz", "--prevalence", 0.1, "-o", "f.npz")[2] == (
        "error: ld.npz: lacks array snp, a1, a2; it has ld\n"
    )
    Path("ld.txt").write_text("1 0\n0 one\n")
    assert run("gwas", "s.tsv", "--ld", "ld.txt", "--prevalence", 0.1, "-o", "f.npz")[2] == (
        "error: ld.txt: line 2, column 2: 'one' is not a number\n"
    )
    save_panel("ld.npz", PANEL)
    assert run("gwas", "s.tsv", "--ld", "ld.npz", "--prevalence", 1.2, "-o", "f.npz")[2] == (
        "error: prevalence of y has to lie strictly between 0 and 1; got 1.2\n"
    )


def test_joint_predictor_ranks_better_than_marginal_effects(run):
    """Simulated genotypes in LD: the command's model beats adding up marginal effects, and predicts dosage tables."""
    rng = np.random.default_rng(3)
    model = gwas_model(rng, 60, causal=0.2, block=20)
    train, panel, test = (model.sample(rng, n) for n in (6000, 2000, 3000))
    p = train.X.shape[1]
    names = [f"rs{j}" for j in range(p)]
    # marginal log odds ratios, one Newton-converged logistic regression each
    beta = np.empty(p)
    for j in range(p):
        x, b = train.X[:, j] - train.X[:, j].mean(), np.zeros(2)
        for _ in range(8):
            prob = 1 / (1 + np.exp(-(b[0] + b[1] * x)))
            D = np.column_stack([np.ones(len(x)), x])
            b += np.linalg.solve((D.T * (prob * (1 - prob))) @ D, D.T @ (train.y - prob))
        beta[j] = b[1]
    frequency = train.X.mean(axis=0) / 2
    lines = [f"{n}\tA\tG\t{b:.8f}\t{f:.6f}\t6000" for n, b, f in zip(names, beta, frequency, strict=True)]
    Path("s.tsv").write_text("\n".join(["SNP\tA1\tA2\tBETA\tFRQ\tN", *lines]) + "\n")
    save_panel(
        "ld.npz", LDPanel(tuple(names), ("A",) * p, ("G",) * p, np.corrcoef(panel.X.T), panel.X.mean(axis=0) / 2)
    )
    code, out, err = run(
        "gwas", "s.tsv", "--ld", "ld.npz", "--prevalence", 0.3, "-o", "f.npz", "--moments-out", "m.npz"
    )
    assert (code, err) == (0, "")
    assert "used 60" in out
    assert "causal" in out
    assert "anticausal" in out
    assert Moments.load("m.npz").p == p + 1
    pd.DataFrame(test.X, columns=[f"{n}_A" for n in names]).to_csv("d.csv", index=False)
    assert run("predict", "f.npz", "d.csv", "-o", "p.csv")[0] == 0
    joint = pd.read_csv("p.csv")["p_1"]

    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(test.y, joint) > roc_auc_score(test.y, test.X @ beta) + 0.01
    np.testing.assert_allclose(joint.mean(), test.y.mean(), atol=0.03)
    assert isinstance(load("f.npz"), MergedClassifier)


def test_missing_frequencies_are_named():
    panel = LDPanel(PANEL.snps, PANEL.effect, PANEL.other, PANEL.corr)
    stats = pd.DataFrame({"snp": ["rs1"], "effect": ["A"], "other": ["G"], "beta": [0.25]})
    with pytest.raises(CMaxEntError, match="rs1_A: the allele frequency is in neither"):
        gwas_moments(harmonise(stats, panel), panel, prevalence=0.3)
