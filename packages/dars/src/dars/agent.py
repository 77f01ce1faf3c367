"""The agent: a task and a model in, reviewed candidates out; runs that go on, and runs that branch off saved ones."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .aci.registry import registry
from .candidates import Candidate, harvest
from .config import DarsConfig
from .env import LocalEnvironment
from .env.base import Environment
from .env.scan import remove
from .errors import ModelError, TaskError, TreeFormatError, because
from .models.base import ChatModel, ToolCall, Usage
from .models.choose import make_model
from .prompts import make_prompts
from .reviewer import Case, Review, Reviewer, make_reviewer, ranking, review_json, scored
from .runs import Event, config_of, finish, read_meta, recorded, restored
from .search.engine import Engine
from .search.state import SearchState
from .search.values import judged, passing_share
from .storage import EVENTS, STATES, EventLog, write_atomic
from .task import Task
from .tree import Tree

REFUSED = "model"  # why a search ended whose provider refused a request


@dataclass(frozen=True)
class RunResult:
    """What a run ended in.

    Attributes
    ----------
    candidates : distinct patches with the reviewers' scores, best first.
    best : the first of them; None if there is none.
    usage, cost_usd : of all calls, those of critics and reviewers included; cost_usd None where a price is unknown.
    exit_reason : "done", or which budget ended ("steps", "calls", "cost", "wall time"), or "interrupted", or "model"
        where a provider refused to go on.
    out : the folder of the run.
    """

    tree: Tree
    candidates: list[Candidate]
    best: Candidate | None
    usage: Usage
    cost_usd: float | None
    exit_reason: str
    out: Path | None


def run(
    task: Task,
    model: ChatModel | str,
    config: DarsConfig | None = None,
    env: Environment | None = None,
    out: str | Path | None = None,
    critic: ChatModel | str | None = None,
    reviewer: Reviewer | None = None,
    workers: int = 1,
    on_event: Callable[[Event], None] | None = None,
    *,
    interrupted: Callable[[], bool] = lambda: False,
    allow_unknown_price: bool = False,
    called: str | None = None,
    again: bool = False,
) -> RunResult:
    """Search for a repair, and rank what was found.

    Parameters
    ----------
    model : a model, or its name as :func:`dars.models.make_model` takes it.
    critic : chooses among replacements; default: ``config.critic.model``, else the model itself.
    env : the workspace; default: a private copy of ``task.repo``, in a container of ``task.image`` where that is
        named. One that is given is not closed.
    out : folder for the log, the tree and the patches. One that holds a run of the same task, model and settings goes
        on; that of another one is refused, unless no call was made yet.
    reviewer : default: as ``config.review`` says.
    workers : paths that run at once, each on a workspace of its own; the larger of this and ``config.workers``.
    on_event : is told every event; see :mod:`dars.search.state`.
    interrupted : asked before every call of a model; True saves and ends the search.
    called : name under which :func:`resume` finds a model that is given as an object.
    again : go on with the run in ``out`` whatever its model and its files are now, as :func:`resume` does.
    allow_unknown_price : search under a limit of cost with a model whose price is unknown: the limit then never holds.

    Raises
    ------
    TaskError
        Settings that do not go together, a folder of another run.
    EnvError
        There can be no workspace.
    DiskFull
        No space is left; the run goes on in its folder where there is some again.
    ModelError
        The provider refused a request for good. What was found before is written as at any other end, and stands in
        ``result`` of the error.
    """
    config = (config or DarsConfig()).model_copy(deep=True)
    config.workers = max(workers, config.workers)
    said = {"model": called or _named(model), "critic": _named(critic) if critic is not None else config.critic.model}
    asked, chooser = models(model, critic, config, allow_unknown_price)
    folder = None if out is None else Path(out)
    about: dict[str, Any] = {"issue": task.issue}
    if not again:
        about |= {"task": _described(task), **said, "sampling": _sampling(asked, chooser or asked, config)}
    judge = reviewer or make_reviewer(config.review, asked, config.seed)
    with recorded(folder, about, config, on_event) as (state, keep):
        if not state.calls:
            asked.check()
            (chooser or asked).check()
        with workspace(task, config, env, folder) as place:
            began = state.tree.root.state_hash
            if began and not again and place.source_hash not in ("", began):
                raise TaskError(
                    f"{folder} holds a run on other files than those of {task.repo}: resume it as it was, or use a new "
                    "folder"
                )
            engine = _engine(task, asked, chooser, config, place, state, keep, interrupted)
            try:
                return _conclude(task, engine, judge, engine.run(), folder)
            except ModelError as error:
                engine.stopped = REFUSED  # what was paid for is harvested, and reviewed without asking a model
                error.result = _conclude(task, engine, judge, REFUSED, folder)
                raise


def models(
    model: ChatModel | str, critic: ChatModel | str | None, config: DarsConfig, allow_unknown_price: bool = False
) -> tuple[ChatModel, ChatModel | None]:
    """The model and the critic of a run, None where the model is its own; parameters as of :func:`run`.

    Raises
    ------
    TaskError
        There is no such model; a limit of cost cannot hold.
    """
    critic = config.critic.model if critic is None else critic
    asked, chooser = _made(model), None if critic is None else _made(critic)
    for known in (asked, chooser or asked):
        _limited(known, config, allow_unknown_price)
    return asked, chooser


def resume(
    out: str | Path,
    model: ChatModel | str | None = None,
    config: DarsConfig | None = None,
    env: Environment | None = None,
    **run_kwargs: Any,
) -> RunResult:
    """Go on with the run in a folder, from its last event; a finished one is reviewed again.

    Parameters
    ----------
    model : needed where the run began with a model object, which no file can hold.
    config : with another budget, number of workers or review; the rest has to be as it was.
    run_kwargs : as for :func:`run`.

    Raises
    ------
    TreeFormatError
        The folder holds no run, or a damaged one.
    """
    meta = read_meta(out)
    if model is None:
        model = model_of(meta, out)
    if "critic" not in run_kwargs and meta.get("critic"):
        if not isinstance(meta["critic"], str):
            raise TaskError(f"{out} began with a critic that no file can hold: give the critic")
        run_kwargs["critic"] = meta["critic"]
    config = config_of(meta) if config is None else config
    return run(task_of(meta, out), model, config, env, out, again=True, **run_kwargs)


def review(
    out: str | Path,
    model: ChatModel | str | None = None,
    config: DarsConfig | None = None,
    env: Environment | None = None,
    reviewer: Reviewer | None = None,
    *,
    allow_unknown_price: bool = False,
) -> RunResult:
    """Rank the candidates of a saved run again, without going on with its search.

    Parameters
    ----------
    model : that reviewers ask; default: that of the run.
    config : whose ``review`` and ``budget`` count; default: that of the run. The budget counts anew.
    allow_unknown_price : as for :func:`run`, where ``config.review`` names a reviewer that asks the model.
    """
    meta = read_meta(out)
    config = config_of(meta) if config is None else config
    task, folder = task_of(meta, out), Path(out)
    asked = _made(model_of(meta, out) if model is None else model)
    if "llm" in config.review.reviewers:
        _limited(asked, config, allow_unknown_price)
    judge = reviewer or make_reviewer(config.review, asked, config.seed)
    with (
        recorded(folder, {"issue": task.issue}, config) as (state, keep),
        workspace(task, config, env, folder) as place,
    ):
        state.before = (state.steps, state.calls, state.cost_usd or 0.0)
        engine = _engine(task, asked, None, config, place, state, keep, lambda: False)
        return _conclude(task, engine, judge, str(meta.get("exit_reason", "interrupted")), folder)


def fork(
    out: str | Path,
    node_id: int,
    hint: str | None = None,
    action: ToolCall | Mapping[str, Any] | None = None,
    to: str | Path | None = None,
    **run_kwargs: Any,
) -> RunResult:
    """Go back to a node of a saved run and take another action there, in a copy of the run.

    Parameters
    ----------
    hint : what the model is told there, once.
    action : what is done there instead of asking: a call, or {"tool": name, "args": {...}}. Neither: the model draws a
        replacement as at a key decision.
    to : the new folder; default: beside the old one, numbered.
    run_kwargs : as for :func:`resume`. The budget counts anew.

    Raises
    ------
    TaskError
        There is no such node, its path was submitted, or both a hint and an action were given.
    """
    if hint is not None and action is not None:
        raise TaskError("give a hint or an action, not both")
    old = Path(out)
    meta = read_meta(old)
    tree = restored(old, config_of(meta).order).tree
    if node_id not in tree.nodes:
        raise TaskError(f"{old} has no node {node_id}; ids run from 0 to {len(tree) - 1}")
    node = tree.nodes[node_id]
    if node.terminal and not node.children and not node.exit.startswith("exit_"):
        raise TaskError(f"the path ends at node {node_id} ({node.exit}): fork its parent, node {node.parent}")
    new = beside(old) if to is None else Path(to)
    if new.exists():
        raise TaskError(f"{new} exists: give another folder for the fork")
    given = None
    if isinstance(action, ToolCall):
        given = {"name": action.name, "input": action.input}
    elif action is not None:
        if not isinstance(action.get("tool"), str) or not isinstance(action.get("args", {}), Mapping):
            raise TaskError('an action has the form {"tool": "edit", "args": {...}}')
        given = {"name": action["tool"], "input": dict(action.get("args", {}))}
    config: DarsConfig = run_kwargs.get("config") or config_of(meta)
    if node.depth >= config.budget.depth:
        raise TaskError(f"node {node_id} lies at the limit of {config.budget.depth} actions: raise budget.depth")
    known = registry(config.aci)
    if given is not None and given["name"] not in known:
        raise TaskError(f"there is no tool {given['name']!r} to act with; there are {', '.join(sorted(known))}")
    event = {"type": "fork", "node": node_id, "hint": hint, "action": given}
    _copy_run(old, new, event, {"forked_from": {"run": str(old), "node": node_id}})
    copied = (new / EVENTS).stat().st_size
    try:
        return resume(new, **run_kwargs)
    finally:
        if (new / EVENTS).stat().st_size == copied and not (new / "tree.json").exists():  # it could not even begin
            remove(new)


def notices(task: Task) -> list[str]:
    """What a user should know of the repository before a search."""
    if task.repo is None:
        return []
    said = []
    done = subprocess.run(
        ["git", "-C", str(task.repo), "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said.append(f"{task.repo} is no git repository: its files are used as they are")
    elif done.stdout:
        said.append(
            f"{task.repo} has changes that are not committed: they are used as they are, and the patch is against them"
        )
    if (task.repo / ".gitmodules").exists():
        said.append("submodules are plain folders for the search; patches to them have to be applied there")
    return said


# --- parts of a run ---------------------------------------------------------------------------------------------------


def _engine(
    task: Task,
    model: ChatModel,
    critic: ChatModel | None,
    config: DarsConfig,
    workspace: Environment,
    state: SearchState,
    keep: Callable[[Event], None],
    interrupted: Callable[[], bool],
) -> Engine:
    tools = registry(config.aci, task.test_command)
    prompts = make_prompts(task.issue, list(tools.values()), task.test_command, config.prompts_dir)
    value = None
    if config.strategy == "mcts" and config.value == "tests":
        value = passing_share(state.tree, workspace.clone(), tools, task.test_command, task.visible_tests)
    elif config.strategy == "mcts":
        value = judged(state.tree, model, prompts, config)
    return Engine(model, workspace, tools, prompts, config, critic, keep, state, value, interrupted=interrupted)


def _conclude(task: Task, engine: Engine, judge: Reviewer, reason: str, folder: Path | None) -> RunResult:
    """Candidates of a search that has ended, reviewed and written."""
    state, workspace, config = engine.state, engine.env, engine.config
    engine.unfinished(workspace)
    base = state.tree.root.snapshot
    workspace.restore(base)
    found = harvest(state.tree, workspace.list_files(), config.harvest_unsubmitted)
    with engine.spending() as spent:
        case = Case(task, found, state.tree, workspace, base, spent.add, engine.out_of_budget)
        try:
            review = judge.review(case) if found else Review(())
        finally:  # paid for, even if a later call of the review fails
            if spent.calls:
                engine.emit({"type": "spent"}, spent)
    order = ranking(review.scores, found)
    marked = scored(case, review, judge.name)
    ranked = [marked[place] for place in order]
    best = ranked[0] if ranked else None
    result = RunResult(state.tree, ranked, best, state.usage, state.cost_usd, reason, folder)
    if folder is not None:
        shown = Review(tuple(review.scores[place] for place in order), review.evidence)
        _write(folder, result, state, shown, review_json(case, review, order))
    return result


@contextmanager
def workspace(task: Task, config: DarsConfig, given: Environment | None, folder: Path | None) -> Iterator[Environment]:
    """The given workspace, or one of its own that is closed afterwards; snapshots live in the run's folder."""
    if given is not None:
        yield given
        return
    limits = config.env
    options: dict[str, Any] = {"network": limits.network, "timeout": limits.timeout, "memory_mb": limits.memory_mb}
    state_dir = None if folder is None else folder / STATES
    with _source(task) as source:
        if task.image is not None:
            from .env.container import ContainerEnvironment

            command = shlex.split(config.env.container_cli)
            with ContainerEnvironment(
                task.image, config.env.workdir, command, state_dir=state_dir, source=source, **options
            ) as container:
                yield container
            return
        assert source is not None
        options |= {"backend": config.env.backend, "sandbox": config.env.sandbox}
        with LocalEnvironment(source, state_dir=state_dir, **options) as local:
            yield local


