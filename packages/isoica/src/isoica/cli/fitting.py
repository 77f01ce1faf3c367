"""`isoica fit`, `transform`: a model from data, and the sources that it finds."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import IsoICAError
from .options import DataArgument, DeviceOption, JsonOption, KeyOption, ModelArgument, SeedOption, check_out, one_of
from .options import use_device as on_device
from .printing import show, whole, working

if TYPE_CHECKING:
    from ..tables import Table

METHODS = ("linear", "rigid", "isomap", "hlle", "ltsa", "autoencoder")
CONTRASTS = ("logcosh", "cube", "gauss", "skew", "minimax")
NOT_CONVERGED, INTERRUPTED = 1, 130


def fit(
    data: DataArgument,
    method: Annotated[str, typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.")] = "linear",
    components: Annotated[
        str, typer.Option("-d", "--n-components", metavar="N", help="Number of sources, or auto.")
    ] = "auto",
    contrast: Annotated[str, typer.Option(help=f"{', '.join(CONTRASTS[:-1])} or {CONTRASTS[-1]}.")] = "logcosh",
    out: Annotated[Path, typer.Option(help="File to write, .npz.")] = Path("model.npz"),
    restarts: Annotated[int, typer.Option(help="Random starts of the linear ICA.", min=1)] = 1,
    max_iter: Annotated[int, typer.Option(help="Of the linear ICA.", min=1)] = 500,
    tol: Annotated[float, typer.Option(help="Largest gradient entry of the linear ICA at which it stops.")] = 1e-6,
    key: KeyOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if the fit has not converged.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fit linear ICA, or an embedding and linear ICA of it, and write the model."""
    check_out(out, (".npz",))
    one_of(method, "--method", METHODS)
    one_of(contrast, "--contrast", CONTRASTS)
    number = _number(components)
    on_device(device)
    from ..linear import PerturbedICA
    from ..pipeline import NearIsometricICA
    from ..tables import read_table

    X = read_table(data, key).values
    ica = PerturbedICA(contrast=contrast, n_restarts=restarts, max_iter=max_iter, tol=tol, random_state=seed)
    model: Any
    if method == "linear":
        model = ica.set_params(n_components=number)
    else:
        model = NearIsometricICA(number or "auto", embedding=method, ica=ica, random_state=seed)
    with interruptions() as noted, working(f"fitting {method}"):
        model.fit(X)
    model.save(out)
    show({"file": str(out), "method": method, "samples": len(X), "columns": X.shape[1], **_facts(model)}, as_json)
    if noted:
        raise typer.Exit(INTERRUPTED)
    if strict and not getattr(model, "ica_", model).converged_:
        raise typer.Exit(NOT_CONVERGED)


def transform(
    model: ModelArgument,
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File to write, .npy or .csv: a row a sample, a column a source.")],
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the sources that a model finds in data."""
    check_out(out, (".npy", ".csv"))
    import numpy as np

    from ..models import load_model

    fitted = load_model(model)
    S = fitted.transform(table_for(fitted, model, data, key).values)
    with whole(out) as temporary, temporary.open("wb") as file:
        if out.suffix == ".npy":
            np.save(file, S)
        else:
            names = ",".join(f"source{i}" for i in range(S.shape[1]))
            np.savetxt(file, S, delimiter=",", header=names, comments="")
    show({"file": str(out), "samples": len(S), "sources": S.shape[1]}, as_json)


def table_for(fitted: Any, model: Path, data: str, key: str | None) -> Table:
    """Data with the columns that a model was fitted to. Raises IsoICAError."""
    from ..tables import read_table

    found = read_table(data, key)
    if found.values.shape[1] != fitted.n_features_in_:
        raise IsoICAError(
            f"{data} has {found.values.shape[1]} columns, but {model} was fitted to {fitted.n_features_in_}"
        )
    return found


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Ctrl-C as ever, but noted: estimators that are interrupted keep what they have and do not raise."""
    noted: list[int] = []

    def interrupted(number: int, frame: Any) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _number(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise IsoICAError(f"-d {text!r}: a number of sources of at least 1, or auto, is needed")
    return int(text)


def _facts(model: Any) -> dict[str, Any]:
    ica = getattr(model, "ica_", model)
    facts: dict[str, Any] = {"sources": len(ica.components_)}
    if ica is not model:
        facts |= {"theta": model.theta_, "theta_stderr": model.theta_stderr_, "theta_floor": model.theta_floor_}
    return facts | {
        "converged": bool(ica.converged_), "iterations": int(ica.n_iter_), "gradient": float(ica.gradient_norm_)
    }  # fmt: skip
