"""What the README prints runs as printed and gives the printed output."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    text = README.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(command, folder):
    # The console script beside the interpreter comes first, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


def test_python_blocks_run_and_print_what_is_printed(tmp_path):
    first, *others = blocks("python")
    assert run([sys.executable, "-c", first], tmp_path).stdout == blocks("text")[0]
    for code in others:
        run([sys.executable, "-c", code], tmp_path)


def test_bash_block_runs_and_warns_about_the_absent_column(tmp_path):
    (script,) = blocks("bash")
    done = run(["bash", "-e", "-c", script], tmp_path)
    assert done.stderr == "warning: new.csv: lacks s4: integrated out under the fitted law\n"
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "prediction,p_0,p_1,lo,hi"
    assert len(lines) == 1 + 142
    assert "feasible under causal" in done.stdout


def test_pictures_and_tests_that_are_named_exist():
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"\]\((docs/[^)]+)\)|`(tests/[^`]+)`", text):
        assert (README.parent / next(filter(None, path))).is_file(), path
