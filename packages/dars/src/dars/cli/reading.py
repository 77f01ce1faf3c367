"""dars show, tree, export, import and cost: what a saved run holds."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import TaskError
from .running import FolderArgument

if TYPE_CHECKING:
    from ..tree import Tree

TreeArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or a tree.json.")]


def show(
    run: TreeArgument,
    node: Annotated[int, typer.Argument(metavar="NODE", help="Its number; see dars tree.")],
    against: Annotated[int | None, typer.Option("--against", metavar="NODE", help="Compare with another node.")] = None,
) -> None:
    """Everything about a node: action, observation, what was tried beside it, costs."""
    from ..viz import node_text, sibling_diff

    found = _tree_of(run)
    for wanted in (node, *([] if against is None else [against])):
        if wanted not in found.nodes:
            raise TaskError(f"{run} has no node {wanted}; ids run from 0 to {len(found) - 1}")
    print(node_text(found, node) if against is None else sibling_diff(found, node, against))


def tree(
    run: TreeArgument,
    skeleton: Annotated[bool, typer.Option("--skeleton", help="Kinds of the actions as letters.")] = False,
) -> None:
    """The tree of a run as text."""
    from ..viz import text

    found = _tree_of(run)
    print(found.skeleton() if skeleton else text(found, shutil.get_terminal_size((100, 24)).columns))


def export(
    run: TreeArgument,
    to: Annotated[Path, typer.Option("--to", help="File to write; - for stdout.")],
    form: Annotated[str, typer.Option("--format", help="html, json, traj, dot or predictions.")] = "html",
    name: Annotated[str, typer.Option("--name", help="model_name_or_path of predictions.")] = "dars",
) -> None:
    """Write a run in another format."""
    from ..interop import FORMATS
    from ..interop import export as exported
    from ..storage import write_atomic

    found = _tree_of(run)
    if form == "predictions":
        from ..runs import read_meta

        identity = str((read_meta(run).get("task") or {}).get("id", "local"))
        patch = run / "patch.diff"
        text = patch.read_bytes().decode("utf-8", "surrogateescape") if patch.exists() else ""
        row = {"instance_id": identity, "model_name_or_path": name, "model_patch": text}
        text = json.dumps(row) + "\n"
    elif form in FORMATS:
        text = exported(found, form)
    else:
        raise TaskError(f"--format {form}: there are {', '.join(FORMATS)}, predictions")
    if str(to) == "-":
        sys.stdout.write(text)
    else:
        write_atomic(to, text)


def import_run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".root of the authors, .traj, or mini-swe-agent's.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for tree.json and tree.html.")],
) -> None:
    """Read a run of another agent; dars show, tree and export then read the folder."""
    from ..interop import read
    from ..storage import write_atomic
    from ..viz import html

    found = read(file)
    if (out / "tree.json").exists():
        raise TaskError(f"{out} holds a tree already: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "tree.html", html(found))
    write_atomic(out / "tree.json", found.to_json())
    print(f"{len(found) - 1} steps, {len(found.leaves())} ends: {out / 'tree.html'}")


def cost(run: FolderArgument) -> None:
    """What a run used so far: calls, tokens, US$, and how much of the input came from the cache."""
    from ..runs import restored, used

    spent = used(restored(run))  # usage.json is written at the end of a run, and is not there where it was cut off
    names = {
        "calls": "calls", "steps": "steps", "input": "input tokens, not cached", "cache_read": "read from the cache",
        "cache_write_5m": "written to it for 5 minutes", "cache_write_1h": "written to it for an hour",
        "output": "output tokens", "thinking": "of these thinking",
    }  # fmt: skip
    for key, text in names.items():
        print(f"{text:<28} {spent[key]:>12,}")
    print(f"{'share of input from cache':<28} {spent['cache_efficiency']:>12.1%}")
    dollars = "unknown" if spent["cost_usd"] is None else f"{spent['cost_usd']:.4f}"
    print(f"{'US$':<28} {dollars:>12}")
    rate = spent["critic_fallback_rate"]
    print(f"{'critic fell back to the first':<28} {'-' if rate is None else f'{rate:.1%}':>12}")
    for reason, count in spent["cache_misses"].items():
        print(f"cache missed: {reason} ({count} times)")


def _tree_of(run: Path) -> Tree:
    """The tree of a run; of one that goes on, or that was cut off, as far as its events lead."""
    from ..runs import restored
    from ..storage import EVENTS
    from ..tree import load_tree

    return load_tree(run) if (run / "tree.json").exists() or not (run / EVENTS).exists() else restored(run).tree
