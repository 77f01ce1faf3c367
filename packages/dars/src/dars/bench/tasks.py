"""A MutBench task: a package, the faults put into it, the issue that tells of them, and the tests that judge.

Workspaces are not stored. They follow from the package: the faults are put in, and the hidden tests taken out.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..env.scan import CACHES
from ..errors import TaskError
from ..patches import is_test
from ..storage import write_atomic
from ..task import Task
from .execute import COMMAND, Files
from .mutations import Mutation, mutate

SHIPPED = ("calq", "keepsake", "spans", "textflow", "verrange", "waygraph")
TASKS, TABLE = "tasks.jsonl", "outcomes.json.gz"


@dataclass(frozen=True)
class Fault:
    """A mutation of one file; its offsets are those of the file without any fault."""

    path: str
    mutation: Mutation


@dataclass(frozen=True)
class MutTask:
    """One task.

    Attributes
    ----------
    package, source_hash : of the package without faults.
    faults : one or two.
    issue : what a user would report.
    snippet : the script of the issue; it fails as long as any of the faults is there.
    hidden, visible : node ids of the tests that the faults break (with those of the same functions), and of the others.
    killed : share of all tests that the faults break.
    """

    id: str
    package: str
    source_hash: str
    faults: tuple[Fault, ...]
    issue: str
    snippet: str
    hidden: tuple[str, ...]
    visible: tuple[str, ...]
    killed: float


def corpus(name: str) -> Files:
    """Files of a package that is shipped with this one.

    Raises
    ------
    TaskError
        There is none of this name.
    """
    if name not in SHIPPED:
        raise TaskError(f"no package {name!r} is shipped; there are {', '.join(SHIPPED)}: give the folder of others")
    return _read(resources(__package__) / "corpora" / name)


def read_package(folder: Path) -> Files:
    """Files of a package in a folder, without what is hidden or a cache.

    Raises
    ------
    TaskError
        There is no such folder, or there is nothing in it.
    """
    found = _read(folder) if folder.is_dir() else {}
    if not found:
        raise TaskError(f"there is no package in {folder}: give a folder with sources and tests")
    return found


def _read(folder: Traversable, prefix: str = "") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in CACHES:
            continue
        if entry.is_dir():
            found.update(_read(entry, f"{prefix}{entry.name}/"))
        else:
            found[prefix + entry.name] = entry.read_bytes()
    return found


def hash_of(files: Files) -> str:
    """A short name of some files and their contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{len(files[path])}\0".encode() + files[path])
    return digest.hexdigest()[:16]


def modules(files: Files) -> list[str]:
    """Paths of sources into which faults may be put: importable, and no tests."""
    packages = {path.removesuffix("/__init__.py") for path in files if path.endswith("/__init__.py")}
    return [
        path
        for path in sorted(files)
        if path.endswith(".py") and not is_test(path) and ("/" not in path or path.rpartition("/")[0] in packages)
        if path not in ("setup.py", "noxfile.py", "conftest.py")
    ]


def inject(files: Files, faults: Iterable[Fault]) -> dict[str, bytes]:
    """The files with faults, whose offsets are all those of the files as they are."""
    changed = dict(files)
    for fault in sorted(faults, key=lambda fault: fault.mutation.start, reverse=True):
        changed[fault.path] = mutate(changed[fault.path].decode(), fault.mutation).encode()
    return changed


# --- tests ------------------------------------------------------------------------------------------------------------


def junit_id(node_id: str) -> str:
    """The name in a JUnit report, as ``aci.testing`` has it.

    Examples
    --------
    >>> junit_id("tests/test_a.py::Case::test_b[x/y.py::1]")
    'tests.test_a.Case::test_b[x/y.py::1]'
    """
    head, bracket, argument = node_id.partition("[")
    path, *inner, name = head.split("::")
    return f"{'.'.join([path.removesuffix('.py').replace('/', '.'), *inner])}::{name}{bracket}{argument}"


def function_of(node_id: str) -> tuple[str, tuple[str, ...]]:
    """File of a test, and the names of its classes and function."""
    path, *names = node_id.partition("[")[0].split("::")
    return path, tuple(names)


def without_tests(files: Files, node_ids: Iterable[str]) -> dict[str, bytes]:
    """The files without some test functions.

    Raises
    ------
    TaskError
        A test is not written where its name says: it is inherited or made at run time.
    """
    changed = dict(files)
    gone: dict[str, set[tuple[str, ...]]] = {}
    for node_id in node_ids:
        path, names = function_of(node_id)
        gone.setdefault(path, set()).add(names)
    for path, functions in gone.items():
        changed[path] = _without_functions(files[path].decode(), functions, path).encode()
    return changed


