"""Forward processes: what is added as noise, and when."""

from typing import Any

from .base import SCHEMES, Process
from .hybrid import HybridProcess, MaskedProcess, UniformProcess
from .mixture import MixtureProcess
from .snr import PRESETS, SNRProcess

_TYPES: dict[str, type[Process]] = {
    "hybrid": HybridProcess,
    "masked": MaskedProcess,
    "uniform": UniformProcess,
    "snr": SNRProcess,
}


def process_from_dict(d: dict[str, Any]) -> Process:
    """Inverse of :meth:`Process.to_dict`."""
    values = dict(d)
    kind = values.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"process type {kind!r} is not one of {', '.join(_TYPES)}")
    try:
        return _TYPES[kind](**values)
    except TypeError as error:
        raise ValueError(f"a {kind} process cannot be made of {sorted(values)}: {error}") from None


__all__ = [
    "PRESETS",
    "SCHEMES",
    "HybridProcess",
    "MaskedProcess",
    "MixtureProcess",
    "Process",
    "SNRProcess",
    "UniformProcess",
    "process_from_dict",
]
