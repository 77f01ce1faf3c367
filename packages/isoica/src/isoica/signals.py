"""Real signals: patches of photographs, recorded voices, and microphones that saturate."""

from __future__ import annotations

import os
import warnings
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from .errors import IsoICAError
from .laws import generator
from .perturbations import canonical_part, mixing_matrix, rms

Array = NDArray[np.float64]

SPEECH = Path("/usr/share/sounds/alsa")
"""Spoken test recordings of Debian's alsa-utils, 48 kHz."""

_SECONDS = 1.4  # of the surrogates, about what the recordings last


def load_image_patches(n: int = 20_000, size: int = 12, random_state: Any = None) -> Array:
    """Random patches (n, size²) of the two photographs that scikit-learn brings, grey, in [0, 1].

    Reading them needs pillow. Raises IsoICAError for a patch larger than a photograph.
    """
    from sklearn.datasets import load_sample_images

    # Luma of ITU-R BT.601, what most programs call grey.
    photographs = [image @ np.array([0.299, 0.587, 0.114]) / 255 for image in load_sample_images().images]
    height, width = np.min([p.shape for p in photographs], axis=0)
    if not (n >= 1 and 1 <= size <= min(height, width)):
        raise IsoICAError(f"n={n}, size={size}; need n >= 1 and a size between 1 and {min(height, width)}")
    rng = generator(random_state)
    windows = np.stack([np.lib.stride_tricks.sliding_window_view(p, (size, size)) for p in photographs])
    which, row, column = (rng.integers(m, size=n) for m in windows.shape[:3])
    return np.asarray(windows[which, row, column].reshape(n, size * size), dtype=np.float64)


def load_speech(path: str | os.PathLike[str] | None = None, rate: int = 16_000, n_sources: int = 4) -> Bunch:
    """Voices as sources: the mono WAV files of a folder, by name, resampled and cut to the length of the shortest.

    Pauses are kept: they are what makes voices super-Gaussian. The default folder is that of Debian's alsa-utils,
    without its recording of noise; where it is absent, autoregressive signals with Laplace innovations take its place.

    Parameters
    ----------
    path : folder, or None for the default one.
    rate : of the result, in Hz.
    n_sources : how many files at most.

    Returns
    -------
    Bunch
        S (n, k) with mean 0 and variance 1 on the sample, rate, names, and source, which says what these signals are.

    Raises
    ------
    IsoICAError
        For a folder that does not exist or holds no mono WAV file, and for silence.
    """
    if n_sources < 1 or rate < 1:
        raise IsoICAError(f"rate={rate}, n_sources={n_sources}; both must be at least 1")
    if path is None and not SPEECH.is_dir():
        return _surrogates(rate, n_sources)
    folder = SPEECH if path is None else Path(path)
    files = [f for f in wav_files(folder) if path is not None or not f.stem.lower().startswith("noise")]
    S, rate, names = read_wavs(files[:n_sources], rate)
    sd = S.std(axis=0)
    if not np.all(sd > 0):
        raise IsoICAError(f"{folder / names[int(np.argmin(sd))]} is silent; remove it")
    return Bunch(S=(S - S.mean(axis=0)) / sd, rate=rate, names=names, source=f"wav files in {folder}")


def saturating_microphones(S: ArrayLike, eta: float, random_state: Any = None) -> Bunch:
    """``X = y + η h`` with ``y = A s`` and ``h = (tanh(3y) - βy) c``: microphones that saturate.

    β (a matrix, as channels are correlated) and a constant take out of tanh what is linear in s, so that A is what ICA
    can be compared with; the number c makes ``‖A⁻¹h‖ = 1`` (root mean square of the vector), so that η has a meaning.

    Parameters
    ----------
    S : (n, k) sources with mean 0 and variance 1.
    eta : size of the perturbation.
    random_state : of the mixing A, whose singular values lie between 0.7 and 1.4.

    Returns
    -------
    Bunch
        X (n, k), S (n, k), A (k, k), h (n, k) and k_norm = ‖A⁻¹h‖ = 1.
    """
    S = np.asarray(S, dtype=np.float64)
    if S.ndim != 2 or len(S) <= S.shape[1] + 1 or not np.isfinite(S).all():
        raise IsoICAError(f"S must be a finite (n, k) array of sources with n > k + 1, got shape {S.shape}")
    A = mixing_matrix(S.shape[1], generator(random_state))
    y = S @ A.T
    h = canonical_part(S, np.tanh(3 * y))
    size = rms(np.linalg.solve(A, h.T).T)
    if not size > 1e-12:
        raise IsoICAError("saturation is linear in these sources: they take too few values")
    h /= size
    return Bunch(X=y + eta * h, S=S, A=A, h=h, k_norm=1.0)


def wav_files(folder: Path) -> list[Path]:
    """The WAV files of a folder by name. Raises IsoICAError where there are none."""
    if not folder.is_dir():
        raise IsoICAError(f"{folder} is not a folder; give one with mono .wav files")
    found = sorted(f for f in folder.iterdir() if f.suffix.lower() == ".wav")
    if not found:
        raise IsoICAError(f"{folder} holds no .wav file; give a folder with mono recordings")
    return found


def read_wavs(files: list[Path], rate: int | None = None) -> tuple[Array, int, list[str]]:
    """Signals (n, k) of mono WAV files, cut to the shortest, their rate in Hz and their names.

    Resampled to ``rate``; None keeps the rate of the files, which then have to agree. Raises IsoICAError.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    signals: list[Array] = []
    rates: list[int] = []
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks with comments
                own, signal = wavfile.read(file)
        except (ValueError, EOFError, OSError) as error:
            raise IsoICAError(f"{file} is not a readable WAV file ({error})") from None
        if signal.ndim != 1:
            raise IsoICAError(f"{file} has {signal.shape[1]} channels; a mono recording is needed")
        if len(signal) < 2:
            raise IsoICAError(f"{file} has {len(signal)} samples; at least 2 are needed")
        signal = signal.astype(np.float64)
        if rate is not None and own != rate:
            common = gcd(own, rate)
            signal = resample_poly(signal, rate // common, own // common)
        signals.append(signal)
        rates.append(own)
    if rate is None and len(set(rates)) > 1:
        other = next(i for i, r in enumerate(rates) if r != rates[0])
        raise IsoICAError(f"{files[other]} has {rates[other]} Hz, {files[0].name} {rates[0]} Hz; resample them to one")
    shortest = min(len(s) for s in signals)
    return np.stack([s[:shortest] for s in signals], axis=1), rate or rates[0], [f.name for f in files]


def _surrogates(rate: int, k: int) -> Bunch:
    """First-order autoregressions of Laplace innovations, the same ones every time."""
    from scipy.signal import lfilter

    rng = np.random.default_rng(0)
    memory = np.linspace(0.3, 0.7, k)
    S = np.stack([lfilter([1.0], [1.0, -a], rng.laplace(size=max(8, int(_SECONDS * rate)))) for a in memory], axis=1)
    why = f"{SPEECH} is absent; Debian's alsa-utils brings it"
    return Bunch(
        S=(S - S.mean(axis=0)) / S.std(axis=0), rate=rate, names=[f"AR({a:.2f})" for a in memory],
        source=f"Laplace AR surrogates ({why})",
    )  # fmt: skip
