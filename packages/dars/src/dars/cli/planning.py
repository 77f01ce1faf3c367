"""dars theory, plan and doctor: what to expect before anything is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TaskError
from ..tree import load_tree

if TYPE_CHECKING:
    from ..plan import Rate
    from ..tree import Tree

StagesOption = Annotated[str, typer.Option("--stages", help="Kinds of the key decisions in order, by commas.")]
GapsOption = Annotated[
    str | None, typer.Option("--gaps", help="Other actions before each stage and after the last, by commas.")
]
STAGES, GAPS = "create,append,edit,submit", "3,0,1,6,0"


def theory(
    stages: StagesOption = STAGES,
    gaps: GapsOption = GAPS,
    p: Annotated[str | None, typer.Option("--p", help="Share of good first choices at each stage.")] = None,
    q: Annotated[str | None, typer.Option("--q", help="Share of good alternatives; default: as --p.")] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Candidates drawn for an alternative.")] = 3,
    config: Annotated[
        str | None, typer.Option("--config", help="YAML file whose policy counts; default: the paper's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Size of the tree, chance to resolve, and when going back beats starting again, in closed form."""
    from .. import theory as law
    from ..config import DarsConfig
    from ..policy import ExpansionPolicy

    policy = ExpansionPolicy.paper() if config is None else DarsConfig.from_yaml(config).policy.build()
    kinds, between = _words(stages), _numbers("--gaps", gaps or "")
    unknown = [kind for kind in kinds if kind not in policy.limits]
    if unknown:
        raise TaskError(
            f"--stages: {unknown[0]} is no kind that the policy expands; it expands {', '.join(policy.limits)}"
        )
    counts = [int(gap) for gap in between]
    values: dict[str, float | None] = {
        "leaves": law.leaf_count(kinds, policy),
        "steps": law.step_count(kinds, counts, policy),
        "steps replayed without snapshots": law.replay_count(kinds, counts, policy),
    }
    if p is not None:
        first = _numbers("--p", p)
        again = first if q is None else _numbers("--q", q)
        values["chance that any leaf resolves"] = law.success_probability(kinds, first, again, policy=policy)
        values["chance of one run"] = math.prod(first)
        for unit in ("calls", "steps", "tokens"):
            values[f"q at which restarts of the same {unit} do as well"] = law.break_even_q(
                kinds, counts, first, k, policy, unit
            )
    elif q is not None:
        raise TaskError("--q says how good alternatives are; give --p too, how good first choices are")
    if as_json:
        print(json.dumps(values, indent=1))
        return
    for name, value in values.items():
        shown = "none: restarts always do better" if value is None else f"{value:.6g}"
        print(f"{name:<50} {shown}")


def plan(
    budget: Annotated[float, typer.Option("--budget", help="What may be spent on a task, in --unit.")],
    unit: Annotated[str, typer.Option("--unit", help="calls, steps or usd.")] = "calls",
    trees: Annotated[
        Path | None, typer.Option("--trees", help="Labelled trees to learn from: lines of {tree, resolved}.")
    ] = None,
    stages: StagesOption = STAGES,
    gaps: GapsOption = GAPS,
    p: Annotated[str | None, typer.Option("--p", help="Share of good first choices at each stage.")] = None,
    q: Annotated[str | None, typer.Option("--q", help="Share of good alternatives at each stage.")] = None,
    critic: Annotated[
        float, typer.Option("--critic", min=0, max=1, help="0: chooses at random among candidates; 1: always right.")
    ] = 0.0,
    model: Annotated[str, typer.Option("--model", help="Whose prices count for usd.")] = "claude-sonnet-5-5",
    rows: Annotated[Path | None, typer.Option("--rows", help="YAML of prices by model.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Plans to show.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Of the draws of rates.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with settings for a YAML file.")] = False,
) -> None:
    """Where a budget goes: which decisions to expand and how often, or whether to start again.

    Rates come from labelled trees (--trees), or from --p and --q. A line of the file names a run's folder or tree.json
    ("tree") and the ids of the leaves that resolve the task ("resolved").
    """
    from ..models.registry import read_rows
    from ..plan import Prices, estimate
    from ..plan import plan as planned

    if (trees is None) == (p is None):
        raise TaskError("give what is known of good choices: labelled trees by --trees, or --p (and --q)")
    first: Mapping[str, Rate]
    again: Mapping[str, Rate]
    after_good: Mapping[str, Rate] | None = None
    if trees is not None:
        rates = estimate(_labelled(trees))
        kinds, counts, first, again, after_good = rates.stages, rates.gaps, rates.p, rates.q_bad, rates.q_good
    else:
        assert p is not None
        kinds, counts = tuple(_words(stages)), tuple(int(gap) for gap in _numbers("--gaps", gaps or ""))
        first = _by_kind("--p", kinds, _numbers("--p", p))
        again = first if q is None else _by_kind("--q", kinds, _numbers("--q", q))
    row = read_rows(rows).get(model)
    if unit == "usd" and row is None:
        raise TaskError(f"there is no price for {model}: give one in a YAML file by --rows")
    prices = Prices(row) if row is not None else None
    found = planned(budget, kinds, counts, first, again, after_good, unit, prices, critic, seed=seed)[:top]
    if as_json:
        print(json.dumps([{**asdict(one), "settings": one.settings()} for one in found], indent=1))
        return
    print(f"{'success':>8} {'cost':>9} {'runs':>6}  plan")
    for one in found:
        what = one.strategy
        if one.strategy == "dars":
            limits = ", ".join(f"{kind} {limit}" for kind, limit in one.limits.items())
            what = f"dars: {limits}; {one.num_expansions} children, K = {one.k}"
        print(f"{one.success:>8.3f} {one.cost:>9.4g} {one.runs:>6.2f}  {what}")


def doctor() -> int:
    """What this machine has of what a run may need, and how to get the rest."""
    from ..doctor import checks

    found = checks()
    for check in found:
        print(f"{'ok     ' if check.ok else 'missing'} {check.name:<22} {check.detail}")
        if not check.ok and check.remedy:
            print(f"{'':30} {check.remedy}")
    return 0


def _labelled(file: Path) -> list[tuple[Tree, list[int]]]:
    """Trees with the ids of the leaves that resolve, from a file of lines; paths are relative to it."""
    found = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TaskError(f"--trees {file}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            place, resolved = file.parent / str(value["tree"]), [int(node) for node in value["resolved"]]
        except (ValueError, KeyError, TypeError):
            raise TaskError(f'{file}, line {number}: it has to be {{"tree": PATH, "resolved": [NODE, ...]}}') from None
        found.append((load_tree(place), resolved))
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _by_kind(option: str, kinds: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """One rate for each kind; stages of one kind share theirs."""
    if len(values) != len(kinds):
        raise TaskError(f"{option} has {len(values)} numbers; there are {len(kinds)} stages: {', '.join(kinds)}")
    rates: dict[str, float] = {}
    for kind, value in zip(kinds, values, strict=True):
        if rates.setdefault(kind, value) != value:
            raise TaskError(f"{option}: stages of one kind share their rate; {kind} has {rates[kind]:g} and {value:g}")
    return rates


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise TaskError(f"{option} {text!r}: give numbers separated by commas, as in {GAPS}") from None
