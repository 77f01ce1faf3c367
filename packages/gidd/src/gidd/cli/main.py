"""The console script `gidd`. Frameworks are imported inside commands, so that --help answers at once."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import ConfigError, DataError, ExperimentError, GiddError

if TYPE_CHECKING:
    from ..hub import Checkpoint

INTERRUPTED, TERMINATED, CLAIM_FAILED = 130, 143, 3

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(add_completion=False, no_args_is_help=True, help="Prepare and inspect corpora.")
app.add_typer(data_app, name="data")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SeedOption = Annotated[int, typer.Option(help="Random numbers belong to (seed, sequence index).", min=0)]
BatchOption = Annotated[int, typer.Option(help="Sequences per model call; does not change the result.", min=1)]
CheckpointArgument = Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint folder or hub repository.")]


def main() -> None:
    """Run a command; every failure is one line on stderr."""
    debug = "--debug" in sys.argv  # accepted anywhere on the line
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="gidd", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        _say("error", "interrupted")
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        code, text = _verdict(error)
        _say("error", text)
    sys.exit(code or 0)


def _verdict(error: Exception) -> tuple[int, str]:
    """Exit code and message of an exception."""
    stopped = getattr(error, "exit_code", None)
    if isinstance(stopped, int) and not hasattr(
        error, "format_message"
    ):  # a training that a signal ended, after saving
        return stopped, str(error)
    if isinstance(error, (GiddError, ValueError)):
        return 2, str(error)
    if hasattr(error, "format_message"):  # click's usage errors
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context is not None else ""
        return 2, f"{error.format_message()}{hint}"
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    if isinstance(error, ModuleNotFoundError):
        return 2, f"this needs {error.name}: pip install {error.name}, or gidd-diffusion with the extra that has it"
    if isinstance(error, ExperimentError):
        return 1, str(error)
    return 1, f"internal: {type(error).__name__}: {error} (run again with --debug for the traceback, and report it)"


def _say(what: str, text: str) -> None:
    print(f"{what}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def gidd(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Discrete diffusion language models that correct themselves."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# --- data ------------------------------------------------------------------------------------------------------


@data_app.command("prepare")
def data_prepare(
    source: Annotated[str, typer.Option(help="kjv, latin:N, python-stdlib, files:GLOB or hf:NAME[:SUBSET].")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to create.")],
    tokenizer: Annotated[str, typer.Option(help="char, bpe:N, gpt2 or the path of a tokenizer.json.")] = "char",
    held_out: Annotated[float, typer.Option(help="Share of the text for validation.")] = 0.05,
    limit: Annotated[int | None, typer.Option(help="Read at most this many documents.", min=1)] = None,
    seed: SeedOption = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tokenize a corpus into a folder that holds all that training needs."""
    from ..data import info, prepare

    prepare(source, tokenizer, out, held_out=held_out, limit=limit, seed=seed, overwrite=overwrite)
    _show(info(out, verify=False), as_json)


@data_app.command("info")
def data_info(folder: Annotated[Path, typer.Argument(help="Prepared folder.")], as_json: JsonOption = False) -> None:
    """Say what a prepared folder holds, and check that it is whole."""
    from ..data import info

    _show(info(folder), as_json)


# --- training --------------------------------------------------------------------------------------------------


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train; see the README.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Changes, as in optimizer.lr=1e-3.")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="auto (the latest checkpoint, if any) or a step folder.")] = None,
    init_from: Annotated[
        str | None, typer.Option(help="Checkpoint to start from, e.g. a mask-only one to hybridise.")
    ] = None,
) -> None:
    """Train a model; under torchrun on several processes."""
    from ..train import GiddTrainer, load_config

    GiddTrainer(load_config(config, overrides or ())).fit(resume=resume, init_from=init_from)


