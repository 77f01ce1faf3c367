"""A model as reviewer, by the paper's rubric (section 3.3): bug fixing 0 to 2, regression 0 to 2 (2 is safe), the best.

A model likes some places in a list better than others. So every question is asked in several orders, and the answers
are taken together by rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..candidates import Candidate
from ..env.output import shorten
from ..errors import TaskError
from ..models.base import ChatModel, ModelRequest, ModelResponse
from ..prompts import renderer
from .aggregate import borda, presentation_orders
from .base import Case, Review, ranking
from .labels import Labelled

PROMPT_CHARS = 60_000  # of issue and patches together
ISSUE_SHARE = 0.3  # the most that an issue takes of them
NEUTRAL = 1  # of 0 to 2
SCORES = (0, 1, 2)

Order = tuple[int, ...]


class Opinion(NamedTuple):
    """What is said of one patch."""

    analysis: str
    bug: int
    regression: int


@dataclass(frozen=True)
class Verdict:
    """An answer, patches in the order in which they were shown.

    Attributes
    ----------
    best : place of the best; None in a neutral verdict.
    fallback : "" or why the verdict is neutral.
    """

    opinions: tuple[Opinion, ...]
    best: int | None
    fallback: str = ""
    reply: str = ""

    def keys(self) -> list[tuple[bool, int]]:
        """By which the patches are ranked: the best first, the others by the sum of their scores."""
        return [(i == self.best, opinion.bug + opinion.regression) for i, opinion in enumerate(self.opinions)]


class LLMReviewer:
    """Asks a model.

    Candidates are put into an order of their own before the seeded ones are drawn, so that the scores do not depend on
    the order in which they come. A single candidate is not asked about.

    Parameters
    ----------
    mode : "single": all patches in one question, the score is the mean of :func:`~.aggregate.borda` over the orders.
        "pairwise": a knockout for each order, neighbours playing each other, every pair asked in both orders; the score
        is the mean share of the others that went out earlier.
    n_orders : orders of the patches, or knockouts.
    render : of the prompts' templates; None for the shipped ones.
    prompt_chars : what issue and patches may take of a prompt; longer ones are cut, which the prompt says.
    batch : folder for the numbers of message batches; given, all questions go through them (models that have
        ``complete_batch``), at half the price, and a review that was broken off finds its batches again.

    Raises
    ------
    TaskError
        The mode or number of orders is wrong, or the model has no batches.
    """

    name = "llm"

    def __init__(
        self,
        model: ChatModel,
        mode: Literal["single", "pairwise"] = "single",
        n_orders: int = 3,
        seed: int = 0,
        render: Callable[..., str] | None = None,
        max_tokens: int = 8192,
        prompt_chars: int = PROMPT_CHARS,
        batch: Path | None = None,
    ) -> None:
        if mode not in ("single", "pairwise"):
            raise TaskError(f"the mode of a review is {mode!r}; it has to be 'single' or 'pairwise'")
        if n_orders < 1:
            raise TaskError(f"n_orders is {n_orders}; it has to be at least 1")
        self.mode, self.n_orders, self.seed = mode, n_orders, seed
        self.render = renderer() if render is None else render
        self.prompt_chars = prompt_chars
        self.judge = Judge(model, max_tokens, batch)

    def review(self, case: Case) -> Review:
        """Judge; what could not be read or paid for counts as neutral, and is marked."""
        return self._review(case.task.issue, case.candidates, case.spent, case.stop)

    def scores(self, case: Labelled, spent: Callable[[ModelResponse], None] = lambda response: None) -> list[float]:
        """Of a labelled case, of which the model sees the issue and the patches; ``spent`` takes every response."""
        return list(self._review(case.issue, case.candidates, spent, lambda: False).scores)

    def _review(
        self,
        issue: str,
        candidates: Sequence[Candidate],
        spent: Callable[[ModelResponse], None],
        stop: Callable[[], bool],
    ) -> Review:
        n = len(candidates)
        if n < 2:
            return Review((1.0,) * n, {"mode": self.mode, "asked": []})
        arranged = ranking([0.0] * n, candidates)  # as ties are broken
        patches = [candidates[i].patch for i in arranged]
        asked: dict[Order, Verdict] = {}

        def ask(orders: Iterable[Order]) -> None:
            new = [order for order in dict.fromkeys(orders) if order not in asked]
            prompts = [self._prompt(issue, [patches[i] for i in order]) for order in new]
            counts = [len(order) for order in new]
            samples = [_sample(order, n) if self.mode == "pairwise" else len(asked) + i for i, order in enumerate(new)]
            asked.update(zip(new, self.judge(prompts, counts, spent, stop, samples), strict=True))

        orders = presentation_orders(n, self.n_orders, self.seed)
        points = _single(orders, asked, ask) if self.mode == "single" else _knockouts(orders, asked, ask)
        scores = [0.0] * n
        for place, i in enumerate(arranged):
            scores[i] = points[place]
        nodes = [candidates[i].node_id for i in arranged]
        return Review(tuple(scores), self._evidence(candidates, nodes, asked))

    def _prompt(self, issue: str, patches: Sequence[str]) -> str:
        template = "review" if self.mode == "single" else "review_pair"
        issue, patches = fitted(issue, patches, self.prompt_chars)
        return self.render(template, issue=issue, patches=patches)

    def _evidence(
        self, candidates: Sequence[Candidate], nodes: Sequence[int], asked: dict[Order, Verdict]
    ) -> dict[str, Any]:
        said: dict[int, list[Opinion]] = {candidate.node_id: [] for candidate in candidates}
        for order, verdict in asked.items():
            for i, opinion in zip(order, verdict.opinions, strict=True):
                if not verdict.fallback:
                    said[nodes[i]].append(opinion)
        return {
            "mode": self.mode,
            "candidates": [
                {
                    "node": node, "answers": len(opinions), "bug": _mean([o.bug for o in opinions]),
                    "regression": _mean([o.regression for o in opinions]),
                }
                for node, opinions in said.items()
            ],
            "asked": [
                {
                    "order": [nodes[i] for i in order],
                    "best": None if verdict.best is None else nodes[order[verdict.best]],
                    "fallback": verdict.fallback, "reply": verdict.reply,
                    "patches": [
                        {"node": nodes[i], **opinion._asdict()}
                        for i, opinion in zip(order, verdict.opinions, strict=True)
                    ],
                }
                for order, verdict in asked.items()
            ],
            "fallbacks": sum(bool(verdict.fallback) for verdict in asked.values()),
        }  # fmt: skip


# --- orders -----------------------------------------------------------------------------------------------------------


def _single(
    orders: Sequence[Order], asked: dict[Order, Verdict], ask: Callable[[Iterable[Order]], None]
) -> list[float]:
    """Mean points over all orders."""
    ask(orders)
    points = [0.0] * len(orders[0])
    for order in orders:
        for i, share in zip(order, borda(asked[order].keys()), strict=True):
            points[i] += share / len(orders)
    return points


def _knockouts(
    orders: Sequence[Order], asked: dict[Order, Verdict], ask: Callable[[Iterable[Order]], None]
) -> list[float]:
    """One knockout for each order, all of them round by round together. Who is left over in a round goes on."""
    n = len(orders[0])
    left = [list(order) for order in orders]
    out = [[0] * n for _ in orders]  # the round in which each went out
    number = 0
    while any(len(players) > 1 for players in left):
        number += 1
        pairs = [list(zip(players[::2], players[1::2], strict=False)) for players in left]
        ask(pair for matches in pairs for a, b in matches for pair in ((a, b), (b, a)))
        for players, matches, gone in zip(left, pairs, out, strict=True):
            for a, b in matches:
                loser = b if _wins(a, b, asked) else a
                players.remove(loser)
                gone[loser] = number
    for players, gone in zip(left, out, strict=True):
        gone[players[0]] = number + 1
    points = [borda(gone) for gone in out]
    return [sum(shares[i] for shares in points) / len(orders) for i in range(n)]


def _wins(a: int, b: int, asked: dict[Order, Verdict]) -> bool:
    """Whether a beats b in both orders together; by the scores where these disagree, and then by a's earlier place."""
    one, other = asked[a, b].keys(), asked[b, a].keys()
    for part in (0, 1):
        ours, theirs = one[0][part] + other[1][part], one[1][part] + other[0][part]
        if ours != theirs:
            return ours > theirs
    return a < b


