"""One update, with generators and ratios simple enough to know the answer: linear maps and Gaussians.

No network here: what is tested is the machinery that all methods share.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import onestep_diffusion as osd
from onestep_diffusion import update as module
from onestep_diffusion.generator import per_sample
from onestep_diffusion.update import Method, Optimisation, Pool, Row, knobs_for

MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.2, 0.1], [0.1, 0.3]])
N = 64
LEVELS = (2.5, 0.4)


def rows(n=4000, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, n).astype(np.float32)


POOL = Pool(jnp.asarray(rows()), None, jnp.float32(0), jnp.float32(1))


def linear(params, x, sigma, labels):
    """A generator that has weights of its own for each of the two levels."""
    first = per_sample(sigma == LEVELS[0], x)
    ways = [x @ params[name]["a"].T + params[name]["b"] for name in ("one", "two")]
    return jnp.where(first, *ways)


def params_at(scale=0.2):
    return {name: {"a": scale * jnp.eye(2), "b": jnp.zeros(2)} for name in ("one", "two")}


def exact_ratio_method(omega="sigma"):
    """aux holds the moments of the student's batch; the ratio of the two Gaussians is then a quadratic."""

    def moments(x):
        return {"mean": x.mean(0), "cov": jnp.cov(x.T)}

    def aux_loss(aux, frozen, draws, student):
        found = moments(student)
        gap = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), aux, found)
        return sum(jax.tree.leaves(gap)), {}

    def field(aux, frozen, x, draws):
        def log_r(x_sigma, sigma):
            def log_density(at, level, mean, cov):
                return jax.scipy.stats.multivariate_normal.logpdf(at, mean, cov + level**2 * jnp.eye(2))

            own = jax.lax.stop_gradient(moments(x))
            each = jax.vmap(log_density, (0, 0, None, None))
            data = each(x_sigma, sigma, jnp.asarray(MEAN), jnp.asarray(COVARIANCE))
            return data - each(x_sigma, sigma, own["mean"], own["cov"])

        return osd.ratio_field(log_r, x + per_sample(draws.sigma, x) * draws.noise_student, draws.sigma, omega=omega)

    return Method(aux_loss, field)


def program(cfg, levels=LEVELS[:1], divergences=None, method=None, **how):
    given = {"warmup": 0, "schedule": "constant", "halflife": 1000.0, "ramp": 0.05, "head_steps": 0} | how
    plan = Optimisation(cfg.batch_size, cfg.micro_batch, cfg.steps, **given)
    law = osd.LogNormal()
    chosen = divergences or [Row(osd.divergence("rkl"), None, "none")]
    step = module.student_update(cfg, method or exact_ratio_method(), linear, chosen, levels, (law, law), plan)
    return step, plan


def start(plan, params, lr=0.01, seed=0, **knobs):
    aux = {"mean": jnp.zeros(2), "cov": jnp.eye(2)}
    own = knobs_for(params, lr)._replace(aux_lr=jnp.float32(0.01), **knobs)
    return module.init_state(jax.random.key(seed), params, aux, plan, own)


def config(**settings):
    return osd.StudentConfig(**({"batch_size": N, "aux_updates": 1, "steps": 600} | settings))


def test_samples_of_one_and_of_two_evaluations_together_have_the_datas_law():
    """The few-step option. One ratio sees both, so it is their mixture that is fitted."""
    step, plan = program(config(batch_size=256, few_steps=2), LEVELS)
    state, _ = module.compile_update(step)(start(plan, params_at()), POOL, {}, length=600)
    p = jax.tree.map(np.asarray, state.ema)
    once = LEVELS[0] ** 2 * p["one"]["a"] @ p["one"]["a"].T
    # The second evaluation sees the first one's samples, noised again.
    twice = p["two"]["a"] @ (once + LEVELS[1] ** 2 * np.eye(2)) @ p["two"]["a"].T
    means = p["one"]["b"], p["two"]["a"] @ p["one"]["b"] + p["two"]["b"]
    np.testing.assert_allclose(sum(means) / 2, MEAN, atol=0.03)
    second = sum(cov + np.outer(mean, mean) for cov, mean in zip((once, twice), means, strict=True)) / 2
    np.testing.assert_allclose(second - np.outer(MEAN, MEAN), COVARIANCE, atol=0.03)
    assert np.linalg.norm(p["two"]["a"] - params_at()["two"]["a"]) > 0.1


