"""What the README prints runs as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(command, folder):
    # The console script beside the interpreter comes first, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text):
    return [float(value) for value in re.findall(r"\b\d+\.\d+|\b\d+(?=%)", text)]


def test_python_block_prints_what_it_says(tmp_path):
    """Rounding differs between processors; the redundancy is exact."""
    (code,) = blocks("python")
    found, printed = numbers(run([sys.executable, "-c", code], tmp_path)), numbers(blocks("text")[0])
    assert found[0] == printed[0] == 1.0
    assert abs(found[1] - printed[1]) < 0.1
    assert all(abs(a - b) < 10 for a, b in zip(found[2:], printed[2:], strict=True))


def test_bash_block_goes_from_a_basis_to_an_export(tmp_path):
    (script,) = blocks("bash")
    shown = run(["bash", "-e", "-c", script], tmp_path)
    assert "mae" in shown
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    assert list((tmp_path / "encoder").glob("*.safetensors"))


def test_pictures_that_are_named_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).is_file(), path
