"""Training data for a reviewer of one's own: chats that end in critiques, and how to train.

The question is the one that an :class:`~.llm.LLMReviewer` asks in its mode "single", so that a model trained on these
rows can take its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..candidates import Candidate
from ..errors import TaskError
from ..models.base import ChatModel, ModelResponse
from ..prompts import renderer
from .aggregate import presentation_orders
from .base import ranking
from .labels import Labelled
from .llm import PROMPT_CHARS, SCORES, Judge, Opinion, fitted

CHARS_PER_TOKEN = 3  # low, so that the estimate of a row is high
LEAST_CHARS = 1000  # of issue and patches: a row that has less room teaches nothing
SIZES = {"7B": (1e-5, 48), "14B": (5e-6, 48), "32B": (1e-6, 32)}  # learning rate and batch of the paper
BASE = "deepseek-ai/DeepSeek-R1-Distill-Qwen-{}"

Critiques = Sequence[Opinion]


def estimated_tokens(text: str) -> int:
    """Tokens of a text, rather too many."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def known_critiques(case: Labelled) -> list[Opinion]:
    """Critiques that say what running the candidates showed; scores from the labels and the execution's evidence.

    bug: 2 for candidates that resolve the issue, else 1 if a reproduction script passes, else 0. regression: 2 where no
    visible test breaks, 1 where one in twenty or fewer do, else 0; 1 where nothing was run.
    """
    evidence = case.execution
    told = []
    for p, resolved in enumerate(case.resolved):
        if evidence is None:
            told.append(Opinion("It was not run.", 2 if resolved else 0, 2 if resolved else 1))
            continue
        passed = sum(row[p] for row in evidence["matrix"])
        broken, tests = len(evidence["candidates"][p]["broken"]), len(evidence["tests"])
        text = f"{passed} of {len(evidence['matrix'])} reproduction scripts pass with it, and "
        text += f"{broken} of {tests} tests that passed before fail." if broken else f"none of {tests} tests breaks."
        bug = 2 if resolved else int(passed > 0)
        regression = 2 if not broken else int(broken <= tests / 20)
        told.append(Opinion(text, bug, regression))
    return told


def model_critiques(
    cases: Sequence[Labelled],
    model: ChatModel,
    render: Callable[..., str] | None = None,
    max_tokens: int = 8192,
    batch: Path | None = None,
    spent: Callable[[ModelResponse], None] = lambda response: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[Opinion] | None]:
    """Critiques by a stronger model that is told which candidates resolve the issue; None where it gave none.

    Answers against the labels (a candidate that resolves the issue below full marks for it, or another at full marks)
    are dropped, as they would teach what is wrong.

    batch : folder for the numbers of message batches; given, all cases go through one.
    """
    render = renderer() if render is None else render
    prompts = []
    for case in cases:
        issue, patches = fitted(case.issue, [c.patch for c in case.candidates], PROMPT_CHARS)
        prompts.append(render("critique", issue=issue, patches=patches, resolved=case.resolved))
    counts = [len(case.candidates) for case in cases]
    verdicts = Judge(model, max_tokens, batch)(prompts, counts, spent, stop)
    return [
        None
        if verdict.fallback
        or [opinion.bug == max(SCORES) for opinion in verdict.opinions] != list(case.resolved)
        else list(verdict.opinions)
        for case, verdict in zip(cases, verdicts, strict=True)
    ]  # fmt: skip


def export_sft(
    cases: Iterable[Labelled],
    critiques: Callable[[Labelled], Critiques | None] = known_critiques,
    max_tokens: int = 14_000,
    permutations: int = 3,
    seed: int = 0,
    render: Callable[..., str] | None = None,
    tokens: Callable[[str], int] = estimated_tokens,
) -> list[dict[str, Any]]:
    """Chat rows: a question about the patches in a seeded order, and the answer that would have been right.

    Cases in which no candidate resolves the issue have no right answer and are left out, as are those for which there
    are no critiques. Issue and patches are cut (with a note) until a row has at most ``max_tokens``.

    Parameters
    ----------
    permutations : rows for each issue, at most, with different orders.
    tokens : counts those of a text; default an estimate that is rather too high.

    Returns
    -------
    list of {"messages": [user, assistant], "id": id of the issue, "order": node ids}
    """
    if permutations < 1:
        raise TaskError(f"permutations is {permutations}; it has to be at least 1")
    render = renderer() if render is None else render
    rows = []
    for case in cases:
        said = critiques(case) if any(case.resolved) else None
        if said is None:
            continue
        best = _best(case)
        for order in presentation_orders(len(case.candidates), permutations, seed):
            answer = _answer([said[i] for i in order], order.index(best))
            shown = [case.candidates[i] for i in order]
            question = _question(case.issue, shown, render, tokens, max_tokens - tokens(answer))
            if question:
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                rows.append({"messages": messages, "id": case.id, "order": [c.node_id for c in shown]})
    return rows


def lora_config(size: str, data: str = "sft.jsonl", output: str = "reviewer-lora") -> str:
    """YAML for ``trl sft --config FILE``: the paper's settings for a base model of 7B, 14B or 32B.

    The batch is that of all devices together; it is reached here by accumulation on one.
    """
    if size.upper() not in SIZES:
        raise TaskError(f"there are settings for {', '.join(SIZES)}, not for {size!r}")
    rate, batch = SIZES[size.upper()]
    settings = {
        "model_name_or_path": BASE.format(size.upper()),
        "dtype": "bfloat16",
        "datasets": [{"path": "json", "data_files": data, "split": "train", "columns": ["messages"]}],
        "output_dir": output,
        "max_length": 14_000,
        "packing": False,
        "num_train_epochs": 1,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "optim": "adamw_torch",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": batch,
        "gradient_checkpointing": True,
        "bf16": True,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
    }
    return yaml.safe_dump(settings, sort_keys=False)


def _best(case: Labelled) -> int:
    """The candidate to name: of those that resolve the issue the first by the order in which ties are broken."""
    order = ranking([float(resolved) for resolved in case.resolved], case.candidates)
    return order[0]


def _answer(said: Critiques, best: int) -> str:
    patches = [{"number": number, **opinion._asdict()} for number, opinion in enumerate(said, start=1)]
    return json.dumps({"patches": patches, "best": best + 1}, ensure_ascii=False)


def _question(
    issue: str, shown: Sequence[Candidate], render: Callable[..., str], tokens: Callable[[str], int], limit: int
) -> str:
    """The question within so many tokens, or "" if that leaves no room for the patches."""
    chars = PROMPT_CHARS
    while chars >= LEAST_CHARS:
        cut, patches = fitted(issue, [candidate.patch for candidate in shown], chars)
        text = render("review", issue=cut, patches=patches)
        if tokens(text) <= limit:
            return text
        chars = chars * 3 // 4
    return ""