def _without_functions(source: str, functions: set[tuple[str, ...]], path: str) -> str:
    lines = source.splitlines(keepends=True)
    for node, holder in sorted(
        (find_function(ast.parse(source), names, path) for names in functions),
        key=lambda found: found[0].lineno,
        reverse=True,
    ):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        last = node.end_lineno or node.lineno
        while last < len(lines) and not lines[last].strip():
            last += 1
        lines[first:last] = []
        if isinstance(holder, ast.ClassDef) and not _is_python("".join(lines)):  # nothing is left of the class
            lines.insert(first, " " * node.col_offset + "pass\n")
    return "".join(lines).rstrip("\n") + "\n"


def _is_python(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def find_function(
    tree: ast.Module, names: Sequence[str], path: str
) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.AST]:
    """A test function and what it stands in; TaskError if it is not written there."""
    holder: ast.AST = tree
    for i, name in enumerate(names):
        wanted: Any = ast.ClassDef if i < len(names) - 1 else (ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in getattr(holder, "body", []) if isinstance(node, wanted) and node.name == name]
        if len(found) != 1:
            raise TaskError(f"{path} has not one {'::'.join(names)}: it is inherited or made at run time")
        if i == len(names) - 1:
            return found[0], holder
        holder = found[0]
    raise TaskError(f"{path}: there is no test without a name")


# --- workspaces -------------------------------------------------------------------------------------------------------


def package_of(task: MutTask, source: Path | None = None) -> Files:
    """The package of a task without faults.

    Parameters
    ----------
    source : its folder; None for a package that is shipped.

    Raises
    ------
    TaskError
        It is not the package that the task was made from.
    """
    files = corpus(task.package) if source is None else read_package(source)
    if hash_of(files) != task.source_hash:
        raise TaskError(f"task {task.id}: {source or task.package} is not the version that the task was made from")
    return files


def workspace(task: MutTask, package: Files) -> dict[str, bytes]:
    """Files of the workspace: with the faults, without the hidden tests."""
    return without_tests(inject(package, task.faults), task.hidden)


def graded(task: MutTask, package: Files, files: Files) -> dict[str, bytes]:
    """Files of a state as grading wants them: files of hidden tests are those of the package."""
    return {**files, **{function_of(test)[0]: package[function_of(test)[0]] for test in task.hidden}}


def as_task(task: MutTask, folder: Path, source: Path | None = None) -> Task:
    """Write the workspace into a folder, which has to be empty or missing, and say what is to be done there.

    Parameters
    ----------
    source : folder of the package; None for a package that is shipped.

    Raises
    ------
    TaskError
        The folder is not empty, or the package is not that of the task.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TaskError(f"task {task.id}: {folder} is not empty")
    for path, data in workspace(task, package_of(task, source)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return Task(folder, task.issue, task.id, test_command=COMMAND, visible_tests=task.visible, hidden_tests=task.hidden)


# --- files ------------------------------------------------------------------------------------------------------------


def load_tasks(path: Path | None = None) -> list[MutTask]:
    """Tasks of a file of JSON lines; without one, those that are shipped.

    Raises
    ------
    TaskError
        The file cannot be read; a line is none of a task (its number is named).
    """
    try:
        text = (resources(__package__) / TASKS).read_text("utf-8") if path is None else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read tasks from {path}: {error}") from None
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found.append(_task(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise TaskError(f"{path or TASKS}, line {number}: this is no task ({error!r})") from None
    return found


def _task(row: dict[str, Any]) -> MutTask:
    faults = tuple(Fault(fault["path"], Mutation(**fault["mutation"])) for fault in row["faults"])
    return MutTask(**{**row, "faults": faults, "hidden": tuple(row["hidden"]), "visible": tuple(row["visible"])})


def save_tasks(tasks: Iterable[MutTask], path: Path) -> None:
    """Write tasks, a line each."""
    write_atomic(path, "".join(json.dumps(asdict(task), ensure_ascii=False) + "\n" for task in tasks))


def read_json_gz(data: bytes) -> Any:
    """A compressed JSON document."""
    return json.loads(gzip.decompress(data))


def json_gz(document: Mapping[str, Any]) -> bytes:
    """A JSON document compressed; the same document gives the same bytes."""
    return gzip.compress(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(), 9, mtime=0)
