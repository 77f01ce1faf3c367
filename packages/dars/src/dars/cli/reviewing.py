"""dars review, and dars reviewer fit, eval and export-sft: who chooses among the candidates."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import DarsConfig
from ..errors import TaskError
from .running import (
    AgainOption,
    CostOption,
    FolderArgument,
    RowsOption,
    UnknownOption,
    limited,
    model_again,
    model_named,
    told,
)

if TYPE_CHECKING:
    from ..reviewer import Labelled
    from ..reviewer.llm import Opinion

app = typer.Typer(no_args_is_help=True, help="Train and measure reviewers on labelled candidates.")

LabelledArgument = Annotated[Path, typer.Argument(metavar="LABELLED", help="JSON lines; see dars.reviewer.labels.")]


def review(
    folder: FolderArgument,
    reviewer: Annotated[
        list[str] | None,
        typer.Option("--reviewer", help="execution, llm, multiplicity, learned:FILE, verifier:FILE; may be repeated."),
    ] = None,
    weight: Annotated[list[float] | None, typer.Option("--weight", help="One for each --reviewer.")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="Of llm: single or pairwise.")] = None,
    orders: Annotated[int | None, typer.Option("--orders", min=1, help="Of llm: orders of the patches.")] = None,
    model: AgainOption = None,
    max_cost: CostOption = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Ask llm by message batches: half the price, within a day.")
    ] = False,
    rows: RowsOption = None,
    allow_unknown_price: UnknownOption = False,
) -> int:
    """Rank the candidates of a run again."""
    from .. import agent
    from ..reviewer import make_reviewer
    from ..runs import config_of, read_meta

    meta = read_meta(folder)
    settings = limited(config_of(meta), max_cost, None, None, None)
    changed = {"reviewers": reviewer or None, "weights": weight or None, "mode": mode, "n_orders": orders}
    section = {**settings.review.model_dump(), **{k: v for k, v in changed.items() if v is not None}}
    settings = DarsConfig.model_validate({**settings.model_dump(), "review": section})
    asked = model_again(meta, folder, model, rows)
    judge = make_reviewer(settings.review, asked, settings.seed, batch=folder / "batches" if batch else None)
    result = agent.review(folder, asked, settings, reviewer=judge, allow_unknown_price=allow_unknown_price)
    for place, candidate in enumerate(result.candidates, start=1):
        scores = ", ".join(f"{name} {score:.3f}" for name, score in candidate.scores.items())
        print(f"{place}. node {candidate.node_id} ({candidate.multiplicity} paths): {scores}")
    return told(result, folder, searched=False)


@app.command()
def fit(
    labelled: LabelledArgument,
    out: Annotated[Path, typer.Option("--out", help="JSON file of the model.")],
    strength: Annotated[float, typer.Option("--strength", help="Inverse of the penalty on coefficients.")] = 1.0,
) -> None:
    """Fit a linear reviewer; use it by --reviewer learned:FILE."""
    from ..reviewer import fit as fitted
    from ..reviewer import read_labelled

    if strength <= 0:
        raise TaskError(f"--strength {strength}: it has to be positive")
    cases = read_labelled(labelled)
    model = fitted(cases, strength)
    model.save(out)
    print(f"{sum(case.mixed for case in cases)} of {len(cases)} cases have something to learn from")
    for name, value in sorted(model.coefficients.items(), key=lambda item: -abs(item[1])):
        print(f"{name:<16} {value:+.3f}")


@app.command("fit-verifier")
def fit_verifier(
    out: Annotated[Path, typer.Option("--out", help="npz file of the verifier.")],
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Of the training.")] = 400.0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="Of the functions and the first weights.")] = 0,
) -> None:
    """Train a verifier on the Python that is installed here; use it by --reviewer verifier:FILE.

    On a GPU it has the size of dars eval --profile gpu, on the processor that of a toy.
    """
    from dataclasses import replace

    import numpy as np

    from ..evaluation.profiles import GPU, QUICK
    from ..evaluation.verifier import N, has_gpu, picks, trained

    if device not in ("auto", "cpu", "cuda"):
        raise TaskError(f"--device {device}: it has to be auto, cpu or cuda")
    device = ("cuda" if has_gpu() else "cpu") if device == "auto" else device
    profile = replace(GPU if device == "cuda" else QUICK, verifier_seconds=seconds)
    found = trained(profile, np.random.default_rng(seed), device)
    from ..reviewer.verifier import save

    save(found.verifier, out)
    print(f"{len(found.training.losses)} steps on {len(found.learnt)} functions: {out}")
    print(
        f"picks {picks(found.after).mean():.3f} of the true repairs of {len(found.held)} functions of other packages "
        f"among {N} (untrained {picks(found.before).mean():.3f}, chance {1 / N:.3f})"
    )


@app.command("eval")
def evaluate(
    labelled: LabelledArgument,
    reviewer: Annotated[
        list[str] | None,
        typer.Option("--reviewer", help="multiplicity, execution, llm, learned:FILE, verifier:FILE, random."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of llm, which it adds to the reviewers.")] = None,
    mode: Annotated[str, typer.Option("--mode", help="Of llm: single or pairwise.")] = "single",
    orders: Annotated[int, typer.Option("--orders", min=1, help="Of llm: orders of the patches.")] = 3,
    rows: RowsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what reviewers draw.")] = 0,
) -> None:
    """Share of the mixed cases in which a reviewer puts a resolving candidate first, beside chance."""
    from ..reviewer import LLMReviewer, Scorer, make_reviewer, read_labelled
    from ..search.engine import Spent

    cases = [case for case in read_labelled(labelled) if case.mixed]
    if not cases:
        raise TaskError(f"{labelled} holds no case with both candidates that resolve the issue and others")
    names = list(dict.fromkeys([*(reviewer or ["multiplicity"]), *(["llm"] if model is not None else [])]))
    asked = None if model is None else model_named(model, rows)
    section = DarsConfig.model_validate({"review": {"mode": mode, "n_orders": orders}}).review
    judges = [make_reviewer(section.model_copy(update={"reviewers": [name]}), asked, seed) for name in names]
    print(f"{len(cases)} mixed cases")
    print(f"{'chance':<14} {sum(sum(case.resolved) / len(case.resolved) for case in cases) / len(cases):.3f}")
    spent = Spent()
    for judge in judges:
        assert isinstance(judge, Scorer)
        right = 0
        for case in cases:
            scores = judge.scores(case, spent.add) if isinstance(judge, LLMReviewer) else judge.scores(case)
            right += case.first_right(scores)
        print(f"{judge.name:<14} {right / len(cases):.3f}")
    if spent.calls:
        cost = "unknown" if spent.cost_usd is None else f"{spent.cost_usd:.4f} US$"
        print(f"{spent.calls} calls of {model}; cost {cost}")


@app.command("export-sft")
def export(
    labelled: LabelledArgument,
    out: Annotated[Path, typer.Option("--out", help="JSON lines of chats.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1000, help="Of one chat, estimated.")] = 14_000,
    permutations: Annotated[int, typer.Option("--permutations", min=1, help="Orders of the patches per issue.")] = 4,
    teacher: Annotated[str | None, typer.Option("--teacher", help="Model that writes the critiques.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="Ask it by message batches.")] = False,
    lora: Annotated[str | None, typer.Option("--lora", help="7B, 14B or 32B: write a TRL configuration too.")] = None,
    rows: RowsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the orders.")] = 0,
) -> None:
    """Write training data for a reviewer of one's own, in the form of the paper."""
    from ..reviewer import export_sft, lora_config, read_labelled
    from ..reviewer.labels import json_lines
    from ..reviewer.sft import known_critiques, model_critiques
    from ..storage import write_atomic

    cases = read_labelled(labelled)
    critiques: Callable[[Labelled], Sequence[Opinion] | None] = known_critiques
    if teacher is not None:
        folder = out.with_name(f"{out.name}.batches") if batch else None
        said = model_critiques(cases, model_named(teacher, rows), batch=folder)
        by_id = dict(zip([case.id for case in cases], said, strict=True))

        def critiques(case: Labelled) -> Sequence[Opinion] | None:
            return by_id[case.id]

    chats = export_sft(cases, critiques, max_tokens, permutations, seed)
    write_atomic(out, json_lines(chats))
    print(f"{len(chats)} chats of {len(cases)} issues: {out}")
    if lora is not None:
        config = out.with_suffix(".yaml")
        write_atomic(config, lora_config(lora, str(out)))
        print(f"train with: trl sft --config {config}", file=sys.stderr)
