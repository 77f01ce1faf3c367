"""What a container's repository must not tell: commits after the one that the issue is about hold the fix."""

from __future__ import annotations

from ..env.base import Environment
from ..errors import EnvError

# Run in the repository's folder, one after another. HEAD, its branch and the files stay as they are.
COMMANDS = (
    'git remote | while read -r name; do git remote remove "$name"; done',
    # Every branch, tag, note and stash but the branch that HEAD is on.
    "keep=$(git symbolic-ref -q HEAD || true); git for-each-ref --format='%(refname)' | "
    'while read -r name; do [ "$name" = "$keep" ] || echo "delete $name"; done | git update-ref --no-deref --stdin',
    'cd "$(git rev-parse --git-dir)" && rm -rf logs worktrees FETCH_HEAD ORIG_HEAD MERGE_HEAD CHERRY_PICK_HEAD '
    "REVERT_HEAD REBASE_HEAD BISECT_* rebase-merge rebase-apply objects/pack/*.keep",
    "git repack -a -d -q",
    'rm -f "$(git rev-parse --git-dir)/objects/info/alternates"',
    "git gc --quiet --prune=now",
)
# Commits and tags that are still there and no ancestors of HEAD.
LEFT = (
    "own=$(mktemp) && git rev-list HEAD | sort > $own && "
    "git cat-file --batch-all-objects --batch-check='%(objecttype) %(objectname)' | grep -E '^(commit|tag) ' | "
    "cut -d ' ' -f 2 | sort | comm -23 - $own; rm -f $own"
)


def prepare_container(env: Environment, timeout: float = 600.0) -> None:
    """Take remotes, all other branches and tags, reflogs and unreachable objects out of the workspace's repository.

    Raises
    ------
    EnvError
        A command failed, or a commit that is no ancestor of HEAD is still there.
    """
    for command in COMMANDS:
        done = env.exec(command, timeout)
        if done.returncode:
            raise EnvError(f"cannot clean the history: {command!r} ended with {done.returncode}: {done.output.strip()}")
    left = env.exec(LEFT, timeout)
    if left.returncode or left.output.strip():
        raise EnvError(f"the history still holds what is no ancestor of HEAD: {left.output.strip()[:200]}")
