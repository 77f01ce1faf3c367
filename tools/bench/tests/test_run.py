"""Runs of fake packages that behave and misbehave: each is stopped, measured and told, and none stops another."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fakes import Repository

from bench.cappedlog import HEAD_BYTES, TAIL_BYTES, CappedLog

Left = Callable[[str], list[int]]


def test_a_package_whose_claims_hold_exits_0(repository: Repository) -> None:
    repository.add("p", "print(os.getcwd()); results(claim())")
    done = repository.run()
    assert done.returncode == 0, done.stderr
    assert "all hold" in done.stdout
    assert f"report: {repository.out / 'report.html'}" in done.stdout
    record = repository.record("p")
    assert (record["status"], record["exit_code"], record["timed_out"]) == ("finished", 0, False)
    assert record["package_version"] == record["environment"]["distributions"]["p-dist"] == "1.0"
    assert record["machine"]["cores"] >= 1
    assert 0 < record["wall_s"] < 10
    assert record["peak_memory_bytes"] > 2**20
    assert (repository.out / "p" / "log.txt").read_text().strip() == str(repository.out / "p")


def test_broken_packages_do_not_stop_others_and_exit_2(finished: Repository) -> None:
    done = finished.result
    assert done
    assert done.returncode == 2
    states = {name: finished.record(name)["status"] for name in ("absent", "crashing", "failing", "good")}
    assert states == {"absent": "not installed", "crashing": "crashed", "failing": "finished", "good": "finished"}
    python = finished.envs / "absent/bin/python"
    assert f"to install: {python} -m pip install {finished.root / 'packages/absent'}" in done.stdout
    assert "RuntimeError: the reason" in (finished.out / "crashing" / "log.txt").read_text()


def test_a_claim_that_fails_exits_1(repository: Repository) -> None:
    repository.add("p", "results(claim(measured=-1, holds=False))")
    done = repository.run()
    assert (done.returncode, "1 of 1 fails" in done.stdout) == (1, True)


def test_a_claim_that_was_not_measured_does_not_hold(repository: Repository) -> None:
    repository.add("p", 'results(claim(), claim("two", None, holds=False, note="needs a GPU"))')
    done = repository.run()
    assert (done.returncode, "1 of 2 not measured" in done.stdout) == (1, True)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("pass", "results.json: was not written"),
        ('(options.out / "results.json").write_text("{")', "results.json: not JSON"),
        ('results(claim(measured=float("nan")))', "/claims/0/measured: nan is not a JSON number"),
        ("results(claim(measured=-1.0))", "/claims/0/holds: contradicts its own numbers"),
        ("results(claim(holds=False))", "/claims/0/holds: contradicts its own numbers"),
        (
            'results(claim(), artifacts=[{"path": "../../x", "title": "t"}])',
            '/artifacts/0/path: "../../x" leads outside',
        ),
        ("results(claim()); sys.exit(1)", "crashed: exit code 1"),
        ("results(claim()); os.kill(os.getpid(), 9)", "crashed: ended by SIGKILL"),
        ("results(claim(), seed=7)", "/seed: is 7; want 0"),
    ],
)
def test_an_evaluation_that_broke_is_told_and_counts_no_claim(repository: Repository, body: str, told: str) -> None:
    repository.add("p", body)
    done = repository.run()
    assert done.returncode == 2
    assert told in done.stdout
    assert 'errors="1"' in repository.read("junit.xml")


def test_a_hanging_tree_dies_at_the_limit_with_its_detached_grandchildren(
    repository: Repository, no_process_left: Left
) -> None:
    marker = f"marker-{os.getpid()}"
    stubborn = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99) #{marker}"
    # A daemon: forked twice, in a session of its own, its parent gone, deaf to SIGTERM.
    repository.add(
        "p",
        f"""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", {stubborn!r}])
            os._exit(0)
        os.wait()
        time.sleep(99)
        """,
        table="timeout = {quick = 1}\n",
    )
    repository.add("q", "results(claim())")
    started = time.monotonic()
    done = repository.run()
    assert time.monotonic() - started < 20
    assert (done.returncode, "timed out: stopped at its time limit of 1 s" in done.stdout) == (2, True)
    assert repository.record("p")["timed_out"] is True
    assert repository.record("q")["status"] == "finished"
    assert no_process_left(marker) == []


def test_what_a_finished_package_leaves_behind_is_ended(repository: Repository, no_process_left: Left) -> None:
    marker = f"stray-{os.getpid()}"
    repository.add(
        "p",
        f"""
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99) #{marker}"], start_new_session=True)
        results(claim())
        """,
    )
    assert repository.run().returncode == 0
    assert repository.record("p")["strays_killed"] == 1
    assert no_process_left(marker) == []


def test_peak_memory_is_the_whole_trees(repository: Repository) -> None:
    hog = "import time; held = bytearray(b'x') * (150 * 2**20); time.sleep(0.8)"
    repository.add(
        "p",
        f"""
        hogs = [subprocess.Popen([sys.executable, "-c", {hog!r}]) for _ in range(2)]
        [hog.wait() for hog in hogs]
        results(claim())
        """,
    )
    assert repository.run().returncode == 0
    assert 300 * 2**20 < repository.record("p")["peak_memory_bytes"] < 450 * 2**20


def test_a_gigabyte_of_output_fills_neither_disk_nor_memory(repository: Repository) -> None:
    repository.add("p", 'block = b"y\\n" * 2**19\nfor _ in range(1024): os.write(1, block)\nresults(claim())')
    where = ["--out", str(repository.out), "--root", str(repository.root), "--envs", str(repository.envs)]
    child = psutil.Popen([sys.executable, "-m", "bench", "run", *where], stdout=subprocess.DEVNULL, stderr=-3)
    peak = 0
    while child.poll() is None:
        peak = max(peak, child.memory_info().rss if child.status() != psutil.STATUS_ZOMBIE else 0)
        time.sleep(0.05)
    log = repository.record("p")["log"]
    assert log["bytes"] == 2**30
    assert log["dropped_bytes"] == 2**30 - HEAD_BYTES - TAIL_BYTES
    assert (repository.out / "p" / "log.txt").stat().st_size < HEAD_BYTES + TAIL_BYTES + 200
    assert f"[… {log['dropped_bytes']} bytes dropped here …]".encode() in (repository.out / "p/log.txt").read_bytes()
    assert peak < 150 * 2**20


def test_the_capped_log_keeps_the_first_and_last_bytes(tmp_path: Path) -> None:
    text = bytes(i % 251 for i in range(10_000))
    for size in (1, 7, 1000, 10_000):
        with CappedLog(tmp_path / "log", head=100, tail=50) as log:
            for start in range(0, len(text), size):
                log.write(text[start : start + size])
        kept = (tmp_path / "log").read_bytes()
        assert kept == text[:100] + "\n[… 9850 bytes dropped here …]\n".encode() + text[-50:]


def test_interrupting_kills_the_children_and_writes_what_is_there(
    repository: Repository, no_process_left: Left
) -> None:
    marker = f"interrupted-{os.getpid()}"
    repository.add("a", "results(claim())")
    repository.add("b", f'subprocess.run([sys.executable, "-c", "import time; time.sleep(99) #{marker}"])')
    repository.add("c", "results(claim())")
    where = ["--out", str(repository.out), "--root", str(repository.root), "--envs", str(repository.envs)]
    # A job started in the background ignores SIGINT, and so would its children: begin from the default.
    child = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", *where],
        stdout=-3,
        stderr=-3,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 20
    while not no_process_left(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == 130
    assert [repository.record(name)["status"] for name in "abc"] == ["finished", "interrupted", "interrupted"]
    assert (repository.out / "report.html").exists()
    assert no_process_left(marker) == []


def test_resume_keeps_valid_runs_of_the_same_profile_seed_and_version(repository: Repository) -> None:
    count = repository.root / "count"
    for name in "pq":
        repository.add(name, f'open({str(count)!r}, "a").write(NAME[0]); results(claim())')

    def ran(*arguments: str) -> str:
        count.write_text("")
        repository.run("--resume", *arguments)
        return count.read_text()

    assert ran() == "pq"
    assert ran() == ""
    assert ran("--seed", "1") == "pq"
    assert ran("--seed", "1", "--profile", "full") == "pq"
    repository.set_version("p", "1.1")
    assert ran("--seed", "1", "--profile", "full") == "p"
    (repository.out / "q" / "results.json").write_text("{")
    assert ran("--seed", "1", "--profile", "full") == "q"


def test_an_interrupted_run_that_resumes_finds_its_own_files_and_a_fresh_one_does_not(repository: Repository) -> None:
    repository.add("p", 'mark = options.out / "checkpoint"; print(mark.exists()); mark.touch(); sys.exit(1)')
    log = repository.out / "p" / "log.txt"
    told = []
    for arguments in ([], ["--resume"], []):
        repository.run(*arguments)
        told.append(log.read_text().strip())
    assert told == ["False", "True", "False"]


def test_jobs_run_side_by_side(repository: Repository) -> None:
    """Each waits for the other to have begun: one after the other, they would wait for ever."""
    body = (
        'here = options.out.parent; (here / "begun-{own}").touch()\n'
        "end = time.monotonic() + 60\n"
        'while not (here / "begun-{other}").exists() and time.monotonic() < end: time.sleep(0.02)\n'
        "sys.exit(1) if time.monotonic() >= end else results(claim())"
    )
    for own, other in ("pq", "qp"):
        repository.add(own, body.format(own=own, other=other))
    assert repository.run("--jobs", "2").returncode == 0


def test_slurm_jobs_go_through_submitit(repository: Repository) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    from rich.console import Console

    from bench.board import Board
    from bench.discover import discover
    from bench.executors import run_slurm
    from bench.run import Job
    from bench.runs import load_runs, outcome

    repository.add("p", "results(claim())")
    repository.add("q", "sys.exit(3)")
    repository.out.mkdir()
    jobs = [
        Job(p, repository.root, repository.out, "quick", 0, repository.envs, 20, False)
        for p in discover(repository.root)
    ]
    board = Board(["p", "q"], Console(stderr=True))
    assert run_slurm(jobs, 1, board, cluster="local") is False
    assert [outcome(run).word for run in load_runs(repository.out)] == ["all hold", "crashed"]
    assert json.loads((repository.out / "p" / "run.json").read_text())["status"] == "finished"