@app.command()
def plan(
    flops: Annotated[float | None, typer.Option(help="Training budget in FLOPs.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training budget in tokens.")] = None,
    noise: Annotated[str, typer.Option(help="masked, low-uniform, balanced, high-uniform or uniform.")] = "balanced",
    as_json: JsonOption = False,
) -> None:
    """Sizes, batch and learning rate for a budget, by the follow-up's scaling laws."""
    from dataclasses import asdict, is_dataclass

    from ..plan import plan as make_plan

    made: Any = make_plan(flops=flops, tokens=tokens, noise=noise)
    _show(asdict(made) if is_dataclass(made) and not isinstance(made, type) else dict(made), as_json)


# --- generating and correcting -----------------------------------------------------------------------------------


@app.command()
def sample(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines to write.")],
    num: Annotated[int, typer.Option(help="Number of sequences.", min=1)] = 16,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 128,
    length: Annotated[int | None, typer.Option(help="Tokens per sequence; default the most.", min=1)] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to begin with.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="File with the text to begin with.")] = None,
    sampler: Annotated[str, typer.Option(help="ancestral or adaptive.")] = "ancestral",
    grid: Annotated[str, typer.Option(help="auto, linear, cosine or power:k.")] = "auto",
    temperature: Annotated[float, typer.Option(help="Of the model's predictions.")] = 1.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Best tokens kept.")] = None,
    min_prob: Annotated[float, typer.Option(help="Drop posterior entries below.")] = 0.0,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Generate sequences."""
    import torch

    from ..records import read_text, write_records
    from ..sampling import sample as draw

    _check_out(out)
    if prompt is not None and prompt_file is not None:
        raise ConfigError("--prompt and --prompt-file exclude each other")
    ready = _load(checkpoint, device)
    text = read_text(prompt_file) if prompt_file is not None else prompt
    length = length or _length(ready)
    given = None if not text else torch.tensor(_encode(ready, text))
    generator = torch.Generator().manual_seed(seed)
    records: list[dict[str, Any]] = []
    with _progress("sample", num) as advance:
        for start in range(0, num, batch_size):
            count = min(batch_size, num - start)
            made = draw(
                ready.model, ready.process, (count, length), steps, sampler=sampler, grid=grid, prompt=given,
                temperature=temperature, top_p=top_p, top_k=top_k, min_prob=min_prob, generator=generator,
                device=_device(device),
            )  # fmt: skip
            for row in made.tokens.tolist():
                records.append({"index": len(records), "seed": seed, "steps": steps, **_record(ready, row)})
            advance(count)
    write_records(out, records)
    _show({"out": out, "sequences": len(records), "length": length, **_diversity(records)}, as_json)


@app.command()
def correct(
    checkpoint: CheckpointArgument,
    sequences: Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="Sequences to correct.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="JSON lines to write.")],
    max_steps: Annotated[int, typer.Option(help="Most replacements per sequence.", min=0)] = 128,
    temperature: Annotated[float, typer.Option(help="Of the proposals.")] = 0.1,
    t0: Annotated[float, typer.Option(help="Noise level that the model is told.")] = 0.01,
    tokens_per_step: Annotated[int, typer.Option(help="Replacements at a time.", min=1)] = 1,
    patience: Annotated[int, typer.Option(help="Steps without progress before giving up.", min=0)] = 32,
    strategy: Annotated[str, typer.Option(help="fixed_point or gibbs.")] = "fixed_point",
    show_diff: Annotated[bool, typer.Option("--show-diff", help="Print what changed.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write the changes as one HTML page.")] = None,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Let the model find and replace its own mistakes."""
    import torch

    from ..records import difference, difference_page, read_records, write_records, write_text
    from ..sampling import self_correct

    for path in (out, html):
        _check_out(path)
    records = read_records(sequences)
    ready = _load(checkpoint, device)
    rows = [_tokens(ready, record, f"{sequences}, sequence {i}") for i, record in enumerate(records)]
    generator = torch.Generator().manual_seed(seed)
    made: list[dict[str, Any]] = []
    with _progress("correct", len(rows)) as advance:
        for group in _same_length(rows, batch_size):
            batch = torch.tensor(group, device=_device(device))
            fixed = self_correct(
                ready.model, ready.process, batch, max_steps=max_steps, temperature=temperature, t0=t0,
                tokens_per_step=tokens_per_step, patience=patience, strategy=strategy, generator=generator,
            )  # fmt: skip
            for i, row in enumerate(fixed.tokens.tolist()):
                made.append(
                    {
                        "index": len(made), **_record(ready, row), "before": group[i],
                        "changed": int(fixed.num_changed[i]), "steps": int(fixed.num_steps[i]),
                        "stopped": fixed.stop_reason[i], "accuracy_before": float(fixed.initial_accuracy[i]),
                        "accuracy_after": float(fixed.final_accuracy[i]),
                    }
                )  # fmt: skip
            advance(len(group))
    write_records(out, made)
    pieces = _pieces(ready, [token for record in made for token in (*record["before"], *record["tokens"])])
    runs = [difference(record["before"], record["tokens"], pieces) for record in made]
    headings = [f"sequence {r['index']}: {r['changed']} changed, {r['stopped']}" for r in made]
    if html is not None:
        write_text(html, difference_page("Self-correction", list(zip(headings, runs, strict=True))))
    if show_diff:
        for heading, sequence in zip(headings, runs, strict=True):
            print(heading)
            print("".join(old if kind == "same" else f"[-{old}-]{{+{new}+}}" for kind, old, new in sequence))
    mean = {
        key: sum(float(r[key]) for r in made) / len(made) for key in ("changed", "accuracy_before", "accuracy_after")
    }
    _show({"out": out, "sequences": len(made), **mean, **_diversity(made)}, as_json)


