"""Component masking of a convolutional network (C7): nothing is dropped, so there need be no tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..engine.train import fit
from ..models import PMAE, PMAEConfig
from ..probes import knn_probe
from ..probes.features import extract
from ..space import MaskSpace
from .crops import crops, space_file
from .learning import LEARNING_RATE, RATIO, fresh_fvu
from .profiles import Profile
from .report import PAPER, Claim, Experiment, Metric


def run_architecture(profile: Profile, rng: np.random.Generator, out: Path, device: str = "cpu") -> Experiment:
    """A short run of a timm backbone in the same space."""
    experiment = Experiment()
    space = MaskSpace.load(space_file(profile, out, "pca", device))
    config = PMAEConfig(
        backbone=profile.backbone, backbone_args={"output_stride": 8}, ratio=RATIO, masks_per_batch=4, seed=10
    )
    model = PMAE(config, space).to(device)
    (train, labels), (test, wanted) = crops(profile, "train"), crops(profile, "test")
    train, labels = train[: profile.backbone_train], labels[: profile.backbone_train]

    def neighbours() -> float:
        x, y = (extract(model, images, pool="avg", device=device) for images in (train, test))
        return 100 * float(knn_probe(x, labels, y, wanted, k=10).accuracy)

    before = neighbours()
    fit(
        model, train, profile.backbone_epochs, batch_size=profile.batch, lr=LEARNING_RATE, augment="flip",
        precision=profile.precision, seed=10, device=device,
    )  # fmt: skip
    unexplained, after = fresh_fvu(model, test, 10, device), neighbours()
    name = f"{profile.backbone}, {profile.backbone_epochs} epochs of {len(train):,} crops"
    experiment.claims += [
        Claim(
            id="any-architecture", measured=float(np.mean(unexplained)), op="<", value=0.95, n=len(unexplained),
            statement="A convolutional network learns from masked components as well: unseen images, fresh masks.",
            paper="qualitative: the method asks nothing of the network", note=name,
            unit="fraction of variance unexplained",
        ),
        Claim(
            id="any-architecture-features", measured=after - before, op=">", value=0.0, n=1, source=PAPER,
            statement="Its features have better neighbours than those of the network before training.",
            unit="points of 10-NN", note=f"{name}; {before:.1f} % before",
        ),
    ]  # fmt: skip
    experiment.metrics.append(Metric(f"{profile.backbone}: avg knn", after, "%", "higher"))
    return experiment
