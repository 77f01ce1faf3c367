"""Containers as workspaces: what docker is asked for (of a program that notes it), and the laws in real ones."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

from dars.agent import workspace
from dars.config import DarsConfig, EnvSection
from dars.env.container import ContainerEnvironment
from dars.env.docker import Docker, remove_abandoned
from dars.env.local import LocalEnvironment
from dars.env.output import READ_WHOLE, read_ends
from dars.errors import EnvError
from dars.task import Task

PODMAN = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
# Podman's own limit of processes is more than one may ask for who is inside a container already.
MOUNTS = ["--ulimit", "nproc=256:256", *(word for folder in ("/usr", "/lib", "/lib64") if os.path.isdir(folder)
          for word in ("--volume", f"{folder}:{folder}:ro"))]  # fmt: skip
APPLETS = ("sh", "ls", "cat", "sleep", "tar", "find", "stat", "xargs", "readlink", "mkdir", "rm", "id", "date", "true")
IMAGE = "localhost/dars-test:1"

# Prints all that a state is, by a walk that shares nothing with the package.
LOOK = textwrap.dedent("""
    import base64, json, os, stat, sys
    found = {}
    for folder, folders, files in os.walk("."):
        if folder == "." and ".git" in folders:
            folders.remove(".git")
        for name in folders + files:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[path] = ["link", os.readlink(path)]
            elif os.path.isdir(path):
                found[path] = ["folder"]
            else:
                mode = bool(os.stat(path).st_mode & stat.S_IXUSR)
                found[path] = ["file", mode, base64.b64encode(open(path, "rb").read()).decode()]
    print(json.dumps(found, sort_keys=True))
""")
# Random edits, some of which cannot be made.
EDITS = textwrap.dedent("""
    import json, os, pathlib, sys
    root = pathlib.Path(".")
    for operation, one, two, data in json.loads(sys.argv[1]):
        path, other = root / one, root / two
        try:
            if operation in ("write", "link", "mkdir"):
                path.parent.mkdir(parents=True, exist_ok=True)
            if operation == "write":
                path.write_text(data)
            elif operation == "remove":
                path.unlink()
            elif operation == "rename":
                other.parent.mkdir(parents=True, exist_ok=True)
                path.rename(other)
            elif operation == "chmod" and not path.is_symlink():
                path.chmod(path.stat().st_mode ^ 0o111)
            elif operation == "link":
                path.symlink_to(two)
            elif operation == "hard":
                os.link(path, other)
            elif operation == "mkdir":
                path.mkdir()
            elif operation == "rmdir":
                path.parent.rmdir()
        except OSError:
            pass
""")
NAMES = ("a", "b.py", "with space", "new\nline", "ü.txt", ".hidden", "deep/er/c", "deep/d", "build/o.bin", "-n", "a\\b",
         "//\n", "crlf.txt", "run.sh")  # fmt: skip


def look(env) -> dict:
    done = env.exec(["python3", "-c", LOOK])
    assert done.returncode == 0, done.output
    return json.loads(done.output)


def edits(seed: int) -> list[str]:
    draw = random.Random(seed)
    kinds = ("write", "write", "write", "remove", "rename", "chmod", "link", "hard", "mkdir", "rmdir")
    chosen = [(draw.choice(kinds), draw.choice(NAMES), draw.choice(NAMES), str(draw.random())) for _ in range(25)]
    return ["python3", "-c", EDITS, json.dumps(chosen)]


def git(*words: str, cwd: Path) -> str:
    identity = {"GIT_AUTHOR_NAME": "n", "GIT_AUTHOR_EMAIL": "e", "GIT_COMMITTER_NAME": "n", "GIT_COMMITTER_EMAIL": "e"}
    done = subprocess.run(["git", *words], cwd=cwd, env={**os.environ, **identity}, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A project whose history goes on after HEAD."""
    folder = tmp_path_factory.mktemp("src") / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "empty" / "inside").mkdir(parents=True)
    (folder / ".gitignore").write_text("*.log\nbuild/\n")
    (folder / ".gitattributes").write_text("* text=auto\n*.dat filter=lfs\n")
    (folder / "pkg" / "__init__.py").write_text("V = 1\n")
    (folder / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "big.dat").write_bytes(bytes(range(256)) * 8)
    (folder / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "to-pkg").symlink_to("pkg")
    (folder / "broken").symlink_to("nowhere")
    git("init", "-q", "-b", "main", ".", cwd=folder)
    git("add", "pkg", cwd=folder)
    git("commit", "-qm", "the issue's", cwd=folder)
    git("checkout", "-qb", "fix", cwd=folder)
    (folder / "answer").write_text("the fix")
    git("add", "answer", cwd=folder)
    git("commit", "-qm", "the answer", cwd=folder)
    git("tag", "v2", cwd=folder)
    git("update-ref", "refs/remotes/origin/main", "fix", cwd=folder)
    git("remote", "add", "origin", "https://example.invalid/x", cwd=folder)
    git("checkout", "-q", "main", cwd=folder)
    git("branch", "-qD", "fix", cwd=folder)
    return folder


