"""The command line's errors: one line, what and where and what would be right, exit 2, nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Repository, bench

import bench as package


def failed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_version_and_help_answer() -> None:
    assert bench("--version").stdout.strip() == package.__version__
    for arguments in ((), ("--help",), ("run", "--help")):
        done = bench(*arguments)
        assert (done.returncode, "Usage: bench" in done.stdout) == (0, True)


def test_list_names_what_was_discovered(repository: Repository) -> None:
    repository.add("p", "", table='extras = ["eval"]\ntimeout = {quick = 5}\n')
    (repository.root / "packages" / "other").mkdir()
    (repository.root / "packages" / "other" / "pyproject.toml").write_text("[project]\n")
    assert bench("list", "--root", str(repository.root)).stdout.splitlines()[1].split() == [
        "p",
        "p",
        "eval",
        "about",
        "p",
    ]
    (listed,) = json.loads(bench("list", "--json", "--root", str(repository.root)).stdout)
    assert listed == {
        "name": "p", "distribution": "p-dist", "summary": "about p", "command": ["p", "eval"],
        "extras": ["eval"], "timeout": {"quick": 5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nope"], "unknown package 'nope'; known: alpha, beta"),
        (["run", "alpah"], "unknown package 'alpah'; did you mean alpha? known: alpha, beta"),
        (["run", "--profile", "huge"], "--profile huge: want one of quick, full, gpu, paper"),
        (["run", "--executor", "k8s"], "--executor k8s: want one of local, slurm"),
        (["run", "--timeout", "-1"], "--timeout -1: want a positive number of seconds"),
        (
            ["run", "--envs", "/nowhere"],
            "--envs /nowhere: is no folder; want one with a virtual environment per package",
        ),
        (["run", "--root", "/"], "/: has no packages/ folder; give the repository's root"),
    ],
)
def test_bad_usage_of_run_is_one_line(repository: Repository, arguments: list[str], told: str) -> None:
    for name in ("alpha", "beta"):
        repository.add(name, "results(claim())")
    where = ["--root", str(repository.root), "--out", str(repository.out)]
    assert failed(bench(arguments[0], *where, *arguments[1:])) == told
    assert not repository.out.exists()


def test_words_that_the_command_line_does_not_know_are_one_line() -> None:
    assert failed(bench("run", "--out", "x", "--foo")).startswith("no such option: --foo")
    assert failed(bench("nope")).startswith("no such command 'nope'")
    assert failed(bench("run")).startswith("missing option '--out'")
    assert failed(bench("run", "--out", "x", "--jobs", "0")).startswith("invalid value for '--jobs'")
    assert failed(bench("report")).startswith("missing argument 'DIR'")


def test_a_folder_with_something_else_in_it_is_left_alone(repository: Repository) -> None:
    repository.add("p", "results(claim())")
    repository.out.mkdir()
    (repository.out / "thesis.tex").write_text("years of work")
    told = f"{repository.out}: is not empty and no run of bench; give a new or empty folder as --out"
    assert failed(repository.run()) == told
    assert [path.name for path in repository.out.iterdir()] == ["thesis.tex"]


def test_unreadable_runs_are_one_line(tmp_path: Path) -> None:
    assert failed(bench("report", str(tmp_path / "no"))).endswith("is no folder; give one that `bench run --out` wrote")
    assert "holds no runs (no */run.json)" in failed(bench("report", str(tmp_path)))
    run = tmp_path / "p" / "run.json"
    run.parent.mkdir()
    run.write_text('{"schema": "bench-run/1"')
    assert f"{run}: not JSON" in failed(bench("report", str(tmp_path)))
    run.write_text('{"schema": "bench-run/2"}')
    assert failed(bench("report", str(tmp_path))).startswith(f"{run}: /package: is missing")


def test_a_broken_pyproject_is_named(repository: Repository) -> None:
    repository.add("p", "")
    file = repository.root / "packages" / "p" / "pyproject.toml"
    file.write_text("[tool.bench]\ncommand = 3\n")
    told = f'{file}: [tool.bench] has no command; want command = "<cli> eval"'
    assert failed(bench("list", "--root", str(repository.root))) == told
    file.write_text("[tool")
    assert failed(bench("list", "--root", str(repository.root))).startswith(f"{file}: cannot be read: ")


def test_debug_shows_the_traceback() -> None:
    done = bench("report", "/nowhere", "--debug")
    assert "Traceback" in done.stderr


def test_slurm_without_submitit_says_how_to_get_it(tmp_path: Path) -> None:
    # A None in sys.modules is how Python marks a module that cannot be imported.
    code = "import sys; sys.modules['submitit'] = None; sys.argv[0] = 'bench'; from bench.cli import main; main()"
    words = ["run", "--out", str(tmp_path / "out"), "--executor", "slurm"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30, check=False)
    assert failed(done) == "--executor slurm: submitit is not installed; pip install 'paper-bench[slurm]'"
