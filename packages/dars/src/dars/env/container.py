"""A container of docker or podman as a workspace; a state is an image, committed at branch points only.

What the workspace holds is looked at from outside: one command lists all files with their times, only changed ones are
fetched, and they become the same git objects as those of a :class:`LocalEnvironment`. So trees, hashes and differences
are the same for both, the image need not have git, and nothing of ours is in reach of the commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import secrets
import stat
import subprocess
import tarfile
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import EnvError, because
from .base import Environment, ExecResult, check_limits
from .docker import NOTE, OWNER, PATIENCE_S, RUN, STATE, Docker, owner, remove_abandoned
from .output import as_text, read_ends
from .paths import below, resolve
from .sandbox import FIXED, TIMED_OUT
from .scan import CACHES, INSTALLED, Folder, Signature, StatCache, copy_folder, remove, scan
from .store import EXECUTABLE, FILE, FOLDER, LINK, Entry, ObjectStore

IDLE = "dars-idle"
# The first process of a container. It buries what its children leave behind.
WAIT = "while :; do sleep 3600 & wait; done"
KILLED = 128 + 9
PULL_S = 3600.0
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")
SNAPSHOT = re.compile(r"[0-9a-f]{40}(-[0-9a-f]{12})?")

# Arguments of all scripts: the workspace, then their own. Errors of a script go to its stderr, and nothing else does.
COMMAND = r"""
exec 3>&2 2>/dev/null
if cd "$0"; then ("$@" 2>&1 3>&-); else echo "the folder $0 is gone"; false; fi
code=$?
read -r first </proc/1/cmdline
case "$first" in *dars-idle*) kill -9 -1 ;; esac
echo "exit code $code" >&3
exit "$code"
"""  # all that a command started ends with it; nothing is killed where the processes of others are in sight
PROBE = r"""
[ -d "$0" ] || { echo "there is no folder $0 in the image" >&2; exit 1; }
for name in find stat xargs tar cat readlink; do
  command -v "$name" >/dev/null || { echo "the image has no program $name" >&2; exit 1; }
done
cd "$0" && pwd -P
command -v bash || echo
if grep -qs 'conda activate' "$HOME/.bashrc"; then echo "$HOME/.bashrc"; else echo; fi
"""
LIST = r"""
cd "$0" && date +%s && find . -path ./.git -prune -o -type d \( {caches} \) -prune -o \
  -exec stat -c '%f %s %i %Z %y %z|%n//' {{}} +
