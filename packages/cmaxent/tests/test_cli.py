"""The command line: every bad input gives one line that says where and what to do, and no work is lost."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cmaxent import MergedClassifier, Moments, load
from cmaxent import cli as command_line
from cmaxent.errors import ConvergenceError
from cmaxent.storage import save_json

WORKED = {
    "names": ["y", "x1", "x2"],
    "kinds": {"y": "binary"},
    "mean": [0.3, 1.0, -2.0],
    "cov": [[0.21, 0.25, -0.1], [0.25, 2.0, 0.6], [-0.1, 0.6, 1.0]],
    "n": 500.0,
}


def write_moments(path, **changes):
    """A moments file with a valid checksum, whatever its numbers."""
    save_json(path, "moments", {**WORKED, **changes})


def small_table(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    X = rng.normal(size=(n, 2)) + y[:, None] * np.array([0.8, 0.4])
    return pd.DataFrame({"y": y, "x1": X[:, 0], "x2": X[:, 1]})


# --- bad input -------------------------------------------------------------------------------------------------

TABLES = {
    "missing_file": (None, "t.csv: no such file"),
    "empty_file": ("", "t.csv: is empty: line 1 has to hold the column names"),
    "header_only": ("y,x\n", "t.csv: holds no rows"),
    "duplicate_names": ("y,x,x\n0,1,2\n", "t.csv: line 1: column names have to be distinct; repeated: x"),
    "unnamed_column": ("y,,x\n0,1,2\n", "t.csv: line 1, column 2: the column has no name"),
    "other_separator": (
        "y;x\n0;1\n",
        "t.csv: line 1 is separated by ';': columns have to be separated by commas or tabs",
    ),
    "infinite_value": (
        "y,x\n0,1\n1,inf\n0,2\n",
        "t.csv: line 3 (the header is line 1), column x: infinite value; correct it, or leave the field empty "
        "if it is missing",
    ),
    "short_line": (
        "y,x\n0,1\n1\n",
        "t.csv: line 3 (the header is line 1) has 1 fields, the header has 2: write missing values as empty "
        "fields and quote "
        "text that holds the separator",
    ),
    "long_line": (
        'y,x\n0,"1"\n1,2,3\n',
        "t.csv: line 3 (the header is line 1) has 3 fields, the header has 2: write missing values as empty "
        "fields and quote "
        "text that holds the separator",
    ),
    "not_a_number": (
        "y,x\n0,1\n\n1,2\n0,3\n1,4\n0,oops\n",
        "t.csv: line 7 (the header is line 1), column x: 'oops' is not a number, but most of the column is one: "
        "correct it, "
        "leave the field empty if it is missing, or list the labels in --kinds",
    ),
    "constant_column": ("y,x\n0,5\n1,5\n", "t.csv: x is constant (variance 0): leave it out"),
    "one_class_of_text": (
        "y,x\n0,a\n1,a\n",
        "t.csv: in the first 2 rows column x has one class only (the single value 'a'): leave it out, or list "
        "its labels in --kinds",
    ),
    "target_with_one_class": (
        "y,x\n1,3\n1,4\n",
        "t.csv: binary y has mean 1, so only one class occurs; it has to lie strictly between 0 and 1",
    ),
    "identifiers": (
        "id,x\n" + "".join(f"p{i},{i}\n" for i in range(60)),
        "t.csv: column id holds 60 different texts in the first 60 rows (at most 50 are taken for classes): "
        "leave it out with "
        "--columns, or list its labels in --kinds",
    ),
    "empty_column": ("y,x\n0,\n1,\n", "t.csv: column x holds no value at all"),
}


@pytest.mark.parametrize("name", TABLES)
def test_bad_table_gives_one_line_with_its_place(run, name):
    text, message = TABLES[name]
    if text is not None:
        Path("t.csv").write_text(text)
    code, out, err = run("moments", "t.csv", "-o", "m.npz")
    assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not Path("m.npz").exists()


CONTRADICTIONS = {
    "new_label": (
        "y,g\n0,a\n1,b\n0,c\n1,a\n",
        "t.csv: line 4 (the header is line 1), column g: value 'c' is not among the levels a, b; list all "
        "labels of g in --kinds, "
        'as in {"g": ["…", "…"]}',
    ),
    "not_zero_one": (
        "y,x\n0,1\n1,0\n0,7\n",
        "t.csv: line 4 (the header is line 1), column x: binary columns hold 0 and 1, found 7; if x is not "
        "binary, say so in "
        '--kinds: {"x": "continuous"}',
    ),
    "not_a_number": (
        "y,x\n0,1.5\n1,2\n0,two\n",
        "t.csv: line 4 (the header is line 1), column x: 'two' is not a number; correct it, or leave the field "
        "empty if it is "
        "missing",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_value_that_contradicts_the_first_chunk_is_located(run, name):
    text, message = CONTRADICTIONS[name]
    Path("t.csv").write_text(text)
    assert run("moments", "t.csv", "-o", "m.npz", "--chunk", 2) == (2, "", f"error: {message}\n")


def test_files_that_are_not_what_their_suffix_says_are_refused(run):
    for name, content, message in (
        ("t.csv.gz", b"y,x\n0,1\n", "damaged or cut off gzip file (Not a gzipped file"),
        (
            "cut.csv.gz",
            gzip.compress(b"y,x\n" + b"0,1\n" * 999)[:30],
            "damaged or cut off gzip file (Compressed file ended",
        ),
        ("t.parquet", b"y,x\n0,1\n", "not a Parquet file or damaged"),
        ("t.npy", b"y,x\n0,1\n", "not an .npy array of numbers, or damaged"),
        ("t.xlsx", b"PK", "tables are read from .csv, .tsv, .txt (each also .gz), .parquet or .npy"),
        ("t.csv", b"y,x\n0,\xff\n", "line 2 is not UTF-8 text: convert the file to UTF-8"),
    ):
        Path(name).write_bytes(content)
        code, out, err = run("moments", name, "-o", "m.npz")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {name}: {message}")
        assert err.count("\n") == 1
    np.save("t.npy", np.zeros((2, 2, 2)))
    assert run("moments", "t.npy", "-o", "m.npz")[2] == (
        "error: t.npy: has to be a 2-D array of numbers; it is float64 of shape (2, 2, 2)\n"
    )


def test_line_numbers_count_quoted_line_breaks(run):
    Path("t.csv").write_text('y,g,x\n0,"a\nb",1.5\n1,c,2.5\n0,c,inf\n')
    code, _, err = run("moments", "t.csv", "-o", "m.npz")
    assert code == 2
    assert "line 5 (the header is line 1), column x: infinite value" in err


def test_kinds_file_decides_and_its_errors_have_a_place(run):
    Path("t.csv").write_text("y,g\n0,1\n1,0\n0,2\n1,1\n")
    Path("k.json").write_text('{"g": [0, 1, 2]}')
    assert run("moments", "t.csv", "-o", "m.npz", "--kinds", "k.json", "--chunk", 2)[0] == 0
    assert Moments.load("m.npz").names == ("y", "g=0", "g=1", "g=2")
    Path("k.json").write_text('{"g": \n"cat"}')
    assert run("moments", "t.csv", "-o", "m.npz", "--kinds", "k.json")[2] == (
        "error: k.json: kind of g is 'cat'; it has to be one of continuous, binary, categorical, or a list of labels\n"
    )
    Path("k.json").write_text('{"g": \noops}')
    assert run("moments", "t.csv", "-o", "m.npz", "--kinds", "k.json")[2] == (
        "error: k.json: line 2, column 1: not JSON (Expecting value)\n"
    )
    Path("k.json").write_text('{"h": "binary"}')
    assert run("moments", "t.csv", "-o", "m.npz", "--kinds", "k.json")[2] == (
        "error: kinds names h, but the columns are y, g\n"
    )


NAN = None  # how moments files write it
MOMENTS = {
    "duplicate_names": ({"names": ["y", "x1", "x1"]}, 2, "coordinate names have to be distinct; repeated: x1"),
    "asymmetric": (
        {"cov": [[0.21, 0.25, -0.1], [0.25, 2.0, 0.6], [-0.1, 0.5, 1.0]]},
        2,
        "x1, x2 have an asymmetric covariance: 0.6 above the diagonal, 0.5 below",
    ),
    "nan_on_one_side": (
        {"cov": [[0.21, 0.25, -0.1], [0.25, 2.0, NAN], [-0.1, 0.6, 1.0]]},
        2,
        "x1, x2 has a covariance that is NaN on one side of the diagonal only",
    ),
    "correlation_above_one": (
        {"cov": [[0.21, 0.25, -0.1], [0.25, 2.0, 3.0], [-0.1, 3.0, 1.0]]},
        2,
        "the correlation of x1 and x2 is 2.12132, outside [-1, 1]: cov has to be central, E[xy] - E[x] E[y]",
    ),
    "negative_variance": (
        {"cov": [[0.21, 0.25, -0.1], [0.25, -2.0, 0.6], [-0.1, 0.6, 1.0]]},
        2,
        "x1 has a negative variance",
    ),
    "constant": ({"cov": [[0.21, 0, -0.1], [0, 0, 0], [-0.1, 0, 1.0]]}, 2, "x1 is constant (variance 0): leave it out"),
    "binary_variance": (
        {"cov": [[0.25, 0.25, -0.1], [0.25, 2.0, 0.6], [-0.1, 0.6, 1.0]]},
        2,
        "binary y with mean 0.3 has variance 0.21, but 0.25 was given (divide by n, not n - 1)",
    ),
    "prevalence_one": (
        {"mean": [1.0, 1.0, -2.0]},
        2,
        "binary y has mean 1, so only one class occurs; it has to lie strictly between 0 and 1",
    ),
    "categorical_with_one_class": (
        {"names": ["y=a", "x1", "x2"], "kinds": {"y": "categorical"}},
        2,
        "categorical y has one class only (y=a)",
    ),
    "unknown_variance": (
        {"cov": [[0.21, 0.25, -0.1], [0.25, NAN, 0.6], [-0.1, 0.6, 1.0]]},
        2,
        "the variance of x1 is unknown: the entropy has no upper bound",
    ),
    "infeasible": (
        {"cov": [[0.21, 0.5, -0.3], [0.5, 2.0, 0.6], [-0.3, 0.6, 1.0]]},
        3,
        "R^2 of y on x1, x2 is 1.7712, not below R^2_max = 0.575667, the most that a binary y with P = 0.3 "
        "caused by Gaussian "
        "features allows (largest share: x1, x2); remedies: fit the other direction, use p_x='empirical' with "
        "reference rows, "
        "or allow slack (on_infeasible='ridge' | 'boundary')",
    ),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_bad_moments_give_one_line_that_names_the_variables(run, name):
    changes, wanted, message = MOMENTS[name]
    write_moments("m.json", **changes)
    code, out, err = run("fit", "m.json", "-o", "f.npz")
    assert (code, out, err) == (wanted, "", f"error: {message}\n")
    assert not Path("f.npz").exists()


GRAPHS = {
    "x1->y; y->x1; x2--x1": "the graph has a cycle: x1--x2 -> y -> x1--x2",
    "x1->y; z->y; x2->y": "the graph names z, but the variables are y, x1, x2",
    "x1->y": "the graph does not place x2: add it to the graph or leave it out of the moments",
    "x1->y; x1--x2; x1->x2": "x1->x2 runs inside the block {x1, x2} that '--' makes: remove one of them",
    "x1->y; y->x2; x2--x1": "the graph has a cycle: x1--x2 -> y -> x1--x2",
    "sideways": "unknown graph 'sideways': use one of causal, anticausal, causal-star, anticausal-star, or "
    "edges such as "
    "'x1->y; y->x2; x3--x4'",
}


@pytest.mark.parametrize("graph", GRAPHS)
def test_bad_graph_gives_one_line(run, graph):
    write_moments("m.json")
    code, _, err = run("fit", "m.json", "--graph", graph, "-o", "f.npz")
    assert (code, err.replace("y -> x1--x2 -> y", "x1--x2 -> y -> x1--x2")) == (2, f"error: {GRAPHS[graph]}\n")


def test_unknown_target_is_named_with_what_there_is(run):
    write_moments("m.json")
    for command in (("fit", "m.json", "-o", "f.npz"), ("check", "m.json"), ("compare", "m.json"), ("lovo", "m.json")):
        code, _, err = run(*command, "--target", "z")
        assert (code, err) == (2, "error: no target 'z' among the variables y, x1, x2\n")


def test_damaged_and_foreign_files_are_refused(run):
    write_moments("m.json")
    body = json.loads(Path("m.json").read_text())
    Path("edited.json").write_text(json.dumps({**body, "meta": {**body["meta"], "n": 501.0}}))
    Path("newer.json").write_text(json.dumps({**body, "version": 99}))
    Path("cut.json").write_text(Path("m.json").read_text()[:40])
    Path("text.npz").write_text("hello")
    for name, part in (
        ("edited.json", "the checksum does not match"),
        ("newer.json", "written in format version 99, this cmaxent reads version 1; upgrade cmaxent"),
        ("cut.json", "not readable as JSON"),
        ("text.npz", "not a cmaxent .npz file or damaged"),
        ("absent.npz", "no such file"),
        ("data.csv", "moments are stored as .npz or .json"),
    ):
        code, _, err = run("check", name)
        assert code == 2
        assert err.startswith(f"error: {name}: ")
        assert part in err
        assert err.count("\n") == 1


def test_usage_errors_are_one_line_with_exit_two(run):
    for arguments, part in (
        (["moments", "d.csv"], "Missing option '-o' / '--out'"),
        (["bogus"], "No such command 'bogus'"),
        (["fit", "--nope"], "No such option"),
        (["fit", "m.json", "-o", "f.txt"], "--out f.txt: has to end in .npz"),
        (["fit", "m.json", "-o", "no/f.npz"], "--out no/f.npz: the folder no does not exist"),
        (["predict", "f.npz", "d.csv", "-o", "p.csv", "--interval", "x"], "Invalid value for '--interval'"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert part in err
        assert err.count("\n") == 1


def test_unconverged_and_internal_failures_have_their_own_exit_codes(run, monkeypatch):
    write_moments("m.json")

    def not_converged(*_):
        raise ConvergenceError("stopped at residual 1")

    def broken(*_):
        raise KeyError("x")

    monkeypatch.setattr("cmaxent.compare.check_feasible", not_converged)
    assert run("check", "m.json") == (4, "", "error: stopped at residual 1\n")
    monkeypatch.setattr("cmaxent.compare.check_feasible", broken)
    code, _, err = run("check", "m.json")
    assert code == 1
    assert err == "error: internal: KeyError: 'x' (run again with --debug for the traceback, and report it)\n"
    monkeypatch.setattr(sys, "argv", ["cmaxent", "check", "m.json", "--debug"])
    with pytest.raises(KeyError):
        command_line.main()


# --- warnings ------------------------------------------------------------------------------------------------


def test_library_warnings_become_one_line_each(run):
    write_moments("m.json", cov=MOMENTS["infeasible"][0]["cov"])
    code, _, err = run("fit", "m.json", "--on-infeasible", "boundary", "-o", "f.npz")
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("warning: R^2 of y on x1, x2 is 1.7712")


def test_target_that_no_source_links_gives_the_prior_and_a_warning(run):
    write_moments("m.json", cov=[[0.21, NAN, NAN], [NAN, 2.0, 0.6], [NAN, 0.6, 1.0]])
    code, _, err = run("fit", "m.json", "-o", "f.npz")
    assert (code, err) == (0, "warning: no source links y to any feature: the predictor is the class frequencies\n")
    np.testing.assert_allclose(load("f.npz").predict_proba(pd.DataFrame({"x1": [9.0]}))[0, 1], 0.3)


def test_merge_hints_at_other_units(run):
    write_moments("a.json")
    write_moments("b.json", mean=[0.3, 100.0, -2.0])
    _, out, err = run("merge", "a.json", "b.json", "-o", "m.npz")
    assert "warning: the means of x1 differ by more than 20 standard errors between sources" in err
    assert "E[x1]" in out


# --- the commands --------------------------------------------------------------------------------------------


def test_help_and_version_import_no_numerical_library():
    script = (
        "import sys; sys.argv = ['cmaxent', {!r}]\nfrom cmaxent.cli import main\ntry:\n    main()\nexcept "
        "SystemExit as stop:\n"
        "    assert not stop.code\nheavy = {{'numpy', 'pandas', 'scipy', 'sklearn', 'networkx', 'matplotlib'}} "
        "& set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(option)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_from_tables_to_predictions(run):
    """moments → merge → check → fit → predict gives what the library gives on the same moments."""
    table = small_table()
    table[["y", "x1"]].iloc[:200].to_csv("lab.csv", index=False)
    table[["y", "x2"]].iloc[200:].to_csv("clinic.csv.gz", index=False)
    assert run("moments", "lab.csv", "-o", "lab.npz")[0] == 0
    code, out, _ = run("moments", "clinic.csv.gz", "-o", "clinic.json", "--json")
    assert (code, json.loads(out)["coordinates"]) == (0, 2)
    assert run("merge", "lab.npz", "clinic.json", "-o", "m.npz")[0] == 0
    assert run("check", "m.npz", "--graph", "anticausal")[0] == 0
    assert run("fit", "m.npz", "--graph", "anticausal", "-o", "f.npz")[0] == 0
    code, out, _ = run(
        "fit", "lab.npz", "clinic.json", "--pooling", "raw", "--graph", "anticausal", "-o", "g.npz", "--json"
    )
    ours = MergedClassifier("y", "anticausal").fit_moments(Moments.load("m.npz"))
    np.testing.assert_allclose(json.loads(out)["coef"], ours.coef_, rtol=1e-12)

    rows = pd.DataFrame({"x2": table["x2"][:50], "extra": 1, "x1": table["x1"][:50]})  # other order, another column
    rows.loc[[3, 17], "x1"] = np.nan
    rows.to_csv("rows.csv", index=False)
    rows.to_parquet("rows.parquet")
    for source in ("rows.csv", "rows.parquet"):
        code, _, err = run("predict", "f.npz", source, "-o", "p.csv", "--interval", ".9", "--chunk", 20)
        assert (code, err) == (0, "")
        got = pd.read_csv("p.csv")
        np.testing.assert_allclose(got[["p_0", "p_1"]], ours.predict_proba(rows), rtol=1e-12)
        np.testing.assert_array_equal(got["prediction"], ours.predict(rows))
        assert ((got["lo"] < got["p_1"]) & (got["p_1"] < got["hi"])).all()
    rows[["x2"]].to_csv("rows.csv", index=False)
    code, _, err = run("predict", "f.npz", "rows.csv", "-o", "p.csv")
    assert (code, err) == (0, "warning: rows.csv: lacks x1: integrated out under the fitted law\n")


def test_bad_rows_to_predict_are_located_and_leave_the_old_file(run):
    MergedClassifier().fit_moments(Moments.from_dict(WORKED)).save("f.npz")
    Path("p.csv").write_text("old\n")
    for text, message in (
        ("x1,x2\n1,2\n3,four\n", "line 3 (the header is line 1), column x2: 'four' is not a number; correct it"),
        ("x1,x2\n1,2\n3,inf\n", "line 3 (the header is line 1), column x2: infinite value"),
        ("a,b\n1,2\n", "has none of the features x1, x2; it has a, b"),
        ("x1,x2\n", "holds no rows"),
    ):
        Path("r.csv").write_text(text)
        code, _, err = run("predict", "f.npz", "r.csv", "-o", "p.csv", "--chunk", 1)
        assert code == 2
        assert err.startswith(f"error: r.csv: {message}")
        assert Path("p.csv").read_text() == "old\n"
    assert sorted(p.name for p in Path().iterdir()) == ["f.npz", "p.csv", "r.csv"]  # no temporary files


def test_continuous_target_is_a_regression(run):
    table = small_table()
    table.to_csv("t.csv", index=False)
    run("moments", "t.csv", "-o", "m.npz", "--columns", "x1,x2")
    assert run("fit", "m.npz", "--target", "x1", "-o", "r.npz")[0] == 0
    assert run("predict", "r.npz", "t.csv", "-o", "p.csv", "--interval", ".95")[0] == 0
    slope, intercept = np.polyfit(table["x2"], table["x1"], 1)
    got = pd.read_csv("p.csv")
    np.testing.assert_allclose(got["prediction"], slope * table["x2"] + intercept, rtol=1e-9)
    np.testing.assert_allclose((got["hi"] - got["lo"]) / got["sd"], 2 * 1.959964, rtol=1e-6)
    assert run("fit", "m.npz", "--target", "x1", "--on-infeasible", "ridge", "-o", "r.npz")[2] == (
        "error: --on-infeasible: for discrete targets only, but x1 is continuous\n"
    )


def test_check_says_infeasible_with_exit_three_and_strict_json(run):
    write_moments("m.json", cov=MOMENTS["infeasible"][0]["cov"])
    code, out, err = run("check", "m.json", "--json")
    report = json.loads(out, parse_constant=pytest.fail)
    assert (code, err, report["feasible"]) == (3, "", False)
    write_moments("m.json")
    code, out, _ = run("check", "m.json", "--graph", "anticausal", "--json")
    assert (code, json.loads(out, parse_constant=pytest.fail)["feasible"]) == (0, True)


def test_compare_and_lovo_print_the_worked_numbers(run):
    write_moments("m.json")
    code, out, _ = run("compare", "m.json", "--json")
    report = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    np.testing.assert_allclose(report["causal"]["coef"][0], [1.436629495669, -1.622001043498], rtol=1e-10)
    np.testing.assert_allclose(report["anticausal"]["coef"][0], [1.336783096162, -1.509271237602], rtol=1e-10)
    np.testing.assert_allclose(report["disagreement"], 0.0041987739, rtol=1e-7)
    code, out, _ = run("lovo", "m.json", "--pairs", "x1:x2", "--json")
    found = json.loads(out, parse_constant=pytest.fail)["table"][0]
    np.testing.assert_allclose(found["anticausal"], -0.119047619048 / np.sqrt(2), rtol=1e-9)
    assert found["causal"] == 0
    assert "score" in run("lovo", "m.json")[1]


def test_compare_draws_a_picture(run):
    pytest.importorskip("matplotlib")
    write_moments("m.json")
    assert run("compare", "m.json", "--plot", "b.png")[0] == 0
    assert Path("b.png").read_bytes()[:4] == b"\x89PNG"


def test_empirical_law_of_the_features_needs_reference_rows(run):
    table = small_table()
    table.to_csv("t.csv", index=False)
    run("moments", "t.csv", "-o", "m.npz")
    assert run("fit", "m.npz", "--p-x", "empirical", "-o", "f.npz")[2].startswith(
        "error: --p-x empirical needs --x-ref"
    )
    _, out, _ = run("fit", "m.npz", "--p-x", "empirical", "--x-ref", "t.csv", "-o", "f.npz", "--json")
    from sklearn.linear_model import LogisticRegression

    peer = LogisticRegression(C=np.inf, tol=1e-10).fit(table[["x1", "x2"]], table["y"])
    np.testing.assert_allclose(json.loads(out)["coef"], peer.coef_, rtol=1e-5)


# --- streaming and resuming --------------------------------------------------------------------------------------


def test_formats_and_chunk_sizes_give_the_same_moments(run):
    table = small_table(1000).assign(arm=lambda t: np.where(t["x1"] > 0, "1", "b"), x2=lambda t: t["x2"] + 1e6)
    table.loc[[5, 500], "x2"] = np.nan
    table.to_csv("t.csv", index=False)
    table.to_csv("t.tsv.gz", index=False, sep="\t")
    table.to_parquet("t.parquet", row_group_size=300)
    table.drop(columns="arm").to_numpy(dtype=float).tofile("raw")
    Path("k.json").write_text('{"arm": ["1", "b"]}')
    expected = Moments.from_data(table, kinds={"arm": ["1", "b"]})
    for source, chunk in (("t.csv", 7), ("t.csv", 5000), ("t.tsv.gz", 100), ("t.parquet", 128)):
        code, _, err = run("moments", source, "-o", "m.npz", "--kinds", "k.json", "--chunk", chunk)
        assert (code, err) == (0, "")
        got = Moments.load("m.npz")
        assert got.names == expected.names
        np.testing.assert_allclose(got.cov, expected.cov, atol=1e-9)
        np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-13)
    for order in ("C", "F"):
        np.save("t.npy", np.asarray(table.drop(columns="arm").to_numpy(dtype=float), order=order))
        assert run("moments", "t.npy", "--names", "y,x1,x2", "-o", "m.npz", "--chunk", 99)[0] == 0
        np.testing.assert_allclose(Moments.load("m.npz").cov, expected.subset(["y", "x1", "x2"]).cov, atol=1e-9)


def test_parts_of_one_table_are_one_table(run):
    table = small_table(300)
    table.iloc[:100].to_csv("a.csv", index=False)
    table.iloc[100:][["x2", "y", "x1"]].to_csv("b.csv", index=False)
    assert run("moments", "a.csv", "b.csv", "-o", "m.npz")[0] == 0
    np.testing.assert_allclose(Moments.load("m.npz").cov, Moments.from_data(table).cov, rtol=1e-12)
    table[["y", "x1"]].to_csv("c.csv", index=False)
    assert run("moments", "a.csv", "c.csv", "-o", "m.npz")[2] == "error: c.csv: lacks column x2; it has y, x1\n"


def test_killed_moments_resume_to_the_same_bytes(tmp_path):
    table = small_table(30_000).assign(arm=lambda t: np.where(t["x1"] > 0, "a", "b"))
    table.loc[[5, 25_000], "x2"] = np.nan
    table.iloc[:10_000].to_csv(tmp_path / "a.csv.gz", index=False)
    table.iloc[10_000:].to_csv(tmp_path / "b.csv", index=False)
    script = [
        sys.executable,
        "-c",
        "from cmaxent.cli import main; main()",
        "moments",
        "a.csv.gz",
        "b.csv",
        "--chunk",
        "100",
    ]
    resumable = [*script, "--checkpoint", "c.npz", "--checkpoint-every", "0.05", "-o", "resumed.npz"]
    options = {"cwd": tmp_path, "env": {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
    whole = subprocess.Popen([*script, "-o", "whole.npz"], stdout=subprocess.DEVNULL, **options)
    running = subprocess.Popen(resumable, stdout=subprocess.DEVNULL, **options)
    while running.poll() is None and not (tmp_path / "c.npz").exists():
        time.sleep(0.005)
    time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (tmp_path / "resumed.npz").exists()
    finished = subprocess.run(resumable, capture_output=True, text=True, check=False, **options)
    assert finished.returncode == 0, finished.stderr
    assert whole.wait() == 0
    assert (tmp_path / "resumed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not (tmp_path / "c.npz").exists()


def test_checkpoint_of_another_input_is_refused(run, monkeypatch):
    small_table(300).to_csv("t.csv", index=False)

    from cmaxent import tables

    save = tables.save_checkpoint

    def save_then_die(path, job):
        save(path, job)
        raise KeyboardInterrupt

    monkeypatch.setattr(tables, "save_checkpoint", save_then_die)
    arguments = ("moments", "t.csv", "-o", "m.npz", "--checkpoint", "c.npz", "--checkpoint-every", 0)
    assert run(*arguments, "--chunk", 50) == (130, "", "error: interrupted\n")
    monkeypatch.setattr(tables, "save_checkpoint", save)
    code, _, err = run(*arguments, "--chunk", 60)
    assert (code, err) == (
        2,
        "error: c.npz: the checkpoint was made with other chunk: repeat the command that made it, or remove the "
        "file to start "
        "anew\n",
    )
    small_table(300, seed=1).to_csv("t.csv", index=False)
    assert "made with other files" in run(*arguments, "--chunk", 50)[2]


def test_eval_reports_unknown_names_in_one_line(run):
    assert run("eval", "--profile", "tiny", "--out", "e")[2].startswith("error: unknown profile 'tiny'")
    assert run("eval", "--only", "E99", "--out", "e")[2].startswith("error: unknown experiment E99")