def _sample(order: Order, n: int) -> int:
    return order[0] * n + order[1]


# --- questions --------------------------------------------------------------------------------------------------------


class Judge:
    """Asks for verdicts: once more where one cannot be read, and neutral ones after that."""

    def __init__(self, model: ChatModel, max_tokens: int = 8192, batch: Path | None = None) -> None:
        if batch is not None and not hasattr(model, "complete_batch"):
            raise TaskError(f"the model {model.name} has no message batches: review without batch")
        self.model, self.max_tokens, self.batch = model, max_tokens, batch

    def __call__(
        self,
        prompts: Sequence[str],
        counts: Sequence[int],
        spent: Callable[[ModelResponse], None],
        stop: Callable[[], bool],
        samples: Sequence[int] | None = None,
    ) -> list[Verdict]:
        """One verdict for each prompt.

        counts : patches in each prompt.
        samples : numbers that tell the questions of one review apart; the retry of i has 2 i + 1.
        """

        def counted(response: ModelResponse) -> bool:
            spent(response)
            return not stop()

        samples = range(len(prompts)) if samples is None else samples
        verdicts: dict[int, Verdict] = {}
        limits = [self.max_tokens] * len(prompts)
        why = ["stopped"] * len(prompts)
        replies = [""] * len(prompts)
        for attempt in range(2):
            open_ = [i for i in range(len(prompts)) if i not in verdicts]
            if not open_ or stop():
                break
            requests = [
                ModelRequest(
                    "review", (), 2 * samples[i] + attempt,
                    messages=[{"role": "user", "content": [{"type": "text", "text": prompts[i]}]}],
                    max_tokens=limits[i], schema=schema(counts[i]),
                )
                for i in open_
            ]  # fmt: skip
            for i, response in zip(open_, self._answers(requests, counted), strict=False):  # fewer at a budget's end
                replies[i], why[i] = response.text, "unreadable" if response.stop == "end_turn" else response.stop
                if response.stop == "max_tokens":
                    limits[i] *= 2
                found = None if response.stop == "max_tokens" else read_verdict(response.text, counts[i])
                if found is not None:
                    verdicts[i] = found
        return [verdicts.get(i) or _neutral(counts[i], why[i], replies[i]) for i in range(len(prompts))]

    def _answers(self, requests: Sequence[ModelRequest], more: Callable[[ModelResponse], bool]) -> list[ModelResponse]:
        if self.batch is None:
            return self.model.complete_many(requests, share_prefix=False, more=more)
        answers: list[ModelResponse] = self.model.complete_batch(requests, self.batch)  # type: ignore[attr-defined]
        for answer in answers:
            more(answer)
        return answers


