"""What can go wrong, one class per cause; messages name the argument, the value and the remedy."""


class OnestepError(Exception):
    """Base class of the package's own errors."""


class DataError(OnestepError, ValueError):
    """Data are missing, damaged, not finite, constant, or of another shape than the model's."""


class ConfigError(OnestepError, ValueError):
    """A setting is unknown or out of range."""


class CheckpointError(OnestepError):
    """A checkpoint is missing, damaged, or of another kind or configuration."""


class InterruptedRun(OnestepError):
    """Training was asked to stop by a signal; its state is saved, and the message says how to go on."""


class DivergedError(OnestepError):
    """Training left the range of finite numbers, or the student left the data."""