# --- what docker is asked for -----------------------------------------------------------------------------------------

# Notes its words, and runs what is to be run in a container on this machine, in the folder that is named.
RECORDER = """#!{python} -IS
import json, os, subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(words) + "\\n")
known = json.load(open({known!r}))
while words[0].startswith("--"):
    words = words[2:]
if words[0] == "exec":
    at = next(i for i, word in enumerate(words) if word.startswith("dars-")) + 1
    line = [word.replace("kill -9 -1", ":") for word in words[at:]]
    given = dict(word.split("=", 1) for word in words[:at] if "=" in word)
    sys.exit(subprocess.run(line, env={{**os.environ, "HOME": {home!r}, **given}}).returncode)
if words[:2] == ["image", "inspect"]:
    sys.exit(words[-1] not in known)
if words[0] == "pull" or words[0] == "commit":
    json.dump([*known, words[-1]], open({known!r}, "w"))
if words[0] == "images" and "{{{{.Repository}}}}:{{{{.Tag}}}}" in words:
    print(*(name for name in known if name.startswith("localhost/dars-")), sep="\\n")
"""


class Recorder:
    """A program in the place of docker, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.work = folder / "home", folder / "work"
        self.home.mkdir()
        self.work.mkdir()
        (folder / "known.json").write_text('["image:1"]')
        names = {"log": str(folder / "log"), "known": str(folder / "known.json"), "home": str(self.home)}
        self.program = folder / "docker"
        self.program.write_text(RECORDER.format(python=sys.executable, **names))
        self.program.chmod(0o755)

    def open(self, image: str = "image:1", **options) -> ContainerEnvironment:
        cli = options.pop("cli", str(self.program))
        return ContainerEnvironment(image, str(self.work), cli=cli, **options)

    def asked(self, *subcommand: str) -> list[list[str]]:
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [words for words in lines if words[: len(subcommand)] == list(subcommand)]


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(tmp_path)


def follows(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def test_a_container_has_no_network_and_limits_unless_asked_for(recorder, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-1")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret-2@proxy")
    with recorder.open(memory_mb=100, max_procs=7, max_file_mb=1, run_args=["--memory", "9g", "--user", "me"]):
        pass
    with recorder.open(network=True):
        pass
    closed, open_ = recorder.asked("run")
    assert follows(closed, "--network") == ["none"]
    assert follows(open_, "--network") == []
    assert follows(closed, "--memory") == ["100m", "9g"]  # what is asked for comes last, and so counts
    assert follows(closed, "--pids-limit") == ["7"]
    assert follows(closed, "--ulimit") == ["nofile=4096:4096", f"fsize={1 << 20}:{1 << 20}", "core=0:0"]
    assert closed[closed.index("--user") + 2] == "image:1"
    assert {"TZ=UTC", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1", "HTTPS_PROXY="} <= set(follows(closed, "--env"))
    assert "secret" not in (recorder.folder / "log").read_text()


def test_options_of_the_program_come_before_every_subcommand(recorder):
    with recorder.open(cli=[str(recorder.program), "--runtime", "runc"]) as env:
        env.exec("true")
    assert len(recorder.asked("--runtime", "runc")) == len(recorder.asked()) > 5
    assert recorder.asked("--runtime", "runc", "run")


def test_an_image_is_committed_for_snapshots_only_and_once_for_each_state(recorder):
    with recorder.open() as env:
        base = env.snapshot()
        for i in range(3):
            env.exec("true")
            env.write_file("f", str(i).encode())
        assert len(recorder.asked("commit")) == 1
        later = env.snapshot()
        env.write_file("f", b"2")  # the same again
        assert env.snapshot() == later
        commits = recorder.asked("commit")
        assert [words[-1].rpartition(":")[2] for words in commits] == [base, later]
        env.restore(later)
        assert recorder.asked("run")[-1][-4:-3] == commits[-1][-1:]
        assert len(recorder.asked("run")) == 2
        assert follows(recorder.asked("rm")[0], "--volumes") == follows(recorder.asked("run")[0], "--name")
    assert len(recorder.asked("commit")) == 2


def test_images_go_with_a_temporary_run_and_stay_with_one_that_has_a_folder(recorder, tmp_path):
    with recorder.open(state_dir=tmp_path / "states") as env:
        env.write_file("f", b"1")
        later = env.snapshot()
    assert recorder.asked("rmi") == []
    with recorder.open(state_dir=tmp_path / "states") as again:
        assert again.knows(later)
        assert not again.knows("0" * 40)
        assert recorder.asked("run")[-1][-4].startswith("localhost/dars-")
    with pytest.raises(EnvError, match="holds a run in the image image:1, not in other:1"):
        recorder.open("other:1", state_dir=tmp_path / "states")
    with recorder.open():
        pass
    assert len(recorder.asked("rmi")) == 1
    for run, removed in zip(recorder.asked("run"), recorder.asked("rm"), strict=True):
        assert follows(run, "--name") == removed[-1:]


def test_an_image_that_is_not_there_is_pulled(recorder):
    with recorder.open("swebench/sweb.eval.x86_64.a_1776_b-1:latest"):
        pass
    assert recorder.asked("pull") == [["pull", "swebench/sweb.eval.x86_64.a_1776_b-1:latest"]]


def test_commands_activate_the_images_conda_environment(recorder):
    (recorder.home / ".bashrc").write_text("export MARK=on  # conda activate testbed\n")
    with recorder.open() as env:
        assert env.exec("echo $MARK").output == "on\n"
        assert env.exec(["sh", "-c", "echo $MARK"]).output == "on\n"
    (recorder.home / ".bashrc").write_text("export MARK=on\n")
    with recorder.open() as env:
        assert env.exec("echo $MARK").output == "\n"


def test_what_docker_says_is_passed_on(recorder, tmp_path):
    with pytest.raises(EnvError, match="no-such-docker is not there: install docker, or podman"):
        ContainerEnvironment("image:1", cli="no-such-docker")
    recorder.work.rmdir()
    with pytest.raises(EnvError, match=f"there is no folder {recorder.work} in the image"):
        recorder.open()
    recorder.work.mkdir()
    with recorder.open() as env:
        recorder.program.write_text("#!/bin/sh\necho 'no daemon' >&2; exit 125\n")
        with pytest.raises(EnvError, match="no daemon"):
            env.exec("true")
        with pytest.raises(EnvError, match=r"cannot list .*: no daemon"):
            env.snapshot()
    assert Docker(str(recorder.program)).works() == "no daemon"


def test_impossible_settings_are_refused(recorder):
    for workdir in ("testbed", "/", "//"):
        with pytest.raises(EnvError, match="absolute path of a folder below /"):
            ContainerEnvironment("image:1", workdir, cli=str(recorder.program))
    with pytest.raises(EnvError, match="positive"):
        recorder.open(timeout=0)


def test_of_a_long_stream_both_ends_are_kept():
    for size in (0, 10, READ_WHOLE // 2, READ_WHOLE, READ_WHOLE + 1, 3 * READ_WHOLE + 12345):
        data = random.Random(size).randbytes(size)
        kept, missing = read_ends(io.BytesIO(data))
        half = READ_WHOLE // 2
        assert missing == max(0, size - READ_WHOLE)
        assert kept == (data if not missing else data[:half] + data[-half:])


# --- real containers --------------------------------------------------------------------------------------------------


def file_system(source: Path) -> bytes:
    """A tar of busybox alone, with a folder as /testbed."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:

        def add(name: str, kind: bytes, mode: int = 0o755, target: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.linkname = kind, mode, target
            tar.addfile(entry)

        def owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
            entry.uid = entry.gid = 0
            return entry

        for folder in ("bin", "usr", "lib", "lib64", "etc", "proc", "sys", "dev", "root"):
            add(folder, tarfile.DIRTYPE)
        add("tmp", tarfile.DIRTYPE, 0o1777)
        tar.add(os.path.realpath(shutil.which("busybox")), "bin/busybox", filter=owned_by_root)
        for name in APPLETS:
            add(f"bin/{name}", tarfile.SYMTYPE, target="busybox")
        tar.add(source, "testbed", filter=owned_by_root)
    return data.getvalue()


@pytest.fixture(scope="module")
def image(source):
    """The project with busybox; the programs of this machine can be mounted."""
    missing = [name for name in ("podman", "runc", "busybox") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    limits = ["--network", "none", "--ulimit", "nofile=4096:4096"]
    for line in (["import", "--quiet", "-", IMAGE], ["run", "--rm", *limits, *MOUNTS, IMAGE, "true"]):
        done = subprocess.run([*PODMAN, *line], input=file_system(source), capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"podman {line[0]} does not work here: {' '.join(done.stderr.decode().split())}")
    yield IMAGE
    subprocess.run([*PODMAN, "rmi", "--force", IMAGE], capture_output=True, check=True)


@pytest.fixture(scope="module")
def env(image):
    """One container for tests that care for what they need: a new one takes a second."""
    with ContainerEnvironment(image, cli=PODMAN, run_args=MOUNTS, max_file_mb=4) as env:
        yield env


@pytest.fixture
def fresh(env):
    env.restore(env._first)
    return env


def test_restore_after_snapshot_is_the_identity_and_hashes_are_those_of_a_local_workspace(fresh, source):
    env = fresh
    with LocalEnvironment(source, sandbox="none") as local:
        assert env.state_hash() == local.state_hash()
        seen = []
        for seed in range(2):
            for workspace in (env, local):
                workspace.exec(edits(seed))
            assert env.state_hash() == local.state_hash()
            assert env.diff() == local.diff()
            seen.append((env.snapshot(), look(local), local.diff()))
        assert len({identity for identity, _, _ in seen}) == 2
        env.restore(seen[0][0])
        assert env.snapshot() == seen[0][0]
        assert env.diff() == seen[0][2]
        assert look(env) == seen[0][1]


def test_repository_copied_into_an_image_is_the_workspace_that_it_is_here(image, source, tmp_path):
    repo = tmp_path / "repo"
    shutil.copytree(source, repo, symlinks=True)
    (repo / "pkg" / "__init__.py").write_text("V = 3\n")
    (repo / "crlf.txt").unlink()
    states = tmp_path / "states"
    options = {"cli": PODMAN, "run_args": MOUNTS, "state_dir": states, "source": repo}
    with LocalEnvironment(repo, sandbox="none") as local:
        for workdir in ("/testbed", "/new/place"):
            with ContainerEnvironment(image, workdir, **options) as env:
                assert env.state_hash() == env.source_hash == local.state_hash() == local.source_hash
                assert look(env) == look(local)
                assert env.exec("git log --format=%s; git status --porcelain; touch new").output == "Base\n"
                assert "new" in env.diff()
                with env.clone() as twin:
                    assert (twin.diff(), twin.state_hash()) == ("", local.state_hash())
                (repo / "later").write_text("x")
                with ContainerEnvironment(image, workdir, **options) as again:  # begins as the first one did
                    assert again.state_hash() == local.state_hash() != again.source_hash
                (repo / "later").unlink()
            shutil.rmtree(states)
            Docker(PODMAN).remove_images(Docker(PODMAN).images_of(env._run))


def test_repository_and_image_of_a_task_go_together(recorder, tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "a.py").write_text("x = 1\n")
    (recorder.work / "of the image").write_text("")
    config = DarsConfig(env=EnvSection(container_cli=str(recorder.program), workdir=str(recorder.work)))
    with workspace(Task(repo, "x is wrong", image="image:1"), config, None, None) as env:
        assert env.list_files() == ["a.py"]
        assert env.exec("cat a.py").output == "x = 1\n"
    assert len(recorder.asked("run")) == 2  # the second begins with the history of one commit


def test_an_edit_of_equal_size_and_times_is_seen_and_no_stale_bytecode_is_run(env):
    touch = "touch -d @1000000000 pkg/__init__.py; "
    show = f"{touch} python3 -I -c \"import sys; sys.path.insert(0, '.'); import pkg; print(pkg.V)\""
    assert env.exec(f"printf 'V = 1\\n' > pkg/__init__.py; {show}").output == "1\n"
    before = env.state_hash()
    env.write_file("pkg/__init__.py", b"V = 2\n")
    assert env.exec(show).output == "2\n"
    assert env.state_hash() != before


def test_diff_applied_to_the_source_gives_the_workspace(fresh, source, tmp_path):
    env = fresh
    env.exec(
        "printf 'one\\r\\nthree\\r\\n' > crlf.txt; printf 'caf\\351s\\n' > latin.txt; head -c 99 /dev/zero > big.dat; "
        "chmod -x run.sh; rm broken; ln -s pkg link; echo 'x = 1' > 'pkg/new file.py'; rm -r empty"
    )
    copy = tmp_path / "copy"
    shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "empty"))
    subprocess.run(["git", "apply", "--whitespace=nowarn"], cwd=copy, input=env.diff().encode(), check=True)
    found = subprocess.run([sys.executable, "-c", LOOK], cwd=copy, capture_output=True, check=True)
    assert json.loads(found.stdout) == look(env)