def run(cfg, length=3, **options):
    knobs = options.pop("knobs", {})
    step, plan = program(cfg, **options)
    return module.compile_update(step)(start(plan, params_at(), **knobs), POOL, {}, length=length)


def assert_near(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def frozen_ratio_method():
    """A ratio of one known quadratic: samples do not see each other, so a batch may be cut."""

    def aux_loss(aux, frozen, draws, student):
        return jnp.mean(jnp.sum((student - aux["mean"]) ** 2, axis=1)), {}

    def field(aux, frozen, x, draws):
        noised = x + per_sample(draws.sigma, x) * draws.noise_student
        return osd.ratio_field(lambda x, sigma: jnp.sum(x, 1) - jnp.sum(x**2, 1) / (1 + sigma), noised, draws.sigma)

    return Method(aux_loss, field)


@pytest.mark.parametrize("norm", ["batch", "sigma_bin"])
def test_a_batch_in_pieces_makes_the_same_update(norm):
    """Also where weights are divided by means over the whole batch, and samples start from other levels."""
    options = {
        "method": frozen_ratio_method(),
        "divergences": (Row(osd.divergence("fkl"), None, norm),),
        "levels": LEVELS,
    }
    whole, of_whole = run(config(few_steps=2, normalize="unit"), **options)
    pieces, of_pieces = run(config(few_steps=2, normalize="unit", micro_batch=16), **options)
    assert_near(whole.params, pieces.params)
    assert_near(whole.aux, pieces.aux)
    assert_near(of_whole, of_pieces, rtol=1e-4)


def test_shared_latents_reach_the_second_network():
    """One batch serves all updates of a step: the second network sees the very samples that the field is taken at."""
    seen = []

    def note(name, x):
        jax.debug.callback(lambda x: seen.append((name, np.asarray(x))), x)

    def aux_loss(aux, frozen, draws, student):
        note("aux", student)
        return jnp.mean((aux["mean"] - student.mean(0)) ** 2), {}

    def field(aux, frozen, x, draws):
        note("field", x)
        return osd.Field(jnp.zeros_like(x), None, jnp.ones(len(x)))

    for share in (True, False):
        seen.clear()
        run(config(share_latents=share, aux_updates=2), 1, method=Method(aux_loss, field))
        jax.effects_barrier()
        of_field = next(x for name, x in seen if name == "field")
        of_aux = [x for name, x in seen if name == "aux"]
        assert len(of_aux) == 2
        assert [np.array_equal(x, of_field) for x in of_aux] == [share, share]


def test_frozen_parameters_stay_and_fresh_ones_go_first():
    fresh = {"one": {"a": 1.0, "b": 0.0}, "two": {"a": 0.0, "b": 0.0}}
    gain = {"one": {"a": 1.0, "b": 1.0}, "two": {"a": 0.0, "b": 0.0}}
    knobs = {
        "gain": jax.tree.map(jnp.float32, gain),
        "head_gain": jax.tree.map(lambda new: jnp.float32(module.HEAD_GAIN * new), fresh),
    }
    step, plan = program(config(), head_steps=2)
    run_one = module.compile_update(step)
    before = params_at()
    state = start(plan, before, **knobs)
    for update in range(3):
        state, _ = run_one(state, POOL, {}, length=1)
        moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), state.params, before)
        assert moved["one"] == {"a": True, "b": update == 2}
        assert moved["two"] == {"a": False, "b": False}


def test_the_average_follows_its_halflife_and_its_ramp():
    step, plan = program(config(), halflife=1e9, ramp=0.05)
    run_one = module.compile_update(step)
    state = start(plan, params_at())
    average = np.asarray(state.params["one"]["a"], float)
    for update in range(4):
        state, _ = run_one(state, POOL, {}, length=1)
        keep = 0.5 ** (1 / (0.05 * (update + 1)))  # half-life: a twentieth of the images seen
        average = keep * average + (1 - keep) * np.asarray(state.params["one"]["a"], float)
        np.testing.assert_allclose(state.ema["one"]["a"], average, rtol=1e-5)


