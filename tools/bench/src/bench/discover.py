"""What can be run: each folder under packages/ whose pyproject.toml has [tool.bench], and where its command is."""

import difflib
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.files import BenchError

PROFILES = ("quick", "full", "gpu", "paper")


@dataclass(frozen=True)
class Package:
    """One package as its pyproject.toml describes it; `name` is the folder's name, what a user types."""

    name: str
    folder: Path
    distribution: str
    command: tuple[str, ...]
    summary: str
    extras: tuple[str, ...]
    timeout: Mapping[str, float]


@dataclass(frozen=True)
class Environment:
    """Where a package's command is, and the Python that runs it (None: the command was found alone on PATH)."""

    program: Path
    python: Path | None


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that has packages/."""
    for folder in (start, *start.parents):
        if (folder / "packages").is_dir():
            return folder
    raise BenchError(f"{start}: no packages/ folder here or above; run inside the repository or give --root DIR")


def discover(root: Path) -> list[Package]:
    """All packages under `root`, by folder name."""
    if not (root / "packages").is_dir():
        raise BenchError(f"{root}: has no packages/ folder; give the repository's root")
    found = [_read(path) for path in sorted(root.glob("packages/*/pyproject.toml"))]
    return [package for package in found if package]


def select(packages: Sequence[Package], names: Sequence[str]) -> list[Package]:
    """The packages called `names`, in that order and each once; all of them where no name is given."""
    known = {package.name: package for package in packages}
    if not known:
        raise BenchError('no package has a [tool.bench] table; add one with command = "…" to its pyproject.toml')
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise BenchError(f"unknown package '{name}'; {hint}known: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or list(packages)


def find_environment(package: Package, envs: Path | None) -> Environment | None:
    """The package's command in DIR/<name>/bin; without a DIR, next to this Python, then on PATH."""
    program = package.command[0]
    bins = [envs / package.name / "bin"] if envs else [Path(sys.executable).parent]
    found = shutil.which(program, path=os.pathsep.join(map(str, bins))) or (None if envs else shutil.which(program))
    if not found:
        return None
    # No symlink is resolved: a virtual environment's python is a link whose place says which environment it is.
    path = Path(os.path.abspath(found))
    python = path.with_name("python")
    return Environment(path, python if python.exists() else None)


def install_command(package: Package, envs: Path | None) -> str:
    """The shell line that makes a missing command appear."""
    extras = f"[{','.join(package.extras)}]" if package.extras else ""
    target = shlex.quote(f"{package.folder}{extras}")
    if not envs:
        return f"{shlex.quote(sys.executable)} -m pip install {target}"
    environment = envs / package.name
    python = shlex.quote(str(environment / "bin" / "python"))
    create = "" if (environment / "bin" / "python").exists() else f"python3 -m venv {shlex.quote(str(environment))} && "
    return f"{create}{python} -m pip install {target}"


def _read(path: Path) -> Package | None:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BenchError(f"{path}: cannot be read: {error}") from None
    table = document.get("tool", {}).get("bench")
    if table is None:
        return None
    command = table.get("command") if isinstance(table, dict) else None
    if not isinstance(command, str) or not command.strip():
        raise BenchError(f'{path}: [tool.bench] has no command; want command = "<cli> eval"')
    timeout: Any = table.get("timeout", {})
    if not isinstance(timeout, dict) or any(
        profile not in PROFILES or isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit <= 0
        for profile, limit in timeout.items()
    ):
        raise BenchError(f"{path}: [tool.bench] timeout; want a table of seconds by profile ({', '.join(PROFILES)})")
    extras = table.get("extras", [])
    if not isinstance(extras, list) or not all(isinstance(extra, str) for extra in extras):
        raise BenchError(f"{path}: [tool.bench] extras; want a list of names")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise BenchError(f"{path}: [tool.bench] command = {command!r}: {error}") from None
    folder = path.parent
    return Package(
        name=folder.name,
        folder=folder,
        distribution=str(document.get("project", {}).get("name", folder.name)),
        command=words,
        summary=str(table.get("summary", "")),
        extras=tuple(extras),
        timeout=timeout,
    )
