"""`gidd ppl`, `genppl`, `rubric`, `harness` and `eval`: what models and samples are worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .checkpoints import diversity, load, max_length
from .options import (
    BatchOption,
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    JsonOption,
    SamplesArgument,
    SeedOption,
    check_out,
    pick_device,
    pick_dtype,
)
from .printing import hush_transformers, log, progress, quiet, say, show, table

if TYPE_CHECKING:
    from ..data.tokenizers import TextTokenizer

CLAIM_FAILED = 3
JUDGES = "MODEL (a causal language model of Hugging Face), ngram:DIR (a prepared folder) or ar:CKPT (a model of ours)"


def ppl(
    checkpoint: CheckpointArgument,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Prepared folder.")],
    num_times: Annotated[int, typer.Option(help="Times at which the bound is measured.", min=1)] = 128,
    num: Annotated[int, typer.Option(help="Validation sequences.", min=1)] = 256,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Likelihood bound of the validation split, boundary terms and standard error included."""
    import torch

    from ..data import TokenDataset, open_corpus
    from ..likelihood import elbo

    ready = load(checkpoint, device, dtype)
    dataset = TokenDataset(open_corpus(data), "val", max_length(ready), mode="pack", seed=seed)
    rows = [dataset[i] for i in range(min(num, len(dataset)))]
    if not rows:
        raise DataError(f"{data}: the validation split has no sequence")
    x = torch.stack([torch.as_tensor(row["tokens"]) for row in rows]).to(pick_device(device))
    mask = torch.stack([torch.as_tensor(row["loss_mask"]) for row in rows]).to(pick_device(device))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found = elbo(
            ready.model, x, ready.process, num_times=num_times, loss_mask=mask, generator=generator,
            batch_size=batch_size,
        )  # fmt: skip
    tokens = float(found.num_tokens.sum())
    nats = {
        name: float(getattr(found, name).sum()) / tokens for name in ("nelbo", "nelbo_path", "reconstruction", "tail")
    }
    error = float((found.stderr.double() ** 2).sum().sqrt()) / tokens
    show(
        {
            "sequences": len(rows), "tokens": int(tokens), **{f"{k} (nat/token)": v for k, v in nats.items()},
            "stderr": error, "ppl": math.exp(nats["nelbo"]), "ppl_path": math.exp(nats["nelbo_path"]),
        },
        as_json,
    )  # fmt: skip


