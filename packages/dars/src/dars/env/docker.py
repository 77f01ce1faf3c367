"""The command line of docker, or of podman, which takes the same words; and what is left of runs that were killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvError, because
from .scan import remove

RUN, OWNER, STATE = "dars", "dars.owner", "dars.state"  # labels: the run; host and process; folder of the run's states
NOTE = "container.json"  # in that folder
PATIENCE_S = 600.0


class Docker:
    """docker or podman.

    Parameters
    ----------
    cli : the program, or a list of it and options that precede every subcommand.

    Raises
    ------
    EnvError
        There is no such program.
    """

    def __init__(self, cli: str | Sequence[str] = "docker") -> None:
        self.words = [cli] if isinstance(cli, str) else list(cli)
        if not self.words or shutil.which(self.words[0]) is None:
            raise EnvError(
                f"the program {' '.join(self.words) or '(no name)'} is not there: install docker, or podman and name it"
            )

    def start(self, *args: str, **files: Any) -> subprocess.Popen[bytes]:
        """A subcommand as a process of its own group, out of reach of the terminal's Ctrl-C."""
        try:
            return subprocess.Popen([*self.words, *args], start_new_session=True, **files)
        except (OSError, ValueError) as error:  # too long, or with a NUL
            raise EnvError(
                f"cannot run {self.words[0]} {args[0]}: {getattr(error, 'strerror', None) or error}"
            ) from None

    def run(self, *args: str, stdin: bytes = b"", timeout: float = PATIENCE_S) -> tuple[int, bytes, str]:
        """Exit code, output and what it says of errors, on one line."""
        pipe = subprocess.PIPE
        with self.start(*args, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(stdin, timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise EnvError(f"{self.words[0]} {args[0]} did not answer for {timeout:.0f} s") from None
        return process.returncode, out, " ".join(err.decode(errors="replace").split())

    def ask(self, *args: str, stdin: bytes = b"", timeout: float = PATIENCE_S) -> bytes:
        """Output of a subcommand; EnvError if it fails."""
        code, out, said = self.run(*args, stdin=stdin, timeout=timeout)
        if code:
            raise because(f"{self.words[0]} {args[0]} failed", said or f"exit code {code}")
        return out

    def has_image(self, name: str) -> bool:
        """Whether there is an image of this name."""
        return self.run("image", "inspect", "--format", "{{.Id}}", name)[0] == 0

    def works(self) -> str:
        """Why no container can be managed, "" if that works."""
        try:
            code, _, said = self.run("ps", "-q", timeout=20)
        except EnvError as error:
            return str(error)
        return "" if code == 0 else said or f"exit code {code}"

    def images_of(self, run: str) -> list[str]:
        """Names of the images of one run; none where docker does not answer."""
        listed = self.run("images", "--filter", f"label={RUN}={run}", "--format", "{{.Repository}}:{{.Tag}}")
        return listed[1].decode().split()

    def remove_containers(self, names: Sequence[str]) -> None:
        """Kill and remove containers; one that is gone already is fine."""
        for name in names:
            self.run("rm", "--force", "--volumes", name)

    def remove_images(self, names: Sequence[str]) -> None:
        """Remove images; one that is gone already is fine."""
        if names:
            self.run("rmi", "--force", *names)


def owner() -> str:
    """This process, as the label of what it makes."""
    return f"{socket.gethostname()}:{os.getpid()}"


def remove_abandoned(cli: str | Sequence[str] = "docker") -> list[str]:
    """Remove containers of processes of this machine that are gone, and images that no run can come back to.

    Those are the images of a run whose folder of states is gone, or was temporary. Returns the names of what was
    removed.
    """
    docker = Docker(cli)
    containers = [
        (identity, labels)
        for identity, labels in _labelled(docker, ["ps", "--all", "--quiet", "--no-trunc"], "container")
        if _is_gone(labels)
    ]
    docker.remove_containers([identity for identity, _ in containers])
    images: list[str] = []
    for run in {labels[RUN] for _, labels in _labelled(docker, ["images", "--quiet", "--no-trunc"], "image")
                if _is_gone(labels) and not _may_come_back(labels)}:  # fmt: skip
        images += docker.images_of(run)
    docker.remove_images(images)
    return [*(identity for identity, _ in containers), *images]


def _labelled(docker: Docker, words: Sequence[str], kind: str) -> list[tuple[str, dict[str, str]]]:
    """(id, labels) of everything of ours."""
    found = sorted(set(docker.ask(*words, "--filter", f"label={RUN}").decode().split()))
    if not found:
        return []
    # One that went away meanwhile is an error of the client, which shows the others all the same.
    shown = docker.run(kind, "inspect", "--format", "{{.Id}} {{json .Config.Labels}}", *found)[1].decode()
    return [(line.split(" ", 1)[0], json.loads(line.split(" ", 1)[1]) or {}) for line in shown.splitlines()]


def _is_gone(labels: dict[str, str]) -> bool:
    """Whether the process is known to have ended: one of another machine is not."""
    host, _, process = labels.get(OWNER, "").rpartition(":")
    return host == socket.gethostname() and not Path("/proc", process).exists()


def _may_come_back(labels: dict[str, str]) -> bool:
    folder = Path(labels.get(STATE, ""))
    try:
        kept = bool(json.loads((folder / NOTE).read_text())["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not kept:
        with contextlib.suppress(OSError):
            remove(folder)  # the temporary folder of a run that was killed
    return kept
