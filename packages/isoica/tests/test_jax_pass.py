import os
import subprocess
import sys

import numpy as np
import pytest

from isoica import PerturbedICA
from isoica.contrasts import BUILT_IN, LOGCOSH, Contrast
from isoica.datasets import make_sources
from isoica.solvers import numpy_pass, polar_factor
from isoica.whitening import white_chunks

jax_pass = pytest.importorskip("isoica.jax_pass").jax_pass
LAWS = ["uniform", "laplace", "exponential"]


def data(n=2003, weighted=False, dtype="float64", batch_size=None):
    S = make_sources(n, LAWS, 0)
    w = np.random.default_rng(1).uniform(size=n) if weighted else None
    return white_chunks(S, np.zeros(3), np.eye(3), w, dtype, batch_size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("names", [["logcosh"] * 2, ["gauss", "cube"], ["skew", "logcosh"]])
def test_equals_the_numpy_pass(weighted, keep, names):
    W = polar_factor(np.random.default_rng(2).normal(size=(3, 3)))[:2]
    contrasts, chunks = [BUILT_IN[name] for name in names], data(weighted=weighted, batch_size=900)
    for ours, theirs in zip(jax_pass(chunks, keep=keep)(W, contrasts), numpy_pass(chunks)(W, contrasts), strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_single_precision_sums_blocks_in_double():
    chunks = data(200_000)
    one = jax_pass(chunks, "float32")(np.eye(3), [LOGCOSH] * 3)
    two = numpy_pass(chunks)(np.eye(3), [LOGCOSH] * 3)
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-7)


def test_contrasts_of_the_user_take_the_numpy_pass():
    mine = Contrast(LOGCOSH.G, LOGCOSH.g, LOGCOSH.dg, 1.0, "mine")
    for ours, theirs in zip(
        jax_pass(data())(np.eye(3), [mine] * 3), numpy_pass(data())(np.eye(3), [mine] * 3), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"algorithm": "deflation"}, {"batch_size": 3000}, {"contrast": "minimax"}])
def test_fits_agree_between_backends(options):
    X = make_sources(9000, LAWS, 3) @ np.random.default_rng(4).normal(size=(3, 3))
    one, two = (
        PerturbedICA(backend=backend, tol=1e-10, random_state=0, **options).fit(X) for backend in ("numpy", "jax")
    )
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-8)


def test_two_devices_equal_one_and_no_global_setting_changes():
    code = """
import jax, numpy as np
from isoica import PerturbedICA
from isoica.datasets import make_sources
X = make_sources(9001, ["uniform", "laplace", "exponential"], 3)
m = PerturbedICA(backend="jax", tol=1e-10, random_state=0).fit(X)
assert not jax.config.jax_enable_x64
print(len(jax.devices()), *m.components_.ravel().tolist())
"""
    found = {}
    for devices in (1, 2):
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
        out = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **flags}, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        count, *values = out.stdout.split()
        assert int(count) == devices
        found[devices] = np.array(values, dtype=float)
    np.testing.assert_allclose(found[1], found[2], atol=1e-10)
