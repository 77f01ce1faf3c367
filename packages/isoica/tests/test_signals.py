"""Real signals: what is read, and that saturation is the canonical perturbation that theory speaks of."""

import numpy as np
import pytest
from scipy import stats
from scipy.io import wavfile

from isoica import IsoICAError, signals
from isoica.datasets import load_image_patches, load_speech, saturating_microphones


def tone(hertz, rate, seconds=0.1):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


@pytest.fixture
def folder(tmp_path):
    """Tones of 300, 500 and 700 Hz at 48, 16 and 8 kHz, in the three sample formats, the last one the shortest."""
    wavfile.write(tmp_path / "a.wav", 48_000, (20_000 * tone(300, 48_000)).astype(np.int16))
    wavfile.write(tmp_path / "b.WAV", 16_000, tone(500, 16_000).astype(np.float32))
    wavfile.write(tmp_path / "c.wav", 8_000, (128 + 100 * tone(700, 8_000, 0.08)).astype(np.uint8))
    (tmp_path / "notes.txt").write_text("not a recording")
    return tmp_path


def test_patches_are_cut_from_the_photographs_and_come_from_both():
    from numpy.lib.stride_tricks import sliding_window_view
    from sklearn.datasets import load_sample_images

    patches = load_image_patches(40, size=12, random_state=0)
    assert patches.shape == (40, 144)
    assert patches.dtype == np.float64
    from_which = []
    grey = [image[..., :] @ [0.299, 0.587, 0.114] / 255 for image in load_sample_images().images]
    for patch in patches:
        corner = [np.argwhere(np.isclose(g[:-11, :-11], patch[0], atol=1e-12)) for g in grey]
        hits = [
            any(np.allclose(sliding_window_view(g, (12, 12))[i, j].ravel(), patch) for i, j in places)
            for g, places in zip(grey, corner, strict=True)
        ]
        assert any(hits)
        from_which.append(hits.index(True))
    assert set(from_which) == {0, 1}
    np.testing.assert_array_equal(patches, load_image_patches(40, size=12, random_state=0))


def test_photographs_are_super_gaussian_in_every_direction_without_a_mean():
    patches = load_image_patches(5000, size=8, random_state=1)
    edges = (patches - patches.mean(axis=1, keepdims=True)) @ np.random.default_rng(0).normal(size=(64, 5))
    assert np.all(stats.kurtosis(edges) > 1)


@pytest.mark.parametrize(("n", "size"), [(0, 12), (10, 0), (10, 428)])
def test_patches_that_cannot_be_cut_are_refused(n, size):
    with pytest.raises(IsoICAError, match="between 1 and 427"):
        load_image_patches(n, size)


def test_recordings_are_resampled_cut_to_the_shortest_and_standardised(folder):
    speech = load_speech(folder)
    assert speech.names == ["a.wav", "b.WAV", "c.wav"]
    assert speech.source == f"wav files in {folder}"
    assert speech.rate == 16_000
    assert speech.S.shape == (1280, 3)
    np.testing.assert_allclose(speech.S.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(speech.S.std(axis=0), 1, rtol=1e-12)
    for column, hertz in zip(speech.S.T, (300, 500, 700), strict=True):
        assert np.corrcoef(column, tone(hertz, 16_000, 0.08))[0, 1] > 0.999


def test_at_most_four_recordings_are_taken_unless_more_are_asked_for(tmp_path):
    for i in range(6):
        wavfile.write(tmp_path / f"{i}.wav", 16_000, tone(100 + i, 16_000))
    assert load_speech(tmp_path).S.shape[1] == 4
    assert load_speech(tmp_path, n_sources=6).S.shape[1] == 6


def test_the_recording_of_noise_is_no_voice_unless_the_folder_is_named(folder, monkeypatch):
    wavfile.write(folder / "Noise.wav", 16_000, np.random.default_rng(0).normal(size=2000))
    monkeypatch.setattr(signals, "SPEECH", folder)
    assert "Noise.wav" not in load_speech().names
    assert "Noise.wav" in load_speech(folder).names


def test_surrogates_stand_in_for_absent_recordings_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "SPEECH", tmp_path / "absent")
    speech = load_speech()
    assert speech.source.startswith("Laplace AR surrogates (")
    assert "absent" in speech.source
    assert speech.S.shape == (22_400, 4)
    # Excess kurtosis of an autoregression a of Laplace innovations: 3 (1 - a²)/(1 + a²).
    a = np.linspace(0.3, 0.7, 4)
    np.testing.assert_allclose(stats.kurtosis(speech.S), 3 * (1 - a**2) / (1 + a**2), atol=0.6)
    assert np.abs(np.corrcoef(speech.S.T) - np.eye(4)).max() < 0.05
    np.testing.assert_array_equal(speech.S, load_speech().S)


def test_what_is_no_mono_recording_is_refused_by_name(tmp_path):
    with pytest.raises(IsoICAError, match=r"nowhere is not a folder; give one with mono \.wav"):
        load_speech(tmp_path / "nowhere")
    with pytest.raises(IsoICAError, match=r"holds no \.wav file"):
        load_speech(tmp_path)
    wavfile.write(tmp_path / "still.wav", 8_000, np.zeros(100))
    with pytest.raises(IsoICAError, match=r"still\.wav is silent"):
        load_speech(tmp_path)
    wavfile.write(tmp_path / "both.wav", 8_000, np.zeros((100, 2)))
    with pytest.raises(IsoICAError, match=r"both\.wav has 2 channels; a mono"):
        load_speech(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFFnonsense")
    with pytest.raises(IsoICAError, match=r"a\.wav is not a readable WAV"):
        load_speech(tmp_path)


@pytest.fixture
def sources():
    S = np.random.default_rng(3).laplace(size=(4000, 4))
    return (S - S.mean(axis=0)) / S.std(axis=0)


def test_saturation_is_canonical_and_of_unit_size(sources):
    data = saturating_microphones(sources, 0.1, random_state=0)
    np.testing.assert_allclose(data.h.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.h.T @ sources / len(sources), 0, atol=1e-12)
    k = data.h @ np.linalg.inv(data.A).T
    assert np.mean(np.sum(k**2, axis=1)) == pytest.approx(1)
    assert data.k_norm == 1
    np.testing.assert_allclose(data.X, sources @ data.A.T + 0.1 * data.h, atol=1e-12)


def test_saturation_is_tanh_and_a_linear_part(sources):
    data = saturating_microphones(sources, 0.1, random_state=0)
    y = sources @ data.A.T
    known = np.column_stack([np.ones(len(y)), y, np.tanh(3 * y)])
    rest = data.h - known @ np.linalg.lstsq(known, data.h, rcond=None)[0]
    np.testing.assert_allclose(rest, 0, atol=1e-10)


def test_microphones_share_the_mixing_between_levels_of_saturation(sources):
    quiet, loud = (saturating_microphones(sources, eta, random_state=7) for eta in (0.0, 0.3))
    np.testing.assert_array_equal(quiet.A, loud.A)
    np.testing.assert_allclose(quiet.X, sources @ quiet.A.T)
    np.testing.assert_allclose(loud.X - quiet.X, 0.3 * loud.h, atol=1e-12)


def test_sources_that_cannot_be_mixed_are_refused(sources):
    for bad in (sources[:5], sources[0], np.where(sources > 4, np.nan, sources)):
        with pytest.raises(IsoICAError, match="finite"):
            saturating_microphones(bad, 0.1)
    with pytest.raises(IsoICAError, match="too few values"):
        saturating_microphones(np.tile([[1.0], [-1.0]], (10, 1)), 0.1)
