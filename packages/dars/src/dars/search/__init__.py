"""The search: policy, engine, and skeletons of trees."""

from ..policy import ExpansionPolicy
from .engine import Engine
from .skeleton import SkeletonTrace, simulate_skeleton

__all__ = ["Engine", "ExpansionPolicy", "SkeletonTrace", "simulate_skeleton"]
