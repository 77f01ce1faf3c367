"""What tests start as processes of their own: ``train_worker.py CONFIG [--alone] -- key=value ... -- key=value ...``.

Every group of overrides after a ``--`` is one training; all happen in the same processes, one after the other.
"""

import sys
import warnings
from itertools import groupby

import torch
import torch.distributed as dist

from gidd.train import GiddTrainer, load_config


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    (config, *options), *runs = (list(g) for split, g in groupby(sys.argv[1:], lambda word: word == "--") if not split)
    if "--alone" not in options:
        dist.init_process_group("gloo")
    for overrides in runs:
        resume = next((word.removeprefix("resume=") for word in overrides if word.startswith("resume=")), None)
        changes = [word for word in overrides if not word.startswith("resume=")]
        GiddTrainer(load_config(config, changes), quiet=True).fit(resume=resume)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
