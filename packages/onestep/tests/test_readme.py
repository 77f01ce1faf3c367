"""What the README prints runs as printed."""

import re
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from onestep_diffusion.cli import main

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def numbers(text):
    return [float(value) for value in re.findall(r": (\d+)$", text, re.MULTILINE)]


def test_python_block_prints_what_it_says(capsys):
    """Rounding differs between processors, and training amplifies it."""
    (code,) = blocks("python")
    exec(compile(code, "README", "exec"), {})
    found, printed = numbers(capsys.readouterr().out), numbers(blocks("text")[0])
    assert len(found) == len(printed) == 3
    assert found == pytest.approx(printed, rel=0.3, abs=5)


def test_bash_block_goes_from_a_teacher_to_a_certificate(tmp_path, monkeypatch, capsys):
    """Each line as a shell hands it over, in one process: importing jax five times is most of the time otherwise."""
    (script,) = blocks("bash")
    monkeypatch.chdir(tmp_path)
    for line in script.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        assert sys.argv[0] == "onestep-diffusion"
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code in (0, None), shown.err
    assert "forward passes an update" in shown.out
    assert (tmp_path / "samples.png").stat().st_size > 10_000
    assert "js_lower" in (tmp_path / "distance.json").read_text()


def test_console_script_is_the_command_line():
    (script,) = entry_points(group="console_scripts", name="onestep-diffusion")
    assert script.load() is main


def test_pictures_that_are_named_exist():
    for path in re.findall(r"\]\((docs/[^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / path).is_file(), path
