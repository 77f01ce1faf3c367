"""What is said to be missing: by programs and variables that the tests put there or take away."""

import sys
from types import SimpleNamespace

import pytest

from dars import doctor
from dars.doctor import checks


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without programs and credentials."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for names in doctor.CREDENTIALS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("dars.doctor.works", lambda kind: f"{kind} is not installed")
    return tmp_path


def program(folder, name, text, code=0):
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
    path.chmod(0o755)


def found(out_dir="."):
    return {check.name: check for check in checks(out_dir)}


def test_whatever_is_not_fine_has_a_remedy_and_only_that():
    for check in checks():
        assert check.name
        assert check.detail
        assert bool(check.remedy) != check.ok


def test_missing_programs_and_credentials_are_named(bare):
    seen = found(bare)
    for name in ("git", "sandbox", "docker", "podman", "Anthropic credentials", "OpenAI credentials"):
        assert not seen[name].ok, name
        assert "not installed" in seen[name].detail or "not set:" in seen[name].detail
    assert seen["Python"] == ("Python", True, sys.version.split()[0], "")
    assert seen["ruff"].ok


def test_programs_count_only_if_they_work_and_are_new_enough(bare):
    program(bare, "git", "git version 2.17.1")
    program(bare, "docker", "", code=1)
    program(bare, "podman", "")
    seen = found()
    assert (seen["git"].ok, seen["git"].detail) == (False, "2.17.1")
    assert not seen["docker"].ok
    assert seen["podman"].ok
    program(bare, "git", "git version 2.100.0.windows.1")
    assert found()["git"].ok


def test_credentials_are_never_shown(bare, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    seen = found()
    assert seen["Anthropic credentials"].detail == "ANTHROPIC_API_KEY is set"
    assert not seen["OpenAI credentials"].ok
    assert "secret" not in repr(seen)


def test_disk_is_looked_at_where_the_run_is_to_be(bare, monkeypatch):
    assert f"free in {bare}" in found(bare / "not" / "yet")["disk"].detail
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert found(bare)["disk"][1:] == (False, f"1.0 GB free in {bare}", "free at least 2 GB there")
    (bare / "file").write_text("")
    assert found(bare / "file")["disk"].detail == f"{bare / 'file'} cannot be written"


def test_extras_are_those_of_the_distribution(monkeypatch):
    lines = ["numpy>=1", 'pytest>=8; extra == "test"', "numpy>=1; extra == 'all'", 'no-such-thing>=2 ; extra == "one"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    seen = found()
    assert seen["extra all"].ok
    assert seen["extra one"][1:] == (False, "no-such-thing missing", "pip install 'dars-agent[one]'")
    assert "extra test" not in seen