def genppl(
    sequences: SamplesArgument,
    judge: Annotated[str, typer.Option(help=JUDGES)],
    order: Annotated[int, typer.Option(help="Of the n-gram judge.", min=1)] = 7,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Perplexity of samples under a judge, always with their entropy and repetition."""
    import numpy as np

    from ..eval.text_metrics import padded
    from ..records import read_records

    records = read_records(sequences)
    encode, nll = _judge(judge, order, batch_size, device, dtype)
    rows = [encode(record, f"{sequences}, sequence {i}") for i, record in enumerate(records)]
    tokens, mask = padded(rows)
    counts = mask.sum(axis=1)
    nats = nll(tokens, mask) * counts
    mean = float(nats.sum() / counts.sum())
    # Of a ratio of sums: sequences may differ in length.
    spread = float(((nats - mean * counts) ** 2).sum())
    error = math.sqrt(spread * len(nats) / (len(nats) - 1)) / float(counts.sum()) if len(nats) > 1 else math.nan
    texts = [record.get("text") for record in records]
    characters = sum(len(text) for text in texts if text is not None)
    facts: dict[str, Any] = {
        "sequences": len(rows), "tokens": int(counts.sum()), "nat/token": mean, "stderr": error, "ppl": math.exp(mean),
    }  # fmt: skip
    if characters and None not in texts:
        facts["nat/character"] = float(np.sum(nats)) / characters
    show({**facts, **diversity(rows)}, as_json)


Encode = Callable[[dict[str, Any], str], list[int]]


def _judge(name: str, order: int, batch_size: int, device: str, dtype: str) -> tuple[Encode, Callable[..., Any]]:
    """How a judge turns a record into its tokens, and its nats per token of ids (N, L) and mask (N, L)."""
    kind, colon, place = name.partition(":")
    if kind == "ngram" and place:
        from ..data import open_corpus
        from ..eval.ngram import NGramJudge

        corpus = open_corpus(place)
        return partial(_own_tokens, corpus.tokenizer()), NGramJudge.from_corpus(corpus, order).nll
    if kind == "ar" and place:
        from ..eval.autoregressive import AutoregressiveJudge

        ready = load(place, device, dtype, "autoregressive")
        return partial(_own_tokens, ready.tokenizer), AutoregressiveJudge(ready.model, ready.process, batch_size).nll
    if not name or (colon and not Path(name).is_dir()):
        raise ConfigError(f"judge {name!r} is not {JUDGES}")
    from ..eval.causal import CausalLMJudge

    hush_transformers()
    causal = CausalLMJudge.from_pretrained(name, pick_device(device), pick_dtype(dtype), batch_size)

    def encode(record: dict[str, Any], where: str) -> list[int]:
        if not record.get("text"):
            raise DataError(f'{where}: needs a "text" for {name} to judge, which has tokens of its own')
        return causal.encode([record["text"]])[0]

    return encode, causal.nll


def _own_tokens(tokenizer: TextTokenizer | None, record: dict[str, Any], where: str) -> list[int]:
    """The ids of a record; where it has a text too, they have to be the judge's ids of that text."""
    tokens, text = record.get("tokens"), record.get("text")
    if tokens is None:
        if tokenizer is None:
            raise DataError(f'{where}: needs "tokens": the judge has no tokenizer to read "text" with')
        tokens = tokenizer.encode(text or "")
    elif tokenizer is not None and not all(0 <= i < tokenizer.vocab_size for i in tokens):
        far = next(i for i in tokens if not 0 <= i < tokenizer.vocab_size)
        raise DataError(f"{where}: holds the id {far}, outside [0, {tokenizer.vocab_size}), the judge's vocabulary")
    elif tokenizer is not None and text is not None and tokenizer.decode(tokens) != text:
        raise DataError(
            f'{where}: its "tokens" are of another tokenizer than the judge\'s, or its "text" was changed: leave '
            '"tokens" out to have the text encoded again'
        )
    if not tokens:
        raise DataError(f"{where}: has no tokens")
    return list(tokens)


def rubric(
    sequences: SamplesArgument,
    model: Annotated[str, typer.Option(help="Name of a model in Anthropic's API; ANTHROPIC_API_KEY has to be set.")],
    max_calls: Annotated[int, typer.Option(help="Budget: most requests to make.", min=0)] = 100,
    cache: Annotated[
        Path | None, typer.Option(help="File that keeps every reply; default SAMPLES.jsonl.rubric.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON lines to write: the samples, marked.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Marks from 1 to 10 by a language model: clarity, grammaticality, factuality, writing style, creativity."""
    import numpy as np

    from ..eval.rubric import CRITERIA, rate
    from ..records import read_records, write_records

    check_out(out)
    records = read_records(sequences)
    for i, record in enumerate(records):
        if not record.get("text"):
            raise DataError(f'{sequences}, sequence {i}: needs a "text" to be marked')
    cache = cache or sequences.with_name(f"{sequences.name}.rubric")
    check_out(cache)
    with progress("rubric", len(records)) as advance:
        found = rate([record["text"] for record in records], model, max_calls=max_calls, cache=cache, progress=advance)
    marked = [marks for marks in found if marks is not None]
    if out is not None:
        write_records(out, [{**record, "marks": marks} for record, marks in zip(records, found, strict=True)])
    if len(marked) < len(records):
        log.warning(
            "%d of %d texts have no marks: run again to go on, --max-calls is %d",
            len(records) - len(marked), len(records), max_calls,
        )  # fmt: skip
    scores = {name: np.array([marks[name] for marks in marked], dtype=float) for name in CRITERIA}
    if as_json:
        facts = {n: {"mean": v.mean() if len(v) else math.nan, "stderr": _stderr(v)} for n, v in scores.items()}
        show({"sequences": len(records), "marked": len(marked), "model": model, **facts}, True)
        return
    table(
        ("criterion", "mean", "stderr", "n"),
        [(name, float(v.mean()) if len(v) else math.nan, _stderr(v), len(v)) for name, v in scores.items()],
    )


def _stderr(values: Any) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def harness(
    checkpoint: CheckpointArgument,
    tasks: Annotated[str, typer.Option(help="Names of lm-eval's tasks, as in piqa,arc_easy.")],
    limit: Annotated[int | None, typer.Option(help="Only so many questions of each task.", min=1)] = None,
    num_times: Annotated[int, typer.Option(help="Times at which the bound is measured.", min=1)] = 32,
    mode: Annotated[
        str | None, typer.Option(help="joint or conditional: whether contexts are noised; default what it was trained.")
    ] = None,
    p_prompt: Annotated[float | None, typer.Option(help="Share of clean prompts that it was trained with.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Zero-shot tasks of EleutherAI's evaluation harness, with standard errors."""
    pick_dtype(dtype)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks names no task")
    if include_path is not None and not include_path.is_dir():
        raise DataError(f"--include-path {include_path}: there is no such folder")
    from ..integrations.lm_eval import GiddLM  # says what to install where there is no lm_eval

    lm = GiddLM(
        checkpoint, mode=mode, p_prompt=p_prompt, num_times=num_times, batch_size=batch_size, seed=seed,
        device=pick_device(device), dtype=None if dtype == "auto" else dtype,
    )  # fmt: skip
    manager = _task_manager(names, include_path)
    found = import_module("lm_eval").simple_evaluate(
        lm, tasks=names, limit=limit, task_manager=manager, random_seed=seed, numpy_random_seed=seed,
        torch_random_seed=seed, fewshot_random_seed=seed, log_samples=False, verbosity="ERROR",
    )  # fmt: skip
    rows = _scores(found["results"])
    if as_json:
        show({"mode": lm.mode, "num_times": num_times, "limit": limit, "results": rows}, True)
        return
    table(("task", "metric", "filter", "value", "stderr"), [tuple(row.values()) for row in rows])


def _scores(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """lm_eval's "metric,filter": value of every task as rows, each with its standard error."""
    rows = []
    for task, scores in results.items():
        for name, value in scores.items():
            metric, comma, kept = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = scores.get(f"{metric}_stderr,{kept}")
                known = error if isinstance(error, float) else math.nan  # it may be "N/A"
                rows.append({"task": task, "metric": metric, "filter": kept, "value": value, "stderr": known})
    return rows


def _task_manager(names: list[str], folder: Path | None) -> Any:
    """lm_eval's, of the tasks in a folder if that is enough: its own are thousands of files."""
    kind = import_module("lm_eval.tasks").TaskManager
    place = None if folder is None else str(folder)
    for theirs in (False, True) if folder is not None else (True,):
        manager = kind(include_path=place, include_defaults=theirs)
        unknown = [name for name in names if not manager.match_tasks([name])]
        if not unknown:
            return manager
    raise ConfigError(f"lm_eval knows no task {', '.join(unknown)}; give the folder of your own by --include-path")


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: SeedOption = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, as in exact,latin.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Prepared corpus of the profiles gpu (default: Python's library) and paper.")
    ] = None,
    device: DeviceOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if a claim does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    from ..evaluation import PROFILES, run

    def told(identifier: str, done: int, total: int, seconds: float) -> None:
        if identifier and not quiet():
            say(identifier, f"{seconds:.1f} s ({done} of {total})")

    chosen = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    if data is not None and profile in PROFILES:
        wanted: Any = replace(PROFILES[profile], data=str(data))
    else:
        wanted = profile
    results = run(wanted, seed, out, only=chosen, resume=resume, device=device, progress=told)
    if as_json:
        show(results, True)
    else:
        rows = [
            ("yes" if c["holds"] else "NO", c["id"], c["measured"], f"{c['test']['op']} {c['test']['value']:g}", c["n"])
            for c in results["claims"]
        ]
        table(("holds", "claim", "measured", "test", "n"), rows)
        held = sum(c["holds"] for c in results["claims"])
        print(f"{held} of {len(rows)} claims hold; wrote {out / 'results.json'}")
    if strict and not all(c["holds"] for c in results["claims"]):
        raise typer.Exit(CLAIM_FAILED)