@app.command()
def errors(
    checkpoint: CheckpointArgument,
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="UTF-8 text file.")],
    t0: Annotated[float, typer.Option(help="Noise level that the model is told.")] = 0.01,
    error_rate: Annotated[float | None, typer.Option(help="Share of wrong tokens to expect.")] = None,
    threshold: Annotated[float, typer.Option(help="Mark tokens above this probability of being wrong.")] = 0.5,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Mark the tokens of a text that are probably wrong."""
    import torch

    from ..records import read_text
    from ..sampling import token_error_probs

    ready = _load(checkpoint, device)
    ids = _encode(ready, read_text(text))
    length = _length(ready)
    found: list[tuple[str, float]] = []
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        p = token_error_probs(
            ready.model, ready.process, torch.tensor([part], device=_device(device)), t0=t0, error_rate=error_rate
        )
        pieces = _pieces(ready, part)
        found += [(pieces[i], float(v)) for i, v in zip(part, p[0].tolist(), strict=True)]
    if as_json:
        _show({"tokens": [{"text": piece, "p_error": wrong} for piece, wrong in found]}, True)
        return
    colour = sys.stdout.isatty()
    for piece, wrong in found:
        mark = wrong > threshold
        print(f"\x1b[41m{piece}\x1b[0m" if mark and colour else f"[{piece}]" if mark else piece, end="")
    print()


# --- measuring -----------------------------------------------------------------------------------------------------


@app.command()
def ppl(
    checkpoint: CheckpointArgument,
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Prepared folder.")],
    num_times: Annotated[int, typer.Option(help="Times at which the bound is measured.", min=1)] = 128,
    num: Annotated[int, typer.Option(help="Validation sequences.", min=1)] = 256,
    batch_size: BatchOption = 32,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Likelihood bound of the validation split, boundary terms and standard error included."""
    import torch

    from ..data import TokenDataset, open_corpus
    from ..likelihood import elbo

    ready = _load(checkpoint, device)
    dataset = TokenDataset(open_corpus(data), "val", _length(ready), mode="pack", seed=seed)
    rows = [dataset[i] for i in range(min(num, len(dataset)))]
    if not rows:
        raise DataError(f"{data}: the validation split has no sequence")
    x = torch.stack([torch.as_tensor(row["tokens"]) for row in rows]).to(_device(device))
    mask = torch.stack([torch.as_tensor(row["loss_mask"]) for row in rows]).to(_device(device))
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
    _show(
        {
            "sequences": len(rows), "tokens": int(tokens), **{f"{k} (nat/token)": v for k, v in nats.items()},
            "stderr": error, "ppl": math.exp(nats["nelbo"]), "ppl_path": math.exp(nats["nelbo_path"]),
        },
        as_json,
    )  # fmt: skip


