"""Files and folders as git objects in a repository of our own, outside every workspace.

Written here and not by ``git add``, which cannot hold empty folders or nested repositories and rewrites line ends and
LFS pointers as the workspace's own attributes ask; what is written is plain git all the same, and git computes diffs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import EnvError, because

FOLDER, FILE, EXECUTABLE, LINK = "40000", "100644", "100755", "120000"
QUIET = {"PATH": os.defpath, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
DIFF = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames")

Entry = tuple[str, str]  # mode, object id


class ObjectStore:
    """Loose git objects below a folder; several workspaces and processes may use one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / "objects"
        self._known: set[str] = set()
        if not (folder / "HEAD").exists():
            (folder / "refs").mkdir(parents=True, exist_ok=True)
            self._objects.mkdir(exist_ok=True)
            (folder / "all-binary").write_text("* -diff\n")
            (folder / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
            unfinished = folder / "HEAD.new"
            unfinished.write_text("ref: refs/heads/none\n")
            unfinished.replace(folder / "HEAD")  # only now is it whole

    def put(self, kind: str, data: bytes) -> str:
        """Write an object of a kind ("blob" or "tree") and return its id."""
        whole = b"%s %d\0%s" % (kind.encode(), len(data), data)
        identity = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        if identity not in self._known:
            path = self._path(identity)
            if not path.exists():
                self._write(path, zlib.compress(whole, 1))
            self._known.add(identity)
        return identity

    def _write(self, path: Path, data: bytes) -> None:
        """Whole or not at all, should the process die or the disk be full."""
        name = None
        try:
            path.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._objects)
            with open(handle, "wb") as out:
                out.write(data)
            os.replace(name, path)
        except OSError as error:
            if name is not None:
                Path(name).unlink(missing_ok=True)
            raise because(f"cannot write a state to {self.folder}", error) from None

    def get(self, identity: str) -> bytes:
        """Content of an object; EnvError if there is none."""
        try:
            return zlib.decompress(self._path(identity).read_bytes()).partition(b"\0")[2]
        except (OSError, zlib.error) as error:
            raise EnvError(f"there is no whole object {identity} in {self.folder}: {error}") from None

    def holds(self, identity: str) -> bool:
        """Whether there is such an object."""
        return len(identity) == 40 and identity.isalnum() and self._path(identity).exists()

    def put_tree(self, entries: Iterable[tuple[str, Entry]]) -> str:
        """Write the tree of a folder's (name, (mode, id))."""
        rows = [(os.fsencode(name), mode, identity) for name, (mode, identity) in entries]
        rows.sort(key=lambda row: row[0] + b"/" if row[1] == FOLDER else row[0])  # git's order
        return self.put("tree", b"".join(b"%s %s\0%s" % (m.encode(), n, bytes.fromhex(i)) for n, m, i in rows))

    def get_tree(self, identity: str) -> dict[str, Entry]:
        """What a folder's tree holds."""
        data, at, entries = self.get(identity), 0, {}
        while at < len(data):
            end = data.index(b"\0", at)
            mode, name = data[at:end].split(b" ", 1)
            entries[os.fsdecode(name)] = (mode.decode(), data[end + 1 : end + 21].hex())
            at = end + 21
        return entries

    def diff(self, before: str, after: str) -> str:
        """Binary-safe unified diff between two trees; a file that is not UTF-8 is shown as binary."""
        if before == after:
            return ""
        span = [before, after, "--", ":/", ":(exclude,glob)**/.git/**"]
        whole = self._git(*DIFF, *span)
        try:
            return whole.decode()
        except UnicodeDecodeError:
            names = self._git("diff", "--name-only", "--no-renames", "-z", *span).split(b"\0")[:-1]
            return "".join(self._file_diff(before, after, os.fsdecode(name)) for name in names)

    def _file_diff(self, before: str, after: str, name: str) -> str:
        span = [before, after, "--", f":(literal){name}"]
        try:
            return self._git(*DIFF, *span).decode()
        except UnicodeDecodeError:
            return self._git("-c", f"core.attributesFile={self.folder / 'all-binary'}", *DIFF, *span).decode()

    def _git(self, *args: str) -> bytes:
        return git(*args, cwd=self.folder, GIT_DIR=str(self.folder))

    def _path(self, identity: str) -> Path:
        return self._objects / identity[:2] / identity[2:]


def git(*args: str, cwd: Path, **extra: str) -> bytes:
    """Run git without the settings of user and system; EnvError if it fails or is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=cwd, env={**QUIET, **extra}, capture_output=True, check=False)
    except FileNotFoundError:
        raise EnvError("git is not installed: workspaces need it") from None
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())
        raise because(f"git {args[0]} failed in {cwd}", said)
    return done.stdout
