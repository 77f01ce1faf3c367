import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[1] / "benchmarks" / "torch_step.py"


def test_the_pytorch_update_runs_on_the_same_network_beside_ours():
    spec = importlib.util.spec_from_file_location("torch_step", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.measure(small=True, repeats=1)
    assert found["outputs differ by"] < 1e-4
    assert set(found["images/s"]) == {"onestep-diffusion, score", "onestep-diffusion, ratio", "PyTorch, score, eager"}
    assert min(found["images/s"].values()) > 0