def test_history_leads_to_head_and_nowhere_else(env, source):
    answer = git("rev-parse", "v2", cwd=source)
    done = env.exec(f"git log --all --format=%s; git remote; git tag; git cat-file -e {answer} || echo gone; git fsck")
    assert done.output.splitlines()[0] == "the issue's"
    assert "gone" in done.output
    assert "dangling" not in done.output
    assert "the answer" not in done.output
    assert env.exec("git symbolic-ref HEAD").output == "refs/heads/main\n"
    assert "the answer" in git("log", "--all", "--format=%s", cwd=source)


def test_clones_share_states_with_all_that_is_installed_but_neither_files_nor_what_the_client_knows(env, monkeypatch):
    env.exec("printf 1 > pkg/m.py; git config user.name someone")
    assert env.snapshot().startswith(f"{env.state_hash()}-")  # no tree tells of the history
    env.exec("echo 2 > /root/installed")
    identity = env.snapshot()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-1")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret-2@proxy")
    show = "git config user.name; cat pkg/m.py /root/installed"
    with env.clone() as twin:
        assert twin.diff() == ""
        assert twin.exec(show).returncode != 0
        twin.restore(identity)
        assert twin.exec(show).output == "someone\n12\n"
        seen = twin.exec("rm pkg/m.py; env; cat /proc/*/environ | tr '\\0' '\\n'").output
    assert "secret" not in seen
    assert "PYTHONDONTWRITEBYTECODE=1" in seen
    assert env.exec(show).output == "someone\n12\n"


