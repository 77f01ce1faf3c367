"""A search in a folder: begun, or gone on with where it was cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .aci.base import Tool
from .config import DarsConfig
from .env.base import Environment
from .errors import TaskError, TreeFormatError
from .models.base import ChatModel
from .prompts import make_prompts
from .search.engine import Engine
from .search.state import SearchState
from .storage import EventLog, read_events, write_atomic


def search(
    issue: str,
    model: ChatModel,
    env: Environment,
    tools: Mapping[str, Tool],
    config: DarsConfig | None = None,
    out: str | Path | None = None,
    critic: ChatModel | None = None,
    test_command: str | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[SearchState, str]:
    """Search, or go on where the events in ``out`` end; returns the state and why it stopped.

    Raises
    ------
    TaskError
        An empty issue; a folder that holds the run of another issue or configuration.
    """
    config = DarsConfig() if config is None else config
    if not issue.strip():
        raise TaskError("the issue is empty: say what is wrong")
    prompts = make_prompts(issue, list(tools.values()), test_command, config.prompts_dir)
    state = SearchState(order=config.order)
    log = None
    if out is not None:
        state = _begin(Path(out), issue, config, state)
        log = EventLog(out)

    def keep(event: dict[str, Any]) -> None:
        if log is not None:
            log(event)
        if on_event is not None:
            on_event(event)

    try:
        engine = Engine(model, env, tools, prompts, config, critic, keep, state)
        reason = engine.run()
    finally:
        if log is not None:
            log.close()
    if out is not None:
        finish(Path(out), state)
    return state, reason


def restored(folder: str | Path, order: str = "shallowest") -> SearchState:
    """The state that the events in a folder lead to."""
    state = SearchState(order=order)
    meta = _meta(Path(folder))
    for number, event in enumerate(read_events(folder), start=1):
        try:
            state.apply(event)
        except (KeyError, TypeError, ValueError) as error:
            raise TreeFormatError(f"{folder}, event {number}: {type(error).__name__}: {error}") from error
    state.tree.meta = {"policy": meta["config"]["policy"], "issue": meta["issue"]}
    return state


def finish(folder: Path, state: SearchState) -> None:
    """Write ``tree.json`` and ``usage.json``."""
    write_atomic(folder / "tree.json", state.tree.to_json())
    spent = {**state.usage._asdict(), "calls": state.calls, "steps": state.steps, "cost_usd": state.cost_usd}
    write_atomic(folder / "usage.json", json.dumps(spent, indent=1))


def _begin(folder: Path, issue: str, config: DarsConfig, state: SearchState) -> SearchState:
    """A new folder with its ``meta.json``, or the state of the run that is in it."""
    wanted = {"issue": issue, "config": json.loads(config.model_dump_json())}
    if (folder / "meta.json").exists():
        meta = _meta(folder)
        for part in wanted:
            if meta[part] != wanted[part]:
                raise TaskError(f"{folder} holds a run with another {part}: resume it as it was, or use a new folder")
        return restored(folder, config.order)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "meta.json", json.dumps({"schema_version": 1, "started": time.time(), **wanted}, indent=1))
    return state


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TreeFormatError(f"{folder} holds no run: meta.json is missing or damaged") from error
    return meta
