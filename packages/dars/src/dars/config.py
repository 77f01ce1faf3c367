"""Every setting, checked; the names of the YAML file are the names of the fields."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import TaskError
from .policy import ExpansionPolicy


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class PolicySection(_Section):
    """When decisions are expanded; see :class:`dars.ExpansionPolicy`."""

    limits: dict[str, int] = Field(default_factory=lambda: dict(ExpansionPolicy.paper().limits))
    allowed_after: dict[str, list[str]] = Field(
        default_factory=lambda: {k: sorted(v) for k, v in ExpansionPolicy.paper().allowed_after.items()}
    )
    num_expansions: int = 2

    @field_validator("num_expansions")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("has to be at least 1")
        return value

    def build(self) -> ExpansionPolicy:
        """The policy; ValueError for unknown kinds and negative limits."""
        return ExpansionPolicy(self.limits, self.allowed_after, self.num_expansions)


class CandidatesSection(_Section):
    """Draws of a replacement: how many, how often again if all were rejected, and the temperature if there is one."""

    k: int = Field(default=3, ge=1)
    retries: int = Field(default=2, ge=0)
    temperature: float = Field(default=0.8, ge=0)
    diversity: bool = True


class CriticSection(_Section):
    """Who chooses among the candidates, and what it is shown."""

    context: Literal["compact", "full"] = "compact"
    model: str | None = None


class FeedbackSection(_Section):
    """What the model is told of earlier attempts before it draws a replacement."""

    enabled: bool = True
    lookahead: int = Field(default=100, ge=0)
    obs_chars: int = Field(default=10_000, ge=1)
    summarize: bool = False
    all_siblings: bool = True
    keep: bool = False


class HistorySection(_Section):
    """Which observations of a path stay in the request."""

    mode: Literal["blockwise", "last_n", "full"] = "blockwise"
    high: int = Field(default=60_000, ge=1)
    low: int = Field(default=20_000, ge=0)
    n: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}; low has to be below high")
        return self


class BudgetSection(_Section):
    """Limits; None for none. Calls in flight may overshoot them."""

    steps: int = Field(default=300, ge=0)
    depth: int = Field(default=50, ge=1)
    cost_usd: float | None = Field(default=None, ge=0)
    wall_s: float | None = Field(default=None, ge=0)
    calls: int | None = Field(default=None, ge=0)


class DedupeSection(_Section):
    """Reject candidates equal to an earlier action; stop branches whose workspace equals a sibling's."""

    actions: bool = True
    states: bool = True


class EnvSection(_Section):
    """The workspace."""

    backend: Literal["git", "overlay", "copy", "replay"] = "git"
    sandbox: Literal["auto", "bwrap", "unshare", "none"] = "auto"
    network: bool = False
    timeout: float = Field(default=120.0, gt=0)
    memory_mb: int = Field(default=4096, ge=64)
    container_cli: str = "docker"  # or podman, with its global options
    workdir: str = "/testbed"  # of a container


class ReviewSection(_Section):
    """How candidates are ranked."""

    reviewers: list[str] = Field(default_factory=lambda: ["execution"])
    weights: list[float] | None = None
    n_orders: int = Field(default=3, ge=1)
    mode: Literal["single", "pairwise"] = "single"


class DarsConfig(_Section):
    """A whole configuration.

    Examples
    --------
    >>> DarsConfig.paper().history.n
    5
    """

    strategy: Literal["dars", "linear", "restart", "mcts", "random_branch"] = "dars"
    restarts: int | None = Field(default=None, ge=1)  # runs of "restart"; None: until the budget ends
    branches: int = Field(default=10, ge=0)  # of "random_branch"
    exploration: float = Field(default=1.4, ge=0)  # of "mcts"
    max_children: int = Field(default=3, ge=1)
    rollout: int | None = Field(default=None, ge=1)  # actions until a leaf is valued; None: to the end of its path
    value: Literal["tests", "model"] = "tests"  # of a leaf: share of visible tests that pass, or the model's judgement
    order: Literal["shallowest", "deepest", "breadth"] = "shallowest"
    policy: PolicySection = Field(default_factory=PolicySection)
    candidates: CandidatesSection = Field(default_factory=CandidatesSection)
    critic: CriticSection = Field(default_factory=CriticSection)
    feedback: FeedbackSection = Field(default_factory=FeedbackSection)
    history: HistorySection = Field(default_factory=HistorySection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    dedupe: DedupeSection = Field(default_factory=DedupeSection)
    env: EnvSection = Field(default_factory=EnvSection)
    aci: Literal["full", "bash"] = "full"
    kind_source: Literal["tool", "effect"] = "tool"
    harvest_unsubmitted: bool = True
    max_tokens: int = Field(default=4096, ge=1)
    review: ReviewSection = Field(default_factory=ReviewSection)
    workers: int = Field(default=1, ge=1)
    seed: int = 0
    prompts_dir: str | None = None

    @classmethod
    def paper(cls) -> Self:
        """The paper's settings."""
        return cls(
            critic=CriticSection(context="full"),
            history=HistorySection(mode="last_n", n=5),
            feedback=FeedbackSection(all_siblings=False),
            dedupe=DedupeSection(actions=False, states=False),
            budget=BudgetSection(steps=300, depth=50, cost_usd=10.0),
        )

    @classmethod
    def fast(cls) -> Self:
        """One candidate without a critic, a third of the steps."""
        return cls(candidates=CandidatesSection(k=1, retries=1), budget=BudgetSection(steps=100, depth=30))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a file; TaskError names every key that is wrong, and the nearest that would be right."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        except yaml.YAMLError as error:
            raise TaskError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise TaskError(f"{path} has to hold settings by name, not a {type(values).__name__}")
        try:
            config = cls.model_validate(values)
            config.policy.build()
        except ValidationError as error:
            raise TaskError(f"{path}: {'; '.join(_explain(cls, problem) for problem in error.errors())}") from None
        except ValueError as error:
            raise TaskError(f"{path}: policy: {error}") from None
        return config


def _explain(root: type[BaseModel], problem: Any) -> str:
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where)
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg']}"
    section: Any = root
    for part in where[:-1]:
        found = section.model_fields.get(part)
        section = found.annotation if found is not None else None
    known = list(section.model_fields) if section is not None and hasattr(section, "model_fields") else []
    near = difflib.get_close_matches(where[-1], known, n=1)
    return f"there is no setting {name}" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}")