def test_unknown_snapshots_are_refused(env):
    for identity in ("", "0" * 40, "../../etc", f"{env.snapshot()}-{'0' * 12}", "latest"):
        with pytest.raises(EnvError, match="there is no snapshot"):
            env.restore(identity)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "pkg/../../x", "out/x", "out", "chain/x", "", ".", "a\0b"])
def test_paths_outside_are_refused_also_through_links(links, path):
    for call in (lambda: links.read_file(path), lambda: links.write_file(path, b"1")):
        with pytest.raises(EnvError, match="is not a path inside the workspace"):
            call()


@pytest.fixture(scope="module")
def links(env):
    env.exec("ln -sfn /etc out; ln -sfn out chain")
    return env


def test_files_are_read_written_and_removed_through_links_that_stay_inside(env):
    env.write_file("/testbed/to-pkg/deep er/-m.py", b"\0\xff\r\n")
    assert env.read_file("pkg/deep er/-m.py") == b"\0\xff\r\n"
    env.remove_file("to-pkg/deep er/-m.py")
    env.remove_file("to-pkg")
    assert "to-pkg" not in env.list_files()
    assert "pkg/__init__.py" in env.list_files()
    env.exec("mkdir -p node_modules/m; echo 1 > node_modules/m/f; ln -s /etc node_modules/out")
    assert env.read_file("node_modules/m/f") == b"1\n"
    assert not any("node_modules" in path for path in env.list_files())
    for call in (lambda: env.read_file("node_modules/out/hosts"), lambda: env.write_file("node_modules/out/x", b"")):
        with pytest.raises(EnvError, match="is not a path inside the workspace"):
            call()
    for call in (env.read_file, env.remove_file):
        with pytest.raises(EnvError, match=r"no/such\.py: No such file"):
            call("no/such.py")
    with pytest.raises(EnvError, match="cannot write pkg: "):
        env.write_file("pkg", b"1")


