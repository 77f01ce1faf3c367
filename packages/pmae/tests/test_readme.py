"""What the README prints runs as printed."""

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from pmae.cli.main import main

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(command, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
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


def test_bash_block_goes_from_a_basis_to_an_export(tmp_path, monkeypatch, capsys):
    """Each line as a shell hands it over, in one process: importing torch eight times is most of the time otherwise."""
    (script,) = blocks("bash")
    monkeypatch.chdir(tmp_path)
    for line in script.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        assert sys.argv[0] == "pmae"
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
    assert "mae" in shown.out
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    assert list((tmp_path / "encoder").glob("*.safetensors"))


def test_console_script_is_the_command_line():
    (script,) = entry_points(group="console_scripts", name="pmae")
    assert script.load() is main


def test_pictures_that_are_named_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).is_file(), path
