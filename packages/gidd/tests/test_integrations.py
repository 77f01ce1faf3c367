"""The models in other libraries: the evaluation harness, schedulers, auto classes; and their formulas against ours."""

import json
import math
import socket

import pytest
import torch

import gidd
from gidd.data.tokenizers import char_tokenizer
from gidd.errors import ConfigError
from gidd.hub import save_checkpoint
from gidd.models import DiT, DiTConfig, ScalingConfig, ScalingTransformer
from gidd.pipeline import GiddPipeline
from gidd.process import HybridProcess, MaskedProcess, UniformProcess

CHARS = char_tokenizer()
V, MASK = CHARS.vocab_size, CHARS.mask_id
A, B = CHARS.encode("ab")
PROCESS = HybridProcess(V, MASK, p_uniform=0.2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def alternating(z, t):
    """Logits of a model that knows one language: 'a' at even places and 'b' at odd ones."""
    logits = torch.zeros(*z.shape, V)
    logits[:, 0::2, A] = 12.0
    logits[:, 1::2, B] = 12.0
    return logits


def neighbours(z, t, size=V):
    """Some function of the tokens nearby and the time."""
    near = (z + 0.5 * z.roll(1, 1)).float()
    return torch.cos(near[..., None] * torch.arange(1.0, size + 1)) * (1 - t[:, None, None] / 2)


def network(kind="dit", vocab_size=V, length=16):
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "hidden": 32, "layers": 2, "max_seq_len": length, "pad_vocab_to": 8}
    if kind == "dit":
        model = DiT(DiTConfig(heads=2, **sizes))
    else:
        model = ScalingTransformer(ScalingConfig(head_dim=16, **sizes))
    for parameter in model.parameters():  # heads and gates start at zero: a model that says something
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def same_law(ids, law):
    """Whether ids (n,) may be draws from law (V,): a chi-square test at 5 standard deviations, roughly."""
    expected = law * len(ids)
    possible = expected > 0
    counts = torch.bincount(ids, minlength=len(law)).double()
    assert int(counts[~possible].sum()) == 0
    statistic = float(((counts - expected)[possible].square() / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    return statistic < freedom + 5 * math.sqrt(2 * freedom) + 5


# --- lm_eval ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from gidd.integrations.lm_eval import GiddLM

    return GiddLM


def ask(lm, kind, *arguments):
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type=kind, doc={}, arguments=given, idx=i) for i, given in enumerate(arguments)]
    return getattr(lm, kind)(requests)


def pipeline(model=neighbours, process=PROCESS, length=16):
    return GiddPipeline(model, process, CHARS, length)


TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{best}}",
        "metric_list": [{"metric": "acc"}],
    },
    "likelihood": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{options[best]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["bab"], "max_gen_toks": 6, "steps": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
}
DOCUMENTS = [
    {"q": "abab", "options": ["ab", "ba"], "best": 0, "text": "ababab", "answer": "a"},
    {"q": "ababa", "options": ["ab", "ba"], "best": 1, "text": "abababab" * 4, "answer": ""},
    {"q": "ab", "options": ["xa", "ya", "ab", "bb"], "best": 2, "text": "ab", "answer": "a"},
]


def test_the_harness_evaluates_local_tasks_offline(harness, tmp_path, monkeypatch):
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    def refuse(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "toy.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        # JSON is YAML.
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, "target_delimiter": "", **source, **task}))
    lm = harness(pipeline(alternating), num_times=8)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(lm, tasks=[*TASKS], task_manager=manager, bootstrap_iters=0)["results"]
    assert found["choice"]["acc,none"] == 1.0
    assert found["likelihood"]["acc,none"] == 1.0
    assert 1.0 < found["likelihood"]["perplexity,none"] < 1.5
    assert found["writing"]["exact_match,none"] == 1.0
    texts = [document["text"] for document in DOCUMENTS]
    nats = -sum(ask(lm, "loglikelihood_rolling", *[(text,) for text in texts]))
    assert found["rolling"]["byte_perplexity,none"] == pytest.approx(math.exp(nats / sum(map(len, texts))))


