"""Closing commands in: bubblewrap where it works, else namespaces by ``unshare``, else not at all if asked for.

Inside, the system is read-only; the workspace stands where its source does, so that paths written into installed
packages hold and the source, with its history, is out of sight. Temporary folder and HOME last one command.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import EnvError, SandboxUnavailable
from .base import ExecResult
from .output import read_output

HOME = "/tmp/home"
PASSED_ON = ("PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV")  # and nothing else: no credentials
FIXED = {
    "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat",
    "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip
HIDDEN = ("/tmp", "/var/tmp", "/run", "/home", "/root")  # sockets of daemons, keys, other people's files
SYSTEM_WIDE = ("sys", "sysrq-trigger", "irq", "bus")  # below /proc: root may write there, capabilities or not
TIMED_OUT = 124  # as timeout(1) returns

# Namespaces by hand: a copy of the whole mount tree, made read-only, with what is hidden covered; all capabilities are
# dropped before the command, or it could undo this.
UNSHARE = """
set -e
mount --rbind / "$NEW"
{steps}
mount -t tmpfs tmpfs "$NEW/dev"
for name in null zero full random urandom; do touch "$NEW/dev/$name"; mount --bind "/dev/$name" "$NEW/dev/$name"; done
ln -s /proc/self/fd "$NEW/dev/fd"
for name in stdin:0 stdout:1 stderr:2; do ln -s "/proc/self/fd/${{name#*:}}" "$NEW/dev/${{name%:*}}"; done
mkdir -m 1777 "$NEW/dev/shm"
while read -r _ _ _ _ at _; do
  case "$at" in *\\\\*) at=$(printf '%b' "$(printf '%s' "$at" | sed 's/\\\\/\\\\0/g')") ;; esac
  case "$at" in
    {done}) ;;
    "$NEW" | "$NEW"/*) mount -o remount,bind,ro "$at" ;;
  esac
done < /proc/self/mountinfo
mount -t proc proc "$NEW/proc"
for name in {system_wide}; do
  at="$NEW/proc/$name"
  [ ! -e "$at" ] || {{ mount --bind "$at" "$at"; mount -o remount,bind,ro "$at"; }}
done
exec chroot "$NEW" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all sh -c 'cd "$0" && exec "$@"' {where} "$@"
"""


@dataclass(frozen=True)
class Limits:
    """Of each process: address space, processes of the user, size of a written file; wall time is the caller's.

    The kernel does not count the processes of root: there ``max_procs`` has no effect.
    """

    memory_mb: int = 4096
    max_procs: int = 256
    max_file_mb: int = 512

    def wrap(self, command: list[str], timeout: float) -> list[str]:
        """The command under these limits, and as much processor time as all processors have until the timeout."""
        cpu = int(timeout * (os.cpu_count() or 1)) + 1
        sizes = [f"--as={self.memory_mb << 20}", f"--fsize={self.max_file_mb << 20}"]
        return ["prlimit", *sizes, f"--nproc={self.max_procs}", f"--cpu={cpu}", "--core=0", "--", *command]


@dataclass(frozen=True)
class Sandbox:
    """How commands are closed in.

    Attributes
    ----------
    kind : "bwrap", "unshare" or "none".
    shown_at : absolute path at which commands find the workspace ("none": they find it where it is).
    """

    kind: str
    shown_at: Path
    network: bool = False
    limits: Limits = Limits()

    def run(
        self, command: list[str], workspace: Path, timeout: float, stdin: bytes | None, output_chars: int,
        scratch: Path, enter: tuple[str, ...] = (),
    ) -> ExecResult:  # fmt: skip
        """Run a command in a workspace and end all it started, when it ends or when the time is over.

        scratch : an existing folder for what lasts one command.
        enter : words before the sandbox's own, to enter namespaces that hold the workspace.
        """
        with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as private:
            line = self.limits.wrap(command, timeout)
            if self.kind == "bwrap":
                line = bubblewrap(line, workspace, self.shown_at, self.network, self.limits.memory_mb)
            elif self.kind == "unshare":
                line = unshare(line, workspace, self.shown_at, self.network, self.limits.memory_mb, private)
            elif enter:
                line = ["sh", "-c", 'cd "$0" && exec "$@"', str(workspace), *line]
            cwd = workspace if self.kind == "none" and not enter else None
            environment = clean_environment(private if self.kind == "none" else None)
            with tempfile.TemporaryFile(dir=scratch) as output, tempfile.TemporaryFile(dir=scratch) as given:
                given.write(stdin or b"")
                given.seek(0)
                started = time.monotonic()
                try:
                    process = subprocess.Popen(
                        [*enter, *line], cwd=cwd, env=environment, stdin=given, stdout=output, stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )  # fmt: skip
                except (OSError, ValueError) as error:  # too long, or with a NUL
                    raise EnvError(f"cannot run {command[0]}: {getattr(error, 'strerror', None) or error}") from None
                code, timed_out = _wait(process, timeout)
                wall_s = time.monotonic() - started
                if self.kind == "none":
                    _kill_all_of(private)
                text, truncated = read_output(output, output_chars)
        return ExecResult(code, text, timed_out, truncated, wall_s)


def _wait(process: subprocess.Popen[bytes], timeout: float) -> tuple[int, bool]:
    """Exit code as a shell has it, and whether the time ran out; nothing of the process group is left."""
    timed_out = False
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a leader that has ended may leave others of its group
        process.wait()
    if timed_out:
        return TIMED_OUT, True
    return (process.returncode if process.returncode >= 0 else 128 - process.returncode), False


def _kill_all_of(private: str) -> None:
    """Kill what left the process group: it still has the private folder as HOME."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={private}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue  # ended meanwhile, or another user's


def choose(kind: str) -> str:
    """The sandbox to use; SandboxUnavailable if it does not work here."""
    if kind not in ("auto", "bwrap", "unshare", "none"):
        raise EnvError(f"there is no sandbox {kind!r}; there are auto, bwrap, unshare and none")
    if kind == "none":
        return kind
    for candidate in ("bwrap", "unshare") if kind == "auto" else (kind,):
        if not works(candidate):
            return candidate
    reasons = "; ".join(f"{name}: {works(name)}" for name in (("bwrap", "unshare") if kind == "auto" else (kind,)))
    raise SandboxUnavailable(
        f"commands cannot be closed in here ({reasons}): install bubblewrap, allow user namespaces, "
        "or ask for sandbox='none' if all that may be run is trusted"
    )


@functools.cache
def works(kind: str) -> str:
    """Why a sandbox does not work on this machine, "" if it does."""
    if shutil.which(kind) is None:
        return f"{kind} is not installed"
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name, "workspace")
        workspace.mkdir()
        try:
            done = Sandbox(kind, workspace).run(["true"], workspace, 10.0, None, 300, Path(name))
        except EnvError as error:
            return str(error)
    return "" if done.returncode == 0 else " ".join(done.output.split()) or f"exit code {done.returncode}"


def clean_environment(private: str | None = None) -> dict[str, str]:
    """Variables of a command; private: a folder for HOME and temporary files where there is no sandbox to hide them."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    path = passed.get("PATH", os.defpath)
    passed["PATH"] = f"{path}:{Path(sys.prefix) / 'bin'}"
    home, temporary = (private, private) if private else (HOME, "/tmp")
    # Bytecode is looked for in an empty folder, so none that is older than an edit can be found.
    return passed | FIXED | {"HOME": home, "TMPDIR": temporary, "PYTHONPYCACHEPREFIX": f"{temporary}/pycache"}


def hidden_folders() -> list[str]:
    """Existing folders to cover, none inside another."""
    found = {os.path.realpath(path) for path in (*HIDDEN, os.path.expanduser("~")) if os.path.isdir(path)} - {"/"}
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def shown_folders() -> list[str]:
    """What has to be seen again inside covered ones: programs on the PATH, and Python's installation."""
    path = os.environ.get("PATH", "").split(":")
    wanted = [sys.prefix, sys.base_prefix, *path]
    wanted += [os.path.dirname(folder) for folder in path if folder.endswith("/shims")]  # of pyenv and its kin
    wanted += [os.environ[name] for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if name in os.environ]
    covered = hidden_folders()
    inside = {p for p in wanted if os.path.isdir(p) and any(os.path.realpath(p).startswith(f"{c}/") for c in covered)}
    return sorted(inside - {os.path.expanduser("~")})


def bubblewrap(command: list[str], workspace: Path, at: Path, network: bool, tmp_mb: int) -> list[str]:
    """Command line of bwrap."""
    line = ["bwrap", "--die-with-parent", "--new-session", "--unshare-user", "--unshare-pid", "--unshare-ipc"]
    line += ["--unshare-uts", *([] if network else ["--unshare-net"]), "--ro-bind", "/", "/", "--dev", "/dev"]
    line += ["--proc", "/proc", "--cap-drop", "ALL"]
    for name in SYSTEM_WIDE:
        line += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    for path in hidden_folders():
        line += ["--size", str(tmp_mb << 20), "--tmpfs", path]
    for path in (*shown_folders(), *_resolver(network)):
        line += ["--ro-bind", path, path]
    return [*line, "--dir", HOME, "--bind", str(workspace), str(at), "--chdir", str(at), "--", *command]


def unshare(command: list[str], workspace: Path, at: Path, network: bool, tmp_mb: int, new: str) -> list[str]:
    """Command line of unshare; new: an empty folder that becomes the root."""
    q = shlex.quote
    steps = [f'mount -t tmpfs -o mode=1777,size={tmp_mb}m tmpfs "$NEW"{q(path)}' for path in hidden_folders()]
    for path, source in [*((p, p) for p in (*shown_folders(), *_resolver(network))), (str(at), str(workspace))]:
        make = "mkdir -p" if os.path.isdir(source) else 'mkdir -p "$(dirname "$NEW"' + q(path) + ')" && touch'
        steps.append(f'[ -e "$NEW"{q(path)} ] || {make} "$NEW"{q(path)}')
        steps.append(f'mount --bind {q(source)} "$NEW"{q(path)}')
        if path == source:
            steps.append(f'mount -o remount,bind,ro "$NEW"{q(path)}')
    steps.append(f'mkdir -p "$NEW"{q(HOME)}')
    covered = [f'"$NEW"{q(path)}' for path in (*hidden_folders(), "/dev")]
    done = " | ".join([*covered, *(f"{path}/*" for path in covered), f'"$NEW"{q(str(at))}'])
    script = UNSHARE.format(steps="\n".join(steps), system_wide=" ".join(SYSTEM_WIDE), done=done, where=q(str(at)))
    spaces = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
    spaces += [] if network else ["--net"]
    return [
        "setpriv", "--pdeathsig", "KILL", "unshare", *spaces,
        "sh", "-c", f"NEW={q(new)}\n{script}", "sh", *command,
    ]  # fmt: skip


def _resolver(network: bool) -> list[str]:
    """The file that names the servers of names, where it lies in a covered folder and is wanted."""
    real = os.path.realpath("/etc/resolv.conf")
    return [real] if network and real.startswith("/run/") and os.path.exists(real) else []
