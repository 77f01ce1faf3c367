"""How things are run here: one session per job; people, the Makefile, pre-commit and CI all call these.

Packages are found by their `packages/*/pyproject.toml`. The harness in `tools/bench` is tested and typed like one more.
"""

import email
import hashlib
import shutil
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import nox
from filelock import FileLock, Timeout
from nox.command import CommandFailed

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "test-all"]

ROOT = Path(__file__).resolve().parent
ENVS = ROOT / ".envs"
CONSTRAINTS = str(ROOT / "ci" / "constraints.txt")
PACKAGES = {file.parent.name: file.parent for file in sorted(ROOT.glob("packages/*/pyproject.toml"))}
PROJECTS = PACKAGES | {"bench": ROOT / "tools" / "bench"}

# Waiting threads of several pools make small-matrix code many times slower on a shared machine than one thread is.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}


def pyproject(name: str) -> dict:
    """The parsed pyproject.toml of a project."""
    return tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text(encoding="utf-8"))


EVALUATED = [name for name in PACKAGES if "bench" in pyproject(name).get("tool", {})]


# --- helpers ---------------------------------------------------------------------------------------------------------


def environment(session: nox.Session, name: str) -> str:
    """Make or reuse `.envs/<name>`, which tests, types and evaluation of a project share, and return its Python."""
    folder, home = PROJECTS[name], ENVS / name
    python, stamp = home / "bin" / "python", home / "made-from"
    extras = ["test", *pyproject(name).get("tool", {}).get("bench", {}).get("extras", [])]
    contents = [file.read_text("utf-8") for file in (folder / "pyproject.toml", Path(CONSTRAINTS))]
    made_from = hashlib.sha256("\0".join([*contents, str(ROOT), sys.version]).encode()).hexdigest()

    ENVS.mkdir(exist_ok=True)
    lock = FileLock(ENVS / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        session.log(f"another run is making .envs/{name}: waiting for it")
        lock.acquire()
    try:
        if not (python.exists() and stamp.exists() and stamp.read_text() == made_from):
            session.log(f"making .envs/{name}; it is reused until its pyproject.toml or ci/constraints.txt change")
            session.run(sys.executable, "-m", "virtualenv", "-q", "--clear", str(home), external=True, log=False)
            install = ["-m", "pip", "install", "-q", "-c", CONSTRAINTS, "-e", f"{folder}[{','.join(extras)}]"]
            session.run(str(python), *install, external=True, log=False)
            # Written last: an install that was interrupted leaves no stamp and is done again.
            stamp.write_text(made_from)
    except CommandFailed:
        session.warn(f"could not make .envs/{name}: the reason is above (is the network up?)")
        raise
    finally:
        lock.release()
    return str(python)


def failures(job: Callable[[str], object], names: Iterable[str]) -> list[str]:
    """Run a job for every name, also after one has failed, and return the names that failed."""
    failed = []
    for name in names:
        try:
            job(name)
        except CommandFailed:
            failed.append(name)
    return failed


def run_tests(session: nox.Session, name: str, *options: str) -> None:
    """Run pytest in the project's folder with its own environment."""
    python = environment(session, name)
    with session.chdir(PROJECTS[name]):
        session.run(python, "-m", "pytest", *options, *session.posargs, env=ONE_THREAD)


def run_bench(session: nox.Session, *names: str) -> None:
    """One `bench run`; what follows `--` on nox's command line comes last and so overrides profile and folder."""
    python = environment(session, "bench")
    out = ROOT / "bench-results" / time.strftime("%Y-%m-%d-%H%M%S")
    where = ["--profile", "quick", "--out", str(out), "--envs", str(ENVS), "--root", str(ROOT)]
    # 1 means that all evaluations ran and a claim does not hold: a finding, which the verdict table shows, and not a
    # broken build. 2 means that an evaluation broke, and fails the session.
    session.run(python, "-m", "bench", "run", *names, *where, *session.posargs, success_codes=[0, 1])
    if not session.posargs and not (out / "report.html").exists():  # a crash of Python ends with 1 as well
        session.error("bench ended without a report")


def tally(report: Path) -> Counter[str]:
    """Outcomes in a JUnit file; a run that left none (no environment, no collection) counts as one error."""
    if not report.exists():
        return Counter(errors=1)
    suites = [suite.attrib for suite in ElementTree.parse(report).iter("testsuite")]
    kinds = {"failed": "failures", "skipped": "skipped", "errors": "errors"}
    counts = Counter({kind: sum(int(suite[key]) for suite in suites) for kind, key in kinds.items()})
    counts["passed"] = sum(int(suite["tests"]) for suite in suites) - counts.total()
    return counts


def closing_line(counts: Counter[str], seconds: float) -> str:
    """What pytest itself would print last."""
    kinds = ("failed", "passed", "skipped", "errors")
    words = [f"{counts[kind]} {kind}" for kind in kinds if counts[kind]]
    if counts["errors"] == 1:
        words[-1] = "1 error"
    return f"{', '.join(words) or 'no tests ran'} in {seconds:.2f}s"


def wheel_faults(wheel: Path) -> list[str]:
    """What `twine check` does not look at: metadata that a user relies on, and files that a wheel must not carry."""
    with ZipFile(wheel) as archive:
        files = archive.namelist()
        about = next(file for file in files if file.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(about))
    needed = ["Summary", "Requires-Python", "License-Expression", "Description-Content-Type"]
    faults = [f"metadata lacks {field}" for field in needed if not metadata[field]]
    if not str(metadata.get_payload()).strip():
        faults.append("the README is empty")
    if not any(file.endswith("/py.typed") for file in files):
        faults.append("py.typed is missing")
    strays = {"tests", "__pycache__", ".pytest_cache", ".hypothesis"}
    faults += [f"{file} does not belong in a wheel" for file in files if strays & set(Path(file).parts)]
    return faults


# --- sessions --------------------------------------------------------------------------------------------------------


@nox.session(venv_backend="none")
@nox.parametrize("name", [nox.param(name, id=name) for name in PROJECTS])
def test(session: nox.Session, name: str) -> None:
    """Test one project; options after `--` go to pytest."""
    run_tests(session, name)


@nox.session(name="test-all", venv_backend="none")
def test_all(session: nox.Session) -> None:
    """Test every project, go on when one fails, and end with a summary."""
    summary, total, start = [], Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:

        def job(name: str) -> None:
            report, begun = Path(scratch, f"{name}.xml"), time.monotonic()
            try:
                run_tests(session, name, f"--junitxml={report}")
            finally:
                counts = tally(report)
                total.update(counts)
                summary.append(f"{name:<14}{closing_line(counts, time.monotonic() - begun)}")

        failed = failures(job, PROJECTS)
    print(*["", *summary, f" {closing_line(total, time.monotonic() - start)} ".center(100, "=")], sep="\n", flush=True)
    if failed:
        session.error(f"tests failed: {', '.join(failed)}")


@nox.session(venv_backend="none")
@nox.parametrize("name", [nox.param(name, id=name) for name in EVALUATED])
def bench(session: nox.Session, name: str) -> None:
    """Evaluate one package; options after `--` go to `bench run`, for example `--profile full`."""
    environment(session, name)
    run_bench(session, name)


@nox.session(name="bench-all", venv_backend="none")
def bench_all(session: nox.Session) -> None:
    """Evaluate every package in one run: live table, verdicts, report."""
    # A package whose environment cannot be made is reported as broken by the run; it does not stop the others.
    failures(lambda name: environment(session, name), EVALUATED)
    run_bench(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format of everything."""
    session.install("-c", CONSTRAINTS, "ruff")
    session.run("ruff", "check", str(ROOT))
    session.run("ruff", "format", "--check", str(ROOT))


@nox.session
def types(session: nox.Session) -> None:
    """Type-check the sources of every project against the libraries of its own environment."""
    session.install("-c", CONSTRAINTS, "mypy")

    def job(name: str) -> None:
        options = ["--config-file", "ci/mypy.ini", "--python-executable", environment(session, name)]
        session.run("mypy", *options, str(PROJECTS[name] / "src"))

    if failed := failures(job, PROJECTS):
        session.error(f"types do not check: {', '.join(failed)}")


@nox.session
def dist(session: nox.Session) -> None:
    """Build wheel and sdist of every package, check them, and start each wheel's commands in an empty environment."""
    session.install("-c", CONSTRAINTS, "build", "twine")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)

    def job(name: str) -> None:
        out = ROOT / "dist" / name
        session.run("python", "-m", "build", "--outdir", str(out), str(PACKAGES[name]), silent=True)
        wheel = next(out.glob("*.whl"))
        session.run("twine", "check", "--strict", *map(str, out.iterdir()))
        if faults := wheel_faults(wheel):
            session.warn(f"{wheel.name}: {'; '.join(faults)}")
            raise CommandFailed
        with tempfile.TemporaryDirectory() as scratch, session.chdir(scratch):
            session.run(sys.executable, "-m", "virtualenv", "-q", "empty", external=True, log=False)
            session.run("empty/bin/python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, str(wheel), external=True)
            for command in pyproject(name)["project"]["scripts"]:
                for flag in ("--version", "--help"):
                    session.run(f"empty/bin/{command}", flag, external=True)

    if failed := failures(job, PACKAGES):
        session.error(f"not fit to publish: {', '.join(failed)}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site from the READMEs into `site/`; a broken link or an external request fails."""
    session.install("-c", CONSTRAINTS, "mkdocs-material")
    options = ["--strict", "--config-file", "docs/mkdocs.yml", "--site-dir", str(ROOT / "site")]
    session.run("mkdocs", "build", *options, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none")
def clean(session: nox.Session) -> None:
    """Remove whatever can be made again; results of evaluations stay."""
    caches = ["__pycache__", ".pytest_cache", ".hypothesis", ".mypy_cache", ".ruff_cache"]
    made = [ROOT / folder for folder in (".envs", ".nox", "dist", "site")]
    for path in [*made, *(found for cache in caches for found in ROOT.rglob(cache))]:
        shutil.rmtree(path, ignore_errors=True)
