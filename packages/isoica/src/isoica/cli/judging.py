"""How far to trust a model, `isoica report`, and how far a map is from an isometry, `isoica theta`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import IsoICAError
from .fitting import table_for
from .options import DataArgument, JsonOption, KeyOption, ModelArgument, check_out, one_of
from .printing import show, whole, working

if TYPE_CHECKING:
    from ..isometry import ThetaResult

FITS = ("none", "fit", "metric")


def report(
    model: ModelArgument,
    data: DataArgument,
    eta: Annotated[
        float | None,
        typer.Option(help="Perturbation to have room for; what data and embedding show, if not given.", min=0.0),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence of the lower bound on the perturbation.")] = 0.95,
    permutations: Annotated[int, typer.Option(help="Of the test for a perturbation.", min=1)] = 200,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, .png.")] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which sources are identified, and how much of each may be in the others."""
    if plot is not None:
        check_out(plot, (".png",), "--plot")
    if not 0 < level < 1:
        raise IsoICAError(f"--level has to lie between 0 and 1; got {level}")
    from ..models import load_model

    fitted = load_model(model)
    if not hasattr(fitted, "report"):
        raise IsoICAError(f"{model} holds an embedding alone, {type(fitted).__name__}; theta is what can be told of it")
    X = table_for(fitted, model, data, key).values
    with working("report"):
        found = fitted.report(X, eta, level, permutations)
    if plot is not None:
        from ..plots import save_leakage_plot

        with whole(plot) as temporary:
            save_leakage_plot(getattr(found, "ica", found), temporary)
    if as_json:
        written = {} if plot is None else {"plot": str(plot)}
        show({"model": str(model), "data": data, "samples": len(X), **written, **found.to_dict()}, True)
        return
    print(found.to_text())
    if plot is not None:
        print(f"wrote {plot}")


def theta(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|MODULE:FUNCTION",
            help="File of a model that embeds, or a map from latents (n, d) or (d,) to observations.",
        ),
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Observations for a model, latents for a function; kinds as for fit.")
    ],
    p: Annotated[float, typer.Option("-p", help="Exponent of the mean, at least 1.")] = 2.0,
    scale: Annotated[
        str, typer.Option(help="none, fit (one unit of length is free), or metric (one linear map is free).")
    ] = "none",
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the distance from isometry of a function, or of a fitted embedding on data."""
    if not p >= 1:
        raise IsoICAError(f"-p {p}: at least 1 is needed")
    one_of(scale, "--scale", FITS)
    options = {"scale": "fit"} if scale == "fit" else {"metric": "fit"} if scale == "metric" else {}
    if ":" in source and not Path(source).exists():
        from ..tables import read_table

        found, points = _of_function(source, read_table(data, key).values, p, options), "latents"
    else:
        from ..models import load_model

        fitted = load_model(source)
        X = table_for(fitted, Path(source), data, key).values
        found, points = _of_chart(source, getattr(fitted, "embedding_estimator_", fitted), X, p, options), "samples"
    show(
        {
            "map": source, points: len(found.per_sample), "p": p, "theta": found.value, "stderr": found.stderr,
            "scale": found.scale, "sigma_min": found.sigma_min, "sigma_max": found.sigma_max,
        },
        as_json,
    )  # fmt: skip
    if not as_json and points == "samples":
        print("one-sided: the mixing may be further from isometry than its best chart shows; no data can exclude it")


def _of_function(source: str, S: Any, p: float, options: dict[str, Any]) -> ThetaResult:
    from ..isometry import theta as measured

    f = _function(source)
    try:
        with working("theta"):
            return measured(f, S, p=p, **options)
    except IsoICAError:
        raise
    except Exception as error:  # whatever the function raises
        raise IsoICAError(f"{source} fails on latents of shape {S.shape}: {type(error).__name__}: {error}") from error


def _function(source: str) -> Any:
    """The function that ``module:function`` names; the module may lie in the working folder."""
    module, _, name = source.partition(":")
    sys.path.insert(0, "")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, ValueError) as error:
        raise IsoICAError(f"{source}: the module {module!r} cannot be imported ({error})") from None
    except AttributeError:
        raise IsoICAError(f"{source}: {module} has no {name!r}; write MODULE:FUNCTION") from None
    finally:
        sys.path.remove("")
    if not callable(found):
        raise IsoICAError(f"{source} is a {type(found).__name__}; a function of the latents is needed")
    return found


def _of_chart(source: str, embedding: Any, X: Any, p: float, options: dict[str, Any]) -> ThetaResult:
    """Of the coordinates that an embedding gives to X, over least-squares derivatives in local tangent planes."""
    import numpy as np

    from ..alignment import chart_derivatives
    from ..isometry import theta_from_jacobians
    from ..neighbours import neighbours_of, tangent_places

    if hasattr(embedding, "rotation_"):
        raise IsoICAError(f"{source} is linear, with no chart to measure; fit with --method rigid or another embedding")
    X = np.unique(X.astype(np.float64), axis=0)  # equal points have no direction from one to the other
    Z = embedding.transform(X)
    d = Z.shape[1]
    if len(X) < d + 2:
        raise IsoICAError(f"{len(X)} different samples are too few for {d} dimensions; at least {d + 2} are needed")
    hood = tangent_places(X, neighbours_of(X, min(max(12, 4 * d), len(X) - 1)), d, "auto")
    return theta_from_jacobians(chart_derivatives(hood, Z), p, **options)
