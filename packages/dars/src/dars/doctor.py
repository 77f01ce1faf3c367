"""What is there of all that a run may need, and what to do about what is missing. Nothing secret is shown."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .env import overlay
from .env.docker import Docker
from .env.sandbox import works
from .errors import EnvError

PYTHON = (3, 11)
GIT = (2, 25)
FREE_GB = 2.0  # objects of a large repository's states, and the log
CREDENTIALS = {
    "Anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"),
    "OpenAI": ("OPENAI_API_KEY",),
}
REQUIREMENT = re.compile(r"([\w.-]+)[^;]*;.*extra == ['\"]([\w.-]+)['\"]")


class Check(NamedTuple):
    """One finding.

    Attributes
    ----------
    name : what was looked for.
    ok : whether it is there and works.
    detail : a version, a reason.
    remedy : what to do, "" where nothing is to be done.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def checks(out_dir: str | Path = ".") -> list[Check]:
    """Everything that is looked at, in the order in which a run needs it.

    out_dir : where runs are to be written; it need not exist.
    """
    return [
        _python(), _program("git", GIT, "install git 2.25 or newer: workspaces need it"), _ruff(), _sandbox(),
        _overlay(), *(_container(name) for name in ("docker", "podman")), _disk(Path(out_dir)),
        *(_credentials(provider, names, os.environ) for provider, names in CREDENTIALS.items()), *_extras(),
    ]  # fmt: skip


def _python() -> Check:
    remedy = "" if sys.version_info >= PYTHON else "use Python 3.11 or newer"
    return Check("Python", not remedy, platform.python_version(), remedy)


def _program(name: str, least: tuple[int, int], remedy: str) -> Check:
    try:
        done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return Check(name, False, "not installed", remedy)
    found = re.search(r"(\d+)\.(\d+)[\d.]*", done.stdout)
    fine = found is not None and (int(found[1]), int(found[2])) >= least
    return Check(name, fine, found[0] if found else "says no version", "" if fine else remedy)


def _ruff() -> Check:
    remedy = "pip install ruff: edits of Python files are checked with it"
    try:
        from ruff import find_ruff_bin

        return _program(os.fspath(find_ruff_bin()), (0, 12), remedy)._replace(name="ruff")
    except (ImportError, FileNotFoundError) as error:
        return Check("ruff", False, f"not installed ({type(error).__name__})", remedy)


def _sandbox() -> Check:
    reasons = {name: works(name) for name in ("bwrap", "unshare")}
    fine = [name for name, reason in reasons.items() if not reason]
    detail = "; ".join(f"{name}: {reason or 'works'}" for name, reason in reasons.items())
    remedy = "" if fine else "install bubblewrap, or allow user namespaces; --sandbox none runs trusted code only"
    return Check("sandbox", bool(fine), detail, remedy)


def _overlay() -> Check:
    reason = overlay.works()
    return Check("overlay backend", not reason, reason or "works", "" if not reason else "use backend git, the default")


def _container(name: str) -> Check:
    try:
        reason = Docker(name).works()
    except EnvError:
        return Check(name, False, "not installed", f"install {name} to work in images, as those of SWE-bench")
    return Check(name, not reason, reason or "works", "" if not reason else f"start {name}, or get the right to use it")


def _disk(folder: Path) -> Check:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e9
    detail = f"{free:.1f} GB free in {there}"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check("disk", False, f"{there} cannot be written", "name another folder for the run")
    return Check("disk", free >= FREE_GB, detail, "" if free >= FREE_GB else f"free at least {FREE_GB:.0f} GB there")


def _credentials(provider: str, names: Sequence[str], environment: Mapping[str, str]) -> Check:
    name = f"{provider} credentials"
    given = [variable for variable in names if environment.get(variable, "").strip()]
    if given:
        return Check(name, True, f"{given[0]} is set")
    return Check(name, False, f"not set: {', '.join(names)}", f"export {names[0]}=... to use {provider}'s models")


def _extras() -> list[Check]:
    """One for each extra of this distribution, but for that of its tests."""
    wanted: dict[str, list[str]] = {}
    for line in metadata.requires("dars-agent") or []:
        found = REQUIREMENT.match(line)
        if found and found[2] != "test":
            wanted.setdefault(found[2], []).append(found[1])
    result = []
    for extra, packages in sorted(wanted.items()):
        missing = [package for package in packages if not _installed(package)]
        detail = f"{', '.join(missing)} missing" if missing else ", ".join(packages)
        remedy = f"pip install 'dars-agent[{extra}]'" if missing else ""
        result.append(Check(f"extra {extra}", not missing, detail, remedy))
    return result


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
