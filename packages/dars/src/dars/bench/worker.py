"""The inner side of ``execute.Worker``: has pytest loaded, and forks for every run.

It runs in a sandbox as a program of its own, where this package may be out of sight, so it imports nothing of it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import types
from typing import Any

SIZE = 1 << 20  # bytes of output that are read
# What recurses without end has to do so as often as under "python -m pytest" and "python script.py": how many frames
# and calls of exec there are less than here, seen from inside().
FRAMES = {"pytest": 4, "script": -2}


class Parameters:
    """Notes the arguments of parametrised tests, as Python writes them."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """After the collection."""
        for item in items:
            spec = getattr(item, "callspec", None)
            self.found[item.nodeid] = {name: repr(value) for name, value in spec.params.items()} if spec else {}


def serve() -> None:
    """Answer a line of JSON with a line of JSON until there is no more."""
    import _pytest.junitxml  # noqa: F401 - loaded before the fork
    import pytest

    answers = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    answers.write(json.dumps({"python": f"{sys.version_info[0]}.{sys.version_info[1]}", "pytest": pytest.__version__}))
    answers.write("\n")
    answers.flush()
    gc.collect()
    gc.freeze()  # pytest collects at its end, which takes a third of a run
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """One run in a child."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = inside(request, output.fileno(), folder)
            finally:
                os._exit(code)
        with contextlib.suppress(OSError):  # the child does the same: whoever is first
            os.setpgid(child, child)
        handle = os.pidfd_open(child)
        ended, _, _ = select.select([handle], [], [], request["wall"])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        os.close(handle)
        code = os.waitstatus_to_exitcode(status)
        output.seek(0)
        answer: dict[str, Any] = {
            "code": code if code >= 0 else 128 - code,
            "timed_out": not ended or code == -signal.SIGXCPU,
            "output": output.read(SIZE).decode(errors="replace"),
        }
        for name in ("junit", "parameters"):
            with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, name), encoding="utf-8") as file:
                answer[name] = file.read()
    return answer


def inside(request: dict[str, Any], output: int, folder: str) -> int:
    """In the child: become what the command line would have been."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu"], request["cpu"] + 1))
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), "utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True)
    os.chdir(request["cwd"])
    sys.path[0] = os.getcwd()
    sys.dont_write_bytecode = False  # of the tests; file times tell versions of a file apart
    here = sys._getframe()
    depth = 0
    while here is not None:
        depth, here = depth + 1, here.f_back  # type: ignore[assignment]
    sys.setrecursionlimit(1000 + depth - FRAMES[request["kind"]])
    if request["kind"] == "pytest":
        return run_pytest(request["args"], folder)
    return run_script(os.path.abspath(request["args"][0]), request["args"])


def run_pytest(args: list[str], folder: str) -> int:
    """As "python -m pytest"."""
    import pytest

    sys.argv = ["pytest", *args]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for them takes longer than most suites
    noted = Parameters()
    junit = ["-p", "no:cacheprovider", f"--junitxml={os.path.join(folder, 'junit')}"]
    code = pytest.main([*junit, *args], plugins=[noted])
    with open(os.path.join(folder, "parameters"), "w", encoding="utf-8") as file:
        json.dump(noted.found, file)
    return int(code)


def run_script(path: str, argv: list[str]) -> int:
    """As "python script.py"."""
    sys.argv = argv
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__)
    sys.modules["__main__"] = main
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
        exec(code, main.__dict__)
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return int(leaving.code or 0) & 255
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this function
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        return 1
    return 0


if __name__ == "__main__":
    serve()
