"""The gate before edits of Python files: what brings new fatal errors is not applied."""

from __future__ import annotations

import io
import json
import subprocess
import tokenize
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from ruff import find_ruff_bin

from ..errors import EnvError

RULES = "E9,F63,F7,F82"  # syntax, comparisons and statements that cannot mean anything, undefined names
# The newest grammar: whether the project's own Python knows it is for its tests to say.
COMMAND = (
    "check", "--isolated", "--no-cache", "--quiet", "--exit-zero", "--select", RULES, "--target-version", "py314",
    "--output-format", "json",
)  # fmt: skip
SYNTAX = "invalid-syntax"


class Problem(NamedTuple):
    """One fatal error."""

    line: int
    code: str
    message: str


@lru_cache(maxsize=512)  # edits are looked at again where a path is gone through again
def problems(name: str, source: bytes) -> list[Problem]:
    """Fatal errors of a Python file."""
    line = [find_ruff_bin(), *COMMAND, f"--stdin-filename={name.rpartition('/')[2] or 'file.py'}", "-"]
    done = subprocess.run(line, input=_in_utf8(source), capture_output=True, check=False)
    if done.returncode != 0:
        raise EnvError(f"ruff could not look at {name}: {done.stderr.decode(errors='replace').strip()[:300]}")
    return [
        Problem(found["location"]["row"], found["code"] or SYNTAX, found["message"])
        for found in json.loads(done.stdout)
    ]


def _in_utf8(source: bytes) -> bytes:
    """The same text in the only encoding that ruff reads; what cannot be read at all is replaced."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    except SyntaxError:  # an unknown encoding, or none and no UTF-8
        encoding = "utf-8"
    return source.decode(encoding, "replace").encode("utf-8", "replace")


def new_problems(name: str, before: bytes, after: bytes) -> list[Problem]:
    """Fatal errors that ``after`` has more often than ``before``, wherever they stand.

    A file that does not parse shows no other errors; those that come to light once it does are not new.
    """
    then, now = problems(name, before), problems(name, after)
    if any(problem.code == SYNTAX for problem in then):
        broken = [problem for problem in now if problem.code == SYNTAX]
        return broken if len(broken) > sum(problem.code == SYNTAX for problem in then) else []
    left = Counter((problem.code, problem.message) for problem in then)
    new = []
    for problem in now:
        left[problem.code, problem.message] -= 1
        if left[problem.code, problem.message] < 0:
            new.append(problem)
    return new
