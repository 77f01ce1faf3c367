"""Workspaces: laws of snapshots on random edits, agreement of the ways to remember, and what commands cannot do."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dars.env import overlay
from dars.env.local import BACKENDS, LocalEnvironment
from dars.env.output import shorten
from dars.env.paths import link_target, resolve
from dars.env.sandbox import choose, works
from dars.errors import DiskFull, EnvError, SandboxUnavailable

NAMES = ("a", "b.py", "with space", "new\nline", "ü.txt", ".hidden", "deep/er/c", "deep/d", "node/x.log", "build/o.bin")
SANDBOXES = [pytest.param(kind, marks=pytest.mark.skipif(bool(works(kind)), reason=works(kind)))
             for kind in ("bwrap", "unshare")]  # fmt: skip
STORES = [pytest.param(name, marks=pytest.mark.skipif(name == "overlay" and bool(overlay.works()),
          reason=overlay.works())) for name in BACKENDS]  # fmt: skip
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("write", "remove", "rename", "chmod", "link", "mkdir", "rmdir")),
        st.sampled_from(NAMES), st.sampled_from(NAMES), st.binary(max_size=4),
    ),
    max_size=8,
)  # fmt: skip


def look(root: Path) -> dict[str, tuple]:
    """All that a state is, by a walk that shares nothing with the package."""
    found = {}
    for folder, folders, files in os.walk(root):
        if folder == str(root) and ".git" in folders:
            folders.remove(".git")
        for name in folders + files:
            path = os.path.join(folder, name)
            inner = os.path.relpath(path, root)
            if os.path.islink(path):
                found[inner] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[inner] = ("folder",)
            else:
                found[inner] = ("file", bool(os.stat(path).st_mode & stat.S_IXUSR), Path(path).read_bytes())
    return found


def change(root: Path, operation: str, one: str, two: str, data: bytes) -> None:
    """One random edit, straight on the disk as a command would make it; one that cannot be made is left out."""
    path, other = root / one, root / two
    try:
        if operation in ("write", "link", "mkdir"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if operation == "write":
            path.unlink(missing_ok=True) if path.is_symlink() else None
            path.write_bytes(data)
        elif operation == "remove":
            path.unlink()
        elif operation == "rename":
            other.parent.mkdir(parents=True, exist_ok=True)
            path.rename(other)
        elif operation == "chmod" and not path.is_symlink():
            path.chmod(path.stat().st_mode ^ 0o111)
        elif operation == "link":
            path.symlink_to(two)
        elif operation == "mkdir":
            path.mkdir()
        elif operation == "rmdir":
            path.parent.rmdir()
    except OSError:
        pass


def root_of(env: LocalEnvironment) -> Path:
    return env._backend.root


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("src") / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "empty" / "inside").mkdir(parents=True)
    (folder / ".gitignore").write_text("*.log\nbuild/\n")
    (folder / ".gitattributes").write_text("* text=auto\n*.dat filter=lfs\n")
    (folder / "pkg" / "__init__.py").write_text("V = 1\n")
    (folder / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (folder / "big.dat").write_bytes(bytes(range(256)) * 8)
    (folder / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (folder / "with space.log").write_text("ignored\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "to-pkg").symlink_to("pkg")
    (folder / "broken").symlink_to("nowhere")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    (folder / ".git" / "description").write_text("history with the answer in it")
    return folder


@pytest.fixture(scope="module")
def shared(source):
    """One workspace for tests that put back what they change."""
    with LocalEnvironment(source, sandbox="none") as env:
        yield env


@pytest.fixture
def env(shared):
    before = shared.snapshot()
    yield shared
    shared.restore(before)


# --- states -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=OPERATIONS, second=OPERATIONS)
def test_restore_after_snapshot_is_the_identity_and_hashes_are_equal_where_trees_are(env, source, first, second):
    untouched, root, base = look(source), root_of(env), env.snapshot()
    for operation in first:
        change(root, *operation)
    there, identity = look(root), env.snapshot()
    for operation in second:
        change(root, *operation)
    later = look(root)
    assert (env.state_hash() == identity) == (later == there)
    env.restore(identity)
    assert look(root) == there
    assert env.snapshot() == env.state_hash() == identity
    env.restore(base)
    assert look(root) == look(source) == untouched
    assert env.state_hash() == base


def test_equal_trees_have_equal_hashes_in_different_workspaces(env, source):
    with LocalEnvironment(source, sandbox="none") as other:
        assert other.snapshot() == env.snapshot()
        for workspace in (env, other):
            workspace.write_file("x/y.py", b"1")
        assert other.snapshot() == env.snapshot()


def test_snapshot_is_the_tree_that_git_itself_computes(env, tmp_path):
    for name in ("empty/inside", "empty"):
        (root_of(env) / name).rmdir()  # git has no empty folders
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "attributes").write_text("* -text -filter\n")
    where = ["git", f"--git-dir={tmp_path}/.git", f"--work-tree={root_of(env)}"]
    subprocess.run([*where, "add", "-A", "--force"], check=True)
    tree = subprocess.run([*where, "write-tree"], check=True, capture_output=True, text=True).stdout.strip()
    assert env.snapshot() == tree


def test_same_size_edit_within_one_second_is_seen_and_never_runs_stale_bytecode(env):
    show = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); import pkg; print(pkg.V)"]  # ignores the
    # variables that keep bytecode away
    seen = []
    for value in (1, 2, 3, 1):
        env.write_file("pkg/__init__.py", b"V = %d\n" % value)
        os.utime(root_of(env) / "pkg/__init__.py", (1e9, 1e9))
        assert env.exec(show).output == f"{value}\n"
        seen.append(env.snapshot())
    assert len(set(seen)) == 3
    for identity, value in zip(seen, (1, 2, 3, 1), strict=True):
        env.restore(identity)
        os.utime(root_of(env) / "pkg/__init__.py", (1e9, 1e9))
        assert env.exec(show).output == f"{value}\n"


def test_equal_size_and_times_do_not_hide_an_edit_by_a_command(env):
    env.write_file("pkg/m.py", b"a = 1")
    before = env.snapshot()
    env.exec("touch -r pkg/m.py ref; printf 'a = 2' > pkg/m.py; touch -r ref pkg/m.py; rm ref")
    assert env.state_hash() != before


def test_restore_leaves_equal_files_untouched(env):
    env.write_file("pkg/m.py", b"1")
    kept = (root_of(env) / "run.sh").lstat()
    before = env.snapshot()
    env.write_file("pkg/m.py", b"2")
    env.restore(before)
    assert (root_of(env) / "run.sh").lstat() == kept


def test_history_of_the_workspace_is_one_commit_and_goes_back_with_the_files(env):
    assert env.exec("git rev-list --all --count; git status --short; cat .git/description").output.startswith("1\n")
    before = env.snapshot()
    env.write_file("pkg/m.py", b"1")
    env.exec("git config user.email a@b; git config user.name n; git add -A; git commit -qm second")
    after = env.snapshot()
    assert after.startswith(f"{env.state_hash()}+")
    env.restore(before)
    assert env.exec("git rev-list --all --count").output == "1\n"
    env.restore(after)
    assert env.exec("git rev-list --all --count; git status --short").output == "2\n"


@pytest.mark.parametrize("backend", STORES)
def test_backends_agree_on_every_state_and_reach_it_from_every_other(backend, source, env):
    steps = (
        "printf 'V = 2' > pkg/__init__.py", "rm -r empty; mkdir -p 'a b/c'; ln -s pkg link",
        "chmod +x crlf.txt; rm run.sh",
        "rm link; mkdir link; head -c 999 /dev/zero > link/zeros",
        "mv pkg moved; echo ignored > x.log", "echo a >> crlf.txt",
    )  # fmt: skip
    with LocalEnvironment(source, backend=backend, sandbox="none") as other, other.clone() as twin:
        expected, there = [env.snapshot()], [look(root_of(env))]
        assert other.snapshot() == expected[0]
        for step in steps:
            for workspace in (env, other):
                workspace.exec(step)
                workspace.write_file("notes/n.txt", step.encode())
            expected.append(env.snapshot())
            there.append(look(root_of(env)))
            assert other.snapshot() == expected[-1]
        for i in (2, 0, 6, 3, 4, 1, 5):
            for workspace in (other, twin):
                workspace.exec("echo unsaved > unsaved; rm -rf pkg notes")
                workspace.restore(expected[i])
                assert look(root_of(workspace)) == there[i]
                assert workspace.state_hash() == expected[i]
            env.restore(expected[i])
            assert other.diff() == env.diff()
    assert "V = 2" not in (source / "pkg" / "__init__.py").read_text()


@pytest.mark.parametrize("backend", STORES)
def test_each_backend_finds_its_snapshots_again(backend, source, tmp_path):
    with LocalEnvironment(source, backend=backend, sandbox="none", state_dir=tmp_path) as first:
        for i in range(3):
            first.exec(f"echo {i} >> pkg/m.py")
            identity = first.snapshot()
    with LocalEnvironment(source, backend=backend, sandbox="none", state_dir=tmp_path) as second:
        second.restore(identity)
        assert second.read_file("pkg/m.py") == b"0\n1\n2\n"
        with pytest.raises(EnvError, match="there is no snapshot"):
            second.restore("0" * 40)


def test_replay_that_leads_elsewhere_is_an_error_and_not_a_wrong_state(source):
    with LocalEnvironment(source, backend="replay", sandbox="none") as env:
        env.exec("date +%s%N > now")
        identity = env.snapshot()
        with pytest.raises(EnvError, match="did not lead to"):
            env.restore(identity)


@pytest.mark.parametrize("sandbox", SANDBOXES)
@pytest.mark.skipif(bool(overlay.works()), reason=overlay.works())
def test_overlay_is_what_closed_in_commands_see_too(sandbox, source):
    with LocalEnvironment(source, backend="overlay", sandbox=sandbox) as env:
        env.write_file("pkg/m.py", b"1")
        env.snapshot()
        assert (
            env.exec(f"cat pkg/m.py; echo 2 > pkg/m.py; cat {source}/pkg/m.py; cat /root/x || true").output[:3]
            == "12\n"
        )
        assert env.read_file("pkg/m.py") == b"2\n"


def test_nested_repositories_are_plain_files(env):
    before = env.snapshot()
    env.exec("mkdir sub && cd sub && git init -q . && echo 1 > f && git add f")
    inner = env.snapshot()
    env.restore(before)
    env.restore(inner)
    assert env.exec("cd sub && git diff --cached --name-only").output == "f\n"
    assert "sub/f" in env.diff()
    assert ".git" not in env.diff()


def test_caches_and_virtual_environments_are_in_no_snapshot(env):
    before = env.snapshot()
    env.exec(
        "mkdir -p .venv/bin pkg/__pycache__ node_modules; touch .venv/pyvenv.cfg .venv/bin/x pkg/__pycache__/x.pyc"
    )
    assert env.snapshot() == before
    env.restore(before)
    assert env.exec("ls .venv/bin; ls -d pkg/__pycache__ 2>&1 || true").output.startswith("x\nls: ")
    env.exec("rm -r .venv node_modules")


def test_sockets_pipes_and_locked_folders_are_put_back_too(env):
    before = env.snapshot()
    env.exec("mkfifo pipe; mkdir -p locked/in; touch locked/in/f; chmod 000 locked/in/f locked/in locked")
    env.snapshot()
    env.restore(before)
    assert env.snapshot() == before
    assert not (root_of(env) / "pipe").exists()
    assert not (root_of(env) / "locked").exists()


def test_diff_applied_to_the_source_gives_the_workspace(env, source, tmp_path):
    env.write_file("pkg/new file.py", b"x = 1")
    env.write_file("latin.txt", "cafés\n".encode("latin-1"))
    env.write_file("big.dat", bytes(reversed(range(256))))
    env.write_file("crlf.txt", b"one\r\nthree\r\n")
    env.exec("chmod -x run.sh; rm broken; ln -s pkg/__init__.py link; rm -r empty")
    patch = env.diff()
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", source, copy], check=True)
    subprocess.run(["rm", "-rf", copy / ".git", copy / "empty"], check=True)
    subprocess.run(["git", "apply", "--whitespace=nowarn"], cwd=copy, input=patch.encode(), check=True)
    assert look(copy) == look(root_of(env))


def test_diff_of_nothing_is_empty(env):
    assert env.diff() == ""


def test_clone_finds_the_snapshots_of_the_first_and_shares_no_files(env):
    env.write_file("pkg/m.py", b"1")
    identity = env.snapshot()
    with env.clone() as twin:
        twin.restore(identity)
        assert look(root_of(twin)) == look(root_of(env))
        assert twin.snapshot() == identity
        assert twin.diff() == env.diff() != ""
        twin.write_file("pkg/m.py", b"2")
        later = twin.snapshot()
    assert env.read_file("pkg/m.py") == b"1"
    env.restore(later)
    assert env.read_file("pkg/m.py") == b"2"


def test_snapshots_outlive_a_killed_process(source, tmp_path):
    script = f"""if True:
        import os, signal
        from dars.env.local import LocalEnvironment
        env = LocalEnvironment({str(source)!r}, sandbox="none", state_dir=__import__("pathlib").Path({str(tmp_path)!r}))
        env.write_file("pkg/m.py", b"before the end")
        print(env.snapshot(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    with LocalEnvironment(source, sandbox="none", state_dir=tmp_path) as env:
        assert len(list(tmp_path.glob("work-*"))) == 1  # the abandoned workspace is gone
        assert env.diff() == ""
        env.restore(done.stdout.strip())
        assert env.read_file("pkg/m.py") == b"before the end"
        assert "before the end" in env.diff()


def test_base_stays_when_the_source_moves_on(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("then")
    with LocalEnvironment(source, sandbox="none", state_dir=tmp_path / "state") as env:
        base = env.snapshot()
    (source / "f").write_text("now")
    with LocalEnvironment(source, sandbox="none", state_dir=tmp_path / "state") as env:
        assert env.read_file("f") == b"then"
        assert env.snapshot() == base


def test_read_only_source_makes_a_writable_workspace(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("1")
    (source / "f").chmod(0o444)
    source.chmod(0o555)
    with LocalEnvironment(source, sandbox="none") as env:
        assert stat.S_IMODE((root_of(env) / "f").stat().st_mode) == 0o644
        env.write_file("f", b"2")
        env.write_file("g", b"2")
    source.chmod(0o755)
    assert (source / "f").read_text() == "1"


def test_settings_that_cannot_work_are_refused_by_name(source, tmp_path):
    with pytest.raises(EnvError, match="is not a folder"):
        LocalEnvironment(tmp_path / "nowhere", sandbox="none")
    with pytest.raises(EnvError, match="must not change"):
        LocalEnvironment(source, sandbox="none", state_dir=source / "state")
    with pytest.raises(EnvError, match="there is no sandbox 'jail'"):
        LocalEnvironment(source, sandbox="jail")
    with pytest.raises(EnvError, match="there is no backend 'tape'"):
        LocalEnvironment(source, backend="tape", sandbox="none")
    with pytest.raises(EnvError, match="positive"):
        LocalEnvironment(source, sandbox="none", timeout=0)


def test_unknown_snapshots_are_refused(env):
    for identity in ("", "0" * 40, "../../etc", f"{env.snapshot()}+{'0' * 40}"):
        with pytest.raises(EnvError, match="there is no snapshot"):
            env.restore(identity)


# --- paths ------------------------------------------------------------------------------------------------------------


OUTSIDE = ("../x", "/etc/passwd", "pkg/../../x", "out/x", "out", "chain/x", "", ".", "a\0b", "loop/x")


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside_are_refused_also_through_links(env, tmp_path, path):
    (tmp_path / "x").write_text("secret")
    (root_of(env) / "out").symlink_to(tmp_path)
    (root_of(env) / "chain").symlink_to("out")
    (root_of(env) / "loop").symlink_to("loop")
    for call in (lambda: env.read_file(path), lambda: env.write_file(path, b"1")):
        with pytest.raises(EnvError, match="is not a path inside the workspace"):
            call()
    if path != "out":  # the link itself is inside
        with pytest.raises(EnvError):
            env.remove_file(path)
    assert (tmp_path / "x").read_text() == "secret"


def test_paths_may_be_absolute_as_commands_see_them_and_go_through_links_that_stay_inside(env, source):
    env.write_file(f"{source}/to-pkg/m.py", b"1")
    assert env.read_file("pkg/m.py") == b"1"
    env.remove_file("to-pkg")
    assert "pkg/m.py" in env.list_files()
    assert "to-pkg" not in env.list_files()
    assert not (source / "pkg" / "m.py").exists()


def test_links_are_followed_as_the_system_follows_them(tmp_path):
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").write_text("")
    for name, target in (("l1", "d/e"), ("d/l2", "../l1/../f"), ("d/e/l3", "../../d/l2"), ("l4", f"{tmp_path}/d"),
                         ("up", ".."), ("d/round", "round"), ("far", "/etc")):  # fmt: skip
        (tmp_path / name).symlink_to(target)
    paths = ("l1", "d/l2", "d/e/l3", "l4/l2", "l4/e/new", "l1/l3", "l1/../f", "d/./e//l3", "d/../l4", "l4/e/../../d/f")
    for path in paths:
        parts = resolve(link_target(tmp_path), str(tmp_path), path)
        assert parts is not None
        assert str(tmp_path.joinpath(*parts)) == os.path.realpath(tmp_path / path)
    for path in ("up", "up/x", "d/round", "d/round/x", "far", "far/passwd", "l1/../../..", "..", "d/../../x"):
        assert resolve(link_target(tmp_path), str(tmp_path), path) is None
    assert resolve(link_target(tmp_path), str(tmp_path), "up", follow=False) == ["up"]
    assert resolve(link_target(tmp_path), str(tmp_path), "up/x", follow=False) is None


def test_missing_files_are_named(env):
    for call in (env.read_file, env.remove_file):
        with pytest.raises(EnvError, match=r"no/such\.py: No such file"):
            call("no/such.py")


# --- commands ---------------------------------------------------------------------------------------------------------


@given(st.text(max_size=400), st.integers(1, 50))
def test_long_output_keeps_its_ends_and_counts_the_rest(text, limit):
    short, cut = shorten(text, limit)
    assert cut == (len(text) > limit)
    if not cut:
        assert short == text
    else:
        head, tail = int(0.6 * limit), limit - int(0.6 * limit)
        assert short == f"{text[:head]}\n[... {len(text) - limit} characters elided ...]\n{text[len(text) - tail :]}"


def test_output_is_both_streams_in_order_without_colours_and_bytes_that_are_no_text(env):
    done = env.exec(
        r"printf 'one\n'; printf '\033[1;31mtwo\033[0m\n' >&2; printf '\377\n'; printf '\033]0;t\007three'; exit 7"
    )
    assert done[:4] == (7, "one\ntwo\n�\nthree", False, False)


def test_output_of_any_length_is_shortened(source):
    with LocalEnvironment(source, sandbox="none", output_chars=1000, max_file_mb=64) as env:
        done = env.exec("echo begin; head -c 20000000 /dev/zero | tr '\\0' x; echo end")
        assert done.truncated
        assert done.output.startswith("begin\nx")
        assert done.output.endswith("xend\n")
        assert f"[... {20_000_010 - 1000} characters elided ...]" in done.output
        assert len(done.output) < 1100


def test_input_is_passed_and_otherwise_empty(env):
    assert env.exec("cat", stdin=b"given").output == "given"
    assert env.exec(["cat"]).output == ""


def test_commands_that_cannot_be_run_are_told_apart(env):
    assert env.exec(["no-such-program"]).returncode == 127
    assert env.exec("kill -9 $$").returncode == 128 + 9
    with pytest.raises(EnvError, match="the command is empty"):
        env.exec([])
    with pytest.raises(EnvError, match="null byte"):
        env.exec("a\0b")


@pytest.fixture(scope="module", params=[*SANDBOXES, "none"])
def any_sandbox(request, source):
    with LocalEnvironment(source, sandbox=request.param, memory_mb=1024, max_file_mb=1) as env:
        yield env


@pytest.fixture(scope="module", params=SANDBOXES)
def closed(request, source):
    with LocalEnvironment(source, sandbox=request.param, memory_mb=1024, max_file_mb=1) as env:
        yield env


def running(marker: str) -> list[str]:
    """Command lines of this machine's processes that have a word."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            found.append(file.parent.name)
    return found


@pytest.mark.parametrize(
    "start", ["sleep {} & sleep {}", "(setsid sleep {} &) ; sleep {}", "nohup sleep {} & sleep {}"]
)
def test_timeout_ends_grandchildren_too(any_sandbox, start):
    marker = str(10_000 + time.time_ns() % 80_000)
    done = any_sandbox.exec(start.format(marker, marker), timeout=0.3)
    assert (done.timed_out, done.returncode) == (True, 124)
    deadline = time.monotonic() + 5
    while running(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(marker) == []


def test_what_a_command_leaves_in_the_background_ends_with_it(any_sandbox):
    marker = str(10_000 + time.time_ns() % 80_000)
    assert not any_sandbox.exec(f"setsid sleep {marker} & true").timed_out
    deadline = time.monotonic() + 5
    while running(marker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running(marker) == []


def test_environment_is_fixed_and_without_credentials(any_sandbox, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret-1")
    monkeypatch.setenv("SOME_TOKEN", "secret-2")
    output = any_sandbox.exec("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep HOME=").output
    assert "secret" not in output.replace(os.environ["PATH"], "")
    for line in ("TZ=UTC", "PYTHONHASHSEED=0", "PYTHONDONTWRITEBYTECODE=1"):
        assert line in output.splitlines()
    assert any_sandbox.exec('echo "$HOME"').output.strip() != os.path.expanduser("~")


def test_memory_and_file_sizes_are_limited(any_sandbox):
    eat = "x = bytearray(2 << 30)"
    assert "MemoryError" in any_sandbox.exec([sys.executable, "-c", eat]).output
    assert any_sandbox.exec("head -c 3000000 /dev/zero > large; s=$?; rm large; exit $s").returncode != 0
    assert any_sandbox.exec("ulimit -u").output == "256\n"


def test_commands_see_the_workspace_at_the_path_of_the_source(closed, source):
    closed.write_file("only-here", b"1")
    done = closed.exec(f"pwd; cat {source}/only-here; cat {source}/.git/description 2>&1")
    assert done.output.startswith(f"{source}\n1")
    assert "answer" not in done.output


def test_no_network(closed):
    script = "import socket; print([n for _, n in socket.if_nameindex()]); socket.create_connection(('1.1.1.1', 53), 2)"
    done = closed.exec([sys.executable, "-c", script])
    assert done.returncode != 0
    assert "Network is unreachable" in done.output
    assert done.output.startswith("['lo'")


def test_system_is_read_only_and_what_others_keep_is_hidden(closed, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("1")
    where = (*sys.path[-1:], "/etc", "/usr", "/", "/proc/sys/kernel", str(Path(sys.prefix)))
    for folder in where:
        assert closed.exec(f"echo 1 > '{folder}/written-by-a-test'").returncode != 0, folder
    assert closed.exec("test -w /proc/sys/kernel/core_pattern || test -w /sys/kernel/profiling").returncode != 0
    assert closed.exec("mount -o remount,rw /; mount -t tmpfs tmpfs /etc").returncode != 0
    assert closed.exec(f"cat {secret}").returncode != 0
    assert closed.exec("ls -A /run /root /home/*/.ssh ~/.ssh 2>/dev/null | grep -e sock -e ssh").output == ""
    assert closed.exec("grep CapEff /proc/self/status").output.split() == ["CapEff:", "0" * 16]
    assert closed.exec("ls -d /dev/sd* /dev/vd* /dev/mem 2>/dev/null").output == ""


def test_temporary_files_and_home_last_one_command(closed):
    assert closed.exec("echo 1 > /tmp/x; echo 2 > ~/y; cat /tmp/x ~/y").output == "1\n2\n"
    assert closed.exec("ls /tmp/x ~/y").returncode != 0


def test_writing_through_a_link_to_the_outside_changes_nothing(closed, tmp_path):
    (tmp_path / "target").write_text("before")
    closed.exec(f"ln -s {tmp_path}/target escape; echo after > escape; echo after > /etc/hostname")
    with pytest.raises(EnvError, match="inside the workspace"):
        closed.write_file("escape", b"after")
    closed.remove_file("escape")
    assert (tmp_path / "target").read_text() == "before"


def test_commands_die_with_their_parent(source, closed, tmp_path):
    marker = str(10_000 + time.time_ns() % 80_000)
    script = f"""if True:
        import pathlib
        from dars.env.local import LocalEnvironment
        source, state = pathlib.Path({str(source)!r}), pathlib.Path({str(tmp_path)!r})
        LocalEnvironment(source, sandbox={closed._sandbox.kind!r}, state_dir=state).exec("sleep {marker}")
    """
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], env=path) as process:
        deadline = time.monotonic() + 10
        while not running(marker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running(marker)
        process.kill()
        process.wait()
        while running(marker) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert running(marker) == []


def test_a_full_disk_is_told_and_leaves_no_half_of_an_object(env, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    env.write_file("pkg/m.py", b"never written before")
    there = sorted((env.state_dir / "store" / "objects").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("dars.env.store.os.replace", full)
        with pytest.raises(DiskFull, match=r"cannot write a state to .*store: No space left on device"):
            env.state_hash()
    assert [p for p in sorted((env.state_dir / "store" / "objects").rglob("*")) if p.is_file() and p not in there] == []
    assert env.state_hash()


def test_without_a_sandbox_commands_run_only_if_asked(monkeypatch):
    monkeypatch.setattr("dars.env.sandbox.works", lambda kind: f"{kind} is not installed")
    assert choose("none") == "none"
    for kind in ("auto", "bwrap", "unshare"):
        with pytest.raises(SandboxUnavailable, match=r"is not installed.*sandbox='none'"):
            choose(kind)