@contextmanager
def _source(task: Task) -> Iterator[Path | None]:
    """The folder of the task's files: the repository as it is, or its files at ``base_commit``; None: an image's."""
    if task.repo is None or task.base_commit is None:
        yield task.repo
        return
    with tempfile.TemporaryDirectory(prefix="dars-base-") as empty:
        made = subprocess.run(
            ["git", "-C", str(task.repo), "archive", "--format=tar", task.base_commit], capture_output=True, check=False
        )
        if made.returncode:
            why = made.stderr.decode(errors="replace").strip().splitlines()
            raise TaskError(f"{task.repo} has no commit {task.base_commit}: {why[0] if why else 'git failed'}")
        there = Path(empty) / task.repo.resolve().name
        there.mkdir()
        subprocess.run(["tar", "-x", "-C", str(there)], input=made.stdout, check=True)
        yield there


def _write(folder: Path, result: RunResult, state: SearchState, review: Review, written: Mapping[str, Any]) -> None:
    """Everything but the log, each file whole or not at all."""
    from .viz import html

    finish(folder, state)
    write_atomic(folder / "review.json", json.dumps(written, indent=1))
    patches = folder / "candidates"
    patches.mkdir(exist_ok=True)
    wanted = {f"{candidate.node_id}.diff": candidate.patch for candidate in result.candidates}
    for name, patch in wanted.items():
        write_atomic(patches / name, patch)
    for old in patches.glob("*.diff"):
        if old.name not in wanted:
            old.unlink()
    if result.best is not None:
        write_atomic(folder / "patch.diff", result.best.patch)
    else:
        (folder / "patch.diff").unlink(missing_ok=True)
    write_atomic(
        folder / "tree.html",
        html(result.tree, result.candidates, review, f"dars: {result.tree.meta['issue'].strip().splitlines()[0][:80]}"),
    )
    meta = {**read_meta(folder), "exit_reason": result.exit_reason}
    write_atomic(folder / "meta.json", json.dumps(meta, indent=1))