def test_results_are_those_of_a_local_workspace(env, source):
    commands = (
        "pwd; echo err >&2; echo out; exit 7", "kill -9 $$", ["no-such-program"], ["printf", "%s|", "a b", "c\n", ""],
        r"cat; printf '\033[1;31mtwo\033[0m\n\377\n'; (exit 124)", "head -c 100000 /dev/zero | tr '\\0' x",
        "ulimit -c; head -c 9000000 /dev/zero > large; s=$?; rm large; exit $s",
    )  # fmt: skip
    with LocalEnvironment(source, sandbox="none", max_file_mb=4) as local:
        for command in commands:
            ours, theirs = env.exec(command), local.exec(command)
            where = str(local._backend.root)
            assert (ours.returncode, ours.timed_out, ours.truncated) == theirs[:1] + theirs[2:4]
            if command != ["no-such-program"]:
                same = theirs.output.replace(where, "/testbed")
                assert re.sub(r"line 1: +\d+", "", ours.output) == re.sub(r"line 1: +\d+", "", same)
    assert env.exec("cat", stdin=b"given\0\xff").output == "given\0�"
    with pytest.raises(EnvError, match="the command is empty"):
        env.exec([])
    with pytest.raises(EnvError, match="null byte"):
        env.exec("a\0b")


