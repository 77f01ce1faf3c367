"""The kind of an action by what it did to the files, for agents whose only tool is a shell."""

from __future__ import annotations

from collections.abc import Mapping

from ..env.base import Environment
from ..errors import EnvError
from ..policy import Kind


def effect_kind(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Kind:
    """ "create" if files are new and no other differs, "append" if all that differ only grew at their end, "other" if
    none differs, else "edit" (an insertion is one: no order of lines is known).

    Examples
    --------
    >>> effect_kind({"a": b"1"}, {"a": b"1", "b": b""}), effect_kind({"a": b"1"}, {"a": b"12"})
    ('create', 'append')
    """
    new = after.keys() - before.keys()
    changed = [path for path in before.keys() & after.keys() if before[path] != after[path]]
    if before.keys() - after.keys():
        return "edit"
    if not changed:
        return "create" if new else "other"
    grown = all(after[path].startswith(before[path]) for path in changed)
    return "append" if grown and not new else "edit"


def contents(env: Environment) -> dict[str, bytes]:
    """All files of a workspace; links that lead to no file are left out."""
    found = {}
    for path in env.list_files():
        try:
            found[path] = env.read_file(path)
        except EnvError:
            continue
    return found