# --- what meta.json says ----------------------------------------------------------------------------------------------


def _made(model: ChatModel | str) -> ChatModel:
    return make_model(model) if isinstance(model, str) else model


def _limited(model: ChatModel, config: DarsConfig, allow_unknown_price: bool) -> None:
    """TaskError where a limit of cost cannot hold."""
    if config.budget.cost_usd is not None and not model.priced and not allow_unknown_price:
        raise TaskError(
            f"the price of {model.name} is unknown, so a limit of {config.budget.cost_usd} US$ cannot hold: give "
            "its price in a YAML file (--rows), or allow it (--allow-unknown-price)"
        )


def _named(model: ChatModel | str | None) -> dict[str, Any] | str | None:
    """A model's name as given; of an object only what it calls itself."""
    return model if model is None or isinstance(model, str) else {"object": model.name}


def _sampling(model: ChatModel, critic: ChatModel, config: DarsConfig) -> dict[str, Any]:
    """The temperature of each kind of turn, None where the provider takes none; how replacements are made to differ."""
    warm = config.candidates.temperature if model.capabilities.temperature else None
    varied = warm is None and config.candidates.diversity and config.candidates.k > 1
    return {
        "act": warm if config.strategy == "restart" else model.greedy, "candidate": warm, "critic": critic.greedy,
        "diversity_instruction": varied,
    }  # fmt: skip


