"""Folders on disk: what they hold, copying them, and making one equal to a recorded state."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import because
from .store import EXECUTABLE, FILE, FOLDER, LINK, Entry, ObjectStore

# Made anew by whatever wants them: never copied, never recorded, and removed when a state is put back, since what one
# branch left there (stale bytecode, the last failures) must not reach another.
CACHES = frozenset(
    {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".benchmarks"}
)
# Installed, not written: copied, but neither recorded nor touched. So is every folder with a pyvenv.cfg.
INSTALLED = frozenset({".tox", ".nox", "node_modules"})

RACY_NS = 100_000_000  # file times are coarse: what changed this shortly before it was read may change again unseen

Signature = tuple[int | str, ...]
StatCache = dict[str, tuple[Signature, Entry]]


@dataclass
class Folder:
    """What a folder holds.

    Attributes
    ----------
    identity : id of its git tree.
    entries : name -> (mode, id).
    folders : name -> the folder of that name.
    junk : names that no state holds: caches, sockets, pipes.
    """

    identity: str = ""
    entries: dict[str, Entry] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    junk: list[str] = field(default_factory=list)

    def files(self, prefix: str = "") -> list[str]:
        """Paths of all files and links below, sorted."""
        found = [prefix + name for name, (mode, _) in self.entries.items() if mode != FOLDER]
        for name, folder in self.folders.items():
            found.extend(folder.files(f"{prefix}{name}/"))
        return sorted(found) if not prefix else found


def is_installed(path: str, name: str) -> bool:
    """Whether a folder holds installed things, a virtual environment for one."""
    return name in INSTALLED or os.path.lexists(os.path.join(path, "pyvenv.cfg"))


def scan(root: Path, store: ObjectStore, seen: StatCache, wanted: Callable[[str], bool]) -> tuple[Folder, StatCache]:
    """Record the entries of a folder whose name at the top is wanted; return it and what is known of its files now.

    A file is read only if its times, size or inode differ from those in ``seen``, or were too fresh to be trusted.
    """
    now: StatCache = {}
    return _scan(os.fspath(root), "", store, seen, now, wanted), now


def _scan(
    path: str, inner: str, store: ObjectStore, seen: StatCache, now: StatCache, wanted: Callable[[str], bool] | None
) -> Folder:
    folder = Folder()
    for entry in _list(path):
        name = entry.name
        if wanted is not None and not wanted(name):
            continue
        if entry.is_dir(follow_symlinks=False):
            if name in CACHES:
                folder.junk.append(name)
            elif not is_installed(entry.path, name):
                below = _scan(entry.path, f"{inner}{name}/", store, seen, now, None)
                folder.folders[name] = below
                folder.entries[name] = (FOLDER, below.identity)
            continue
        status = entry.stat(follow_symlinks=False)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            folder.junk.append(name)
            continue
        key, signature = inner + name, _signature(status)
        known = seen.get(key)
        if known is not None and known[0] == signature:
            found = known[1]
        else:
            started = time.time_ns()
            found = _record(entry.path, status, store)
            if max(status.st_mtime_ns, status.st_ctime_ns) > started - RACY_NS:
                signature = ()  # equal to no signature: read it again next time
        now[key] = (signature, found)
        folder.entries[name] = found
    folder.identity = store.put_tree(folder.entries.items())
    return folder


def _list(path: str) -> list[os.DirEntry[str]]:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o700 != 0o700:
        os.chmod(path, mode | 0o700)  # the workspace is ours: a command may have locked it, and left it so
    with os.scandir(path) as entries:
        return list(entries)


def _signature(status: os.stat_result) -> Signature:
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode)


def _record(path: str, status: os.stat_result, store: ObjectStore) -> Entry:
    if stat.S_ISLNK(status.st_mode):
        return LINK, store.put("blob", os.fsencode(os.readlink(path)))
    try:
        data = Path(path).read_bytes()
    except PermissionError:
        os.chmod(path, status.st_mode | 0o600)
        data = Path(path).read_bytes()
    return (EXECUTABLE if status.st_mode & stat.S_IXUSR else FILE), store.put("blob", data)


def apply(root: Path, have: Folder, want: str, store: ObjectStore) -> None:
    """Turn a folder that holds ``have`` into the one whose tree is ``want``; equal files and folders stay untouched."""
    for name in have.junk:
        remove(root / name)
    if have.identity == want:
        for name, below in have.folders.items():
            apply(root / name, below, below.identity, store)  # for its caches
        return
    wanted = store.get_tree(want)
    for name, (mode, _) in have.entries.items():
        if name not in wanted or (mode == FOLDER) != (wanted[name][0] == FOLDER):
            remove(root / name)
    for name, (mode, identity) in wanted.items():
        path = root / name
        held = have.entries.get(name, ("", ""))
        if mode == FOLDER:
            if held[0] != FOLDER:
                remove(path)  # something that no state holds may be there
                path.mkdir()
            apply(path, have.folders.get(name, Folder()) if held[0] == FOLDER else Folder(), identity, store)
        elif held[1] == identity and {held[0], mode} == {FILE, EXECUTABLE}:
            path.chmod(0o755 if mode == EXECUTABLE else 0o644)
        elif held != (mode, identity):
            remove(path)
            _write(path, mode, store.get(identity))


def _write(path: Path, mode: str, data: bytes) -> None:
    if mode == LINK:
        os.symlink(data, os.fsencode(path))
        return
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as out:
        out.write(data)
    path.chmod(0o755 if mode == EXECUTABLE else 0o644)  # whatever the umask


def remove(path: Path) -> None:
    """Delete a file, link or whole folder, locked ones too; nothing there is fine."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, onerror=_unlock)


def _unlock(function: Callable[..., Any], path: str, error: Any) -> None:
    if issubclass(error[0], FileNotFoundError):
        return
    os.chmod(os.path.dirname(path), 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path)
    else:
        os.unlink(path)


def clear(folder: Path) -> bool:
    """Delete all but what is installed; whether nothing is left."""
    empty = True
    for entry in _list(os.fspath(folder)):
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            path.unlink()
        elif not is_installed(entry.path, entry.name) and clear(path):
            path.rmdir()
        else:
            empty = False
    return empty


def copy_folder(source: Path, target: Path, skip: Callable[[str, str], bool]) -> None:
    """Copy files, folders and links, writable by us, without caches, sockets and pipes.

    skip : skip(path, name) tells what else to leave out.
    """
    target.mkdir(exist_ok=True)
    try:
        with os.scandir(source) as entries:
            for entry in entries:
                there = target / entry.name
                if skip(entry.path, entry.name):
                    continue
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), there)
                elif entry.is_dir():
                    if entry.name not in CACHES:
                        copy_folder(Path(entry.path), there, skip)
                elif entry.is_file():
                    shutil.copy2(entry.path, there)
                    there.chmod(0o755 if entry.stat().st_mode & stat.S_IXUSR else 0o644)
    except OSError as error:  # not to be read, or a full disk
        raise because(f"cannot copy {error.filename or source}", error) from None
