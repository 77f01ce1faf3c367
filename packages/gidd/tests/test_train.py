"""Training: equal on any number of processes, resumed bit for bit, never without a checkpoint."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gidd import DiT, DiTConfig, HybridProcess, MaskedProcess, ScalingConfig, ScalingTransformer
from gidd.data import TokenDataset, open_corpus, prepare
from gidd.errors import CheckpointError, ConfigError, DataError
from gidd.hub import load_checkpoint
from gidd.likelihood import elbo
from gidd.loss import gidd_loss
from gidd.train import (
    GiddTrainer,
    LaProp,
    TrainingDiverged,
    TrainingInterrupted,
    checkpoint,
    latest_step,
    learning_rate_factor,
    load_config,
    logs,
    next_token_nll,
    noisy_batch,
    step,
    stratified_times,
    train_model,
    trainer,
)
from gidd.train.config import SHIPPED, parse_config, shipped_configs
from gidd.train.noise import NoiseOptions
from gidd.train.optim import AveragedWeights, make_optimizer, parameter_groups, set_learning_rate
from gidd.train.parallel import World

ALONE = World(torch.device("cpu"))
WORKER = Path(__file__).with_name("train_worker.py")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """60 documents of 3 to 22 letters: padded to 24 tokens, batches have quite different numbers that count."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(60):
        (folder / f"{i:02}.txt").write_text("abcdefgh"[i % 5 :][: 1 + i % 3] * (3 + i % 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # which files are held out depends on their paths
        prepare("files:*.txt", "char", folder / "data", held_out=0.2)
    return str(folder / "data")


def values(corpus, out, **changes):
    base = {
        "out": str(out),
        "model": {"hidden": 16, "layers": 2, "heads": 2, "pad_vocab_to": 4, "max_seq_len": 24},
        "process": {"type": "hybrid", "p_uniform": 0.2},
        "data": {"path": corpus, "length": 24, "mode": "pad", "batch_size": 8},
        "optimizer": {"lr": 1e-2},
        "schedule": {"steps": 6, "warmup": 2},
        "checkpoint": {"every": 3, "keep": 5},
        "logging": {"every": 1},
    }
    for name, change in changes.items():
        base[name] = {**base[name], **change} if isinstance(change, dict) and name in base else change
    return base


def fit(values, **arguments):
    return GiddTrainer(parse_config(values), quiet=True).fit(**arguments)


def records(out, key="loss"):
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in lines if key in line}


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- configuration --------------------------------------------------------------------------------------------------


def test_config_from_yaml_with_overrides(tmp_path, corpus):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values(corpus, tmp_path / "run")) + "\n")
    config = load_config(path, ["optimizer.lr=1e-3", "optimizer.betas=[0.8, 0.9]", "model.layers=3", "loss.fused=true"])
    assert (config.optimizer.lr, config.optimizer.betas, config.loss.fused) == (1e-3, (0.8, 0.9), True)
    assert config.model.config(7).layers == 3


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.lrate=1", ("optimizer.lrate", "weight_decay")),
        ("optimizer.lr=-1", ("optimizer.lr", "greater than 0", "-1")),
        ("optimizer.lr=fast", ("optimizer.lr", "fast")),
        ("optimizer.betas=[0.9, 1.0]", ("optimizer.betas", "less than 1")),
        ("objective=causal", ("objective", "'diffusion' or 'autoregressive'")),
        ("schedule.shape=linear", ("schedule.shape", "'cosine' or 'constant'", "linear")),
        ("schedule.steps=1.5", ("schedule.steps", "integer")),
        ("schedule.steps=true", ("schedule.steps", "integer")),
        ("model.heads=5", ("model", "heads", "16")),
        ("model.colour=5", ("model", "colour", "hidden")),
        ("model.vocab_size=5", ("model", "vocab_size", "corpus")),
        ("model.preset=huge", ("model", "huge", "tiny, small, base, 1B")),
        ("process.gamma=3", ("process", "gamma=3", "at most 2")),
        ("process.type=gauss", ("process.type", "'hybrid'")),
        ("process.mask_id=3", ("process", "mask_id", "corpus")),
        ("process.preset=balanced", ("process", "preset", "snr")),
        ("loss.p_prompt=1.2", ("loss.p_prompt", "1.2")),
        ("loss.weighting=best", ("loss.weighting", "'dynamic_exact'")),
        ("nothing=1", ("nothing", "schedule")),
        ("optimizer.lr", ("optimizer.lr", "key=value")),
        ("out.x=1", ("out", "no section")),
    ],
)
def test_config_errors_are_one_line_and_name_the_field(tmp_path, corpus, override, told):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values(corpus, tmp_path / "run")))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in told), message


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="no YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="sections"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"out: missing.*schedule: missing"):
        load_config(tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"data": {"length": 25}}, ConfigError, "max_seq_len=24"),
        ({"data": {"batch_size": 8, "micro_batch_size": 3}}, ConfigError, "has to divide the 8"),
        ({"data": {"path": "/nowhere"}}, DataError, "gidd data prepare"),
        ({"device": "tpu"}, ConfigError, "auto, cpu, cuda"),
        ({"objective": "autoregressive", "loss": {"p_prompt": 0.1}}, ConfigError, "loss.p_prompt"),
        ({"objective": "autoregressive", "loss": {"fused": True}}, ConfigError, "loss.fused"),
        ({"data": {"length": 8, "mode": "pad"}}, DataError, "longest document"),
        ({"process": {"type": "uniform", "p_uniform": 0.1}}, ConfigError, "p_uniform"),
        ({"process": {"type": "snr"}, "loss": {"weighting": "dynamic_released"}}, ConfigError, "HybridProcess"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, corpus, changes, error, told):
    made = values(corpus, tmp_path / "run", **changes)
    if changes.get("process", {}).get("type") == "snr":
        made["process"] = {"type": "snr"}
    with pytest.raises(error, match=told):
        fit(made)
    assert not (tmp_path / "run").exists()


