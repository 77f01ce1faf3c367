"""One thread for every BLAS, so that two test processes do not fight over the cores; the console script in-process."""

import os
import signal
import sys

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The console script in this process: (exit code, stdout, stderr)."""
    import cmaxent.cli as command_line  # after the thread settings above

    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cmaxent", *map(str, arguments)])
        previous = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stop:
                command_line.main()
        finally:
            signal.signal(signal.SIGTERM, previous)
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
