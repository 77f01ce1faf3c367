"""Which decisions are expanded (arXiv:2503.14269, section 3): limits on a path, and what may follow an alternative."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KINDS = ("create", "append", "edit", "insert", "submit", "other")
Kind = str


@dataclass(frozen=True)
class ExpansionPolicy:
    """When the first action of a node opens an expansion.

    Parameters
    ----------
    limits : kind -> how many decisions of the kind are expanded on one path. A kind that is not named never is.
    allowed_after : kind -> kinds that may still be expanded below an alternative to an action of that kind. A kind that
        is not named allows none.
    num_expansions : children of an expanded node, the first one included.

    Raises
    ------
    ValueError
        An unknown kind, a limit that is negative or no integer, or fewer than one child.

    Examples
    --------
    >>> policy = ExpansionPolicy.paper()
    >>> sorted(policy.allowed(("append",)))
    ['append', 'submit']
    """

    limits: Mapping[str, int]
    allowed_after: Mapping[str, Iterable[str]]
    num_expansions: int = 2

    def __post_init__(self) -> None:
        limits = dict(self.limits)
        after = {kind: frozenset(kinds) for kind, kinds in self.allowed_after.items()}
        for kind in (*limits, *after, *(k for kinds in after.values() for k in kinds)):
            if kind not in KINDS:
                raise ValueError(f"unknown kind {kind!r}: use {', '.join(KINDS)}")
        for kind, limit in limits.items():
            if not isinstance(limit, int) or limit < 0:
                raise ValueError(f"the limit of {kind} is {limit!r}; it has to be an integer of at least 0")
        if not isinstance(self.num_expansions, int) or self.num_expansions < 1:
            raise ValueError(f"num_expansions is {self.num_expansions!r}; it has to be an integer of at least 1")
        object.__setattr__(self, "limits", limits)
        object.__setattr__(self, "allowed_after", after)

    @classmethod
    def paper(cls) -> ExpansionPolicy:
        """The paper's: every kind once on a path, two children."""
        return cls(
            limits={"create": 1, "append": 1, "edit": 1, "submit": 1},
            allowed_after={
                "create": ("edit", "append", "submit"),
                "append": ("append", "submit"),
                "edit": ("submit",),
                "submit": (),
            },
        )

    def allowed(self, history: Iterable[str]) -> frozenset[str]:
        """Kinds that may be expanded below alternatives to actions of these kinds."""
        kinds = frozenset(self.limits)
        for kind in history:
            kinds &= frozenset(self.allowed_after.get(kind, ()))
        return kinds

    def should_expand(self, kind: str, history: Iterable[str], remaining: Mapping[str, int]) -> bool:
        """Whether a first child of this kind opens an expansion at a node with this history and what remains."""
        return kind in self.allowed(history) and remaining.get(kind, 0) > 0