def running(marker: str) -> bool:
    """Whether a process of this machine has a word."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in file.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize("start", ["(setsid sleep {} &); echo begun; sleep {}", "setsid sleep {} & echo begun"])
def test_nothing_that_a_command_starts_outlives_it(env, start):
    marker = str(10_000 + time.time_ns() % 80_000)
    done = env.exec(start.format(marker, marker), timeout=0.6)
    over = "; sleep" in start
    assert done[:4] == (124 if over else 0, "begun\n", over, False)
    assert not running(marker)
    assert env.exec("echo on; kill -9 -1")[:2] == (137, "on\n")  # a command may kill all it can


def test_there_is_no_network(env):
    script = "import socket; print([n for _, n in socket.if_nameindex()]); socket.create_connection(('1.1.1.1', 53), 2)"
    done = env.exec(["python3", "-c", script])
    assert done.output.startswith("['lo'")
    assert "Network is unreachable" in done.output


def test_what_a_killed_process_left_is_removed_unless_its_folder_is_there_and_busybox_is_enough(image, env, tmp_path):
    script = f"""if True:
        import os, pathlib, signal
        from dars.env.container import ContainerEnvironment
        states = pathlib.Path({str(tmp_path / "states")!r})
        env = ContainerEnvironment({image!r}, cli={PODMAN!r}, run_args={MOUNTS[:2]!r}, state_dir=states)
        print(env._first, env._run, env._container, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    identity, run, container = done.stdout.split()
    docker = Docker(PODMAN)
    assert docker.run("container", "inspect", container)[0] == 0
    with ContainerEnvironment(image, cli=PODMAN, run_args=MOUNTS[:2], state_dir=tmp_path / "states") as bare:
        assert docker.run("container", "inspect", container)[0] != 0
        assert bare.knows(identity)
        assert bare.exec("git || ls -d empty; kill -9 $$")[:2] == (137, "sh: git: not found\nempty\n")
        assert bare.state_hash() == env._base
        bare.write_file("a b/c", b"1")
        assert bare.read_file("a b/c") == b"1"
    remove_abandoned(PODMAN)
    assert len(docker.images_of(run)) == 1
    shutil.rmtree(tmp_path / "states")
    assert f"localhost/dars-{run}:{identity}" in remove_abandoned(PODMAN)
    assert docker.images_of(run) == []