""".format(caches=" -o ".join(f"-name '{name}'" for name in sorted(CACHES | INSTALLED)))
FETCH = 'cd "$0" && exec xargs -0 tar -cf -'
READ = r"""
cd "$0" && root=$(pwd -P) && [ -e "$1" ] && real=$(readlink -f "$1"; echo x) || exec cat "$1"
case "${real%?x}" in "$root"/*) exec cat "$1" ;; *) exit 90 ;; esac
"""
# Where the folder leads is looked at again: a link in a folder that no state holds is in no list.
WRITE = r"""
cd "$0" && root=$(pwd -P) && mkdir -p "$1" && cd "$1" || exit
case "$(pwd -P)/" in "$root"/*) ;; *) exit 90 ;; esac
[ ! -L "$2" ] || exit 90
cat >"$2" || exit
rm -f __pycache__/"${2%.*}".*.pyc
"""
REMOVE = r"""
cd "$0" && root=$(pwd -P) || exit
[ -d "$1" ] && cd "$1" || { echo "$1: No such file or directory" >&2; exit 1; }
case "$(pwd -P)/" in "$root"/*) ;; *) exit 90 ;; esac
exec rm "./$2"
"""
OUTSIDE = 90
# A tar of the files comes in. They get a history of one commit, as in a LocalEnvironment.
FILL = r"""
mkdir -p "$0" && cd "$0" && find . ! -name . -prune -exec rm -rf {} + && tar -xf - || exit
command -v git >/dev/null || exit 0
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
git init -q && git add -A && git -c user.name=dars -c user.email=dars@localhost commit -q --allow-empty -m Base
"""
# The image's history may hold the answer in what is newer than HEAD: only what HEAD leads to stays.
FORGET = r"""
cd "$0" && [ -d .git ] && command -v git >/dev/null || exit 0
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
set -e
git remote | while read -r name; do git remote remove "$name"; done
head=$(git symbolic-ref -q HEAD || :)
git for-each-ref --format='delete %(refname)' | grep -vxF "delete $head" | git update-ref --no-deref --stdin
rm -rf .git/logs .git/*_HEAD .git/worktrees .git/objects/pack/*.keep
git reflog expire --expire=now --all
git gc --quiet --prune=now
echo cut
"""


class ContainerEnvironment(Environment):
    """A folder of an image, and commands in a container made from it.

    Everything in the container's file system goes back with a state, also what lies outside the folder (installed
    packages, temporary files); hashes and differences tell of the folder alone. At the beginning the history in .git
    is cut down to what HEAD leads to. Commands have no network; every one ends with all it started.

    Parameters
    ----------
    image : name; it is pulled where it is not there.
    workdir : absolute path of the folder in the image, "/testbed" in those of SWE-bench.
    cli : "docker", "podman", or a list of the program and options that precede every subcommand.
    run_args : further arguments of ``run``; they come last, so that they win over ours.
    network : whether commands reach it.
    timeout : seconds per command where none is asked for.
    memory_mb, max_procs, max_file_mb : limits of the container: memory, processes, size of each file written.
    output_chars : what is kept of a command's output, 60 % from its head and 40 % from its tail.
    state_dir : where the objects of states live; given again, the same base and all snapshots are found, and images
        stay after ``close`` (until the folder is deleted and :func:`remove_abandoned` called). Default: a temporary
        folder, deleted with all images by ``close``.
    source : folder whose files, without their history, take the place of what the image has in ``workdir``.

    Raises
    ------
    EnvError
        No docker, no such image, no such folder in it, or a container that does not start.
    """

    cheap_snapshots = False

    def __init__(
        self,
        image: str,
        workdir: str = "/testbed",
        cli: str | Sequence[str] = "docker",
        run_args: Sequence[str] = (),
        network: bool = False,
        timeout: float = 120.0,
        memory_mb: int = 4096,
        max_procs: int = 256,
        max_file_mb: int = 512,
        output_chars: int = 20_000,
        state_dir: Path | None = None,
        source: Path | None = None,
    ) -> None:
        check_limits(timeout, memory_mb, max_procs, max_file_mb, output_chars)
        folder = posixpath.normpath(f"/{workdir.lstrip('/')}")
        if not workdir.startswith("/") or folder == "/":
            raise EnvError(f"workdir {workdir!r} has to be the absolute path of a folder below /")
        self.image, self.workdir = image, folder
        self.run_args, self.network = tuple(run_args), network
        self.timeout, self.output_chars = timeout, output_chars
        self._limits = (memory_mb, max_procs, max_file_mb)
        self._docker = Docker(cli)
        self._seen: StatCache = {}
        self._now: Folder | None = None  # what the folder holds, while nothing can have changed it
        self._at = ""  # the snapshot that the container is in, while nothing can have changed it
        self._from = ""  # the snapshot that it was started from
        self._open(state_dir, source)

    def _open(self, state_dir: Path | None, source: Path | None) -> None:
        note = state_dir / NOTE if state_dir is not None else None
        known = note is not None and note.exists()
        remove_abandoned(self._docker.words)
        self.state_dir = (state_dir or Path(tempfile.mkdtemp(prefix="dars-"))).resolve()
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._store = ObjectStore(self.state_dir / "store")
        if known:
            self._run, self._base, self._first = _read_note(self.state_dir / NOTE, self.image)
        else:
            self._run = secrets.token_hex(6)
        self._containers: list[str] = []
        self._finalizer = weakref.finalize(
            self, _let_go, self._docker, self._containers, "" if state_dir else self._run, self.state_dir
        )
        if known and not self.knows(self._first):
            raise EnvError(f"the images of the run in {self.state_dir} are gone: begin again in a new folder")
        if not known and not self._docker.has_image(self.image):
            self._docker.ask("pull", self.image, timeout=PULL_S)
        self._start(self._first if known else "")
        if source is not None:
            self._take(source, not known)
        if known:
            self._probe()
            return
        cut = self._probe(FORGET)
        self._base = self._first = self._at = self._look().identity
        self._docker.ask("commit", self._container, self._tag(self._first))
        if cut:
            self._start(self._first)  # from where a change of the history is one
            self._noise = self._changed()
        values = {"run": self._run, "image": self.image, "base": self._base, "first": self._first}
        unfinished = self.state_dir / f"{NOTE}.new"
        unfinished.write_text(json.dumps({**values, "kept": state_dir is not None}))
        unfinished.replace(self.state_dir / NOTE)

    # --- the container ----------------------------------------------------------------------------------------------

    def _start(self, snapshot_id: str) -> None:
        """Make a container from a snapshot, or from the image itself, and let go of the last one."""
        name = f"dars-{self._run}-{secrets.token_hex(4)}"
        self._containers.append(name)
        image = self._tag(snapshot_id) if snapshot_id else self.image
        self._docker.ask("run", "--detach", "--name", name, *self._options(), image, "-c", WAIT, IDLE)
        self._container = name
        self._docker.remove_containers(self._containers[:-1])
        del self._containers[:-1]
        self._from = self._at = snapshot_id
        self._now = None

    def _probe(self, then: str = "") -> bool:
        """Learn what the image has and what docker itself changes in it; whether a second script did anything."""
        told = self._script(PROBE + then, what="start").decode(errors="surrogateescape").split("\n")
        self._root, self._shell, self._startup = told[0], told[1] or "sh", told[2]
        self._noise = self._changed()
        return told[3] == "cut"

    def _take(self, source: Path, fill: bool) -> None:
        """Look at the files of a folder, and put them into the workspace."""
        with tempfile.TemporaryDirectory(prefix="dars-") as folder, tempfile.TemporaryFile() as packed:
            copy = Path(folder) / "files"
            copy_folder(source, copy, lambda path, name: name == ".git")
            self.source_hash = scan(copy, self._store, {}, lambda name: True)[0].identity
            if not fill:
                return
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(copy, ".", filter=_of_root)
            packed.seek(0)
            words = ["exec", "--interactive", self._container, "sh", "-c", FILL, self.workdir]
            pipe = subprocess.PIPE
            with self._docker.start(*words, stdin=packed, stdout=pipe, stderr=subprocess.STDOUT) as process:
                said = process.communicate(timeout=PATIENCE_S)[0].decode(errors="replace")
        if process.returncode:
            raise because(f"cannot put {source} into {self.workdir}", " ".join(said.split()) or "it cannot be written")
        self._touch()

    def _options(self) -> list[str]:
        memory_mb, max_procs, max_file_mb = self._limits
        size = max_file_mb << 20
        labels = {RUN: self._run, OWNER: owner(), STATE: str(self.state_dir)}
        variables = {k: v for k, v in FIXED.items() if not k.startswith("GIT_CONFIG")}
        if not self.network:  # the client would hand on its own, which may hold a password
            variables |= {name: "" for proxy in PROXIES for name in (proxy, proxy.upper())}
        words = ["--entrypoint", "sh", "--stop-signal", "KILL", "--security-opt", "no-new-privileges"]
        words += [] if self.network else ["--network", "none"]
        words += ["--memory", f"{memory_mb}m", "--pids-limit", str(max_procs)]
        words += ["--ulimit", "nofile=4096:4096", "--ulimit", f"fsize={size}:{size}", "--ulimit", "core=0:0"]
        for name, value in variables.items():
            words += ["--env", f"{name}={value}"]
        for name, value in labels.items():
            words += ["--label", f"{name}={value}"]
        return [*words, *self.run_args]

    def _script(self, script: str, *args: str, what: str, stdin: bytes = b"") -> bytes:
        """Output of one of our scripts; EnvError with what it says if it fails."""
        words = ["exec", "--interactive", self._container, "sh", "-c", script, self.workdir, *args]
        code, out, said = self._docker.run(*words, stdin=stdin)
        if code == OUTSIDE:
            raise EnvError(f"cannot {what}: it is not a path inside the workspace")
        if code:
            raise because(f"cannot {what}", said.rpartition(": ")[2] or f"exit code {code}")
        return out

    def _changed(self) -> set[str]:
        """Lines of what differs from the image that the container was made from, outside of what a tree records."""
        listed = self._docker.ask("diff", self._container).decode(errors="surrogateescape").splitlines()
        found = set()
        for line in listed:
            path = line[2:]
            inner = below(self._root, path)
            above = f"{self._root}/".startswith(f"{path.rstrip('/')}/")
            if not above and (inner is None or below(".git", inner) is not None):
                found.add(line)
        return found

    # --- commands and files -----------------------------------------------------------------------------------------

    def exec(self, cmd: str | list[str], timeout: float | None = None, stdin: bytes | None = None) -> ExecResult:
        """Run a command in the container; after ``timeout`` seconds (exit code 124) all processes are killed."""
        if not cmd:
            raise EnvError("the command is empty")
        self._touch()
        # A list goes through the shell as well: it is there that a conda environment becomes active.
        line = [self._shell, "-c", cmd] if isinstance(cmd, str) else [self._shell, "-c", 'exec "$@"', "sh", *cmd]
        words = ["exec", *(["--interactive"] if stdin else [])]
        words += ["--env", f"BASH_ENV={self._startup}"] if self._startup else []
        words += [self._container, "sh", "-c", COMMAND, self.workdir, *line]
        seconds = self.timeout if timeout is None else timeout
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
            given.write(stdin or b"")
            given.seek(0)
            started = time.monotonic()
            process = self._docker.start(*words, stdin=given, stdout=subprocess.PIPE, stderr=said)
            code, timed_out, raw, missing = self._wait(process, seconds)
            wall_s = time.monotonic() - started
            said.seek(0)
            ended = said.read().decode(errors="replace")
        found = re.search(r"^exit code (\d+)$", ended, re.MULTILINE)
        if not timed_out and found is None and code != KILLED:  # killed: by the command, which may kill all but itself
            raise EnvError(f"the command could not be run in {self._container}: {' '.join(ended.split()) or code}")
        text, truncated = as_text(raw, self.output_chars, missing)
        code = TIMED_OUT if timed_out else int(found[1]) if found else code
        return ExecResult(code, text, timed_out, truncated, wall_s)

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> tuple[int, bool, bytes, int]:
        """Exit code of the client, whether the time ran out, the output, and how much of its middle is missing."""
        got: list[tuple[bytes, int]] = []
        assert process.stdout is not None
        stream: BinaryIO = process.stdout  # type: ignore[assignment]
        reader = threading.Thread(target=lambda: got.append(read_ends(stream)), daemon=True)
        reader.start()
        timed_out = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
            self._docker.ask("restart", "-t", "0", self._container)
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10 if timed_out else 0)
            process.kill()
            process.wait()
            reader.join()
            stream.close()
        raw, missing = got[0]
        return process.returncode, timed_out, raw, missing

    def read_file(self, path: str) -> bytes:
        """Bytes of a file, also through links that stay inside."""
        parts = self._inside(path)
        entry = self._entry(parts)
        if entry is not None and entry[0] in (FILE, EXECUTABLE):
            return self._store.get(entry[1])
        return self._script(READ, "./" + "/".join(parts), what=f"read {path}")  # what no state holds, or nothing

    def write_file(self, path: str, data: bytes) -> None:
        """Write a file, folders included; its bytecode is dropped, which could pass for that of the new content."""
        parts = self._inside(path)
        self._touch()
        self._script(WRITE, "./" + "/".join(parts[:-1]), parts[-1], what=f"write {path}", stdin=data)

    def remove_file(self, path: str) -> None:
        """Delete a file, or a link itself."""
        parts = self._inside(path, follow=False)
        self._touch()
        self._script(REMOVE, "./" + "/".join(parts[:-1]), parts[-1], what=f"remove {path}")

    def list_files(self) -> list[str]:
        """Paths of all files and links that a hash tells of, without .git."""
        return self._look().files()

    def _inside(self, path: str, follow: bool = True) -> list[str]:
        rest: str | None = path
        if path.startswith("/"):
            rest = next((b for top in (self.workdir, self._root) if (b := below(top, path)) is not None), None)
        parts = resolve(self._link, self._root, rest, follow) if rest is not None and "\0" not in path else None
        if not parts:
            raise EnvError(f"{path!r} is not a path inside the workspace")
        return parts

    def _link(self, parts: list[str]) -> str | None:
        entry = self._entry(parts)
        return os.fsdecode(self._store.get(entry[1])) if entry is not None and entry[0] == LINK else None

    def _entry(self, parts: Sequence[str]) -> Entry | None:
        folder = self._look()
        for part in parts[:-1]:
            if part not in folder.folders:
                return None
            folder = folder.folders[part]
        return folder.entries.get(parts[-1])

    def _touch(self) -> None:
        self._now, self._at = None, ""

    # --- looking ----------------------------------------------------------------------------------------------------

    def _look(self) -> Folder:
        """What the folder holds; its objects are in the store."""
        if self._now is None:
            self._now = self._scan()
        return self._now

    def _scan(self) -> Folder:
        clock, _, listed = self._script(LIST, what=f"list {self.workdir}").partition(b"\n")
        rows = [row for raw in listed.split(b"//\n")[:-1] if (row := _row(raw)).path]
        installed = [row.path.rpartition("/")[0] for row in rows if f"/{row.path}".endswith("/pyvenv.cfg")]
        rows = [row for row in rows if not any(f"{row.path}/".startswith(f"{top}/") for top in installed if top)]
        found: dict[str, Entry] = {}
        seen: StatCache = {}
        wanted = []
        for row in rows:
            if row.mode == "":  # sockets, pipes
                continue
            known = self._seen.get(row.path)
            if row.mode == FOLDER:
                found[row.path] = (FOLDER, "")
            elif known is not None and known[0] == row.signature:
                found[row.path] = known[1]
            else:
                wanted.append(row)
        contents = self._fetch([row.path for row in wanted])
        for row in wanted:
            found[row.path] = (row.mode, contents[row.path])
        for row in rows:
            if row.mode not in ("", FOLDER):
                # One that changed in this second may change again unseen; no signature is equal to none.
                seen[row.path] = (row.signature if row.changed < int(clock) - 1 else (), found[row.path])
        self._seen = seen
        return self._folder(found)

    def _fetch(self, paths: Sequence[str]) -> dict[str, str]:
        """Path -> object, of files and links of the container."""
        if not paths:
            return {}
        names = b"".join(os.fsencode(f"./{path}") + b"\0" for path in paths)
        found: dict[str, str] = {}
        words = ["exec", "--interactive", self._container, "sh", "-c", FETCH, self.workdir]
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(names)
            given.seek(0)
            process = self._docker.start(*words, stdin=given, stdout=subprocess.PIPE, stderr=said)
            watch = threading.Timer(PATIENCE_S, process.kill)
            watch.start()
            try:
                with process, tarfile.open(
                    fileobj=process.stdout, mode="r|", encoding="utf-8", errors="surrogateescape", ignore_zeros=True
                ) as archive:  # fmt: skip
                    for member in archive:
                        name = member.name.removeprefix("./")
                        if member.issym():
                            found[name] = self._store.put("blob", os.fsencode(member.linkname))
                        elif member.islnk():  # a second name of a file that came before
                            found[name] = found[member.linkname.removeprefix("./")]
                        elif member.isreg():
                            content = archive.extractfile(member)
                            assert content is not None
                            found[name] = self._store.put("blob", content.read())
            except tarfile.TarError:
                pass  # what is missing is told below
            finally:
                watch.cancel()
            said.seek(0)
            lost = next((path for path in paths if path not in found), None)
            if lost is not None:
                reason = " ".join(said.read().decode(errors="replace").split())
                raise EnvError(f"cannot read {lost} in {self._container}: {reason}")
        return found

    def _folder(self, found: dict[str, Entry]) -> Folder:
        """Entries by path as a tree of folders."""
        top = Folder()
        folders = {"": top}
        for path in sorted(p for p, entry in found.items() if entry[0] == FOLDER):  # a folder before what is in it
            folder, _, name = path.rpartition("/")
            folders[path] = folders[folder].folders[name] = Folder()
        for path, entry in found.items():
            folder, _, name = path.rpartition("/")
            folders[folder].entries[name] = entry
        for path in sorted(folders, key=lambda p: p.count("/") + bool(p), reverse=True):  # the deepest first
            here = folders[path]
            for name, inner in here.folders.items():
                here.entries[name] = (FOLDER, inner.identity)
            here.identity = self._store.put_tree(here.entries.items())
        return top

    # --- states -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Commit the container as an image, unless there is one of this state.

        The id is that of the files' tree; of a state in which something else was changed too, with a number of its own.
        """
        if not self._at:
            tree = self._look().identity
            apart = self._changed() - self._noise
            number = secrets.token_hex(6) if apart else self._from.partition("-")[2]
            name = f"{tree}-{number}" if number else tree
            if apart or not self.knows(name):
                self._docker.ask("commit", self._container, self._tag(name))
            self._at = name
        return self._at

    def knows(self, snapshot_id: str) -> bool:
        """Whether there is an image of the state."""
        return bool(SNAPSHOT.fullmatch(snapshot_id)) and self._docker.has_image(self._tag(snapshot_id))

    def restore(self, snapshot_id: str) -> None:
        """Go on in a new container; EnvError if the state is not known, or is not what comes back."""
        if not self.knows(snapshot_id):
            raise EnvError(f"there is no snapshot {snapshot_id} of run {self._run}")
        self._start(snapshot_id)
        if self.state_hash() != snapshot_id.partition("-")[0]:
            raise EnvError(
                f"the image of {snapshot_id} holds other files: {self.workdir} must be no volume, which is in no image"
            )

    def diff(self) -> str:
        """Unified diff against the base, ready for ``git apply``; "" where nothing differs."""
        return self._store.diff(self._base, self.state_hash())

    def state_hash(self) -> str:
        """Id of the git tree of all files."""
        return self._look().identity

    def clone(self) -> ContainerEnvironment:
        """Another container, in the base state, on the same snapshots."""
        return ContainerEnvironment(
            self.image, self.workdir, self._docker.words, self.run_args, self.network, self.timeout, *self._limits,
            self.output_chars, self.state_dir,
        )  # fmt: skip

    def close(self) -> None:
        """Remove the container, and the images too where no ``state_dir`` was given."""
        self._finalizer()

    def _tag(self, snapshot_id: str) -> str:
        return f"localhost/dars-{self._run}:{snapshot_id}"


class _Row(NamedTuple):
    """One line of a listing.

    Attributes
    ----------
    path : below the workspace, "" for itself;  mode : in a tree, "" for what none holds;  changed : status, seconds.
    """

    path: str
    mode: str
    changed: int
    signature: Signature


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who owns a file outside means nothing in the container."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _row(raw: bytes) -> _Row:
    facts, _, path = raw.partition(b"|")
    fields = facts.decode().split(" ")
    kind = int(fields[0], 16)
    mode = ""
    if stat.S_ISREG(kind):
        mode = EXECUTABLE if kind & stat.S_IXUSR else FILE
    elif stat.S_ISLNK(kind):
        mode = LINK
    elif stat.S_ISDIR(kind):
        mode = FOLDER
    return _Row(os.fsdecode(path)[2:], mode, int(fields[3]), tuple(fields))


def _read_note(file: Path, image: str) -> tuple[str, str, str]:
    try:
        note = json.loads(file.read_text())
        found = str(note["run"]), str(note["base"]), str(note["first"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EnvError(f"{file} is damaged: it has to name the run, its image and its base state") from None
    if note.get("image") != image:
        raise EnvError(f"{file.parent} holds a run in the image {note.get('image')}, not in {image}")
    return found


def _let_go(docker: Docker, containers: list[str], run: str, state_dir: Path) -> None:
    """Remove containers; where ``run`` is named, its images and the temporary folder too."""
    docker.remove_containers(containers)
    if run:
        docker.remove_images(docker.images_of(run))
        remove(state_dir)
