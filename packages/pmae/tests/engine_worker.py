"""Small training runs under torchrun: a JSON of folders and options of `fit`."""

import json
import sys

from common import digits

import pmae


def small_model(kind="pmae", **settings):
    """A model for the digits whose forward pass takes a millisecond."""
    space = pmae.fit_space(digits()[:192], std_floor=0.05)
    sizes = {"dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    config = pmae.PMAEConfig("tiny", **{**sizes, "patch_size": 2, **settings})
    return pmae.PMAE(config, space) if kind == "pmae" else pmae.PixelMAE(config, space)


if __name__ == "__main__":
    for out, options in json.loads(sys.argv[1]).items():
        pmae.fit(small_model(), digits()[:192], out=out, **{"epochs": 3, "batch_size": 32, "lr": 3e-3, **options})
