"""Commands: bash, which remembers the folder it was left in, and server, which runs one beside the commands.

An environment ends whatever a command started when the command ends. So a server is not kept but remembered: it is
started anew beside every later command, and putting a node's state back needs nothing else.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..env.base import Environment, ExecResult
from ..errors import EnvError
from .base import Observation, State
from .common import INTEGER, STRING, described, make_tool, one_of

MOVES = re.compile(r"\b(cd|pushd|popd)\b")
MARK = "\x1fdars\x1f"  # after it: the workspace, the folder in which the command ended, the server's log
LOG_CHARS = 4000

END = r"""
trap 'dars_code=$?
printf "\n\037dars\037\n%s\n%s\n" "$dars_root" "$(pwd -P)"
[ -z "$dars_log" ] || tail -c {log_chars} "$dars_log"
exit $dars_code' EXIT
"""
# In a subshell, so that a bare "wait" does not wait for it. A socket that listens (0A) is taken for the server's, and
# after five seconds the command goes on without.
SERVER = r"""
dars_log=$(mktemp)
(eval {command} >"$dars_log" 2>&1 </dev/null &)
for dars_i in $(seq 50); do
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -q ' 0A ' && break
  sleep 0.1
done
"""


def run_command(
    env: Environment, state: State, command: str, timeout: float | None = None, stdin: bytes | None = None
) -> ExecResult:
    """Run a command in the folder that the last one was left in, with the server beside it if there is one.

    Nothing is wrapped around a command that needs none of this.
    """
    cwd, server = state.get("cwd", "."), state.get("server")
    if cwd == "." and not server and not MOVES.search(command):
        return env.exec(command, timeout, stdin)
    script = "dars_root=$(pwd -P)\ndars_log=\n"
    script += SERVER.format(command=shlex.quote(server["command"])) if server else ""
    gone = shlex.quote(f"(The folder {cwd} is gone: this runs in the workspace's root.)")
    script += f"cd -- {shlex.quote(cwd)} 2>/dev/null || echo {gone}\n"
    done = env.exec(f"{script}{END.format(log_chars=LOG_CHARS)}{command}", timeout, stdin)
    output, mark, rest = done.output.rpartition(MARK)
    if not mark:  # killed, or it became another program
        return done
    root, ended, log = [*rest.lstrip("\n").split("\n", 2), "", ""][:3]
    inner = posixpath.relpath(ended, root) if ended.startswith("/") and root.startswith("/") else "."
    state["cwd"] = cwd if inner == ".." or inner.startswith("../") else inner
    if server:
        state["server"] = {**server, "log": log}
    return done._replace(output=output[:-1] if output.endswith("\n") else output)


def seconds(args: Mapping[str, Any]) -> float | None:
    """The timeout of the arguments."""
    timeout = args.get("timeout")
    if timeout is not None and timeout <= 0:
        raise EnvError(f"the timeout is {timeout}; it has to be a positive number of seconds")
    return timeout


def report(done: ExecResult, state: State) -> Observation:
    """What a command did, in words where it printed nothing."""
    text = done.output if done.output.strip() else "(The command printed nothing.)"
    if done.timed_out:
        text += f"\n(It was stopped after {done.wall_s:.0f} s.)"
    return Observation(text, done.returncode, done.wall_s, volatile=bool(state.get("server")))


def _bash(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    if not args["command"].strip():
        raise EnvError("the command is empty")
    return report(run_command(env, state, args["command"], seconds(args)), state)


def _server(env: Environment, args: Mapping[str, Any], state: State) -> Observation:
    action, command = args["action"], args.get("command", "").strip()
    running = state.get("server")
    if action == "start":
        if running:
            raise EnvError(f"a server is there already ({running['command']}): stop it first")
        if not command:
            raise EnvError("server start needs the command")
        state["server"] = {"command": command, "log": ""}
        done = run_command(env, state, "true")
        log = state["server"]["log"].strip() or "(it printed nothing)"
        return Observation(f"The server will run beside every command. It says:\n{log}", done.returncode, volatile=True)
    if not running:
        raise EnvError("there is no server: start one first")
    if action == "stop":
        state["server"] = None
        return Observation("The server is stopped.", volatile=True)
    return Observation(running["log"].strip() or "(The server printed nothing.)", volatile=True)


BASH = make_tool(
    "bash", "other", _bash, "Run a shell command in the workspace. The folder it ends in is kept; variables are not.",
    {"command": STRING}, {"timeout": described(INTEGER, "seconds")},
)  # fmt: skip
TOOLS = (
    BASH,
    make_tool(
        "server", "other", _server,
        "Have a server run beside the commands that follow. It is started anew for each: what it has in memory is lost "
        "after the command.",
        {"action": described(one_of("start", "logs", "stop"), "logs: what it printed during the last command")},
        {"command": described(STRING, "of start")},
    ),
)  # fmt: skip