@app.command()
def genppl(
    sequences: Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="Generated sequences.")],
    judge: Annotated[str, typer.Option(help="ngram:DIR, a prepared folder whose training split makes the judge.")],
    order: Annotated[int, typer.Option(help="Of the n-gram judge.", min=1)] = 7,
    as_json: JsonOption = False,
) -> None:
    """Perplexity of samples under a judge, always with their entropy and repetition."""
    import numpy as np

    from ..data import open_corpus
    from ..eval.ngram import NGramJudge
    from ..eval.text_metrics import distinct_n, self_repetition, unigram_entropy
    from ..records import read_records

    kind, _, place = judge.partition(":")
    if kind != "ngram" or not place:
        raise ConfigError(f"--judge {judge}: has to be ngram:DIR with a prepared folder")
    rows = [record.get("tokens") for record in read_records(sequences)]
    if any(row is None for row in rows) or len({len(row) for row in rows if row is not None}) != 1:
        raise DataError(f'{sequences}: every sequence needs "tokens", all of one length')
    tokens = np.array(rows)
    nll = NGramJudge.from_corpus(open_corpus(place), order).nll(tokens)
    _show(
        {
            "sequences": len(tokens),
            "nat/token": float(nll.mean()),
            "stderr": float(nll.std(ddof=1) / len(nll) ** 0.5) if len(nll) > 1 else math.nan,
            "ppl": math.exp(float(nll.mean())),
            "unigram entropy": float(unigram_entropy(tokens).mean()),
            "distinct 4-grams": float(distinct_n(tokens, 4)),
            "self-repetition": float(self_repetition(tokens).mean()),
        },
        as_json,
    )


