"""One child process and everything it starts: drained, measured, and ended as a whole at its time limit.

On Linux this process becomes the "subreaper": a grandchild that outlives its parent is then handed to us rather than to
init, so that a daemon cannot slip away. Elsewhere such processes are known only if a sample saw them with their parent.
"""

import ctypes
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.cappedlog import CappedLog

TOKEN = "BENCH_TREE"  # an environment variable every descendant inherits: tells whose orphan an orphan is
POLL_S = 0.05
SAMPLE_S = 0.1
SAMPLE_DUTY = 20  # a sample that takes t seconds is followed by none for 20 t, so that watching costs at most 5 %
GRACE_S = 5.0
GIVE_UP_S = 10.0
LINGER_S = 1.0  # helpers such as multiprocessing's resource tracker end by themselves just after their parent
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024

Tell = Callable[[float, int], None]  # seconds so far, bytes of the tree now


@dataclass(frozen=True)
class Ending:
    """How a child ended and what its process tree used. Seconds and bytes."""

    exit_code: int | None
    signal: str | None
    timed_out: bool
    interrupted: bool
    wall_s: float
    cpu_s: float
    sampled_bytes: int
    rusage_bytes: int
    samples: int
    strays_killed: int
    log_bytes: int
    log_dropped_bytes: int
    log_error: str

    @property
    def peak_memory_bytes(self) -> int:
        """Samples miss short peaks and the kernel's figure misses the sum over processes: the larger is nearer."""
        return max(self.sampled_bytes, self.rusage_bytes)


def watch(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log_path: Path,
    timeout: float | None,
    stop: threading.Event,
    tell: Tell,
    grace: float = GRACE_S,
) -> Ending:
    """Run `command` in its own session until it ends, its time is up, or `stop` is set; leave none of its tree behind.

    Raises:
        OSError: when the command cannot be started.
    """
    _become_subreaper()
    token = uuid.uuid4().hex
    with CappedLog(log_path) as log, _start(command, cwd, {**env, TOKEN: token}) as (child, drain):
        started = time.monotonic()
        tree = Tree(child.pid, token)
        tree.sample()
        next_sample, kill_at, ended_at = started, None, None
        timed_out = interrupted = False
        strays = 0
        while True:
            drain(log, POLL_S)
            now = time.monotonic()
            if tree.reap() and ended_at is None:
                ended_at = now
            if now >= next_sample or ended_at is not None or kill_at is not None:
                memory = tree.sample()
                next_sample = now + max(SAMPLE_S, SAMPLE_DUTY * (time.monotonic() - now))
                tell(now - started, memory)
            alive = tree.alive()
            if ended_at is not None and not alive:
                break
            if kill_at is None:
                timed_out = ended_at is None and timeout is not None and now - started > timeout
                interrupted = ended_at is None and stop.is_set()
                strays = len(alive) if ended_at is not None and now - ended_at > LINGER_S else 0
                if timed_out or interrupted or strays:
                    tree.signal(signal.SIGTERM)
                    kill_at = now + grace
            elif now > kill_at + GIVE_UP_S:  # a process in uninterruptible sleep: nobody can end it
                break
            elif now > kill_at:
                tree.signal(signal.SIGKILL)
        drain(log, 0)
    code = tree.exit_code
    return Ending(
        exit_code=code if code is not None and code >= 0 else None,
        signal=signal.Signals(-code).name if code is not None and code < 0 else None,
        timed_out=timed_out,
        interrupted=interrupted,
        wall_s=(ended_at or time.monotonic()) - started,
        cpu_s=tree.cpu_s,
        sampled_bytes=tree.peak,
        # A forked child inherits our own high-water mark; only a figure above that is the child's.
        rusage_bytes=tree.maxrss if tree.maxrss > _own_maxrss() else 0,
        samples=tree.samples,
        strays_killed=strays,
        log_bytes=log.total,
        log_dropped_bytes=log.dropped,
        log_error=log.error,
    )


class Tree:
    """The processes that descend from one child, also those that changed session or lost their parent."""

    def __init__(self, pid: int, token: str) -> None:
        self.pid, self.token = pid, token
        self.known: dict[int, psutil.Process] = {}
        self.peak = self.samples = self.maxrss = 0
        self.cpu_s = 0.0
        self.exit_code: int | None = None
        with suppress(psutil.NoSuchProcess):
            self.known[pid] = psutil.Process(pid)

    def sample(self) -> int:
        """Find new descendants, add up the tree's memory, and return it."""
        self.known = {pid: process for pid, process in self.known.items() if process.is_running()}
        others = {p.pid: p for p in psutil.process_iter(["ppid"]) if p.pid not in self.known}
        while born := [p for p in others.values() if p.info["ppid"] in self.known or self._is_our_orphan(p)]:
            for process in born:
                self.known[process.pid] = others.pop(process.pid)
        memory = sum(_memory(process) for process in self.known.values())
        self.peak = max(self.peak, memory)
        self.samples += 1
        return memory

    def alive(self) -> list[psutil.Process]:
        """Those that still run; a zombie does not."""
        return [process for process in self.known.values() if _is_alive(process)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all of them."""
        for process in self.alive():
            with suppress(psutil.Error):  # it may have ended meanwhile
                process.send_signal(number)

    def reap(self) -> bool:
        """Collect what has ended, with its use of processor and memory; true once the child itself has."""
        for pid in list(self.known):
            if pid == self.pid or _parent(self.known[pid]) == os.getpid():
                self._collect(pid)
        return self.exit_code is not None

    def _collect(self, pid: int) -> None:
        try:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            return
        if ended:
            self.maxrss = max(self.maxrss, usage.ru_maxrss * MAXRSS_UNIT)
            self.cpu_s += usage.ru_utime + usage.ru_stime
            if pid == self.pid:
                self.exit_code = os.waitstatus_to_exitcode(status)

    def _is_our_orphan(self, process: psutil.Process) -> bool:
        if process.info["ppid"] != os.getpid():
            return False
        try:
            return bool(process.environ().get(TOKEN) == self.token)
        except (psutil.Error, OSError):
            return False


@contextmanager
def _start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", Callable[[CappedLog, float], None]]]:
    """Start the child; yield it with a function that moves what it printed into a log, waiting at most so long."""
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    )
    assert child.stdout
    pipe = child.stdout.fileno()
    os.set_blocking(pipe, False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)

        def drain(log: CappedLog, wait: float) -> None:
            until = time.monotonic() + POLL_S  # then look at the clock again, however much is still printed
            if not selector.get_map():
                time.sleep(wait)
            while selector.get_map() and selector.select(wait):
                data = os.read(pipe, 2**20)
                if data:
                    log.write(data)
                else:
                    selector.unregister(pipe)
                if time.monotonic() > until:
                    break

        try:
            yield child, drain
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        finally:
            child.stdout.close()
            child.returncode = 0  # it was collected by Tree.reap, with its rusage, behind subprocess's back


def _memory(process: psutil.Process) -> int:
    # PSS counts a page shared by k processes 1/k times, so that forked workers are not counted k-fold.
    try:
        return int(process.memory_full_info().pss)
    except (AttributeError, psutil.AccessDenied):
        try:
            return int(process.memory_info().rss)
        except psutil.Error:
            return 0
    except (psutil.Error, OSError):
        return 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _own_maxrss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT


def _become_subreaper() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