def test_learning_rates_rise_linearly_and_fall_as_a_cosine():
    plan = Optimisation(N, None, 100, 10, "cosine", 1.0, 0.0)
    rate = [float(plan.rate(jnp.int32(step))) for step in range(101)]
    np.testing.assert_allclose(
        rate[:9], np.arange(1, 10) / 10 * (1 + np.cos(np.pi * np.arange(9) / 100)) / 2, rtol=1e-5
    )
    assert rate[50] == pytest.approx(0.5)
    assert rate[100] == pytest.approx(0, abs=1e-6)
    assert float(plan._replace(schedule="constant").rate(jnp.int32(90))) == 1


def test_a_field_that_is_not_finite_is_counted_and_moves_nothing():
    def field(aux, frozen, x, draws):
        v = jnp.where(jnp.arange(len(x))[:, None] < 3, jnp.nan, 1.0)
        return osd.generator.Field(jnp.broadcast_to(v, x.shape), None, jnp.ones(len(x)))

    method = Method(lambda aux, frozen, draws, student: (jnp.sum(aux["mean"] ** 2), {}), field)
    state, metrics = run(config(), method=method)
    assert float(metrics["nonfinite"]) == pytest.approx(3 / N)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema)))
    assert (np.asarray(state.params["one"]["b"]) < 0).all()  # against the field


def test_alpha_goes_linearly_from_one_end_to_the_other():
    log_r, sigma = jnp.linspace(-3, 3, 16), jnp.ones(16)
    row = Row(osd.divergence("alpha", alpha=1.0), 0.0, "batch")
    state = start(program(config())[1], params_at())
    for step, alpha in ((0, 1.0), (25, 0.75), (100, 0.0)):
        now = state._replace(step=jnp.int32(step))
        found = module._weights([row], log_r, sigma, now, 101, 10.0)
        wanted = np.exp(alpha * np.asarray(log_r))
        np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=1e-5)


def test_every_run_has_the_weight_of_its_own_divergence():
    log_r, sigma = jnp.linspace(-3, 3, 16), jnp.ones(16)
    names = ("rkl", "fkl", "js")
    program_rows = [Row(osd.divergence(name), None, "none") for name in names]
    state = start(program(config())[1], params_at())
    for index, name in enumerate(names):
        own = state._replace(knobs=state.knobs._replace(row=jnp.int32(index)))
        found = module._weights(program_rows, log_r, sigma, own, 100, 2.0)
        np.testing.assert_allclose(found, osd.divergence(name).weight(jnp.clip(log_r, -2, 2)), rtol=1e-6)


def test_draws_do_not_depend_on_each_other_and_labels_have_the_datas_law():
    labels = jnp.asarray(np.repeat([0, 1], [3000, 1000]))
    pool = POOL._replace(labels=labels, shift=jnp.float32(0.3), scale=jnp.float32(2))
    draws = module.draw(jax.random.key(0), pool, 4000, osd.LogNormal(), lambda tree: tree)
    numbers = [draws.data, draws.latent, draws.noise_data, draws.noise_student, draws.u[:, :2], draws.u[:, 2:]]
    columns = np.concatenate([np.asarray(x) for x in numbers] + [np.log(draws.sigma)[:, None]], axis=1)
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    correlation[:2, :2] = 0  # the data's own
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)
    for y in (draws.data_labels, draws.student_labels):
        assert np.mean(y) == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert np.corrcoef(draws.data_labels, draws.student_labels)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(4000))
    np.testing.assert_allclose(np.asarray(draws.data).mean(0), (MEAN - 0.3) / 2, atol=0.05)


def test_metrics_by_noise_level_are_means_within_equally_likely_bins():
    law = osd.LogUniform(0.1, 10.0)
    sigma = law.sample(jax.random.key(0), (1000,))
    values = jnp.log(sigma)
    sums = module._by_bin(values, sigma, law)
    np.testing.assert_allclose(np.asarray(sums[:, 1]).sum(), 1000)
    assert np.abs(np.asarray(sums[:, 1]) - 200).max() < 5 * np.sqrt(200)
    edges = np.quantile([np.log(0.1), np.log(10)], np.linspace(0, 1, module.BINS + 1))
    wanted = [np.mean(values[(values >= a) & (values < b)]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(module._over_updates("x_bins", sums[None]), wanted, rtol=1e-3)