def test_validation_without_held_out_documents_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "a.txt").write_text("abcd" * 20)
    data = prepare(f"files:{tmp_path}/a.txt", "char", tmp_path / "data", held_out=0.0).path
    made = values(str(data), tmp_path / "run", data={"mode": "crop"})
    with pytest.raises(DataError, match="split 'val'"):
        fit({**made, "validation": {"every": 3}})
    assert not (tmp_path / "run").exists()
    assert fit(made).step == 6


@pytest.mark.parametrize(
    ("key", "value", "module"), [("tensorboard", True, "torch.utils.tensorboard"), ("wandb", "x", "wandb")]
)
def test_a_logger_that_is_not_installed(tmp_path, corpus, monkeypatch, key, value, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"logging.{key} needs: pip install"):
        fit(values(corpus, tmp_path / "run", logging={key: value}))


def test_numbers_reach_tensorboard_and_wandb_as_they_are_in_the_journal(corpus, tmp_path, monkeypatch):
    """Steps whose loss was not finite have no loss to show."""
    board, bias, calls = [], [], []

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "run/tensorboard")

        def add_scalar(self, name, value, step):
            board.append((step, name, float(value)))

        def close(self):
            calls.append("board")

    run = SimpleNamespace(log=lambda numbers, step: bias.append((step, numbers)), finish=lambda: calls.append("bias"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **more: calls.append(more) or run))
    plain = step.gidd_loss

    def poisoned(logits, *rest, **more):
        calls.append("step")
        return plain(logits * (math.nan if calls.count("step") == 2 else 1.0), *rest, **more)

    monkeypatch.setattr(step, "gidd_loss", poisoned)
    made = values(corpus, tmp_path / "run", logging={"tensorboard": True, "wandb": "mine"}, schedule={"steps": 3})
    fit(made)
    told = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in told] == [False, True, False]
    expected = [
        (line["step"], name, value)
        for line in told
        for name, value in line.items()
        if name != "step" and value is not None
    ]
    assert board == expected
    assert [(at, name, value) for at, numbers in bias for name, value in numbers.items()] == expected
    assert calls[0]["project"] == "mine"
    assert calls[0]["config"]["optimizer"]["lr"] == 1e-2
    assert {"board", "bias"} <= {call for call in calls if isinstance(call, str)}


# --- pieces ---------------------------------------------------------------------------------------------------------


def test_learning_rate():
    factors = [learning_rate_factor(i, steps=110, warmup=10) for i in range(110)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)
    assert learning_rate_factor(110, 110, 10) == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert learning_rate_factor(99, 100, 10, "constant") == 1.0
    assert learning_rate_factor(0, 100, 0) == 1.0


def test_weight_decay_on_matrices_and_another_rate_outside_blocks():
    model = ScalingTransformer(ScalingConfig(vocab_size=6, hidden=16, layers=1, head_dim=8, pad_vocab_to=1))
    groups = parameter_groups(model, 0.02, aux_lr_factor=0.5)
    optimizer = make_optimizer(groups, "laprop")
    set_learning_rate(optimizer, 0.3)
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        group = where[id(p)]
        assert group["weight_decay"] == (0.02 if p.dim() > 1 else 0.0), name
        assert group["lr"] == pytest.approx(0.3 if "blocks" in name and p.dim() > 1 else 0.15), name
    assert len(where) == len(list(model.parameters()))


