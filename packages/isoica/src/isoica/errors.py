"""Every failure and warning of the package, one class per cause."""

from __future__ import annotations


class IsoICAError(ValueError):
    """Base class: the input cannot be used as given."""


class ModelFileError(IsoICAError):
    """A model file is missing, damaged or of another kind."""


class UnidentifiedWarning(UserWarning):
    """Two or more components cannot be told from Gaussian: inside their span the rotation is arbitrary."""


class HeavyTailWarning(UserWarning):
    """A contrast moment rests on a handful of samples."""
