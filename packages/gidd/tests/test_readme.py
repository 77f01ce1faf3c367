"""What the README prints runs as printed."""

import json
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


def shares(text):
    return [int(value) for value in re.fullmatch(r"valid squares: (\d+)% sampled, (\d+)% corrected\n", text).groups()]


def test_python_block_corrects_most_of_its_squares(tmp_path):
    """Rounding differs between processors, the effect does not."""
    (code,) = blocks("python")
    sampled, corrected = shares(run([sys.executable, "-c", code], tmp_path))
    printed = shares(blocks("text")[0])
    assert corrected > sampled + 30
    assert abs(corrected - printed[1]) < 20


def test_bash_block_trains_samples_and_corrects(tmp_path):
    (script,) = blocks("bash")
    run(["bash", "-e", "-c", script], tmp_path)
    made = [json.loads(line) for line in (tmp_path / "corrected.jsonl").read_text().splitlines()]
    assert len(made) == 32
    assert sum(r["accuracy_after"] for r in made) > sum(r["accuracy_before"] for r in made)


def test_pictures_that_are_named_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).is_file(), path