def test_laprop_by_hand():
    p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    optimizer = LaProp([p], lr=0.1, betas=(0.9, 0.99), eps=1e-9, weight_decay=0.5)
    expected, m, v = p.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for k in range(1, 4):
        g = torch.tensor([0.3 * k, -1.0]).double()
        p.grad = g
        optimizer.step()
        v = 0.99 * v + 0.01 * g**2
        m = 0.9 * m + 0.1 * g / ((v / (1 - 0.99**k)).sqrt() + 1e-9)
        expected = expected - 0.1 * (m / (1 - 0.9**k) + 0.5 * expected)
    torch.testing.assert_close(p.detach(), expected)


def test_average_of_weights():
    p = torch.nn.Parameter(torch.zeros(3))
    average = AveragedWeights([p], decay=0.5)
    expected = 0.0
    for k in range(20):
        p.data.fill_(k + 1.0)
        average.update(k)
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * (k + 1)
    with average.applied():
        assert p.tolist() == pytest.approx([expected] * 3)
    assert p.tolist() == [20.0] * 3
    assert average.average[0].tolist() == pytest.approx([expected] * 3)


def test_times_are_stratified_over_the_global_batch():
    p = HybridProcess(6, 5, t_eps=1e-3)
    x = torch.zeros(32, 2, dtype=torch.long)
    whole = noisy_batch(x, None, p, seed=3, step=11)
    # 2 processes with 2 parts of 8 each.
    parts = [noisy_batch(x[:8], None, p, 3, 11, first=8 * k, total=32) for k in range(4)]
    assert torch.equal(torch.cat([part.t for part in parts]), whole.t)
    assert torch.equal(torch.cat([part.z for part in parts]), whole.z)
    strata = ((whole.t - 1e-3) / (1 - 2e-3) * 32).floor().long().sort().values
    assert strata.tolist() == list(range(32))
    assert whole.t.min() >= 1e-3
    assert whole.t.max() <= 1 - 1e-3
    assert not torch.equal(whole.t, noisy_batch(x, None, p, 3, 12).t)
    assert not torch.equal(whole.t, noisy_batch(x, None, p, 4, 11).t)
    t = stratified_times(torch.tensor(0.25), torch.tensor([0, 3]), 4, 0.0)
    assert t.tolist() == [0.0625, 0.8125]


def test_noise_has_the_distribution_of_the_process():
    p = HybridProcess(8, 7, p_uniform=0.3)
    x = torch.full((4000, 16), 2)
    batch = noisy_batch(x, None, p, 0, 0)
    observed = torch.stack([torch.bincount(batch.z[k : k + 500].flatten(), minlength=8) for k in range(0, 4000, 500)])
    expected = torch.stack([p.marginal(x[k : k + 500, 0], batch.t[k : k + 500]).sum(0) for k in range(0, 4000, 500)])
    expected = expected * 16
    assert float(((observed - expected) ** 2 / expected).sum()) < 100  # chi-square with 56 degrees of freedom


def test_tokens_that_do_not_count_stay_clean():
    mask = torch.arange(16) < 9
    batch = noisy_batch(torch.full((64, 16), 2), mask.expand(64, 16), MaskedProcess(8, 7), 0, 0)
    assert (batch.z[:, 9:] == 2).all()
    assert (batch.z[:, :9] == 7).any()


def test_prompts_infilling_padding_and_times_of_their_own():
    p, x = MaskedProcess(8, 7), torch.arange(12).expand(2000, 12) % 5
    prompt = noisy_batch(x, None, p, 0, 0, options=NoiseOptions(p_prompt=0.5))
    given = (~prompt.keep).sum(1)
    assert 0.4 < float((given > 0).double().mean()) < 0.5  # some prompts are empty
    assert given.max() == 11
    clean = torch.arange(12) < given[:, None]
    assert torch.equal(clean, ~prompt.keep)
    assert torch.equal(prompt.z[clean], x[clean])
    row = int(given.argmax())
    assert prompt.attention_mask[row, 0].sum() == 11  # the prompt does not see what comes after it
    assert prompt.attention_mask[row, 11].all()

    infill = noisy_batch(x, None, p, 0, 0, options=NoiseOptions(p_infill=1.0))
    edges = infill.keep.int().diff(dim=1).abs().sum(1)
    assert edges.max() == 2
    assert infill.keep.any(dim=1).all()
    assert not infill.keep[:, 0].all()

    empty = noisy_batch(x, None, p, 0, 0, options=NoiseOptions(max_empty_frac=0.5, pad_id=6))
    pads = (empty.x == 6).sum(1)
    assert 0 <= int(pads.min()) < int(pads.max()) <= 6
    kept = empty.x[empty.x != 6].tolist()
    assert kept[: 12 - int(pads[0])] == x[0, : 12 - int(pads[0])].tolist()

    alone = noisy_batch(x, None, p, 0, 0, options=NoiseOptions(p_independent=0.5))
    varies = (alone.t != alone.t[:, :1]).any(1)
    assert alone.t.shape == (2000, 12)
    assert 0.45 < float(varies.double().mean()) < 0.55


