"""Where figures come from: the package's Python and every distribution in it, the machine, the commit."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

# Runs in the package's own environment, which need not have the harness.
PROBE = """
import importlib.metadata as m, json, platform, sys
found = {d.metadata["Name"]: d.version for d in reversed(list(m.distributions())) if d.metadata["Name"]}
print(json.dumps({"python": platform.python_version(), "implementation": platform.python_implementation(),
                  "executable": sys.executable, "platform": platform.platform(),
                  "distributions": dict(sorted(found.items(), key=lambda item: item[0].lower()))}))
"""


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(python: Path | None) -> dict[str, Any]:
    """Version and installed distributions of an environment's Python; empty where it does not answer."""
    output = _output([str(python), "-I", "-c", PROBE]) if python else None
    return dict(json.loads(output)) if output else {}


def installed_version(environment: dict[str, Any], distribution: str) -> str | None:
    """The version of a distribution, whose name is compared as PEP 503 wants."""
    versions = {_normal(name): version for name, version in environment.get("distributions", {}).items()}
    return versions.get(_normal(distribution))


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, accelerators."""
    gpus = _output(["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"])
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [line.strip() for line in (gpus or "").splitlines() if line.strip()],
    }


def git(root: Path) -> dict[str, Any]:
    """Commit and whether tracked or new files differ from it; nulls outside a repository or before its first commit."""
    commit = _output(["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"])
    changes = _output(["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain"])
    return {"commit": commit.strip() if commit else None, "dirty": bool(changes) if changes is not None else None}


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    brand = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return (brand or "").strip() or platform.processor() or platform.machine()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
