"""What the README prints is what its code prints."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_extra_that_a_command_needs_is_named_before_it():
    before, command, _ = README.partition("dars bench run")
    assert command
    assert "pip install 'dars-agent[bench]'" in before.splitlines()[-3]


def test_python_block_prints_what_stands_below_it():
    code, printed = (
        re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0] for kind in ("python", "text")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == printed
