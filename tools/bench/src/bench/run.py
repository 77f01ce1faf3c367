"""One package's run: prepare its folder, start its command, and record in run.json how that went."""

import os
import shlex
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import __version__, provenance
from bench.discover import Environment, Package, find_environment, install_command
from bench.files import BenchError, parse_json, write_json
from bench.runs import load_run, outcome
from bench.watch import Ending, Tell, watch

# Seconds after which a run is taken to hang: five times the profile's budget, and none for the paper's own scale.
TIME_LIMITS: dict[str, float | None] = {"quick": 300, "full": 3000, "gpu": 3000, "paper": None}


@dataclass(frozen=True)
class Job:
    """What to run and where to; plain data, so that it can be sent to another machine."""

    package: Package
    root: Path
    out: Path
    profile: str
    seed: int
    envs: Path | None
    timeout: float | None
    resume: bool

    @property
    def folder(self) -> Path:
        return self.out / self.package.name


def time_limit(package: Package, profile: str, asked: float | None) -> float | None:
    """--timeout, else the package's own limit for the profile, else the profile's."""
    return asked if asked is not None else package.timeout.get(profile, TIME_LIMITS[profile])


def prepare_out(out: Path) -> None:
    """Make the run folder; refuse one that holds something else."""
    if out.exists() and not out.is_dir():
        raise BenchError(f"{out}: is a file; give a new folder as --out")
    try:
        if out.is_dir() and any(out.iterdir()) and not any(out.glob("*/run.json")):
            raise BenchError(f"{out}: is not empty and no run of bench; give a new or empty folder as --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{out}: cannot be written ({error.strerror}); give a folder of yours as --out") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise BenchError(f"{out}: cannot be written; give a folder of yours as --out")


def run_package(job: Job, stop: threading.Event, tell: Tell) -> str:
    """Run one package and write its run.json; returns what became of it, for the progress display."""
    found = find_environment(job.package, job.envs)
    environment = provenance.environment(found.python) if found else {}
    version = provenance.installed_version(environment, job.package.distribution)
    identity = {
        "package": job.package.name,
        "profile": job.profile,
        "seed": job.seed,
        "package_version": version,
    }
    before = _record(job.folder)
    same = before is not None and all(before.get(key) == value for key, value in identity.items())
    if job.resume and same and version and outcome(load_run(job.folder)).valid:
        return f"kept: {outcome(load_run(job.folder)).word}"

    _clear(job.folder, keep_own_files=job.resume and same)
    record: dict[str, Any] = {
        "schema": "bench-run/1",
        **identity,
        "distribution": job.package.distribution,
        "summary": job.package.summary,
        "status": "running",
        "detail": "",
        "start": provenance.now(),
        "harness_version": __version__,
        "timeout_s": job.timeout,
        "environment": environment,
        "machine": provenance.machine(),
        "git": provenance.git(job.root),
    }
    path = job.folder / "run.json"
    write_json(path, record)
    if found is None:
        record |= {"status": "not installed", "detail": f"to install: {install_command(job.package, job.envs)}"}
    elif stop.is_set():
        record |= {"status": "interrupted", "detail": "stopped before it was started"}
    else:
        record |= _execute(job, found, stop, tell)
    write_json(path, record)
    return outcome(load_run(job.folder)).word


def _execute(job: Job, found: Environment, stop: threading.Event, tell: Tell) -> dict[str, Any]:
    options = ["--profile", job.profile, "--seed", str(job.seed), "--out", str(job.folder)]
    command = [str(found.program), *job.package.command[1:], *options]
    env = {
        **os.environ,
        "PATH": f"{found.program.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",  # so that the log shows what was printed before a crash or a kill
    }
    env.pop("FORCE_COLOR", None)
    try:
        # The run folder is the working directory: what an evaluation drops there does not litter the repository.
        ending = watch(
            command,
            cwd=job.folder,
            env=env,
            log_path=job.folder / "log.txt",
            timeout=job.timeout,
            stop=stop,
            tell=tell,
        )
    except OSError as error:
        detail = f"{shlex.join(command)}: {error.strerror}; to reinstall: {install_command(job.package, job.envs)}"
        return {"status": "not started", "detail": detail, "command": command}
    status, detail = _status(ending, job.timeout)
    return {
        "status": status,
        "detail": detail,
        "command": command,
        "end": provenance.now(),
        "wall_s": round(ending.wall_s, 3),
        "cpu_s": round(ending.cpu_s, 3),
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "timed_out": ending.timed_out,
        "strays_killed": ending.strays_killed,
        "peak_memory_bytes": ending.peak_memory_bytes,
        "memory": {
            "sampled_bytes": ending.sampled_bytes,
            "rusage_bytes": ending.rusage_bytes,
            "samples": ending.samples,
            "method": "the larger of: sum of PSS over the process tree, sampled; ru_maxrss of the largest process",
        },
        "log": {
            "path": "log.txt",
            "bytes": ending.log_bytes,
            "dropped_bytes": ending.log_dropped_bytes,
            "error": ending.log_error,
        },
    }


def _status(ending: Ending, timeout: float | None) -> tuple[str, str]:
    if ending.interrupted:
        return "interrupted", f"stopped by the user after {ending.wall_s:.0f} s"
    if ending.timed_out:
        return "timed out", f"stopped at its time limit of {timeout:g} s"
    if ending.signal:
        killed = " (the system's out-of-memory killer, perhaps)" if ending.signal == "SIGKILL" else ""
        return "crashed", f"ended by {ending.signal}{killed}"
    if ending.exit_code != 0:
        return "crashed", f"exit code {ending.exit_code}"
    return "finished", f"{ending.strays_killed} processes left behind, ended" if ending.strays_killed else ""


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record = parse_json((folder / "run.json").read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _clear(folder: Path, keep_own_files: bool) -> None:
    """Remove the last run's files; a resumed run keeps the package's own, such as checkpoints."""
    if folder.is_dir() and not keep_own_files:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "run.json", "log.txt"):
        (folder / name).unlink(missing_ok=True)


def mark_lost(job: Job, reason: str) -> None:
    """Record a job that ended without writing its end: its node died, or the scheduler removed it."""
    path = job.folder / "run.json"
    record = _record(job.folder) or {
        "schema": "bench-run/1",
        "package": job.package.name,
        "distribution": job.package.distribution,
        "profile": job.profile,
        "seed": job.seed,
        "start": provenance.now(),
        "harness_version": __version__,
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, record | {"status": "lost", "detail": reason.encode(errors="replace").decode()[:2000]})
