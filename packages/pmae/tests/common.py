"""For tests: real digits, photographs in colour that are not square, and processes that start with all imported."""

import multiprocessing
import os
import sys
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits, load_sample_image


@cache
def digits() -> np.ndarray:
    """uint8 (1797, 8, 8)."""
    return (load_digits().images * 255 / 16).astype(np.uint8)


@cache
def crops(n: int = 600, height: int = 8, width: int = 12, seed: int = 0) -> np.ndarray:
    """uint8 (n, 3, height, width) of a photograph."""
    photo = load_sample_image("china.jpg")[::2, ::2]
    draw = np.random.default_rng(seed)
    tops = draw.integers(0, photo.shape[0] - height, n)
    lefts = draw.integers(0, photo.shape[1] - width, n)
    return np.stack([photo[t : t + height, l : l + width].transpose(2, 0, 1) for t, l in zip(tops, lefts, strict=True)])


def unit(images: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(N, C, H, W) in [0, 1], rounded as the package reads them."""
    x = (torch.from_numpy(np.array(images)).float() / 255).to(dtype)
    return x if x.ndim == 4 else x[:, None]


# A template process that has imported what takes seconds, and runs nothing; others are forked from it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pmae.engine.train", "pmae.models", "pmae.cli.main"])


def started(folder, *arguments, stderr):
    """A process with the command line in a folder; stderr is the path of a file or terminal."""
    process = PROCESSES.Process(target=_command, args=(folder, [str(a) for a in arguments], str(stderr)))
    process.start()
    return process


def _command(folder, arguments, stderr):
    from pmae.cli.main import main

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    os.chdir(folder)
    os.environ["COLUMNS"] = "160"
    torch.set_num_threads(1)
    sys.argv = ["pmae", *arguments]
    main()
