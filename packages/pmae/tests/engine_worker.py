"""Small training runs, alone or as one of several processes."""

import os

import torch
from common import digits

import pmae


def small_model(kind="pmae", **settings):
    """A model for the digits whose forward pass takes a millisecond."""
    space = pmae.fit_space(digits()[:192], std_floor=0.05)
    sizes = {"dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    config = pmae.PMAEConfig("tiny", **{**sizes, "patch_size": 2, **settings})
    return pmae.PMAE(config, space) if kind == "pmae" else pmae.PixelMAE(config, space)


def train_in_turn(rank, size, port, runs):
    """What torchrun would start: folders and options of `fit`."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    for out, options in runs.items():
        pmae.fit(small_model(), digits()[:192], out=out, **{"epochs": 3, "batch_size": 32, "lr": 3e-3, **options})
    torch.distributed.destroy_process_group()
