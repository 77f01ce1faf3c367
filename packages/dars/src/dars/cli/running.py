"""dars run, resume, fork and replay."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import DarsConfig
from ..errors import DiskFull, ModelError, TaskError
from .live import watch

if TYPE_CHECKING:
    from ..agent import RunResult
    from ..models.base import ChatModel

TAPE = "cassette.jsonl"  # of a run that records
LIMITS = ("steps", "calls", "cost", "wall time")

ModelOption = Annotated[
    str, typer.Option("--model", help="claude-…, openai:NAME[@URL], cassette:FILE, repair[:SEED] or human.")
]
AgainOption = Annotated[
    str | None, typer.Option("--model", help="A model; default: that of the run.", show_default=False)
]
RowsOption = Annotated[Path | None, typer.Option("--rows", help="YAML of prices and abilities by model.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Paths that run at once.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]
CostOption = Annotated[float | None, typer.Option("--max-cost", min=0, help="US$ for everything.")]
StepsOption = Annotated[int | None, typer.Option("--max-steps", min=0, help="Actions.")]
CallsOption = Annotated[int | None, typer.Option("--max-calls", min=0, help="Responses of models.")]
WallOption = Annotated[float | None, typer.Option("--max-wall", min=0, help="Seconds.")]
UnknownOption = Annotated[
    bool, typer.Option("--allow-unknown-price", help="Search although a limit of cost cannot hold.")
]


def run(
    repo: Annotated[Path | None, typer.Option("--repo", help="Folder of the repository.")] = None,
    issue: Annotated[str | None, typer.Option("--issue", help="File with the issue; - for stdin.")] = None,
    issue_text: Annotated[str | None, typer.Option("--issue-text", help="The issue itself.")] = None,
    model: ModelOption = "claude-sonnet-5-5",
    critic: Annotated[str | None, typer.Option("--critic", help="Model that chooses among replacements.")] = None,
    config: Annotated[str | None, typer.Option("--config", help="YAML file, or paper or fast.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; outside the repository.")] = None,
    max_cost: CostOption = None,
    max_steps: StepsOption = None,
    max_calls: CallsOption = None,
    max_wall: WallOption = None,
    workers: WorkersOption = 1,
    container: Annotated[
        str | None, typer.Option("--container", help="Image that holds the repository, or that --repo is copied into.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="dars, linear, restart, mcts or random_branch.")
    ] = None,
    reviewer: Annotated[
        list[str] | None,
        typer.Option("--reviewer", help="execution, llm, multiplicity, learned:FILE, verifier:FILE; may be repeated."),
    ] = None,
    test_command: Annotated[str | None, typer.Option("--test-command", help="Runs the tests; default pytest.")] = None,
    base_commit: Annotated[str | None, typer.Option("--base-commit", help="Work on this commit's files.")] = None,
    sandbox: Annotated[str | None, typer.Option("--sandbox", help="auto, bwrap, unshare or none.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of what the search draws itself.")] = None,
    rows: RowsOption = None,
    record: Annotated[bool, typer.Option("--record", help="Keep the model's answers, for dars replay.")] = False,
    allow_unknown_price: UnknownOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, ask no model.")] = False,
) -> int:
    """Resolve an issue of a repository.

    The repository is never changed: the work is done in a private copy, closed in by a sandbox. What is found lies in
    the folder of the run: patch.diff, candidates/, review.json, tree.html (for a browser), tree.json, usage.json.
    """
    from .. import agent
    from ..models import CassetteModel
    from ..models.cassette import VARYING
    from ..reviewer import make_reviewer
    from ..task import Task

    settings = limited(settings_named(config), max_cost, max_steps, max_calls, max_wall)
    for section, name, value in (
        (settings, "strategy", strategy), (settings, "seed", seed), (settings.env, "sandbox", sandbox),
        (settings.review, "reviewers", reviewer or None),
    ):  # fmt: skip
        if value is not None:
            _set(section, name, value)
    task = Task(
        repo, _issue(issue, issue_text), image=container, test_command=test_command, base_commit=base_commit
    )  # fmt: skip
    folder = _out(out, repo)
    asked = model_named(model, rows)
    make_reviewer(settings.review, asked)  # what is wrong with it is said before anything is spent
    for notice in agent.notices(task):
        print(f"warning: {notice}", file=sys.stderr)
    if dry_run:
        return _rehearse(task, agent.models(asked, critic, settings, allow_unknown_price), settings)
    if record:
        asked = CassetteModel(folder / TAPE, asked, "auto", ignore=VARYING)
    with _stoppable() as interrupted:
        return _watched(
            folder, settings,
            lambda tell: agent.run(
                task, asked, settings, None, folder, critic, None, workers, tell, interrupted=interrupted,
                allow_unknown_price=allow_unknown_price, called=model,
            ),
        )  # fmt: skip


def resume(
    folder: FolderArgument,
    model: AgainOption = None,
    max_cost: CostOption = None,
    max_steps: StepsOption = None,
    max_calls: CallsOption = None,
    max_wall: WallOption = None,
    workers: WorkersOption = 1,
    rows: RowsOption = None,
    allow_unknown_price: UnknownOption = False,
) -> int:
    """Go on with a run that was cut off, or with one whose budget ended (give a larger one)."""
    from .. import agent
    from ..models import CassetteModel
    from ..runs import config_of, read_meta

    meta = read_meta(folder)
    settings = limited(config_of(meta), max_cost, max_steps, max_calls, max_wall)
    given = model_again(meta, folder, model, rows)
    if (folder / TAPE).exists():
        given = CassetteModel(folder / TAPE, given, "auto")
    with _stoppable() as interrupted:
        return _watched(
            folder, settings,
            lambda tell: agent.resume(
                folder, given, settings, workers=workers, on_event=tell, interrupted=interrupted,
                allow_unknown_price=allow_unknown_price,
            ),
        )  # fmt: skip


def fork(
    folder: FolderArgument,
    node: Annotated[int, typer.Argument(metavar="NODE", help="Where to go back to; see dars tree.")],
    hint: Annotated[str | None, typer.Option("--hint", help="What the model is told there.")] = None,
    action: Annotated[str | None, typer.Option("--action", help='What is done there: TOOL {"argument": ...}.')] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new run; default: beside the old.")] = None,
    model: AgainOption = None,
    max_cost: CostOption = None,
    max_steps: StepsOption = None,
    max_calls: CallsOption = None,
    workers: WorkersOption = 1,
    rows: RowsOption = None,
    allow_unknown_price: UnknownOption = False,
) -> int:
    """Go back to a node of a saved run and try something else there, in a copy of the run."""
    from .. import agent
    from ..runs import config_of, read_meta

    meta = read_meta(folder)
    settings = limited(config_of(meta), max_cost, max_steps, max_calls, None)
    given = model_again(meta, folder, model, rows)
    call = None if action is None else _action(action)
    new = out or agent.beside(folder)
    with _stoppable() as interrupted:
        return _watched(
            new, settings,
            lambda tell: agent.fork(
                folder, node, hint, call, to=new, model=given, config=settings, workers=workers, on_event=tell,
                interrupted=interrupted, allow_unknown_price=allow_unknown_price,
            ),
        )  # fmt: skip


def replay(
    folder: FolderArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the repetition; default: none is kept.")] = None,
    cassette: Annotated[Path | None, typer.Option("--cassette", help="Recording; default: that of the run.")] = None,
) -> int:
    """Do a recorded run again, without its provider, and say whether the same tree comes out."""
    from .. import agent
    from ..models import CassetteModel
    from ..runs import config_of, read_meta, restored

    meta = read_meta(folder)
    tape = CassetteModel(cassette or folder / TAPE)
    settings = config_of(meta)
    result = agent.run(agent.task_of(meta, folder), tape, settings, out=out)
    before, after = restored(folder, settings.order).tree, result.tree
    for number, node in before.nodes.items():
        twin = after.nodes.get(number)
        if twin is None or (node.tool, node.args, node.state_hash) != (twin.tool, twin.args, twin.state_hash):
            print(f"differs from node {number} on ({node.tool or 'root'})")
            return 1
    same = len(before) == len(after)
    print(f"the same tree: {len(before)} nodes" if same else f"{len(after)} nodes in place of {len(before)}")
    return 0 if same else 1


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_named(name: str | None) -> DarsConfig:
    """The configuration of a file, or of a name."""
    if name == "paper":
        return DarsConfig.paper()
    if name == "fast":
        return DarsConfig.fast()
    return DarsConfig() if name is None else DarsConfig.from_yaml(name)


def limited(
    settings: DarsConfig, cost: float | None, steps: int | None, calls: int | None, wall: float | None
) -> DarsConfig:
    """A configuration with other budgets, where they are given."""
    for name, value in (("cost_usd", cost), ("steps", steps), ("calls", calls), ("wall_s", wall)):
        if value is not None:
            _set(settings.budget, name, value)
    for name, flag in (("cost_usd", "cost"), ("steps", "steps"), ("calls", "calls"), ("wall_s", "wall")):
        if getattr(settings.budget, name) == 0:
            raise TaskError(
                f"a limit of 0 leaves nothing to do: raise budget.{name} in the configuration, or give --max-{flag}"
            )
    return settings


def _set(section: Any, name: str, value: Any) -> None:
    from pydantic import ValidationError

    try:
        setattr(section, name, value)
    except ValidationError as error:
        raise TaskError(f"--{name.replace('_', '-')} {value}: {error.errors()[0]['msg']}") from None


def _issue(file: str | None, text: str | None) -> str:
    if (file is None) == (text is None):
        raise TaskError("give the issue, by --issue FILE (- for stdin) or by --issue-text TEXT")
    if text is not None:
        return text
    assert file is not None
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise TaskError(f"--issue {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"--issue {file}: no UTF-8 text: {error.reason} at byte {error.start}") from None


def _out(out: Path | None, repo: Path | None) -> Path:
    """The folder of a new run."""
    if out is None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{repo.resolve().name if repo else 'container'}"
        return state / "dars" / name
    if out.exists() and not out.is_dir():
        raise TaskError(f"--out {out} is a file: give a folder")
    if repo is not None and out.resolve().is_relative_to(repo.resolve()):
        raise TaskError(f"--out {out} lies in the repository, which is not to change: give a folder outside")
    return out


def model_named(name: str, rows: Path | None) -> ChatModel:
    """A model by its name, with the prices of a file."""
    from ..models import make_model, read_rows

    return make_model(name, None if rows is None else read_rows(rows))


def model_again(meta: Mapping[str, Any], folder: Path, name: str | None, rows: Path | None) -> ChatModel:
    """The model of a name, or without one that of a run."""
    from ..agent import model_of

    return model_named(model_of(meta, folder) if name is None else name, rows)


def _action(text: str) -> dict[str, Any]:
    tool, _, rest = text.strip().partition(" ")
    try:
        args = json.loads(rest or "{}")
    except ValueError as error:
        raise TaskError(
            f'--action {text!r}: the arguments are no JSON ({error}); write TOOL {{"argument": "value"}}'
        ) from None
    if not isinstance(args, dict):
        raise TaskError(f'--action {text!r}: the arguments have to be an object: TOOL {{"argument": "value"}}')
    return {"tool": tool, "args": args}


# --- one run ----------------------------------------------------------------------------------------------------------


def _watched(folder: Path, settings: DarsConfig, work: Callable[[Callable[[dict[str, Any]], None]], RunResult]) -> int:
    """Do the work with a view of the tree, and say what came of it."""
    try:
        with watch(settings, folder) as tell:
            result = work(tell)
    except (ModelError, DiskFull) as error:  # what was paid for before is not lost
        if isinstance(error, ModelError) and error.result is not None:
            _found(error.result, folder)
        if (folder / "meta.json").exists():
            raise type(error)(f"{error}; {_go_on(folder)}") from error
        raise
    except KeyboardInterrupt:
        print(_go_on(folder), file=sys.stderr)
        raise
    return told(result, folder)


def _go_on(folder: Path) -> str:
    return f"saved; go on with: dars resume {shlex.quote(str(folder))}"


def told(result: RunResult, folder: Path, searched: bool = True) -> int:
    """Print what a run came to; its exit code. Of a review alone that does not say how the search had ended."""
    _found(result, folder)
    if result.exit_reason == "interrupted" and searched:
        print(_go_on(folder), file=sys.stderr)
        return 130
    if result.best is not None:
        return 0
    if result.exit_reason in LIMITS:
        print(
            f"error: the budget ({result.exit_reason}) ended before any candidate: dars resume with more",
            file=sys.stderr,
        )
        return 5
    if {leaf.exit for leaf in result.tree.leaves()} == {"exit_env"}:
        print("error: the workspace failed on every path: dars show RUN NODE says how", file=sys.stderr)
        return 3
    print("error: no path ended in a change of the code", file=sys.stderr)
    return 1


def _found(result: RunResult, folder: Path) -> None:
    """Print how large a tree is, what it cost, and where its files lie."""
    cost = "unknown" if result.cost_usd is None else f"{result.cost_usd:.4f} US$"
    cached = f", {result.usage.cache_efficiency:.0%} of the input from the cache" if sum(result.usage) else ""
    leaves = result.tree.leaves()
    print(f"{len(result.tree) - 1} steps, {len(leaves)} ends, {len(result.candidates)} candidates; cost {cost}{cached}")
    print(f"tree:  {folder / 'tree.html'}")
    if result.best is not None:
        kept = " (not submitted: its path was cut off)" if result.best.auto_submitted else ""
        print(f"patch: {folder / 'patch.diff'}{kept}")


def _rehearse(task: Any, models: tuple[ChatModel, ChatModel | None], settings: DarsConfig) -> int:
    """Everything but a question to a model: credentials, workspace, sandbox, tools, length of the first request."""
    from ..aci.registry import registry
    from ..agent import workspace
    from ..prompts import make_prompts

    model, critic = models
    model.check()
    (critic or model).check()
    tools = registry(settings.aci, task.test_command)
    prompts = make_prompts(task.issue, list(tools.values()), task.test_command, settings.prompts_dir)
    with workspace(task, settings, None, None) as env:
        done = env.exec("pwd")
        if done.returncode:
            raise TaskError(f"a command cannot be run in the workspace: {done.output.strip()}")
        files = len(env.list_files())
    length = len(prompts.system) + len(prompts.issue) + len(json.dumps(prompts.tools))
    where = f"{settings.env.backend}, sandbox {settings.env.sandbox}" if task.image is None else f"image {task.image}"
    print(f"workspace: {files} files, {where}")
    known = "price known" if model.priced else "price unknown"
    print(f"model: {model.name}, {known}; the first request has about {length // 4} tokens")
    print(f"strategy: {settings.strategy}; at most {settings.budget.steps} steps of depth {settings.budget.depth}")
    return 0


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the search to save and stop before its next call; the second ends everything."""
    asked = False

    def stop(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("saving: the search stops before its next call (Ctrl-C again: at once)", file=sys.stderr)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
