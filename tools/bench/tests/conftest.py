"""What tests share: a fake repository, a finished run, valid results, and a search for processes left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import GOOD, Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """One run of a package that holds, one that does not, one that crashed and one that is not installed."""
    made = Repository(tmp_path_factory.mktemp("finished"))
    made.add("good", GOOD)
    made.add("failing", 'results(claim(measured=-1.0, holds=False), claim("two", None, holds=False, note="no GPU"))')
    made.add("crashing", 'print("about to fail"); raise RuntimeError("the reason")')
    made.add("absent", "").unlink()
    made.result = made.run()
    return made


@pytest.fixture
def claims() -> Callable[..., dict[str, Any]]:
    """Makes valid results with one claim, whose fields can be overridden."""

    def make(**fields: Any) -> dict[str, Any]:
        claim = {
            "id": "one", "statement": "It works.", "source": "Fig. 1", "paper": "it works", "measured": 1.0,
            "test": {"op": ">", "value": 0.0}, "holds": True,
        }  # fmt: skip
        document = {"schema": "bench/1", "package": "p", "version": "1.0", "profile": "quick", "seed": 0}
        return {**document, "claims": [claim | fields], "metrics": [], "comparisons": [], "artifacts": []}

    return make


@pytest.fixture
def no_process_left() -> Callable[[str], list[int]]:
    """Finds processes whose command line has a marker."""
    return lambda marker: [
        p.pid
        for p in psutil.process_iter(["cmdline", "status"])
        if marker in " ".join(p.info["cmdline"] or ()) and p.info["status"] != psutil.STATUS_ZOMBIE
    ]
