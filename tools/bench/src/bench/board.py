"""How the runs fare while they run: a live table on a terminal, one line an event and one a minute in a log."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.words import memory, seconds

LOG_EVERY_S = 60.0


@dataclass
class Line:
    """One package's line."""

    state: str = "waiting"
    started: float = 0.0
    ended: float = 0.0
    memory: int = 0
    peak: int = 0

    def elapsed(self) -> float:
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0


class Board:
    """Told from several threads, drawn from one. Use as a context manager."""

    def __init__(self, names: Sequence[str], console: Console) -> None:
        self.lines = {name: Line() for name in names}
        self.console = console
        self.lock = threading.Lock()
        self.next_log = time.monotonic() + LOG_EVERY_S
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def start(self, name: str) -> None:
        with self.lock:
            self.lines[name] = Line("running", time.monotonic())
        if not self.live:
            self.say(f"{name}: running")

    def update(self, name: str, used: int) -> None:
        with self.lock:
            line = self.lines[name]
            line.memory, line.peak = used, max(line.peak, used)

    def end(self, name: str, state: str) -> None:
        with self.lock:
            line = self.lines[name]
            line.state, line.ended, line.memory = state, time.monotonic(), 0
        if not self.live:
            self.say(f"{name}: {state} after {seconds(line.elapsed())}")

    def tick(self) -> None:
        if self.live:
            self.live.update(self.table())
        elif time.monotonic() >= self.next_log:
            self.next_log += LOG_EVERY_S
            for name, line in self.lines.items():
                if line.state == "running":
                    self.say(f"{name}: running for {seconds(line.elapsed())}, {memory(line.memory)}")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("package")
        table.add_column("state")
        for heading in ("time", "memory", "peak"):
            table.add_column(heading, justify="right")
        with self.lock:
            for name, line in self.lines.items():
                style = {"waiting": "dim", "running": "bold cyan"}.get(line.state, "")
                table.add_row(
                    name,
                    Text(line.state, style="green" if line.state.endswith("all hold") else style or "red"),
                    seconds(line.elapsed()) if line.started else "",
                    memory(line.memory) if line.memory else "",
                    memory(line.peak) if line.peak else "",
                )
        return table

    def __enter__(self) -> "Board":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update(self.table())
            self.live.stop()
