"""What messages tell: a fold over issue, actions, observations and feedback to all that a repair model goes by."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from ..patches import is_test
from .repair_source import OUTSIDE, File, Function, Replacement, file_of, replacement, window

ELIDED = "[observation left out:"
SNIPPET = re.compile(r"```(?:python|py)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`|\b([A-Za-z_]\w*)\(|\b([a-z]\w*_\w+)\b")
DEFINED = re.compile(r"^(.+?):(\d+): (?:class|function) ", re.MULTILINE)
FOUND = re.compile(r"^(.+?\.py):(\d+): ", re.MULTILINE)
FRAME = re.compile(r'^ *File "(.+?)", line (\d+), in (\S+)$', re.MULTILINE)
# Times and addresses differ between runs that are otherwise the same.
VARYING = re.compile(r"wall time: [^)]*|\bin \d+\.\d+s\b|\b0x[0-9a-f]{6,}\b")
EXIT = re.compile(r"exit code: (-?\d+)")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
ATTEMPT = re.compile(r'<attempt number="\d+">\n(.*?)^</attempt>', re.DOTALL | re.MULTILINE)
ACTION = r'<action tool="([^"]*)">(.*?)</action>'
FIRST = re.compile(rf"{ACTION}(?:\n<observation>(.*?)</observation>$)?", re.DOTALL | re.MULTILINE)
STEP = re.compile(rf"^<step>{ACTION}\n<observation>(.*?)</observation></step>$", re.DOTALL | re.MULTILINE)
SUBMITTED = re.compile(r"^<submitted>\n(.*?)</submitted>$", re.DOTALL | re.MULTILINE)


class Issue(NamedTuple):
    """What is asked for.

    names : identifiers, first those of the snippet.  snippet : a script that fails while the fault is there, or "".
    imports : the statements that it begins with.
    """

    names: tuple[str, ...]
    snippet: str
    imports: str


NO_ISSUE = Issue((), "", "")


class Outcome(NamedTuple):
    """How a command ended: what its failure looks like, or "" where it passed."""

    failure: str


class Trial(NamedTuple):
    """An edit that was made. changed : whether failures differed afterwards; None where that is not known."""

    path: str
    function: str
    made: Replacement
    changed: bool | None = None
    refused: bool = False


class Applied(NamedTuple):
    """An edit that is in the workspace, and what was known of the outcomes before it."""

    path: str
    file: File | None
    script: Outcome | None
    tests: Outcome | None


class State(NamedTuple):
    """All that was seen on a path.

    Attributes
    ----------
    files : what is known of source files, by path.
    places : (path, line) of definitions that searches found; opened : those that were opened.
    searched : (tool, name) of searches.  frames : names of functions in tracebacks.
    looks : searches and windows since the last change.  refused_paths : of files that could not be created.
    script, content, appended : the reproduction's path and text, and whether it was added to.
    telling : whether it failed before any edit; None before its first run.
    script_outcome, tests : of the files as they are; None where not run since the last change.
    stack : edits that are in the workspace.  edits : made in all.  undone : whether none was made since the last undo.
    trials : edits tried, on the path and in what feedback tells.
    here : actions tried at this node, as (tool, arguments).
    """

    issue: Issue = NO_ISSUE
    files: Mapping[str, File] = {}
    places: tuple[tuple[str, int], ...] = ()
    opened: tuple[tuple[str, int], ...] = ()
    searched: tuple[tuple[str, str], ...] = ()
    frames: tuple[str, ...] = ()
    looks: int = 0
    refused_paths: tuple[str, ...] = ()
    script: str = ""
    content: str = ""
    appended: bool = False
    telling: bool | None = None
    script_outcome: Outcome | None = None
    tests: Outcome | None = None
    stack: tuple[Applied, ...] = ()
    edits: int = 0
    undone: bool = True
    trials: tuple[Trial, ...] = ()
    here: tuple[tuple[str, str], ...] = ()

    def solved(self) -> bool:
        """Whether all that can be run passes: the visible tests, and the script if it ever failed."""
        tests = self.tests is not None and not self.tests.failure
        script = self.script_outcome is not None and not self.script_outcome.failure
        return tests and (script or not self.script or self.telling is False)


@lru_cache(maxsize=256)
def read_issue(text: str) -> Issue:
    """Names and snippet of an issue."""
    found = SNIPPET.search(text)
    snippet = f"{found[1].rstrip()}\n" if found else ""
    names, imports = _snippet_names(snippet)
    prose = SNIPPET.sub("", text)
    for quoted, called, word in QUOTED.findall(prose):
        names.append((quoted or called or word).rpartition(".")[2])
    own = OUTSIDE - {"self"}
    return Issue(tuple(dict.fromkeys(n for n in names if n not in own and not n.startswith("__"))), snippet, imports)


def _snippet_names(snippet: str) -> tuple[list[str], str]:
    """Names that a snippet calls, then those that it imports and uses; and the lines of its first imports."""
    try:
        tree = ast.parse(snippet)
    except (SyntaxError, ValueError):
        return [], ""
    called, used, own = [], [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            called.append(node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
        elif isinstance(node, ast.Attribute):
            used.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            own |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
    last = 0
    for statement in tree.body:
        if not isinstance(statement, (ast.Import, ast.ImportFrom)):
            break
        last = statement.end_lineno or 0
    lines = snippet.splitlines(keepends=True)
    return [name for name in called + used if name not in own], "".join(lines[:last])


def step(state: State, tool: str, args: Mapping[str, Any], observation: str) -> State:
    """After an action and what it showed."""
    state = state._replace(here=())
    hidden = observation.startswith(ELIDED)
    path = str(args.get("path", ""))
    if tool in ("search_repo", "search_dir"):
        return _searched(state, tool, str(args.get("symbol", args.get("query", ""))), observation)
    if tool == "open":
        state = state._replace(opened=(*state.opened, (path, int(args.get("line", 1)))))
    if tool in ("open", "goto", "scroll"):
        return _look(state, observation)._replace(looks=state.looks + 1)
    if tool == "create":
        if not (hidden or observation.startswith("Created ")):
            return state._replace(refused_paths=(*state.refused_paths, path))
        return state._replace(
            script=path, content=str(args.get("content", "")), telling=None, script_outcome=None, appended=False
        )
    if tool == "append" and path == state.script and (hidden or observation.startswith("Appended ")):
        content = state.content + str(args.get("content", ""))
        return state._replace(content=content, telling=None, script_outcome=None, appended=True)
    if tool == "edit":
        return _edited(state, path, str(args.get("old", "")), str(args.get("new", "")), observation)
    if tool == "undo_edit":
        return _undone(state, path, observation)
    if tool == "bash" and state.script and args.get("command") == command(state.script):
        return _ran(state, outcome(observation), _frames(state, observation))
    if tool == "run_tests":
        found = outcome(observation)
        return _judged(state, None, found)._replace(tests=found or Outcome("unknown"))
    return state


def command(script: str) -> str:
    """How a script is run."""
    return f"python {script}"


def _searched(state: State, tool: str, word: str, observation: str) -> State:
    pattern, most = (DEFINED, 2) if tool == "search_repo" else (FOUND, 1)
    hits = [(path, int(line)) for path, line in pattern.findall(observation) if not is_test(path)]
    new = [hit for hit in hits if hit not in state.places][:most]
    return state._replace(searched=(*state.searched, (tool, word)), places=(*state.places, *new), looks=state.looks + 1)


def _look(state: State, observation: str) -> State:
    """With the lines that an observation shows."""
    shown = window(observation)
    if shown is None or not shown.path.endswith(".py"):
        return state
    known = state.files.get(shown.path)
    file = file_of(shown) if known is None else known.seen(shown)
    return state if file is known else state._replace(files={**state.files, shown.path: file})


def _edited(state: State, path: str, old: str, new: str, observation: str) -> State:
    file = state.files.get(path)
    at = None if file is None else file.place(old)
    made = replacement(old.split("\n"), new.split("\n"))
    function = None
    if file is not None and at is not None:
        function = _around(file, at, old, new)
    trial = Trial(path, function.name if function else "", made)
    if not observation.startswith(("Edited ", ELIDED)):
        return state._replace(trials=(*state.trials, trial._replace(refused=True)))
    after = None if file is None else file.edited(old, new)
    entry = Applied(path, file, state.script_outcome, state.tests)
    state = state._replace(
        files=state.files if after is None else {**state.files, path: after},
        stack=(*state.stack, entry), trials=(*state.trials, trial), edits=state.edits + 1, undone=False,
        script_outcome=None, tests=None, looks=0,
    )  # fmt: skip
    return _look(state, observation)


def _around(file: File, at: int, old: str, new: str) -> Function | None:
    """The function of the first line that an edit changes."""
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return file.function_at(file.text().count("\n", 0, at + same))


def _undone(state: State, path: str, observation: str) -> State:
    if not observation.startswith(("Undone", ELIDED)) or not state.stack or state.stack[-1].path != path:
        return state._replace(undone=True)
    last = state.stack[-1]
    files = state.files if last.file is None else {**state.files, path: last.file}
    state = state._replace(
        files=files, stack=state.stack[:-1], undone=True, script_outcome=last.script, tests=last.tests, looks=0
    )
    return _look(state, observation)


def _ran(state: State, found: Outcome | None, frames: tuple[str, ...]) -> State:
    telling = state.telling
    if telling is None:  # what passes before any edit proves nothing; what is not known is taken to have failed
        telling = found is None or bool(found.failure) or bool(state.stack)
    state = _judged(state, found, None)
    return state._replace(
        script_outcome=found or Outcome("unknown"), telling=telling, frames=frames if not state.stack else state.frames
    )


def _judged(state: State, script: Outcome | None, tests: Outcome | None) -> State:
    """With it noted whether the last edit changed a failure: the script's, or the tests' if that tells nothing."""
    if not state.stack or not state.trials or state.undone:
        return state
    before, trial = state.stack[-1], state.trials[-1]
    if state.telling:
        was, now = before.script, script
    else:
        was, now = before.tests or Outcome(""), tests
    if was is None or now is None or trial.changed is not None:
        return state
    return state._replace(trials=(*state.trials[:-1], trial._replace(changed=was != now)))


@lru_cache(maxsize=4096)
def outcome(observation: str) -> Outcome | None:
    """How a command ended, by its status line; of a failure the parts that an edit elsewhere does not change."""
    if observation.startswith(ELIDED):
        return None
    body, _, status = observation.rpartition("\n")
    code = EXIT.search(status)
    if code is None or code[1] == "0":
        return Outcome("") if code else None
    tests = sorted(set(FAILED.findall(body)))
    frames = [f"{path}:{line}" for path, line, _ in FRAME.findall(body)]
    last = VARYING.sub("", body.rstrip().rpartition("\n")[2])
    return Outcome(" ".join(tests or [*frames, last]).strip() or "no output")


def _frames(state: State, observation: str) -> tuple[str, ...]:
    names = [name for path, _, name in FRAME.findall(observation) if not path.endswith(state.script)]
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in names if name.isidentifier()))


# --- feedback ---------------------------------------------------------------------------------------------------------


def told(state: State, text: str) -> State:
    """With what a text tells of attempts: edits that were tried in them, and what came of each.

    An attempt is read as the path is: its steps follow on the state at this node.
    """
    trials, here = list(state.trials), list(state.here)
    for attempt in ATTEMPT.findall(text):
        first = FIRST.match(attempt)
        if first is None:
            continue
        here.append((first[1], canonical(json.loads(first[2]))))
        shown = f"{ELIDED} it was not shown]" if first[3] is None else first[3]
        at = step(state, first[1], json.loads(first[2]), shown)
        for tool, args, observation in STEP.findall(attempt[first.end() :]):
            at = step(at, tool, json.loads(args), observation)
        trials += at.trials[len(state.trials) :]
        patch = SUBMITTED.search(attempt)
        known = {(trial.path, trial.made) for trial in trials}
        trials += [
            Trial(path, "", made) for path, made in submitted(patch[1] if patch else "") if (path, made) not in known
        ]
    return state._replace(trials=tuple(trials), here=tuple(here))


@lru_cache(maxsize=1024)
def submitted(patch: str) -> tuple[tuple[str, Replacement], ...]:
    """Replaced lines of every file that a patch changes."""
    found = []
    try:
        files = PatchSet(patch)
    except UnidiffParseError:
        return ()
    for file in files:
        if not file.is_modified_file:
            continue
        for hunk in file:
            old: list[str] = []
            new: list[str] = []
            for line in [*hunk, None]:
                if line is not None and (line.is_removed or line.is_added):
                    (old if line.is_removed else new).append(line.value.rstrip("\n"))
                elif old or new:
                    found.append((file.path, replacement(old, new)))
                    old, new = [], []
    return tuple(found)


def canonical(args: Mapping[str, Any]) -> str:
    """Arguments in one order."""
    return json.dumps(args, sort_keys=True)