def schema(count: int) -> dict[str, Any]:
    """JSON schema of an answer on so many patches."""
    number = {"type": "integer", "enum": list(range(1, count + 1))}
    score = {"type": "integer", "enum": list(SCORES)}
    fields = {"number": number, "analysis": {"type": "string"}, "bug": score, "regression": score}
    opinion = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"patches": {"type": "array", "items": opinion}, "best": number},
        "required": ["patches", "best"],
        "additionalProperties": False,
    }


def read_verdict(text: str, count: int) -> Verdict | None:
    """An answer as JSON, which may stand among words; None if it is not whole."""
    try:
        value = json.loads(text[text.index("{") : text.rindex("}") + 1])
        opinions = {
            int(entry["number"]): Opinion(str(entry["analysis"]), entry["bug"], entry["regression"])
            for entry in value["patches"]
        }
        best = value["best"]
    except (ValueError, KeyError, TypeError):
        return None
    numbers = range(1, count + 1)
    whole = sorted(opinions) == list(numbers) and len(value["patches"]) == count and _is_one_of(best, numbers)
    if not whole or not all(_is_one_of(s, SCORES) for o in opinions.values() for s in (o.bug, o.regression)):
        return None
    return Verdict(tuple(opinions[number] for number in numbers), best - 1, reply=text)


def fitted(issue: str, patches: Sequence[str], limit: int) -> tuple[str, list[str]]:
    """Issue and patches within so many characters, the longest ones cut in their middle, with a note there."""
    issue, _ = shorten(issue, int(ISSUE_SHARE * limit))
    room = limit - len(issue)
    share = room // max(1, len(patches))
    for done, length in enumerate(sorted(map(len, patches))):  # what short ones leave goes to the long ones
        share = room // (len(patches) - done)
        if length > share:
            break
        room -= length
    return issue, [shorten(patch, share)[0] for patch in patches]


def _neutral(count: int, why: str, reply: str) -> Verdict:
    return Verdict((Opinion("", NEUTRAL, NEUTRAL),) * count, None, why, reply)


def _is_one_of(value: Any, allowed: Sequence[int]) -> bool:
    return type(value) is int and value in allowed


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
