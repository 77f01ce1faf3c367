"""How ordinary code is: faults look odd, so an edit towards what is common is the likelier repair.

The counts are those of operators and numbers in the 601 modules of CPython 3.11's standard library (tests left out).
"""

from __future__ import annotations

import math

COUNTS = {
    "Eq": 4037, "NotEq": 1054, "Lt": 810, "LtE": 482, "Gt": 737, "GtE": 446, "Is": 2678, "IsNot": 2005,
    "Add": 4148, "Sub": 1210, "Mul": 1007, "Div": 198, "FloorDiv": 181, "Mod": 2514, "Pow": 146,
    "LShift": 150, "RShift": 67, "BitOr": 240, "BitAnd": 334, "BitXor": 37,
    "USub": 1676, "UAdd": 5, "And": 2577, "Or": 1573, "True": 2039, "False": 2235, "Break": 577, "Continue": 463,
}  # fmt: skip
NUMBERS = {0: 5525, 1: 5878, 2: 1427, 3: 563, 4: 465, 5: 266, 6: 221, 7: 159, 8: 294, 9: 107, 10: 238}
OTHER_NUMBER = 80  # as 11, the next one
TESTS, NEGATED = 18_895, 2_450  # conditions that begin without and with "not"
LOOPS, EMPTY = 2_512, 0.5  # loops over something, and over nothing


def log_odds(operator: str, old: str, new: str) -> float:
    """ln of how much commoner the new text is than the old one.

    Parameters
    ----------
    operator : that made the change, as :class:`~dars.bench.mutations.Mutation` names it.

    Examples
    --------
    >>> log_odds("ReplaceUnaryOperator_UAdd_USub", "+", "-") > 5
    True
    >>> log_odds("ReplaceTrueWithFalse", "True", "False") == -log_odds("ReplaceFalseWithTrue", "False", "True")
    True
    """
    if operator == "NumberReplacer":
        return math.log(_count(new) / _count(old))
    if operator == "AddNot":
        return math.log(NEGATED / TESTS)
    if operator == "ReplaceUnaryOperator_Delete_Not":
        return math.log(TESTS / NEGATED)
    if operator == "ZeroIterationForLoop":
        return math.log(EMPTY / LOOPS)
    if "_" in operator:
        _, before, after = operator.rsplit("_", 2)
    else:
        before, _, after = operator.removeprefix("Replace").partition("With")
    return math.log(COUNTS[after] / COUNTS[before])


def _count(text: str) -> int:
    try:
        return NUMBERS.get(abs(int(text, 0)), OTHER_NUMBER)
    except ValueError:
        return OTHER_NUMBER
