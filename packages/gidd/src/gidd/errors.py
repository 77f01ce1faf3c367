"""What can go wrong, one class per cause; messages name the argument, the value and the remedy."""


class GiddError(Exception):
    """Base class of the package's own errors."""


class InvalidProcessError(GiddError, ValueError):
    """The process has a negative rate or is no probability: no Markov chain has these marginals."""


class CheckpointError(GiddError):
    """A checkpoint is missing, damaged, or of another architecture."""


class DataError(GiddError):
    """A corpus or prepared folder is missing, damaged or empty."""


class ConfigError(GiddError, ValueError):
    """A configuration is malformed."""


class ExperimentError(RuntimeError):
    """Some experiments of an evaluation raised; the others have finished and are stored."""
