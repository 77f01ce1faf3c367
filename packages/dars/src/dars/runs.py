"""A search in a folder: begun, or gone on with where it was cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .aci.base import Tool
from .config import DarsConfig
from .env.base import Environment
from .env.scan import remove
from .errors import TaskError, TreeFormatError, because
from .models.base import ChatModel
from .prompts import make_prompts
from .search.engine import Engine
from .search.state import SearchState
from .storage import BLOBS, EVENTS, STATES, EventLog, read_events, write_atomic

Event = dict[str, Any]
COMPARED = ("issue", "config", "task", "model", "critic")
FREE = ("budget", "workers", "review")  # settings that may differ when a run goes on


def search(
    issue: str,
    model: ChatModel,
    env: Environment,
    tools: Mapping[str, Tool],
    config: DarsConfig | None = None,
    out: str | Path | None = None,
    critic: ChatModel | None = None,
    test_command: str | None = None,
    on_event: Callable[[Event], None] | None = None,
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
    with recorded(out, {"issue": issue}, config, on_event) as (state, keep):
        reason = Engine(model, env, tools, prompts, config, critic, keep, state).run()
    if out is not None:
        finish(Path(out), state)
    return state, reason


@contextmanager
def recorded(
    out: str | Path | None,
    about: Mapping[str, Any],
    config: DarsConfig,
    on_event: Callable[[Event], None] | None = None,
) -> Iterator[tuple[SearchState, Callable[[Event], None]]]:
    """The state that a folder holds, or a new one, and what keeps its further events.

    Parameters
    ----------
    out : folder; None keeps nothing.
    about : for ``meta.json``; a folder of a run for which any of it, or a setting, is another is refused. One whose
        run made no call yet becomes that of this one.
    on_event : is told every event after it was kept.
    """
    state = SearchState(order=config.order)
    state.tree.meta = {"policy": config.policy.model_dump(), "issue": about["issue"]}
    log, begun = None, False

    def keep(event: Event) -> None:
        if log is not None:
            log(event)
        if on_event is not None:
            on_event(event)

    try:
        if out is not None:
            log = EventLog(out)  # first of all: nobody else writes to the folder from here on
            begun = _begin(log, about, config)
            state = restored(out, config.order)
        yield state, keep
    finally:
        if log is not None:
            log.close()
            if begun and not state.tree.root.state_hash:  # nothing happened: leave no run behind
                _forget(Path(out or ""))


def restored(folder: str | Path, order: str = "shallowest") -> SearchState:
    """The state that the events in a folder lead to."""
    state = SearchState(order=order)
    meta = read_meta(folder)
    for number, event in enumerate(read_events(folder), start=1):
        try:
            state.apply(event)
        except (KeyError, TypeError, ValueError, TreeFormatError) as error:
            what = str(error) if isinstance(error, TreeFormatError) else f"{type(error).__name__}: {error}"
            raise TreeFormatError(f"{Path(folder) / EVENTS}, line {number}: {what}") from error
    state.tree.meta = {"policy": config_of(meta).policy.model_dump(), "issue": meta["issue"]}
    return state


def finish(folder: Path, state: SearchState) -> None:
    """Write ``tree.json`` and ``usage.json``."""
    write_atomic(folder / "tree.json", state.tree.to_json())
    write_atomic(folder / "usage.json", json.dumps(used(state), indent=1))


def used(state: SearchState) -> dict[str, Any]:
    """Tokens, calls, steps and US$ of a search, and how often its critic failed, as ``usage.json`` has them."""
    return {
        **state.usage._asdict(), "calls": state.calls, "steps": state.steps, "cost_usd": state.cost_usd,
        "cache_efficiency": state.usage.cache_efficiency, "cache_misses": dict(state.cache_misses),
        "critic_fallback_rate": state.tree.critic_fallback_rate,
    }  # fmt: skip


def read_meta(folder: str | Path) -> dict[str, Any]:
    """What ``meta.json`` says; TreeFormatError where there is none."""
    try:
        meta: dict[str, Any] = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
        config_of(meta)
        if not isinstance(meta["issue"], str):
            raise ValueError("the issue is no text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TreeFormatError(f"{folder} holds no run: meta.json is missing or damaged") from error
    return meta


def config_of(meta: Mapping[str, Any]) -> DarsConfig:
    """The configuration that ``meta.json`` describes."""
    return DarsConfig.model_validate(meta["config"])


def _begin(log: EventLog, about: Mapping[str, Any], config: DarsConfig) -> bool:
    """Whether ``meta.json`` had to be made; one that is there has to be of the same run."""
    folder = log.folder
    wanted = json.loads(json.dumps({**about, "config": config.model_dump(mode="json")}))
    if (folder / "meta.json").exists():
        other = _difference(read_meta(folder), wanted)
        if not other:
            return False
        if any(event["type"] not in ("root", "spent") or event.get("calls") for event in read_events(folder)):
            raise TaskError(f"{folder} holds a run with another {other}: resume it as it was, or use a new folder")
        log.clear()
        remove(folder / STATES)
    elif (folder / EVENTS).stat().st_size:
        raise TaskError(f"{folder} holds events of a run whose meta.json is missing: use a new folder")
    try:
        write_atomic(
            folder / "meta.json", json.dumps({"schema_version": 1, "started": time.time(), **wanted}, indent=1)
        )
    except OSError as error:
        raise because(f"cannot write the run to {folder}", error, TaskError) from error
    return True


def _difference(meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing by which a run is another one; "" if there is none.

    Not how long it may go on, nor with how many workers; nor where a repository lies, whose files are compared.
    """
    for part in [name for name in COMPARED if name in wanted]:
        old, new = meta.get(part), wanted[part]
        if part in ("model", "critic") and old != new:
            return f"{part} ({_called(old)}, not {_called(new)})"
        if not isinstance(old, dict) or not isinstance(new, dict):
            if old != new:
                return part
            continue
        free = {"config": FREE, "task": ("repo", "base_commit") if new.get("repo") else ()}.get(part, ())
        for name in new:
            if name not in free and old.get(name) != new[name]:
                return f"{part} ({name})"
    return ""


def _called(model: Any) -> str:
    return str(model["object"] if isinstance(model, dict) else model or "none")


def _forget(folder: Path) -> None:
    """Remove what a run that never began left in its folder."""
    for name in ("meta.json", EVENTS):
        (folder / name).unlink(missing_ok=True)
    for empty in (folder / BLOBS, folder):
        with suppress(OSError):  # what else is there stays
            empty.rmdir()
