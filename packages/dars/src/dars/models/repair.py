"""A model without a language model, for statistics: it repairs by edits that a mutation operator could have made.

Its space is closed: what no such edits of functions that it finds can mend, it cannot repair. It knows what the
messages say and nothing else, neither the fault nor the files, and answers are a function of (seed, messages, sample).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import sub
from typing import Any, NamedTuple

from ..errors import ModelError
from ..patches import is_test
from .base import Block, Capabilities, ChatModel, Message, ModelRequest, ModelResponse, ToolCall, answered
from .repair_reading import NO_ISSUE, VARYING, Issue, State, canonical, command, read_issue, step, told
from .repair_source import Change, File, Function, Replacement, changed_lines, changes, unique_context

NEEDED = frozenset({"search_repo", "search_dir", "open", "create", "append", "edit", "undo_edit", "bash", "run_tests"})
MOST_LOOKS = 10  # searches and windows before a change, and after each
MOST_SEARCHES = 5
SUBMITTED = re.compile(r"<submitted>.*?</submitted>", re.DOTALL)
REACH = 2  # score of a function that the issue names; one less for every call between
KEPT = 4096  # prefixes remembered
NOTHING_SHOWN = 'print("no failure")\n'
CANDIDATE = re.compile(r'<candidate index="(\d+)" tool="([^"]*)">(\{.*\})')


class Choice(NamedTuple):
    """Edits of one function, with the sums of their weights up to each."""

    path: str
    function: Function
    changes: tuple[Change, ...]
    sums: tuple[float, ...]


class RepairModel(ChatModel):
    """Reproduces, edits at random where the issue points, tests, and learns from what it is told.

    It searches for the identifiers of the issue, opens what it finds, writes and runs the issue's snippet, and draws
    edits with probability proportional to exp(score / tau) times kappa for functions in which an edit changed the
    failure, or 1 / kappa where edits did not. The score is that of the function, by its distance from what the issue
    and tracebacks name, plus how much commoner the new code is than the old (``repair_prior``). Edits that were tried
    are not drawn again.

    Parameters
    ----------
    seed : of all draws.
    eps : probability that the reproduction it writes is incomplete, and that it does not notice; half of that when it
        is advised to write another. An incomplete one passes before any edit, so it trusts the visible tests alone.
    tau : temperature of the softmax over edits.
    kappa : factor of evidence on a function; 1 for none.
    rho : probability that it builds on an edit that did not help, instead of taking it back.
    max_edits : edits on a path after which it submits what it has.

    Raises
    ------
    ValueError
        A probability outside [0, 1], or another number that is not positive.

    Examples
    --------
    >>> from dars.aci import registry
    >>> tools = [tool.declaration() for tool in registry().values()]
    >>> turn = {"role": "user", "content": [{"type": "text", "text": "`area(2, 3)` is 5."}]}
    >>> RepairModel().complete(ModelRequest("act", (), messages=[turn], tools=tools)).call.input["symbol"]
    'area'
    """

    capabilities = Capabilities(temperature=True)  # needs no instruction to vary

    def __init__(
        self,
        seed: int = 0,
        eps: float = 0.3,
        tau: float = 1.0,
        kappa: float = 3.0,
        rho: float = 0.75,
        max_edits: int = 3,
        name: str = "repair",
    ) -> None:
        if not 0 <= eps <= 1 or not 0 <= rho <= 1:
            raise ValueError(f"eps and rho are probabilities, not {eps} and {rho}")
        if tau <= 0 or kappa <= 0 or max_edits < 1:
            raise ValueError(f"tau, kappa and max_edits have to be positive, not {tau}, {kappa} and {max_edits}")
        self.seed, self.eps, self.tau, self.kappa, self.rho = seed, eps, tau, kappa, rho
        self.max_edits = max_edits
        self.name = name
        self._begin()

    def _begin(self) -> None:
        self._root = _Prefix(State(), hashlib.blake2b(str(self.seed).encode()).digest())
        self._count = 0
        self._able: Sequence[dict[str, Any]] | None = None  # tools that were checked

    def complete(self, request: ModelRequest) -> ModelResponse:
        """One tool call; an index from a critic, words from a summariser or reviewer.

        Raises
        ------
        ModelError
            The agent has other tools than those of ``aci="full"``.
        """
        if request.role in ("act", "candidate"):
            self._check(request.tools)
            at = self._read(request.messages)
            draw = _Draws(at.digest, request.sample)
            return answered(self._answer(at, draw), request, self.name)
        if request.role == "critic":
            return answered(self._judge(request), request, self.name)
        return answered("Nothing to add: an edit helped if the failures changed after it.", request, self.name)

    def weights(self, messages: Sequence[Message]) -> list[tuple[str, str, Replacement, float]]:
        """The edits it would draw from after these messages: (path, function, lines, probability)."""
        choices = self._choices(self._read(messages))
        total = sum(choice.sums[-1] for choice in choices)
        return [
            (choice.path, choice.function.name, changed_lines(choice.function.source, change)[1], weight / total)
            for choice in choices
            for change, weight in zip(choice.changes, map(sub, choice.sums, (0.0, *choice.sums)), strict=True)
        ]

    # --- reading ------------------------------------------------------------------------------------------------------

    def _check(self, tools: Sequence[dict[str, Any]]) -> None:
        if self._able is not tools:
            missing = NEEDED - {str(tool["name"]) for tool in tools}
            if missing:
                raise ModelError(
                    f"the model {self.name} needs the tools of aci='full'; it has no {', '.join(sorted(missing))}"
                )
            self._able = tools

    def _read(self, messages: Sequence[Message]) -> _Prefix:
        """The fold over all blocks, continued from the longest prefix that was read before."""
        at = self._root
        for message in messages:
            for block in message["content"]:
                key = _key(block)
                known = at.below.get(key)
                if known is None:
                    known = at.below[key] = _grown(at, block)
                    self._count += 1
                at = known
        if self._count > KEPT:
            self._begin()
        return at

    # --- acting -------------------------------------------------------------------------------------------------------

    def _answer(self, at: _Prefix, draw: _Draws) -> ToolCall:
        """The first action in question that was not tried here; a submission may be repeated."""
        state = at.state
        if any(tool == "submit" for tool, _ in state.here):
            return self._again(at, draw)
        for call in self._options(at, draw):
            if not state.here or (call.name, canonical(call.input)) not in state.here:
                return call
        return ToolCall("submit")

    def _options(self, at: _Prefix, draw: _Draws) -> Iterator[ToolCall]:
        """What it could do, the best first."""
        state = at.state
        if state.stack and not state.undone:
            yield from self._tested(state)
            if state.solved() or state.edits >= self.max_edits:
                yield ToolCall("submit")
            elif draw("build") >= self.rho:
                yield ToolCall("undo_edit", {"path": state.stack[-1].path})
        else:
            if state.looks < MOST_LOOKS:
                yield from _looking(at)
            if not state.stack:
                yield from self._reproducing(state, draw)
                if state.looks < MOST_LOOKS:
                    yield from _looking(at, frames=True)
            if state.edits >= self.max_edits:
                yield ToolCall("submit")
        edit = self._edit(at, draw)
        if edit is not None:
            yield edit
        if state.stack or not state.here:
            yield ToolCall("submit")
        yield ToolCall("run_tests")

    def _tested(self, state: State) -> Iterator[ToolCall]:
        if state.script and state.telling is not False and state.script_outcome is None:
            yield ToolCall("bash", {"command": command(state.script)})
        if state.tests is None:
            yield ToolCall("run_tests")

    def _reproducing(self, state: State, draw: _Draws) -> Iterator[ToolCall]:
        if not state.issue.snippet:
            return
        advised = any(tool in ("create", "append") for tool, _ in state.here)
        complete = draw("complete") >= self.eps / (2 if advised else 1)
        if not state.script:
            path = _free(state.refused_paths)
            content = state.issue.snippet if complete else state.issue.imports or NOTHING_SHOWN
            yield from _variants("create", path, content, state)
            return
        if state.telling is None:
            yield ToolCall("bash", {"command": command(state.script)})
        rest = _missing(state.content, state.issue)
        if rest and not state.appended and state.telling is not True and (advised or draw("notice") >= self.eps):
            yield from _variants("append", state.script, rest if complete else NOTHING_SHOWN, state)

    def _again(self, at: _Prefix, draw: _Draws) -> ToolCall:
        """Instead of a submission: complete the script, look at the tests again, or change more; or submit again."""
        state = at.state
        if state.solved():
            rest = _missing(state.content, state.issue) if state.script else ""
            if rest and state.telling is False and draw("complete") >= self.eps / 2:
                return ToolCall("append", {"path": state.script, "content": rest})
            return ToolCall("submit" if draw("recheck") < 0.5 else "run_tests")
        if state.stack and draw("build") >= self.rho:
            return ToolCall("undo_edit", {"path": state.stack[-1].path})
        return self._edit(at, draw) or ToolCall("submit")

    # --- edits --------------------------------------------------------------------------------------------------------

    def _edit(self, at: _Prefix, draw: _Draws) -> ToolCall | None:
        choices = self._choices(at)
        if not choices:
            return None
        choice = choices[_drawn(list(accumulate(choice.sums[-1] for choice in choices)), draw("function"))]
        change = choice.changes[_drawn(choice.sums, draw("edit"))]
        first, made = changed_lines(choice.function.source, change)
        old, new = unique_context(at.state.files[choice.path], choice.function.first + first, made)
        return ToolCall("edit", {"old": old, "new": new, "path": choice.path})

    def _choices(self, at: _Prefix) -> list[Choice]:
        """Edits of the functions in question that were not tried and do not take back what was."""
        if at.choices is None:
            trials = at.state.trials
            gone: dict[tuple[str, str], set[Replacement]] = {}
            changed: dict[tuple[str, str], bool] = {}
            for trial in trials:
                where = (trial.path, trial.function)
                gone.setdefault(where, set()).update((trial.made, trial.made.inverse))
                if trial.changed is not None:
                    changed[where] = changed.get(where, False) or trial.changed
            at.choices = []
            for path, function, score in ranked(at.state):
                where = (path, function.name)
                not_again = gone.get(where, set()) | gone.get((path, ""), set())
                left = changes(function)
                if not_again:
                    left = tuple(c for c in left if changed_lines(function.source, c)[1] not in not_again)
                evidence = 1.0 if where not in changed else self.kappa if changed[where] else 1 / self.kappa
                if left:
                    weights = (evidence * math.exp((score + change.odds) / self.tau) for change in left)
                    at.choices.append(Choice(path, function, left, tuple(accumulate(weights))))
        return at.choices

    # --- judging ------------------------------------------------------------------------------------------------------

    def _judge(self, request: ModelRequest) -> str:
        """An index: rather a script that fails than one that cannot, rather a change than a submission."""
        text = "\n".join(str(block.get("text", "")) for block in request.messages[-1]["content"])
        found = [(int(i), tool, json.loads(args)) for i, tool, args in CANDIDATE.findall(text)]
        known = VARYING.sub("", SUBMITTED.sub("", text))  # diffs of two kinds of workspace differ in form
        draw = _Draws(hashlib.blake2b(f"{self.seed}\n{known}".encode()).digest(), request.sample)
        scores = [_worth(tool, args) for _, tool, args in found]
        best = [i for (i, _, _), score in zip(found, scores, strict=True) if score == max(scores)] or [0]
        index = best[int(draw("critic") * len(best))]
        if request.schema is None:
            return f"The best is <index>{index}</index>"
        return json.dumps({"notes": [], "scores": scores, "index": index})


def _drawn(sums: Sequence[float], at: float) -> int:
    """The place that a number in [0, 1) falls on, of weights that add up to ``sums``."""
    return min(bisect(sums, at * sums[-1]), len(sums) - 1)


class _Prefix:
    """What was read up to a block, and what follows."""

    __slots__ = ("below", "choices", "digest", "state")

    def __init__(self, state: State | _Called, digest: bytes) -> None:
        self.state: Any = state
        self.digest = digest
        self.below: dict[Any, _Prefix] = {}
        self.choices: list[Choice] | None = None


class _Called(NamedTuple):
    """A state, and an action whose result comes next."""

    state: State
    tool: str
    args: dict[str, Any]


class _Draws:
    """Numbers in [0, 1), each a function of what was read, the sample and what it is drawn for."""

    def __init__(self, digest: bytes, sample: int) -> None:
        self._digest = digest + str(sample).encode()

    def __call__(self, name: str) -> float:
        drawn = hashlib.blake2b(self._digest + name.encode(), digest_size=8).digest()
        return (int.from_bytes(drawn, "big") >> 11) / (1 << 53)


def _key(block: Block) -> Any:
    kind = block["type"]
    if kind == "tool_result":
        return block["content"]
    if kind == "tool_use":
        return (block["id"], block["name"], *block["input"].items())
    return (block["text"],) if kind == "text" else json.dumps(block)


def _grown(at: _Prefix, block: Block) -> _Prefix:
    """After a further block. Ids of calls count for the digest: they tell apart runs that are otherwise the same."""
    state, told_of = at.state, json.dumps(block, sort_keys=True)
    if block["type"] == "tool_use":
        state = _Called(state, block["name"], block["input"])
    elif block["type"] == "tool_result" and isinstance(state, _Called):
        state = step(state.state, state.tool, state.args, str(block["content"]))
        told_of = without_place(VARYING.sub("", told_of), state.script)
    elif block["type"] == "text" and isinstance(state, State):
        if state.issue is NO_ISSUE:
            state = state._replace(issue=read_issue(block["text"]))
        elif "<attempt number=" in block["text"]:
            state = told(state, block["text"])
            # Diffs of two kinds of workspace have the same lines, but not the same heads and context.
            told_of = without_place(VARYING.sub("", SUBMITTED.sub("", told_of)), state.script)
    return _Prefix(state, hashlib.blake2b(at.digest + told_of.encode()).digest())


def without_place(text: str, script: str) -> str:
    """A text without the folder that the workspace lies in, where a traceback of the script tells it."""
    found = re.search(rf'File \\"(/[^"]*/){re.escape(script or "reproduce.py")}\\"', text)
    return text.replace(found[1], "") if found else text


# --- where to look ----------------------------------------------------------------------------------------------------


def ranked(state: State) -> list[tuple[str, Function, int]]:
    """(path, function, score) of functions in opened files that the issue or a traceback names, or that those call.

    The score is ``REACH`` less the number of calls on the way from a name; a function in a traceback has one more.
    """
    known = [
        (path, function)
        for path, file in state.files.items()
        if path != state.script and not is_test(path)
        for function in file.functions
    ]
    by_word: dict[str, list[int]] = {}
    for i, (_, function) in enumerate(known):
        by_word.setdefault(function.word, []).append(i)
        if function.word == "__init__":
            by_word.setdefault(function.name.split(".")[-2] if "." in function.name else "", []).append(i)
    distance: dict[int, int] = {}
    names = {*state.issue.names, *state.frames}
    wave = [i for name in sorted(names) for i in by_word.get(name, ())]
    far = 0
    while wave or far == 0:
        for i in wave:
            distance.setdefault(i, far)
        reached = {j for i in wave for name in known[i][1].uses.all for j in by_word.get(name, ())}
        if far == 0:  # methods of a class that is named may run without being named
            reached |= {i for i, (_, function) in enumerate(known) if names & set(function.name.split(".")[:-1])}
        wave = sorted(reached - distance.keys())
        far += 1
    return [(*known[i], REACH - far + (known[i][1].word in state.frames)) for i, far in sorted(distance.items())]


def _looking(at: _Prefix, frames: bool = False) -> Iterator[ToolCall]:
    """Windows that would complete what is named, then definitions that were found, then searches for what is not."""
    state: State = at.state
    names = [*state.issue.names, *(state.frames if frames else ())]
    for path, file in state.files.items():
        for line, cut in file.cut.items():
            if any(name in names for name in cut):
                yield _window(path, line, file)
    for path, line in state.places:
        known = state.files.get(path)
        if known is None or line > len(known.lines) or known.lines[line - 1] is None:
            yield ToolCall("open", {"path": path, "line": line})
    if not state.places:  # what searches found is no longer shown
        for path, line in dict.fromkeys(state.opened):
            if path not in state.files:
                yield ToolCall("open", {"path": path, "line": line})
    defined = {function.word for file in state.files.values() for function in file.functions}
    defined |= {name for file in state.files.values() for name in file.classes}
    called = [name for _, f, score in ranked(state) if score >= REACH for name in f.uses.called]
    wanted = [name for name in dict.fromkeys([*names, *called]) if name not in defined]
    for name in wanted:
        if ("search_repo", name) not in state.searched and len(state.searched) < MOST_SEARCHES:
            yield ToolCall("search_repo", {"symbol": name, "kind": "def", "exclude_tests": True})
    if not state.places and not state.opened and names and ("search_dir", names[0]) not in state.searched:
        yield ToolCall("search_dir", {"query": names[0], "glob": "*.py"})


def _window(path: str, line: int, file: File) -> ToolCall:
    """The window that begins with a line, counted from 0: those above the one that is asked for are shown too."""
    return ToolCall("open", {"path": path, "line": min(len(file.lines), line + 17)})


# --- scripts ----------------------------------------------------------------------------------------------------------


def _free(refused: Sequence[str]) -> str:
    names = ["reproduce.py", *(f"reproduce_{i}.py" for i in range(1, len(refused) + 1))]
    return next(name for name in names if name not in refused)


def _missing(content: str, issue: Issue) -> str:
    """What a script lacks of the snippet; "" if nothing."""
    if issue.snippet in content:
        return ""
    rest = issue.snippet[len(issue.imports) :]
    return "" if rest in content else rest if issue.imports in content else issue.snippet


def _variants(tool: str, path: str, content: str, state: State) -> Iterator[ToolCall]:
    """A script; where the same was tried here, one that says at its end that it got there."""
    for i in range(len(state.here) + 1):
        yield ToolCall(tool, {"path": path, "content": content + i * NOTHING_SHOWN})


def _worth(tool: str, args: dict[str, Any]) -> int:
    if tool in ("create", "append"):
        return 9 if "assert" in str(args.get("content", "")) else 3
    return {"edit": 7, "undo_edit": 6, "submit": 3}.get(tool, 5)
