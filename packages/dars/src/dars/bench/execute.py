"""Running suites and scripts of many states of a package fast: one process in the sandbox that forks for each."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..aci.testing import TestCase, parse_junit
from ..env.sandbox import Limits, bubblewrap, choose, clean_environment, unshare
from ..errors import EnvError

SUITE = ("-q", "-p", "no:randomly", "--tb=short")  # tracebacks name functions, and are short
COMMAND = " ".join(["python", "-m", "pytest", *SUITE])
CPU_S = 1  # of one run; what takes longer counts as endless
PATIENCE_S = 5.0  # beyond twice that, for what waits without end
WORKSPACE = "⟨workspace⟩"  # stands for the folder in recorded output
DAY = 86_400.0

Files = Mapping[str, bytes]


@contextlib.contextmanager
def own_python() -> Iterator[None]:
    """Lets "python" in a workspace be the one that runs this, which has pytest, also where its folder is on no path."""
    before = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


class Ran(NamedTuple):
    """What a run did.

    Attributes
    ----------
    code : exit code.
    output : stdout and stderr.
    timed_out : it was endless, and ``output`` is what it printed until then.
    cases : tests of the report; None where there is none.
    parameters : node id -> argument -> its value as Python writes it.
    """

    code: int
    output: str
    timed_out: bool
    cases: tuple[TestCase, ...] | None = None
    parameters: Mapping[str, Mapping[str, str]] | None = None


class Worker:
    """Runs in a sandbox, as "python" of the PATH; the process starts with the first run.

    Parameters
    ----------
    sandbox : as for LocalEnvironment.
    cpu_s : processor time after which a run is endless, in whole seconds.
    """

    def __init__(self, sandbox: str = "auto", cpu_s: int = CPU_S) -> None:
        self.sandbox, self.cpu_s = sandbox, cpu_s
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._folder: Path | None = None
        self._held: dict[str, dict[str, bytes]] = {}
        self._times = itertools.count(1_000_000_000)
        self._stack = contextlib.ExitStack()
        self._finalizer = weakref.finalize(self, self._stack.close)

    def suite(self, workspace: str, files: Files, tests: Sequence[str] = ()) -> Ran:
        """Run the tests of a package, all or some, as COMMAND does.

        workspace : name of the folder; runs that use the same files in turn use the same one.
        """
        return self._run(workspace, files, "pytest", [*SUITE, *tests])

    def script(self, workspace: str, files: Files, text: str, name: str = "reproduce.py") -> Ran:
        """Run a script beside a package."""
        return self._run(workspace, {**files, name: text.encode()}, "script", [name])

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, workspace: str, files: Files, kind: str, args: list[str]) -> Ran:
        process = self._started()
        assert self._folder is not None
        self._write(workspace, files)
        where = self._folder / workspace
        request = {
            "cwd": str(where),
            "kind": kind,
            "args": args,
            "cpu": self.cpu_s,
            "wall": 2 * self.cpu_s + PATIENCE_S,
        }
        answer = _ask(process, json.dumps(request))
        cases = None
        if "junit" in answer:
            with contextlib.suppress(ValueError):  # cut off
                cases = tuple(
                    case._replace(message=_anywhere(case.message, where), detail=_anywhere(case.detail, where))
                    for case in parse_junit(answer["junit"].encode())
                )
        parameters = json.loads(answer["parameters"]) if "parameters" in answer else None
        return Ran(answer["code"], _anywhere(answer["output"], where), answer["timed_out"], cases, parameters)

    def _write(self, workspace: str, files: Files) -> None:
        assert self._folder is not None
        held = self._held.setdefault(workspace, {})
        for path in [path for path in held if path not in files]:
            (self._folder / workspace / path).unlink()
            del held[path]
        for path, data in files.items():
            if held.get(path) == data:
                continue
            there = self._folder / workspace / path
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(data)
            now = next(self._times)  # bytecode of another version of the file is not taken for this one's
            os.utime(there, (now, now))
            held[path] = data

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        kind = choose(self.sandbox)
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dars-bench-"))).resolve()
        private = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dars-bench-"))
        source = Path(__file__).with_name("worker.py").read_text(encoding="utf-8")
        limits = Limits()
        line = limits.wrap(["python", "-c", source], DAY)
        with own_python():
            if kind == "bwrap":
                line = bubblewrap(line, folder, folder, False, limits.memory_mb)
            elif kind == "unshare":
                line = unshare(line, folder, folder, False, limits.memory_mb, private)
            environment = clean_environment(private if kind == "none" else None)
        process = subprocess.Popen(
            line, cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(_end, process)
        self.versions = _ask(process, "")
        self._process, self._folder = process, folder
        return process


def _ask(process: subprocess.Popen[str], request: str) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    if request:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise EnvError(f"the process that runs the tests has ended: {_last(process.stderr)}; is pytest installed?")
    return dict(json.loads(line))


def _last(stream: IO[str]) -> str:
    lines = stream.read().strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _anywhere(text: str, folder: Path) -> str:
    """A text without the name of the folder."""
    return text.replace(str(folder), WORKSPACE)
