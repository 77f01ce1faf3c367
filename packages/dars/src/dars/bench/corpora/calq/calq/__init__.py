"""A calculator for formulas with variables and functions."""

from .evaluate import Calculator, evaluate
from .parser import parse
from .show import show
from .tokens import FormulaError, tokenize

__all__ = ["Calculator", "FormulaError", "evaluate", "parse", "show", "tokenize"]
