"""What can go wrong, one class per cause; messages name the argument, the value and the remedy."""


class PmaeError(Exception):
    """Base class of the package's own errors."""


class ShapeError(PmaeError, ValueError):
    """An array or a mask has another shape than the space or the model expects."""


class DataError(PmaeError, ValueError):
    """Images are missing, damaged, not finite, or not on the [0, 1] scale."""


class MissingSourceError(DataError):
    """A data set is not on this machine; the message says how to obtain it."""


class BasisTooLargeError(PmaeError, MemoryError):
    """A dense basis of this image size does not fit; the message names the bytes and the bases that would."""


class CheckpointError(PmaeError):
    """A checkpoint, model or space is missing, damaged, or belongs to another configuration."""


class NumericalError(PmaeError):
    """Training met non-finite losses that it could not recover from."""