def test_the_context_is_shown_clean_only_to_models_that_know_it(harness, tmp_path):
    assert harness(pipeline(network())).mode == "joint"
    assert harness(pipeline(network("scaling"))).mode == "conditional"
    assert harness(pipeline(network()), p_prompt=0.2).mode == "conditional"
    assert harness(pipeline(network("scaling")), mode="joint").mode == "joint"
    with pytest.raises(ConfigError, match="not trained on"):
        harness(pipeline(network()), mode="conditional")
    with pytest.raises(ConfigError, match="not trained on"):
        harness(pipeline(network("scaling")), mode="conditional", p_prompt=0.0)
    # A checkpoint of the trainer says it itself.
    save_checkpoint(tmp_path / "c", network("scaling"), PROCESS, CHARS)
    assert harness(tmp_path / "c", device="cpu").mode == "conditional"
    state = {"step": 1, "samples": 1, "config": {"loss": {"p_prompt": 0.0}}}
    (tmp_path / "c" / "trainer_state.json").write_text(json.dumps(state))
    assert harness(tmp_path / "c", device="cpu").mode == "joint"


def test_the_harness_makes_the_model_from_a_string(harness, tmp_path):
    from lm_eval.api.registry import get_model

    save_checkpoint(tmp_path / "c", network(), PROCESS, CHARS)
    lm = get_model("gidd").create_from_arg_string(
        f"pretrained={tmp_path / 'c'},num_times=4,boundary=False", {"batch_size": "auto", "device": "cpu"}
    )
    assert (lm.num_times, lm.boundary, lm.batch_size, lm.max_length) == (4, False, 32, 16)
    assert ask(lm, "loglikelihood", ("in the", " be"))[0][0] < 0


def test_a_joint_value_is_the_difference_of_two_bounds(harness):
    lm = harness(pipeline(), num_times=8000, batch_size=8000)
    ((value, _),) = ask(lm, "loglikelihood", ("in the", " beg"))
    want, variance = 0.0, 0.0
    for text, sign in (("in the", 1), ("in the beg", -1)):
        x = torch.tensor([CHARS.encode(text)]).expand(20, -1)
        out = gidd.elbo(neighbours, x, PROCESS, num_times=400, generator=seeded())
        want += sign * float(out.nelbo.mean())
        variance += 2 * float(out.stderr.square().mean()) / 20  # theirs and ours
    assert math.sqrt(variance) < 0.04 * abs(want)
    assert value == pytest.approx(want, abs=4 * math.sqrt(variance))


def test_a_conditional_value_is_the_bound_of_the_continuation(harness):
    model = network("scaling")
    lm = harness(pipeline(model), num_times=256, batch_size=256)
    ((value, _),) = ask(lm, "loglikelihood", ("in the", " beg"))
    x = torch.tensor([CHARS.encode("in the beg")]).expand(4, -1)
    given = (torch.arange(10) < 6).expand(4, -1)
    out = gidd.elbo(
        lambda z, t: model(z, t, clean=given), x, PROCESS, num_times=256, loss_mask=~given, generator=seeded()
    )
    error = float(out.stderr.mean()) * math.sqrt(1 + 1 / 4)
    assert error < 0.05 * abs(value)
    assert value == pytest.approx(-float(out.nelbo.mean()), abs=4 * error)
    # No bound of a model that sees all from all: the clean tokens look at clean tokens only.
    assert not torch.allclose(model(x, None, clean=given), model(x, None), atol=0.1)


@pytest.mark.parametrize("mode", ["joint", "conditional"])
def test_the_options_of_a_context_see_the_same_noise(harness, mode):
    seen = []

    def watched(z, t):
        seen.append((z.clone(), t.clone()))
        return neighbours(z, t)

    def noise_of(context, option):
        """Times (n,) and where noise has replaced a token (n, L), of the integrand at 24 times and the tail."""
        seen.clear()
        lm = harness(pipeline(watched), num_times=24, mode=mode, p_prompt=0.2 if mode == "conditional" else None)
        ask(lm, "loglikelihood", (context, option))
        x = torch.tensor(CHARS.encode(context + option))
        z, t = next((z, t) for z, t in seen if z.shape[1] == len(x))
        return t, z != x

    (t, short), (t_long, long) = noise_of("in the", " beg"), noise_of("in the", " heaven")
    assert len(t) == 25
    assert torch.equal(t, t_long)
    assert torch.equal(short[:, :6], long[:, :6])
    # A token of the other option may be what the noise puts there.
    assert int((short[:, 6:] != long[:, 6:10]).sum()) <= 3
    assert bool(short[:, :6].any()) == (mode == "joint")
    assert bool(short[:, 6:].any())
    _, other = noise_of("at the", " beg")
    assert int((short != other).sum()) > 10


