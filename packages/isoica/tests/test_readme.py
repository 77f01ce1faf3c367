"""What the README prints runs as printed."""

import re
import shlex
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def numbers(text):
    return [float(value) for value in re.findall(r"-?\d+\.?\d*(?:e[+-]\d+)?", text)]


def test_python_blocks_print_what_they_say(capsys):
    names = {}
    for code, printed in zip(blocks("python"), blocks("text"), strict=True):
        exec(compile(code, "README", "exec"), names)
        shown = capsys.readouterr().out
        assert re.sub(r"[-\d.e+ ]+", "", shown) == re.sub(r"[-\d.e+ ]+", "", printed)
        assert numbers(shown) == pytest.approx(numbers(printed), rel=0.05, abs=0.02)


def test_bash_block_goes_from_a_simulation_to_a_report(tmp_path, monkeypatch, capsys):
    from isoica.cli import main

    (script,) = blocks("bash")
    monkeypatch.chdir(tmp_path)
    for line in script.splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        assert sys.argv[0] == "isoica"
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert ended.value.code in (0, None), shown.err
    assert (tmp_path / "report.png").stat().st_size > 10_000