@pytest.mark.parametrize("fused", [False, True])
def test_parts_of_a_batch_give_the_mean_over_all_tokens_that_count(fused):
    p = HybridProcess(6, 5, 0.2)
    model = small(p)
    x = torch.randint(5, (8, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor([6, 1, 2, 1, 5, 6, 0, 3])[:, None]
    whole = noisy_batch(x, mask, p, 0, 0)
    loss = gidd_loss(model(whole.z, whole.t.float()), x, whole.z, whole.t, p, loss_mask=mask, impl="reference").loss
    loss.backward()
    expected = [q.grad.clone() for q in model.parameters()]
    parts = [noisy_batch(x[k : k + 2], mask[k : k + 2], p, 0, 0, first=k, total=8) for k in range(0, 8, 2)]
    optimizer = make_optimizer(parameter_groups(model, 0.0))
    set_learning_rate(optimizer, 0.0)
    result = step.train_step(
        step.Objective(model, p, fused=fused), list(model.parameters()), optimizer, parts, 1e9, ALONE
    )
    assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    assert result.tokens == int(mask.sum())
    for own, q in zip(expected, model.parameters(), strict=True):
        torch.testing.assert_close(q.grad, own, rtol=1e-3, atol=1e-6)


def small(process, hidden=16, layers=1, **changes):
    torch.manual_seed(0)
    return DiT(
        DiTConfig(vocab_size=process.vocab_size, hidden=hidden, layers=layers, heads=2, pad_vocab_to=8, **changes)
    )


def test_next_token_nll_is_the_chain_rule_and_never_looks_ahead():
    p = HybridProcess(6, 5, 0.2)
    model = small(p, layers=2)
    for q in model.parameters():
        torch.nn.init.normal_(q, std=0.3)
    # Over all 5^3 sequences of ids other than the mask, probabilities sum to one.
    x = torch.cartesian_prod(*[torch.arange(5)] * 3)
    with torch.no_grad():
        nll = next_token_nll(model, x, p)
    assert nll.shape == (125, 3)
    assert float(nll.double().sum(1).neg().exp().sum()) == pytest.approx(1.0, abs=1e-5)
    other = x.clone()
    other[:, 2] = (x[:, 2] + 1) % 5
    assert torch.equal(next_token_nll(model, other, p)[:, :2], nll[:, :2])
    # The first token is predicted from the mask token alone, the second from that and the first.
    for known, k in ((torch.full((1, 1), 5), 0), (torch.cat([torch.full((125, 1), 5), x[:, :1]], dim=1), 1)):
        told = model(known, torch.zeros(len(known)), torch.ones(len(known), k + 1, k + 1).tril().bool())[:, -1, :5]
        expected = -told.log_softmax(-1).expand(125, 5)[torch.arange(125), x[:, k]]
        torch.testing.assert_close(nll[:, k], expected, rtol=1e-4, atol=1e-4)


# --- in memory ------------------------------------------------------------------------------------------------------


def test_overfits_a_tiny_corpus():
    p = HybridProcess(6, 5, 0.1)
    x = torch.randint(5, (4, 8), generator=torch.Generator().manual_seed(1))
    model = small(p, hidden=32, layers=2, position_embedding="learned")
    before, after = [], []
    for nats in (before, after):
        nats += elbo(model, x.repeat(8, 1), p, num_times=32, generator=torch.Generator().manual_seed(0)).nelbo.tolist()
        if nats is before:
            train_model(model, p, x, steps=400, batch_size=32, lr=4e-3, warmup=10)
    assert sum(before) / 32 > 10
    # Four sequences hold ln 4 nats.
    assert math.log(4) - 0.1 < sum(after) / 32 < 1.3 * math.log(4)


def test_training_in_memory_depends_on_the_seed_alone():
    p = HybridProcess(6, 5, 0.1)
    x = torch.randint(5, (64, 8))
    runs = [train_model(small(p, dropout=0.1), p, x, steps=4, batch_size=8, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    model, state = small(p), torch.get_rng_state()
    train_model(model, p, x, steps=1)
    assert torch.equal(torch.get_rng_state(), state)
    stream = [x[:8], x[8:16]]
    assert train_model(small(p), p, stream, 2) == train_model(small(p), p, lambda k: stream[k], 2)
    with pytest.raises(ValueError, match="after 2 steps"):
        train_model(small(p), p, stream, 3)


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory, corpus):
    """An uninterrupted run of everything that has a state."""
    out = tmp_path_factory.mktemp("full") / "run"
    made = values(
        corpus,
        out,
        model={"dropout": 0.1},
        optimizer={"ema": 0.9},
        validation={"every": 3, "sequences": 5, "num_times": 3},
    )
    return made, fit(made)


def test_a_run_leaves_native_checkpoints(full):
    made, result = full
    out = Path(made["out"])
    assert result.checkpoint == latest_step(out) == out / "step-6"
    assert sorted(p.name for p in out.iterdir()) == ["latest", "log.jsonl", "step-3", "step-6"]
    loaded = load_checkpoint(out / "latest")
    assert loaded.process == HybridProcess(loaded.process.vocab_size, loaded.process.mask_id, 0.2)
    assert loaded.tokenizer is not None
    assert loaded.model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1)).isfinite().all()
    assert list(records(out)) == [1, 2, 3, 4, 5, 6]
    assert list(records(out, "val_nelbo")) == [3, 6]
    assert result.validation["val_nelbo"] == records(out, "val_nelbo")[6] > 0
    state = checkpoint.read_trainer_state(out / "step-3")
    assert (state["step"], state["samples"], state["updates"]) == (3, 24, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_is_bit_exact(full, tmp_path, workers):
    made, _ = full
    out = tmp_path / "run"
    shutil.copytree(Path(made["out"]) / "step-3", out / "step-3")  # without `latest`: the newest is found
    changed = {**made, "out": str(out), "data": {**made["data"], "workers": workers}}
    fit(changed, resume="auto")
    for key in ("loss", "grad_norm", "val_nelbo"):
        expected = {k: v for k, v in records(made["out"], key).items() if k > 3}
        assert records(out, key) == expected
    assert same(weights(out / "step-6"), weights(Path(made["out"]) / "step-6"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(full, tmp_path, monkeypatch, number, code):
    made, _ = full
    made = {**made, "out": str(tmp_path / "run")}
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    plain, calls = trainer.train_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return plain(*arguments)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    with pytest.raises(TrainingInterrupted, match=r"step-4; go on with --resume auto") as caught:
        fit(made)
    assert caught.value.exit_code == code
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    monkeypatch.undo()
    fit(made, resume="auto")
    assert records(made["out"]) == records(full[0]["out"])
    assert same(weights(tmp_path / "run/step-6"), weights(Path(full[0]["out"]) / "step-6"))


def test_ctrl_c_in_a_terminal_spares_the_loader_until_the_checkpoint_is_written(corpus, tmp_path):
    """The signal goes to all processes of the group, workers included; the run saves, and can go on."""
    out, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            values(corpus, out, data={"workers": 1}, schedule={"steps": 100_000}, checkpoint={"every": 5000})
        )
    )
    process = subprocess.Popen(
        [sys.executable, WORKER, config, "--alone", "--", "seed=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not records_so_far(out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "TrainingInterrupted: SIGINT" in said
    assert "DataLoader" not in said
    assert "KeyboardInterrupt" not in said
    found = latest_step(out)
    start = checkpoint.read_trainer_state(found)["step"]
    assert start == max(records(out))
    assert fit(values(corpus, out, schedule={"steps": start + 1}), resume="auto").step == start + 1


def records_so_far(out):
    path = Path(out) / "log.jsonl"
    return path.exists() and path.read_text().count("\n")


class Killed(BaseException):
    """Not caught anywhere: leaves the disk as kill -9 would."""


@pytest.mark.parametrize("at", ["weights", "state", "before rename", "before link", "before replace", "before prune"])
def test_killed_while_saving(corpus, tmp_path, monkeypatch, at):
    made = values(corpus, tmp_path / "run", schedule={"steps": 4}, checkpoint={"every": 2, "keep": 1})

    def killing(plain, applies):
        def maybe(*arguments, **more):
            if applies(*arguments):
                raise Killed
            return plain(*arguments, **more)

        return maybe

    from torch.distributed.checkpoint import state_dict_saver

    second = "step-4"
    if at == "weights":
        monkeypatch.setattr(
            checkpoint, "write_checkpoint", killing(checkpoint.write_checkpoint, lambda f, *_: second in f.name)
        )
    elif at == "state":
        # After its files have been written.
        plain = state_dict_saver.save

        def save(*arguments, **more):
            plain(*arguments, **more)
            if second in more["checkpoint_id"]:
                raise Killed

        monkeypatch.setattr(state_dict_saver, "save", save)
    elif at == "before rename":
        monkeypatch.setattr(Path, "rename", killing(Path.rename, lambda p, _: second in p.name))
    elif at == "before link":
        monkeypatch.setattr(Path, "symlink_to", killing(Path.symlink_to, lambda p, target: target == second))
    elif at == "before replace":
        monkeypatch.setattr(
            Path, "replace", killing(Path.replace, lambda p, _: p.is_symlink() and os.readlink(p) == second)
        )
    else:
        monkeypatch.setattr(checkpoint, "_steps", killing(checkpoint._steps, lambda root: (root / second).exists()))
    with pytest.raises(Killed):
        fit(made)
    monkeypatch.undo()

    found = latest_step(tmp_path / "run")
    assert found is not None
    load_checkpoint(found)
    load_checkpoint(tmp_path / "run/latest")
    assert fit(made, resume="auto").step == 4
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "latest",
        "log.jsonl",
        *(["step-2"] if at == "before prune" else []),  # goes with the next save
        "step-4",
    ]


def test_killed_for_real(corpus, tmp_path):
    out = tmp_path / "run"
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(values(corpus, out, schedule={"steps": 100_000}, checkpoint={"every": 1, "keep": 2}))
    )
    process = subprocess.Popen(
        [sys.executable, WORKER, config, "--alone", "--", "seed=0"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while not (out / "step-3").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    found = latest_step(out)
    load_checkpoint(found)
    start = checkpoint.read_trainer_state(found)["step"]
    assert start >= 2  # killed perhaps before the link to step-3
    assert fit(values(corpus, out, schedule={"steps": start + 2}), resume="auto").step == start + 2
    assert sorted(records(out)) == list(range(1, start + 3))


def test_a_full_disk_is_tried_again_and_then_reported(corpus, tmp_path, monkeypatch):
    made = values(corpus, tmp_path / "run")
    plain, failures = checkpoint.write_checkpoint, [1, 2]

    def full_disk(folder, *rest):
        if "step-6" in folder.name and failures:
            failures.pop()
            raise OSError(28, "No space left on device")
        plain(folder, *rest)

    monkeypatch.setattr(checkpoint, "write_checkpoint", full_disk)
    monkeypatch.setattr(checkpoint, "PAUSES", (0.0, 0.0))
    assert fit(made).step == 6
    failures.extend(range(99))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match="No space left"):
        fit(made)
    assert latest_step(tmp_path / "run").name == "step-3"
    assert not list((tmp_path / "run").glob("*.tmp"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_costs_records_but_not_the_run(corpus, tmp_path, monkeypatch, caplog):
    made = values(corpus, tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/log.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(logs, "_truncate", lambda *_: None)
    assert fit(made).step == 6
    assert latest_step(tmp_path / "run").name == "step-6"
    assert "cannot write the record of step 1" in caplog.text


def test_checkpoints_written_in_the_background_are_those_of_their_step(full, tmp_path, monkeypatch):
    """Training goes on while they are written: what is resumed is the state from before."""
    made = {**full[0], "out": str(tmp_path / "run"), "checkpoint": {"every": 3, "keep": 5, "background": True}}
    plain, before, seen = checkpoint.write_checkpoint, checkpoint.Background.done, []

    def slow(folder, *rest):
        deadline = time.monotonic() + 30
        while "step-3" in folder.name and len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        plain(folder, *rest)

    def done(self, world):
        answer = before(self, world)
        seen.append((self.step, answer, latest_step(tmp_path / "run")))
        return answer

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow)
    monkeypatch.setattr(checkpoint.Background, "done", done)
    fit(made)
    assert seen == [(3, False, None)] * 2  # after steps 4 and 5
    assert records(made["out"]) == records(full[0]["out"])
    for name in ("step-3", "step-6"):
        assert same(weights(tmp_path / "run" / name), weights(Path(full[0]["out"]) / name))
    shutil.copytree(tmp_path / "run/step-3", tmp_path / "again/step-3")
    fit({**made, "out": str(tmp_path / "again")}, resume="auto")
    assert same(weights(tmp_path / "again/step-6"), weights(Path(full[0]["out"]) / "step-6"))


def test_a_checkpoint_that_fails_in_the_background_is_written_at_once(corpus, tmp_path, monkeypatch, caplog):
    made = values(corpus, tmp_path / "run", checkpoint={"every": 2, "keep": 9, "background": True})
    plain, failures = checkpoint.write_checkpoint, [1]

    def full_disk(folder, *rest):
        if "step-2" in folder.name and failures:
            failures.pop()
            raise OSError(28, "No space left on device")
        plain(folder, *rest)

    monkeypatch.setattr(checkpoint, "write_checkpoint", full_disk)
    # As if all was written by the next step.
    monkeypatch.setattr(checkpoint.Background, "done", lambda self, world: True)
    fit(made)
    assert "step 2 in the background" in caplog.text
    found = sorted(p.name for p in (tmp_path / "run").glob("step-*"))
    assert found == ["step-3", "step-4", "step-6"]
    state = checkpoint.read_trainer_state(tmp_path / "run/step-3")
    assert state["step"] == 3


def test_what_cannot_be_resumed(full, corpus, tmp_path):
    made, _ = full
    with pytest.raises(ConfigError, match="resume=auto"):
        fit(made)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        fit(values(corpus, tmp_path / "run"), resume=tmp_path)
    with pytest.raises(CheckpointError, match="use init_from"):
        fit({**made, "process": {"type": "masked"}}, resume="auto")
    with pytest.raises(CheckpointError, match="cannot resume"):
        fit({**made, "model": {**made["model"], "hidden": 32}}, resume="auto")
    damaged = tmp_path / "damaged/step-6"
    shutil.copytree(Path(made["out"]) / "step-6", damaged)
    data = damaged / "state/__0_0.distcp"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot resume"):
        fit({**made, "out": str(tmp_path / "new")}, resume=damaged)
    (damaged / "trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        fit({**made, "out": str(tmp_path / "new")}, resume=damaged)


def test_begin_with_the_weights_of_another_process(full, corpus, tmp_path, monkeypatch):
    made, result = full
    seen = []
    monkeypatch.setattr(trainer, "_fit", lambda run, *_: seen.append(run.model.state_dict()))
    fit({**made, "out": str(tmp_path / "run"), "process": {"type": "masked"}}, init_from=result.checkpoint)
    assert same(seen[0], weights(result.checkpoint))
    with pytest.raises(CheckpointError, match=r"instead of \(.*and \d+ more"):
        fit(values(corpus, tmp_path / "run", model={"hidden": 32}), init_from=result.checkpoint)


def test_a_loss_that_is_not_finite(corpus, tmp_path, monkeypatch):
    plain, bad, calls = step.gidd_loss, {2}, []

    def poisoned(logits, *rest, **more):
        calls.append(1)
        return plain(logits * (math.nan if len(calls) - 1 in bad else 1.0), *rest, **more)

    monkeypatch.setattr(step, "gidd_loss", poisoned)
    made = values(corpus, tmp_path / "run", schedule={"steps": 12}, checkpoint={"every": 2, "keep": 9})
    result = fit(made)
    assert (result.step, result.skipped) == (12, 1)
    losses = records(made["out"])
    assert losses[3] is None
    assert losses[4] > 0
    for value in weights(result.checkpoint).values():
        assert value.isfinite().all()

    shutil.rmtree(made["out"])
    calls.clear()
    bad |= set(range(4, 20))
    with pytest.raises(
        TrainingDiverged, match=r"5 steps in a row, 4 to 8 \(samples 32 to 71 .*step-9 .*lower"
    ) as caught:
        fit(made)
    assert isinstance(caught.value, FloatingPointError)
    found = latest_step(made["out"])
    assert found.name == "step-9"
    assert same(weights(found), weights(tmp_path / "run/step-4"))


def test_an_autoregressive_run_learns_to_predict_and_says_so_in_its_checkpoint(corpus, tmp_path):
    made = values(
        corpus,
        tmp_path / "run",
        objective="autoregressive",
        schedule={"steps": 40},
        checkpoint={"every": 20},
        optimizer={"lr": 2e-2, "ema": 0.5},
        validation={"every": 20, "sequences": 12, "batch_size": 5},
    )
    result = fit(made)
    model, process, tokenizer, meta = load_checkpoint(result.checkpoint)
    assert meta["objective"] == json.loads((result.checkpoint / "config.json").read_text())["objective"]
    assert meta["objective"] == "autoregressive"
    assert tokenizer is not None
    batch = TokenDataset(open_corpus(corpus), "val", 24, "pad").__getitems__(range(12))
    with torch.no_grad():
        nll = next_token_nll(model, batch["tokens"], process)[batch["loss_mask"]].double().mean()
    assert result.validation == {
        "val_nll": pytest.approx(float(nll), abs=1e-5),
        "val_ppl": pytest.approx(float(nll.exp()), rel=1e-5),
    }
    # Documents repeat "abc...": there is little to know, and it is learnt.
    assert nll < 0.7 * math.log(process.vocab_size - 1)
    assert records(made["out"], "loss") == records(made["out"], "elbo")

    other = tmp_path / "resumed"
    shutil.copytree(tmp_path / "run/step-20", other / "step-20")
    fit({**made, "out": str(other)}, resume="auto")
    assert same(weights(other / "step-40"), weights(tmp_path / "run/step-40"))
    with pytest.raises(CheckpointError, match="another objective than diffusion"):
        fit({**made, "objective": "diffusion"}, resume="auto")


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_checkpointing": True},
        {"loss": {"fused": True}},
        {"data": {"micro_batch_size": 2}},
        {"parallel": "fsdp2"},
    ],
)
def test_options_that_change_nothing(corpus, tmp_path, changes):
    fit(values(corpus, tmp_path / "plain"))
    fit(values(corpus, tmp_path / "other", **changes))
    assert list(records(tmp_path / "other").values()) == pytest.approx(
        list(records(tmp_path / "plain").values()), abs=1e-5
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "bf16", "loss": {"fused": True}},
        {"optimizer": {"name": "laprop", "lr": 0.01, "aux_lr_factor": 0.1}},
        {"loss": {"p_independent": 0.5, "p_prompt": 0.3, "p_infill": 0.2, "max_empty_frac": 0.2}},
        {"process": {"type": "snr", "preset": "balanced"}, "loss": {"weighting": "snr"}},
        {"model": {"architecture": "scaling", "hidden": 16, "layers": 1, "head_dim": 8}},
        {"data": {"mode": "crop", "length": 8}},
    ],
)
def test_options_that_run(corpus, tmp_path, changes):
    made = values(corpus, tmp_path / "run", schedule={"steps": 2}, **changes)
    for name in ("model", "process"):
        if name in changes:
            made[name] = changes[name]
    assert math.isfinite(fit(made).loss)
    state = weights(tmp_path / "run/latest")
    assert {value.dtype for value in state.values()} == {torch.float32}


# --- several processes ----------------------------------------------------------------------------------------------


def test_two_processes_do_what_one_does(corpus, tmp_path):
    common = dict(
        optimizer={"ema": 0.9, "clip": 0.1}, validation={"every": 3, "sequences": 5, "batch_size": 2, "num_times": 3}
    )
    alone = values(corpus, tmp_path / "alone", **common)
    fit(alone)
    shutil.copytree(tmp_path / "alone/step-3", tmp_path / "widened/step-3")
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(alone))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(WORKER),
        str(config),
    ]
    runs = [
        ["--", f"out={tmp_path}/ddp", "parallel=ddp", "data.micro_batch_size=2"],
        ["--", f"out={tmp_path}/fsdp2", "parallel=fsdp2", "data.micro_batch_size=2", "checkpoint.background=true"],
        ["--", f"out={tmp_path}/widened", "parallel=fsdp2", "loss.fused=true", "resume=auto"],
        ["--", f"out={tmp_path}/laprop", "parallel=fsdp2", "optimizer.name=laprop", "schedule.steps=3"],
        ["--", f"out={tmp_path}/widened2", "parallel=ddp", f"resume={tmp_path}/alone/step-3"],
    ]
    done = subprocess.run(
        [*launch, *chain(*runs)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("ddp", "fsdp2", "widened", "widened2"):
        for key in ("loss", "elbo", "grad_norm", "val_nelbo"):
            expected = {k: v for k, v in records(alone["out"], key).items() if not name.startswith("widened") or k > 3}
            found = records(tmp_path / name, key)
            assert found.keys() == expected.keys(), (name, key)  # written once, by the main process
            # Sums in another order differ in the last bits, and Adam makes more of that with every step.
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), (name, key)
        for key, value in weights(tmp_path / "alone/step-6").items():
            torch.testing.assert_close(weights(tmp_path / name / "step-6")[key], value, rtol=1e-3, atol=1e-4)
    # Back to one process.
    shutil.copytree(tmp_path / "fsdp2/step-3", tmp_path / "narrowed/step-3")
    fit({**alone, "out": str(tmp_path / "narrowed")}, resume="auto")
    expected = {k: v for k, v in records(alone["out"]).items() if k > 3}
    assert records(tmp_path / "narrowed") == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configuration_is_valid_and_says_how_to_get_its_data(name):
    config = load_config(name, ["data.path=elsewhere"])
    assert config.data.path == "elsewhere"
    config.process.build(1000, 999).validate()
    text = (SHIPPED / f"{name}.yaml").read_text()
    assert f"gidd train {name}" in text
    assert "# gidd data prepare" in text


def test_a_file_goes_before_a_shipped_configuration_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"none of ours .*kjv, latin"):
        load_config("mine")
    Path("kjv").write_text("out: x\nmodel: {preset: tiny}\ndata: {path: a}\nschedule: {steps: 7}\n")
    assert load_config("kjv").schedule.steps == 7
