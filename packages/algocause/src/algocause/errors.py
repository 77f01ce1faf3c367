"""Every failure of the package, one class per cause."""

from __future__ import annotations


class AlgocauseError(ValueError):
    """Base class: the input cannot be used as given."""


class DataError(AlgocauseError):
    """Data that no code can describe: NaN, text, constant columns, shapes that do not fit."""


class DegenerateError(AlgocauseError):
    """Columns that are exact linear functions of others, under a code that cannot describe them."""


class LimitError(AlgocauseError):
    """An exact computation that is too large; the message says the limit and the alternative."""


class FormatError(AlgocauseError):
    """An archive that is truncated, damaged or of another kind."""