def _described(task: Task) -> dict[str, Any]:
    values = asdict(task)
    return {**values, "repo": None if task.repo is None else str(task.repo.resolve())}


def task_of(meta: Mapping[str, Any], out: str | Path) -> Task:
    """The task that ``meta.json`` describes."""
    if "task" not in meta:
        raise TaskError(f"{out} was not made by run: it says nothing of a repository")
    try:
        return Task(**meta["task"])
    except TypeError as error:
        raise TreeFormatError(f"{out}: meta.json is damaged: {error}") from error


def model_of(meta: Mapping[str, Any], out: str | Path) -> str:
    """The name of the model that a run began with."""
    if not isinstance(meta.get("model"), str):
        raise TaskError(f"{out} began with a model that no file can hold: give the model")
    return str(meta["model"])


def beside(old: Path) -> Path:
    """The first free name for a fork of a run."""
    return next(
        new for i in itertools.count(1) if not (new := old.with_name(f"{old.resolve().name}-fork-{i}")).exists()
    )


def _copy_run(old: Path, new: Path, event: Event, more: Mapping[str, Any]) -> None:
    """Log, texts and snapshots of a run, and a further event; ``meta.json`` makes a folder a run and comes last."""
    try:
        new.mkdir(parents=True)
        shutil.copy2(old / EVENTS, new / EVENTS)
        for part in ("blobs", STATES):
            if (old / part).is_dir():
                shutil.copytree(old / part, new / part, symlinks=True, ignore=shutil.ignore_patterns("work-*"))
        log = EventLog(new)
        log(event)
        log.close()
        write_atomic(new / "meta.json", json.dumps({**read_meta(old), **more}, indent=1))
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise because(f"cannot copy {old} to {new}", error) from error
