"""A private copy of a folder on this machine, with a shell that is closed in."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

from ..errors import EnvError, because
from .backend import Backend
from .base import Environment, ExecResult, check_limits
from .copy import CopyBackend
from .git import GitBackend
from .overlay import OverlayBackend
from .paths import below, link_target, resolve
from .replay import Perform, ReplayBackend
from .sandbox import Limits, Sandbox, choose
from .scan import Folder, StatCache, copy_folder, remove, scan
from .store import ObjectStore, git

HISTORY = ".git"
COMMIT = ("-c", "user.name=dars", "-c", "user.email=dars@localhost", "commit", "-q", "--allow-empty", "--no-verify")
EPOCH = {"GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z"}


BACKENDS = ("git", "overlay", "copy", "replay")


class State(NamedTuple):
    """Files, and the history in .git that belongs to them."""

    files: Folder
    history: Folder


class LocalEnvironment(Environment):
    """A workspace that begins as a copy of ``source``, which is never changed.

    The copy has a history of one commit. Commands see it at the path of ``source``; their temporary folder and HOME are
    empty and last one command, so that a later command can find nothing but the files of the workspace. A snapshot
    holds every file, link and empty folder and whether files are executable; caches (``scan.CACHES``) and what is
    installed (``scan.INSTALLED``, virtual environments) are in no snapshot.

    Parameters
    ----------
    source : folder to work on; it need not be a git repository.
    backend : how states are remembered: "git" (objects), "overlay" (layers of the kernel's overlayfs), "copy" (whole
        copies) or "replay" (the base, then every command again).
    sandbox : "bwrap", "unshare", "auto" (the first that works; SandboxUnavailable if neither does) or "none".
    network : whether commands reach it.
    timeout : seconds per command where none is asked for.
    memory_mb, max_procs, max_file_mb : limits of each process; ``max_procs`` does not bind root.
    output_chars : what is kept of a command's output, 60 % from its head and 40 % from its tail.
    state_dir : where snapshots live; given again, the same base and all snapshots are found. Default: a temporary
        folder that is deleted by ``close``.

    Raises
    ------
    EnvError : there is no such folder, or it cannot be copied.
    SandboxUnavailable : commands cannot be closed in as asked.
    """

    def __init__(
        self,
        source: Path,
        backend: str = "git",
        sandbox: str = "auto",
        network: bool = False,
        timeout: float = 120.0,
        memory_mb: int = 4096,
        max_procs: int = 256,
        max_file_mb: int = 512,
        output_chars: int = 20_000,
        state_dir: Path | None = None,
    ) -> None:
        check_limits(timeout, memory_mb, max_procs, max_file_mb, output_chars)
        if backend not in BACKENDS:
            raise EnvError(f"there is no backend {backend!r}; there are {', '.join(BACKENDS)}")
        self.source = Path(source).resolve()
        self.backend = backend
        self.timeout = timeout
        self.output_chars = output_chars
        self._limits = Limits(memory_mb, max_procs, max_file_mb)
        self._sandbox = Sandbox(choose(sandbox), self.source, network, self._limits)
        self._seen: dict[str, StatCache] = {"files": {}, "history": {}}
        self._open(state_dir)

    def _open(self, state_dir: Path | None) -> None:
        known = state_dir is not None and (state_dir / "base.json").exists()
        if not known and not self.source.is_dir():
            raise EnvError(f"{self.source} is not a folder: name the folder of the code to work on")
        if state_dir is not None and state_dir.resolve().is_relative_to(self.source):
            raise EnvError(f"state_dir {state_dir} lies inside {self.source}, which must not change")
        self.state_dir = (state_dir or Path(tempfile.mkdtemp(prefix="dars-"))).resolve()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.state_dir)
        self._work = self.state_dir / f"work-{os.getpid()}-{secrets.token_hex(4)}"
        self._scratch = self._work / "scratch"
        self._scratch.mkdir(parents=True)
        self._finalizer = weakref.finalize(self, remove, self.state_dir if state_dir is None else self._work)
        self._store = ObjectStore(self.state_dir / "store")
        root = self._work / "workspace"
        root.mkdir()
        if self.source.is_dir():
            # Its history may hold the answer; a submodule's files become plain ones.
            copy_folder(self.source, root, lambda path, name: name == HISTORY)
        found = self._look(root)
        self.source_hash = found.files.identity if self.source.is_dir() else ""
        base_file = self.state_dir / "base.json"
        if known:
            self._base = _read_base(base_file)
            GitBackend(root, self._store).restore(self._base[0], found, self._base)
        else:
            _begin_history(root)
            self._base = [folder.identity for folder in self._look(root)]
            unfinished = base_file.with_suffix(".new")
            unfinished.write_text(json.dumps({"source": str(self.source), "base": self._base}))
            unfinished.replace(base_file)
        self._backend = self._remember(root)
        self._backend.save(self._base[0])
        self.cheap_snapshots = self._backend.cheap

    def _remember(self, root: Path) -> Backend:
        if self.backend == "overlay":
            return OverlayBackend(root, self.state_dir / "layers", self._work)
        if self.backend == "copy":
            return CopyBackend(root, self.state_dir / "copies")
        if self.backend == "replay":
            again: dict[str, Perform] = {"exec": self._exec, "write": self._write_file, "remove": self._remove_file}
            return ReplayBackend(root, self._store, self.state_dir / "replays", self._base, again)
        return GitBackend(root, self._store)

    # --- commands and files -----------------------------------------------------------------------------------------

    def exec(self, cmd: str | list[str], timeout: float | None = None, stdin: bytes | None = None) -> ExecResult:
        """Run a command in the sandbox; all it started ends with it, and after ``timeout`` seconds (exit code 124)."""
        if not cmd:
            raise EnvError("the command is empty")
        self._backend.note("exec", cmd, timeout, stdin)
        return self._exec(cmd, timeout, stdin)

    def _exec(self, cmd: str | list[str], timeout: float | None, stdin: bytes | None) -> ExecResult:
        command = [shutil.which("bash") or "/bin/sh", "-c", cmd] if isinstance(cmd, str) else cmd
        seconds = self.timeout if timeout is None else timeout
        at, enter = self._backend.inner, self._backend.enter
        return self._sandbox.run(command, at, seconds, stdin, self.output_chars, self._scratch, enter)

    def read_file(self, path: str) -> bytes:
        """Bytes of a file, also through links that stay inside."""
        there = self._inside(path)
        try:
            return there.read_bytes()
        except OSError as error:
            raise EnvError(f"cannot read {path}: {error.strerror}") from None

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file, folders included; its bytecode is dropped, which could pass for that of the new content."""
        self._backend.note("write", path, data)
        self._write_file(path, data)

    def _write_file(self, path: str, data: bytes) -> None:
        there = self._inside(path)
        try:
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(data)
            for stale in (there.parent / "__pycache__").glob(f"{_literal(there.stem)}.*.pyc"):
                stale.unlink()
        except OSError as error:
            raise because(f"cannot write {path}", error) from None

    def remove_file(self, path: str) -> None:
        """Delete a file, or a link itself."""
        self._backend.note("remove", path)
        self._remove_file(path)

    def _remove_file(self, path: str) -> None:
        there = self._inside(path, follow=False)
        try:
            there.unlink()
        except OSError as error:
            raise EnvError(f"cannot remove {path}: {error.strerror}") from None

    def list_files(self) -> list[str]:
        """Paths of all files and links that a snapshot holds, without .git."""
        return self._look(self._backend.root).files.files()

    def _inside(self, path: str, follow: bool = True) -> Path:
        """Where a path leads; absolute ones count from where commands see the workspace."""
        root = self._backend.root
        inner = path
        if os.path.isabs(path):
            inner = next((rest for top in (self.source, root) if (rest := below(str(top), path)) is not None), "..")
        parts = resolve(link_target(root), str(self.source), inner, follow) if "\0" not in path else None
        if not parts:
            raise EnvError(f"{path!r} is not a path inside the workspace")
        return root.joinpath(*parts)

    # --- states -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Remember the state; the id is that of the files' tree, and of the history's where that was changed."""
        identity = self._name(self._look(self._backend.root))
        self._backend.save(identity)
        return identity

    def knows(self, snapshot_id: str) -> bool:
        """Whether :meth:`restore` can put a state back."""
        return self._backend.holds(snapshot_id, self._parts(snapshot_id))

    def _parts(self, snapshot_id: str) -> list[str]:
        files, _, history = snapshot_id.partition("+")
        return [files, history or self._base[1]]

    def restore(self, snapshot_id: str) -> None:
        """Put a remembered state back, exactly; EnvError if it is not known."""
        parts = self._parts(snapshot_id)
        if not self._backend.holds(snapshot_id, parts):
            raise EnvError(f"there is no snapshot {snapshot_id} in {self.state_dir}")
        self._backend.restore(snapshot_id, self._look(self._backend.root), parts)
        if self.backend == "replay" and self.state_hash() != parts[0]:
            raise EnvError(f"doing all again did not lead to {snapshot_id}: use another backend than replay")

    def diff(self) -> str:
        """Unified diff against the base, ready for ``git apply``; "" where nothing differs."""
        return self._store.diff(self._base[0], self.state_hash())

    def state_hash(self) -> str:
        """Id of the git tree of all files."""
        return self._look(self._backend.root).files.identity

    def clone(self) -> LocalEnvironment:
        """Another workspace, in the base state, on the same snapshots."""
        limits = self._limits
        return LocalEnvironment(
            self.source, self.backend, self._sandbox.kind, self._sandbox.network, self.timeout, limits.memory_mb,
            limits.max_procs, limits.max_file_mb, self.output_chars, self.state_dir,
        )  # fmt: skip

    def close(self) -> None:
        """Delete the workspace, and the snapshots too where no ``state_dir`` was given."""
        self._backend.close()
        self._finalizer()

    def _look(self, root: Path) -> State:
        files, self._seen["files"] = scan(root, self._store, self._seen["files"], lambda name: name != HISTORY)
        history, self._seen["history"] = scan(root, self._store, self._seen["history"], lambda name: name == HISTORY)
        return State(files, history)

    def _name(self, state: State) -> str:
        same = state.history.identity == self._base[1]
        return state.files.identity if same else f"{state.files.identity}+{state.history.identity}"


def _begin_history(root: Path) -> None:
    """One commit of all that is not ignored, packed: nothing of the source's past."""
    git("init", "-q", "--template=", "-b", "main", cwd=root)
    git("add", "-A", cwd=root)
    git(*COMMIT, "-m", "Base", cwd=root, **EPOCH)
    git("repack", "-q", "-a", "-d", cwd=root)


def _read_base(file: Path) -> list[str]:
    try:
        files, history = json.loads(file.read_text())["base"]
    except (OSError, ValueError, KeyError, TypeError):
        raise EnvError(f"{file} is damaged: it has to name the base state") from None
    return [files, history]


def _remove_abandoned(state_dir: Path) -> None:
    """Delete workspaces of processes that were killed."""
    for folder in state_dir.glob("work-*-*"):
        if not Path("/proc", folder.name.split("-")[1]).exists():
            remove(folder)


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
