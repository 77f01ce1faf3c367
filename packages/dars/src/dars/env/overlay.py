"""Backend "overlay": a state is a stack of layers of the kernel's overlayfs, and putting one back is a mount.

A process of ours holds the mount in its own namespaces, so no privilege is needed; files are reached through its view.
"""

from __future__ import annotations

import functools
import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import EnvError
from .backend import Backend
from .scan import Folder, copy_folder, remove

HOLD = 'mount -t overlay overlay -o "userxattr,lowerdir=$1,upperdir=$2,workdir=$3" "$4" && echo ready && read -r _'


class OverlayBackend(Backend):
    """Layers in a folder, the base lowest; what is written goes to a new one, which a snapshot freezes.

    Parameters
    ----------
    root : the base state, to be copied as the first layer unless that exists.
    layers : folder of all layers and of what states consist of;  work : a private folder for the layer written to.
    """

    def __init__(self, root: Path, layers: Path, work: Path) -> None:
        self._layers = layers
        self._work = work
        self._holder: subprocess.Popen[bytes] | None = None
        self.inner = work / "mounted"
        self.inner.mkdir()
        if not (layers / "base").exists():
            layers.mkdir(exist_ok=True)
            unfinished = layers / secrets.token_hex(8)
            copy_folder(root, unfinished, lambda path, name: False)
            unfinished.replace(layers / "base")
        self._mount(["base"])

    def holds(self, snapshot_id: str, parts: Sequence[str]) -> bool:
        """Whether its layers are known."""
        return snapshot_id.replace("+", "").isalnum() and self._file(snapshot_id).is_file()

    def save(self, snapshot_id: str) -> None:
        """Freeze the layer written to, and mount an empty one above it; nothing if the state is known."""
        if self.holds(snapshot_id, ()):
            return
        self._unmount()
        layer = secrets.token_hex(6)
        self._upper.replace(self._layers / layer)
        lower = [layer, *self._lower]
        unfinished = self._layers / f"{layer}.new"
        unfinished.write_text(json.dumps(lower))
        unfinished.replace(self._file(snapshot_id))
        self._mount(lower)

    def restore(self, snapshot_id: str, have: Sequence[Folder], parts: Sequence[str]) -> None:
        """Mount the state's layers below an empty one."""
        self._unmount()
        remove(self._upper)
        self._mount(json.loads(self._file(snapshot_id).read_text()))

    def close(self) -> None:
        """Unmount."""
        self._unmount()

    def _mount(self, lower: list[str]) -> None:
        self._lower = lower
        fresh = self._work / secrets.token_hex(6)
        self._upper = fresh / "upper"
        for folder in (self._upper, fresh / "work"):
            folder.mkdir(parents=True)
        # Names relative to the folder of layers: the options of a mount have to fit into one page.
        words = [":".join(lower), str(self._upper), str(fresh / "work"), str(self.inner)]
        self._holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HOLD, "sh", *words],
            cwd=self._layers, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline().decode(errors="replace").strip()
        if said != "ready":
            raise EnvError(f"overlayfs cannot be mounted in {self._work}: {said}")
        pid = self._holder.pid
        self.root = Path(f"/proc/{pid}/root{self.inner}")
        self.enter = ("nsenter", f"--target={pid}", "--user", "--mount", "--preserve-credentials", "--")

    def _unmount(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
            self._holder = None

    def _file(self, snapshot_id: str) -> Path:
        return self._layers / f"{snapshot_id}.json"


@functools.cache
def works() -> str:
    """Why overlayfs cannot be mounted without privileges here, "" if it can."""
    missing = [name for name in ("unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)}: not installed"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("root", "work"):
            (folder / part).mkdir()
        try:
            OverlayBackend(folder / "root", folder / "layers", folder / "work").close()
        except EnvError as error:
            return str(error)
    return ""