@app.command()
def bench(
    rows: Annotated[int, typer.Option(help="Tokens.", min=8)] = 512,
    vocab: Annotated[int, typer.Option(help="Columns of the logits.", min=64)] = 50_304,
    repeats: Annotated[int, typer.Option(help="Repetitions, taking turns.", min=2)] = 5,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Time the loss beside the dense formula and beside a cross-entropy."""
    from dataclasses import replace

    import numpy as np

    from ..evaluation.loss import run_loss
    from ..evaluation.profiles import PROFILES

    profile = replace(PROFILES["quick"], loss_rows=rows, loss_vocab=vocab, loss_repeats=repeats)
    found = run_loss(profile, np.random.default_rng(0), Path(), device=_device(device))
    if as_json:
        _show(found.to_dict(), True)
        return
    _table(
        ("what", "ours", "peer", "unit", "peer is"),
        [(c.name, c.ours, c.peer, c.unit, c.peer_name) for c in found.comparisons],
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder in any known layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    mask_id: Annotated[int | None, typer.Option(help="Where neither tokenizer nor configuration says.", min=0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn another project's checkpoint into a native one."""
    from ..hub import convert as convert_checkpoint

    _show(_facts(convert_checkpoint(source, target, mask_id), str(target)), as_json)


@app.command()
def info(checkpoint: CheckpointArgument, as_json: JsonOption = False) -> None:
    """Say what a checkpoint is."""
    _show(_facts(_load(checkpoint, "cpu"), checkpoint), as_json)


@app.command("eval")
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder for results.json and the plots.")],
    profile: Annotated[str, typer.Option(help="quick, full, gpu or paper.")] = "quick",
    seed: SeedOption = 0,
    only: Annotated[str | None, typer.Option(help="Only these experiments, as in exact,latin.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep experiments that are finished.")] = False,
    device: DeviceOption = "auto",
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if a claim does not hold.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Test the paper's claims on this machine."""
    from ..evaluation import run

    def told(identifier: str, done: int, total: int, seconds: float) -> None:
        if identifier:
            _say(identifier, f"{seconds:.1f} s ({done} of {total})")

    chosen = None if only is None else [part.strip() for part in only.split(",") if part.strip()]
    results = run(profile, seed, out, only=chosen, resume=resume, device=device, progress=told)
    if as_json:
        _show(results, True)
    else:
        rows = [
            ("yes" if c["holds"] else "NO", c["id"], c["measured"], f"{c['test']['op']} {c['test']['value']:g}", c["n"])
            for c in results["claims"]
        ]
        _table(("holds", "claim", "measured", "test", "n"), rows)
        held = sum(c["holds"] for c in results["claims"])
        print(f"{held} of {len(rows)} claims hold; wrote {out / 'results.json'}")
    if strict and not all(c["holds"] for c in results["claims"]):
        raise typer.Exit(CLAIM_FAILED)


# --- checkpoints and texts ---------------------------------------------------------------------------------------


def _device(name: str) -> str:
    from ..evaluation.runner import pick_device

    return pick_device(name)


def _load(source: str, device: str) -> Checkpoint:
    from ..hub import load_checkpoint

    ready = load_checkpoint(source)
    if ready.process is None:
        raise ConfigError(f"{source}: has no process.json, so that its noise is unknown; convert it, or add one")
    ready.model.to(_device(device)).eval()
    return ready


def _length(ready: Checkpoint) -> int:
    return int(ready.model.config.max_seq_len)


def _encode(ready: Checkpoint, text: str) -> list[int]:
    if ready.tokenizer is None:
        raise ConfigError("the checkpoint has no tokenizer, so that text cannot be read")
    return ready.tokenizer.encode(text)


def _record(ready: Checkpoint, tokens: Sequence[int]) -> dict[str, Any]:
    text = {} if ready.tokenizer is None else {"text": ready.tokenizer.decode(list(tokens))}
    return {"tokens": list(tokens), **text}


def _tokens(ready: Checkpoint, record: dict[str, Any], where: str) -> list[int]:
    tokens = record.get("tokens")
    if tokens is None:
        tokens = _encode(ready, record["text"])
    if not tokens or len(tokens) > _length(ready):
        raise DataError(f"{where}: has {len(tokens)} tokens; the model takes 1 to {_length(ready)}")
    return list(tokens)


def _pieces(ready: Checkpoint, tokens: Sequence[int]) -> dict[int, str]:
    if ready.tokenizer is None:
        return {i: f"{i} " for i in set(tokens)}
    return {i: ready.tokenizer.decode([i]) for i in set(tokens)}


def _same_length(rows: Sequence[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Groups of neighbours of one length."""
    group: list[list[int]] = []
    for row in rows:
        if group and (len(row) != len(group[0]) or len(group) == batch_size):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _diversity(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Entropy beside whatever else is printed: a sharp sampler flatters every judge."""
    import numpy as np

    from ..eval.text_metrics import distinct_n, unigram_entropy

    if len({len(r["tokens"]) for r in records}) != 1:
        return {}
    tokens = np.array([r["tokens"] for r in records])
    return {
        "unigram entropy": float(unigram_entropy(tokens).mean()),
        "distinct 4-grams": float(distinct_n(tokens, 4)) if tokens.shape[1] >= 4 else math.nan,
    }


def _facts(ready: Checkpoint, where: str) -> dict[str, Any]:
    config = ready.model.config
    return {
        "checkpoint": where,
        "architecture": ready.model.architecture,
        "parameters": ready.model.num_parameters(),
        **config.to_dict(),
        "process": None if ready.process is None else ready.process.to_dict(),
        "tokenizer": ready.tokenizer is not None,
    }


def _check_out(path: Path | None) -> None:
    """Before hours of work, not after."""
    if path is not None and not path.parent.is_dir():
        raise DataError(f"cannot write {path}: the folder {path.parent} does not exist")


# --- printing ----------------------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(_plain(facts), indent=1, ensure_ascii=False, allow_nan=False))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {_cell(value)}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return str(value)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    return str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells)) if cells else len(h) for i, h in enumerate(head)]
    for row in (list(head), *cells):
        print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
