"""The Triton kernel against the chunked closed form: on CPU in Triton's interpreter, and on CUDA where there is one."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from gidd import fused_linear_gidd_loss, gidd_loss
from gidd.loss.closed_form import Vocabulary, divergences, token_terms
from gidd.process import HybridProcess, MaskedProcess, MixtureProcess, SNRProcess, UniformProcess

V, MASK = 77, 31  # the mask in the middle, V no multiple of a tile


def mixture(mask_id):
    def noise(share):
        return lambda t: share * t * (1 - t if mask_id is not None else 1)

    u = (torch.arange(V) % 5).double()  # a fifth of the tokens has no noise in the first measure
    v = torch.ones(V).double()
    if mask_id is None:
        return MixtureProcess(V, lambda t: 1 - t, [noise(0.3), noise(0.7)], [u, v])
    u[mask_id] = v[mask_id] = 0.0
    v[: V // 2] = 0.0
    mask = torch.eye(V)[mask_id]
    return MixtureProcess(V, lambda t: 1 - t, [lambda t: t * t, noise(0.3), noise(0.7)], [mask, u, v], mask_id)


PROCESSES = {
    "hybrid": lambda: HybridProcess(V, MASK, 0.2),
    "hybrid, mask last": lambda: HybridProcess(V, V - 1, 0.1, gamma=2.0),
    "masked": lambda: MaskedProcess(V, MASK),
    "masked, mask first": lambda: MaskedProcess(V, 0),
    "uniform": lambda: UniformProcess(V),
    "snr": lambda: SNRProcess(V, MASK),
    "faint": lambda: HybridProcess(V, MASK, 1e-19),
    "vectors": lambda: mixture(MASK),
    "vectors, no mask": lambda: mixture(None),
    "two tokens": lambda: HybridProcess(2, 0, 0.1),
}
LOGITS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def tokens(process, n, generator):
    """Ids with z = x, z = mask and other z, and times down to 1e-6 from either end."""
    x = torch.randint(process.vocab_size, (n,), generator=generator)
    if process.mask_id is not None:
        x = torch.where(x == process.mask_id, (x + 1) % process.vocab_size, x)
    t = torch.rand(n, dtype=torch.float64, generator=generator)
    t[:4] = torch.tensor([1e-6, 1 - 1e-6, 1e-3, 1 - 1e-3])
    z = process.q_sample(x, t, generator)
    z[4::3] = x[4::3]
    return x, z, t


def compare(name, dtype, device):
    """Largest errors, as multiples of what is allowed, and what has to be exact."""
    from gidd.loss.kernels import triton_divergences

    generator = torch.Generator().manual_seed(0)
    process, n = PROCESSES[name](), 14
    size = process.vocab_size
    x, z, t = tokens(process, n, generator)
    width = size + 19
    logits = 3 * torch.randn(n, width, generator=generator)
    logits[5:8] = logits[5:8].sign() * 80
    logits[8] = 0.0
    logits[:, size:] = 1e4
    if process.mask_id is not None:
        logits[:, process.mask_id] = 1e4
    logits = logits.to(LOGITS[dtype])
    terms = token_terms(x, z, t, process, "dynamic", 1.0)
    factor = terms.weight.clone()
    factor[9] = 0.0
    expected = torch.empty(n, width, dtype=torch.float64)
    scratch = torch.empty(2, n, width, dtype=torch.float64)
    vocabulary = Vocabulary.of(process, torch.device("cpu"))
    kl, is_div = divergences(logits.double(), terms, vocabulary, scratch, expected, factor)

    def run(logits, out):
        there = type(terms)(*(v.to(device) for v in terms))
        return triton_divergences(logits, there, Vocabulary.of(process, torch.device(device)), out, factor.to(device))

    before = logits.to(device)
    values = run(before, None)
    wide = torch.float64 if dtype == "float64" else torch.float32
    out = torch.full((n, width), torch.nan, dtype=wide, device=device)
    again = run(before, out)
    inplace = before.clone()
    run(inplace, inplace)
    # Other strides: columns apart, rows of a larger tensor.
    apart = torch.empty(width, 2 * n, dtype=before.dtype, device=device)[:, ::2].T
    apart.copy_(before)
    away = torch.full((n, 3 + width), torch.nan, dtype=wide, device=device)
    run(apart, away[:, 3:])

    tight = 1e-4 if dtype == "float64" else 1.0
    size_of_terms = factor * (1 + kl + is_div)  # large terms may cancel in the gradient of a saturated token
    allowed = 1e-4 * expected.abs().amax(1) + 1e-6 * size_of_terms
    error = (out.cpu().double() - expected).abs().amax(1)
    rounded = out.to(inplace.dtype)
    if device == "cpu" and dtype == "bfloat16":  # the interpreter cuts digits off where a GPU rounds to nearest
        rounded = (out.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    hidden = [out[:, size:], inplace[:, size:]]
    if process.mask_id is not None:
        hidden += [out[:, process.mask_id], inplace[:, process.mask_id]]
    return {
        "kl": float(((values[0].cpu() - kl).abs() / (tight * (1e-5 * kl.abs() + 1e-6))).max()),
        "is_div": float(((values[1].cpu() - is_div).abs() / (tight * (1e-5 * is_div.abs() + 1e-6))).max()),
        "gradient": float((error / (tight * allowed + 1e-30)).max()),
        "relative": float((out.cpu().double() - expected).norm() / expected.norm()) if size > 2 else 0.0,  # else 0 / 0
        "same values with a gradient": all(torch.equal(a, b) for a, b in zip(values, again, strict=True)),
        "in place": torch.equal(inplace, rounded),
        "strides": torch.equal(away[:, 3:], out) and bool(away[:, :3].isnan().all()),
        "nothing for mask and padding": all(not bool(part.any()) for part in hidden),
        "nothing without weight": not bool(out[9].any()),
        "logits untouched": torch.equal(before, logits.to(device)),
    }


def compare_losses(device):
    """Through the public functions: differences between impl="triton" and "chunked" and their largest values."""
    generator = torch.Generator().manual_seed(1)
    process = HybridProcess(V, MASK, 0.2)
    x, z, t = (v.reshape(2, 8).to(device) for v in tokens(process, 16, generator))
    data = torch.randn(2, 8, 6, generator=generator).to(device), torch.randn(V + 3, 6, generator=generator).to(device)
    errors = {}
    for reduction in ("mean", "none"):
        results = {}
        for impl in ("triton", "chunked"):
            hidden, weight = (v.clone().requires_grad_() for v in data)
            fused = fused_linear_gidd_loss(
                hidden, weight, None, x, z, t, process, chunk_tokens=5, reduction=reduction, impl=impl
            )
            fused.loss.sum().backward()
            logits = (data[0] @ data[1].T).requires_grad_()
            plain = gidd_loss(
                logits, x, z, t, process, loss_mask=z != x, reduction=reduction, impl=impl, inplace_grad=False
            )
            plain.loss.sum().backward()
            results[impl] = [*fused, *plain, hidden.grad, weight.grad, logits.grad]
        for i, (a, b) in enumerate(zip(results["triton"], results["chunked"], strict=True)):
            errors[f"{reduction} {i}"] = float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-6))
    return errors


def edges(device):
    """No tokens at all; t at its very ends; logits that forbid tokens."""
    from gidd.loss.kernels import triton_divergences

    good = {}
    for name in ("hybrid", "masked", "uniform", "vectors"):
        process = PROCESSES[name]()
        vocabulary = Vocabulary.of(process, torch.device(device))
        x = torch.tensor([1, 2], device=device)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
        z = process.q_sample(x, t)
        terms = token_terms(x, z, t, process, "dynamic_exact", 1.0)
        logits = torch.randn(2, V, device=device)
        logits[:, 40:50] = -torch.inf
        logits[:, 50:60] = torch.finfo(logits.dtype).min
        out = torch.empty_like(logits)
        kl, is_div = triton_divergences(logits, terms, vocabulary, out, torch.ones_like(terms.weight))
        finite = all(bool(torch.isfinite(v).all()) for v in (kl, is_div, out))
        good[f"{name}: ends"] = finite and abs(float(kl[1])) < 1e-12 and not bool(out[1].abs().max() > 1e-7)
        good[f"{name}: forbidden"] = not bool(out[:, 40:60].any())
        # The model excludes x itself, under the mask where there is one: IS at z = x is infinite without noise, no NaN.
        t[:] = 0.5
        logits[0, x[0]] = logits[1, x[1]] = -torch.inf
        z = torch.stack([x[0], x[1] if process.mask_id is None else torch.full_like(x[1], process.mask_id)])
        terms = token_terms(x, z, t, process, "none", 1.0)
        kl, is_div = triton_divergences(logits, terms, vocabulary, out, terms.weight)
        wanted = torch.empty_like(logits, dtype=torch.float64)
        scratch = torch.empty(2, *logits.shape, dtype=torch.float64, device=device)
        block = divergences(logits.double(), terms, vocabulary, scratch, wanted, terms.weight)
        pairs = ((kl, block.kl), (is_div, block.is_div), (out.double(), wanted))
        good[f"{name}: x excluded"] = all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)
        none = triton_divergences(logits[:0], terms.rows(slice(0, 0)), vocabulary, out[:0], terms.weight[:0])
        good[f"{name}: empty"] = len(none[0]) == len(none[1]) == 0
    return good


def check(result):
    assert all(value <= 1 for key, value in result.items() if key in ("kl", "is_div", "gradient")), result
    assert result.get("relative", 0.0) <= 1e-4, result
    assert all(value for value in result.values() if isinstance(value, bool)), result


CASES = [f"{name}/{dtype}" for name in PROCESSES for dtype in ("float32", "bfloat16")]
CASES += [f"{name}/{dtype}" for name in ("hybrid", "vectors") for dtype in ("float16", "float64")]


@pytest.fixture(scope="module")
def interpreted():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    run = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernel_equals_the_closed_form(interpreted, case):
    check(interpreted[case])


def test_interpreted_kernel_through_the_public_functions(interpreted):
    assert all(error <= 1e-4 for error in interpreted["losses"].values()), interpreted["losses"]


def test_interpreted_kernel_at_the_edges(interpreted):
    assert all(interpreted["edges"].values()), interpreted["edges"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors")
def test_cpu_logits_are_refused():
    from gidd.loss.kernels import triton_divergences

    process = HybridProcess(V, MASK)
    x, z, t = tokens(process, 14, torch.Generator().manual_seed(0))
    terms = token_terms(x, z, t, process, "dynamic", 1.0)
    with pytest.raises(ValueError, match="needs a CUDA device"):
        triton_divergences(torch.zeros(14, V), terms, Vocabulary.of(process, torch.device("cpu")), None, terms.weight)


def test_gidd_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import gidd, gidd.loss"
    subprocess.run([sys.executable, "-c", code], check=True)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("case", CASES)
def test_kernel_on_cuda_equals_the_closed_form(case):
    check(compare(*case.split("/"), "cuda"))


@pytest.mark.gpu
@needs_cuda
def test_kernel_on_cuda_through_the_public_functions_and_at_the_edges():
    errors, good = compare_losses("cuda"), edges("cuda")
    assert all(error <= 1e-4 for error in errors.values()), errors
    assert all(good.values()), good


@pytest.mark.gpu
@needs_cuda
def test_kernel_on_cuda_at_full_width_needs_no_memory():
    from gidd.loss.kernels import triton_divergences

    process = HybridProcess(50_258, 50_257, 0.2)
    n, width = 256, 50_304
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50_257, (n,), generator=generator).cuda()
    t = torch.rand(n, dtype=torch.float64, generator=generator).cuda()
    z = process.q_sample(x, t)
    terms, vocabulary = token_terms(x, z, t, process, "dynamic", 1.0), Vocabulary.of(process, x.device)
    logits = torch.randn(n, width, generator=generator).to("cuda", torch.bfloat16)
    expected = torch.empty(n, width, dtype=torch.float64, device="cuda")
    scratch = torch.empty(2, n, width, dtype=torch.float64, device="cuda")
    block = divergences(logits.double(), terms, vocabulary, scratch, expected, terms.weight)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kl, is_div = triton_divergences(logits, terms, vocabulary, logits, terms.weight)
    assert torch.cuda.max_memory_allocated() - before < 0.01 * logits.numel() * 2
    torch.testing.assert_close(kl, block.kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(is_div, block.is_div, rtol=1e-5, atol=1e-6)
    assert float((logits.double() - expected).norm() / expected.norm()) < 4e-3  # rounded to bfloat16


if __name__ == "__main__":  # within the interpreter
    torch.set_num_threads(1)
    from gidd.loss import kernels

    kernels.TILE = 64  # several tiles even of a small vocabulary
    found = {case: compare(*case.split("/"), "cpu") for case in CASES}
    print(json.dumps({**found, "losses": compare_losses("cpu"), "edges": edges("cpu")}))