def test_prompts_are_clean_for_models_that_know_them(harness):
    model = network("scaling")
    prompt, clean = torch.tensor(CHARS.encode("in the")), (torch.arange(12) < 6)[None]
    models = {"conditional": lambda z, t: model(z, t, clean=clean), "joint": model}
    found = []
    for mode, called in models.items():
        lm = harness(pipeline(model), mode=mode, num_inference_steps=6, seed=2)
        found += ask(lm, "generate_until", ("in the", {"max_gen_toks": 6, "do_sample": True}))
        want = gidd.sample(called, PROCESS, (1, 12), 6, prompt=prompt, generator=seeded(2)).tokens
        assert f"in the{found[-1]}" == CHARS.decode(want[0].tolist())
    assert found[0] != found[1]


def test_harness_results_do_not_depend_on_the_batch(harness):
    pairs = [("in the ", "beg"), ("in the ", "heaven"), ("", "god"), ("let ", "there be"), ("in the ", "beg")]
    texts = [("in the beginning god created the heaven",), ("",), ("and",)]
    small, large = (harness(pipeline(network()), num_times=6, batch_size=b, num_inference_steps=3) for b in (2, 64))
    for a, b in zip(ask(small, "loglikelihood", *pairs), ask(large, "loglikelihood", *pairs), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    ours = ask(small, "loglikelihood_rolling", *texts)
    assert ours == pytest.approx(ask(large, "loglikelihood_rolling", *texts), rel=1e-5)
    assert ours[1] == 0.0
    short = {"max_gen_toks": 5}
    jobs = [("in the ", {"until": [" "], "do_sample": True}), ("let ", short), ("and ", short)]
    assert ask(small, "generate_until", *jobs) == ask(large, "generate_until", *jobs)


def test_greedy_says_whether_filling_masks_gives_the_continuation(harness):
    lm = harness(pipeline(alternating), num_times=2)
    found = ask(lm, "loglikelihood", ("ab", "abab"), ("ab", "abaa"), ("", "ab"), ("xy", "ab"))
    assert [greedy for _, greedy in found] == [True, False, True, True]
    plain = harness(GiddPipeline(alternating, UniformProcess(V), CHARS, 16), num_times=2)
    assert not ask(plain, "loglikelihood", ("ab", "abab"))[0][1]


def test_generated_text_follows_the_prompt_and_stops(harness):
    lm = harness(pipeline(alternating), num_inference_steps=4)
    settings = {"until": ["ba"], "max_gen_toks": 5}
    assert ask(lm, "generate_until", ("ab", settings), ("aba", settings)) == ["a", ""]
    assert ask(lm, "generate_until", ("ab", {"until": "x", "max_gen_toks": 5})) == ["ababa"]
    # A context that leaves no room loses its beginning.
    (text,) = ask(lm, "generate_until", ("ab" * 40, {"max_gen_toks": 4}))
    assert text == "abab"
    free = harness(pipeline(network()), num_inference_steps=3, seed=5)
    (text,) = ask(free, "generate_until", ("god ", {"max_gen_toks": 6, "do_sample": True, "temperature": 0.7}))
    assert f"god {text}" == free.pipeline.generate(1, 3, prompts="god ", length=10, seed=5, temperature=0.7)[0]


def test_the_harness_model_names_what_it_cannot_use(harness):
    with pytest.raises(ConfigError, match="mode 'both'"):
        harness(pipeline(), mode="both")
    with pytest.raises(ConfigError, match="num_times has to be positive"):
        harness(pipeline(), num_times=0)
    lm = harness(pipeline(), num_times=2)
    with pytest.raises(ValueError, match="17 tokens; the model takes 16"):
        ask(lm, "loglikelihood", ("in", "a" * 17))
    with pytest.raises(ValueError, match="has no tokens"):
        ask(lm, "loglikelihood", ("", ""))
    # The beginning of a long context is lost, and the continuation judged.
    assert ask(lm, "loglikelihood", ("a" * 40, "beg"))[0][0] < 0


# --- diffusers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduler():
    pytest.importorskip("diffusers")
    from gidd.integrations.diffusers import GiddScheduler

    return GiddScheduler


def run(scheduler, model, steps, shape, generator):
    scheduler.set_timesteps(steps)
    z = scheduler.init_sample(shape, generator=generator)
    for t in scheduler.timesteps:
        z = scheduler.step(model(z, scheduler.time_input(t, len(z))), t, z).prev_sample
    return z


@pytest.mark.parametrize(
    "options", [{}, {"grid": "cosine", "temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"min_prob": 0.01}], ids=repr
)
@pytest.mark.parametrize("process", [PROCESS, MaskedProcess(V, MASK), UniformProcess(V)], ids=repr)
def test_stepping_is_sampling(scheduler, process, options):
    drawn = run(scheduler(process.to_dict(), **options), neighbours, 6, (3, 8), seeded(4))
    want = gidd.sample(neighbours, process, (3, 8), 6, generator=seeded(4), **options).tokens
    assert torch.equal(drawn, want)


def test_a_scheduler_starts_anew(scheduler):
    ours = scheduler(PROCESS.to_dict())
    ours.set_timesteps(4)
    start = PROCESS.prior_sample((2, 8), seeded())

    def steps(seed):
        z = start
        for t in ours.timesteps:
            z = ours.step(neighbours(z, ours.time_input(t, 2)), t, z, generator=seeded(seed)).prev_sample
        return z

    first = steps(1)
    assert torch.equal(steps(1), first)
    assert not torch.equal(steps(2), first)


def test_a_scheduler_survives_its_configuration_file(scheduler, tmp_path):
    before = scheduler(PROCESS.to_dict(), grid="power:2", temperature=0.8)
    before.save_pretrained(tmp_path)
    after = scheduler.from_pretrained(tmp_path)
    assert after.process == PROCESS
    assert torch.equal(*(run(s, neighbours, 5, (2, 8), seeded()) for s in (before, after)))


def test_added_noise_has_the_marginals_of_the_process(scheduler):
    process, n = HybridProcess(6, 5, p_uniform=0.3), 40_000
    ours = scheduler(process.to_dict())
    x = torch.full((n, 1), 2)
    for t in (0.1, 0.6):
        law = process.marginal(torch.tensor(2), torch.tensor(t).double())
        uniform = torch.rand(3, n, 1, dtype=torch.float64, generator=seeded(1))
        assert same_law(ours.add_noise(x, None, t, seeded())[:, 0], law)
        assert same_law(ours.add_noise(x, uniform, torch.full((n,), t))[:, 0], law)
    assert not same_law(ours.add_noise(x, None, 0.3, seeded())[:, 0], law)


def test_a_scheduler_names_what_it_cannot_use(scheduler):
    ours = scheduler(PROCESS.to_dict())
    z = torch.zeros(2, 4, dtype=torch.long)
    logits = torch.zeros(2, 4, V)
    with pytest.raises(ValueError, match="set_timesteps before"):
        ours.step(logits, 1.0, z)
    with pytest.raises(ValueError, match="positive integer"):
        ours.set_timesteps(0)
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match=r"timestep 0\.3 is none"):
        ours.step(logits, 0.3, z)
    with pytest.raises(ValueError, match="Vp >= 29"):
        ours.step(logits[..., :5], 1.0, z)
    for noise in (None, torch.rand(3, 2, 4).double()):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            ours.add_noise(z, noise, 1.5)
    with pytest.raises(ValueError, match="noise has shape"):
        ours.add_noise(z, torch.rand(2, 4), 0.5)


def test_the_uniform_posterior_is_that_of_diffusers(monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "DiscreteDDIMScheduler"):
        pytest.skip("this diffusers has no DiscreteDDIMScheduler")
    K, steps, n = 5, 4, 20_000
    process, theirs = UniformProcess(K), diffusers.DiscreteDDIMScheduler(num_inference_steps=steps)
    theirs.set_timesteps(steps)
    for k in range(steps):
        t, s = (torch.tensor(1 - (k + i) / steps, dtype=torch.float64) for i in (0, 1))
        for z, x in ((2, 2), (2, 4)):
            # Given a clean token for certain: x_theta is the token itself.
            logits = torch.full((n, 1, K), -1e4).index_fill(-1, torch.tensor([x]), 0.0)
            drawn = theirs.step(logits, k, torch.full((n, 1), z), generator=seeded(k)).prev_sample
            law = process.posterior(torch.tensor(z), torch.eye(K, dtype=torch.float64)[x], s, t)
            assert same_law(drawn[:, 0], law), (k, z, x)


# --- flow_matching ----------------------------------------------------------------------------------------------------


def test_without_uniform_noise_the_loss_is_the_generalised_kl_of_flow_matching():
    pytest.importorskip("flow_matching")
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler

    process = HybridProcess(V, MASK, p_uniform=0.0)
    x = torch.randint(MASK, (4, 12), generator=seeded())
    t = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
    z = process.q_sample(x, t, seeded(1))
    assert bool((z == MASK).any())
    assert bool((z != MASK).any())
    logits = torch.randn(4, 12, V, dtype=torch.float64, generator=seeded(2))
    # Theirs takes a model that puts nothing on the mask and leaves visible tokens as they are.
    carried = logits.index_fill(-1, torch.tensor([MASK]), -torch.inf)
    visible = torch.full_like(carried, -torch.inf).scatter(-1, z[..., None], 0.0)
    carried = torch.where((z == MASK)[..., None], carried, visible)
    theirs = MixturePathGeneralizedKL(MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0)), reduction="none")
    want = theirs(carried, x, z, 1 - t)  # their time runs from noise to data
    ours = gidd.gidd_loss(logits, x, z, t, process, weighting="none", reduction="none").elbo
    torch.testing.assert_close(ours.double(), want, rtol=1e-6, atol=1e-12)


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dit", "scaling"])
def test_auto_classes_load_what_was_saved(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from gidd.integrations.transformers import GiddForMaskedLM, register

    register()
    register()
    ours = network(kind)
    save_checkpoint(tmp_path / "ours", ours, PROCESS, CHARS)
    GiddForMaskedLM.from_checkpoint(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "theirs")
    assert (config.architecture, config.vocab_size, config.mask_token_id) == (kind, V, MASK)
    z = PROCESS.q_sample(torch.randint(MASK, (3, 10), generator=seeded()), torch.tensor([0.2, 0.5, 0.9]), seeded(1))
    share = (z == MASK).float().mean(1)
    want = ours(z, share.clamp(1e-4, 1 - 1e-4))[..., :V]
    for auto in (transformers.AutoModel, transformers.AutoModelForMaskedLM):
        model = auto.from_pretrained(tmp_path / "theirs")
        assert model.process == PROCESS
        assert not model.training
        with torch.no_grad():
            logits = model(input_ids=z).logits
            late = model(z, torch.full((3,), 0.99), torch.ones_like(z)).logits
        torch.testing.assert_close(logits[..., :MASK], want[..., :MASK], rtol=1e-5, atol=1e-6)
        assert bool((logits[..., MASK] == -torch.inf).all())
        assert torch.equal(late[..., :MASK], logits[..., :MASK]) == (kind == "scaling")  # which looks at no time
    with pytest.raises(ConfigError, match=r"gidd\.gidd_loss"):
        model(z, labels=z)
    with pytest.raises(ConfigError, match="describes no model"):
        GiddForMaskedLM(transformers.AutoConfig.for_model("gidd-diffusion"))
    with pytest.raises(ConfigError, match="architecture 'rnn'"):
        transformers.AutoConfig.for_model("gidd-diffusion", architecture="rnn")
