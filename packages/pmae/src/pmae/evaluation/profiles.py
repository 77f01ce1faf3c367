"""The evaluation profiles: each is one value, read like a table."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Profile:
    """Sizes of the experiments.

    Attributes
    ----------
    name, experiments : what is run.
    fashion : Fashion-MNIST images of the redundancy table (0 = skip).
    photos : photopatch crops of the redundancy table; spaces that are compared there.
    masks : masks a space.
    draws : masks of the sampler facts.
    split_batch, split_side, split_repeats : the projection benchmark, images of 3 × side × side.
    step_batch, step_repeats : training steps timed beside the peer's.
    train, test, side, epochs, batch : crops, and how long each model trains on them.
    crop_seeds : of the training and the test crops. model_seeds : one run of each method for each.
    stretched : seeds for which the pixel model also gets the component model's compute.
    curve : shares of the training after which features are probed.
    ratios : hidden shares of further component runs; patch_ratios : of further pixel runs.
    random_ratio : whether models with ratios drawn from (.1, .9) are trained.
    fashion_train : Fashion-MNIST images for one run of each method (0 = skip).
    backbone : timm backbone of the architecture run, its epochs and crops ("" = skip).
    preset, masks_per_batch, precision, compile : of the models.
    pools : how features are pooled.
    bases : further bases trained at the recommended ratio.
    workers : models trained at the same time, one thread each.
    frontier_train, frontier_seeds : crops and seeds of the comparison at equal FLOPs.
    budgets : what each of its models spends, in epochs of a PMAE that sees all tokens.
    shares, search_epochs : ratios among which one is chosen without labels, and the epochs of a run to choose by.
    """

    name: str
    experiments: tuple[str, ...]
    fashion: int
    photos: int
    photo_spaces: tuple[str, ...]
    masks: int
    draws: int
    split_batch: int
    split_side: int
    split_repeats: int
    step_batch: int
    step_repeats: int
    train: int
    test: int
    side: int
    epochs: int
    batch: int
    crop_seeds: tuple[int, int]
    model_seeds: tuple[int, ...]
    stretched: int
    curve: tuple[float, ...]
    ratios: tuple[float, ...]
    patch_ratios: tuple[float, ...]
    random_ratio: bool
    fashion_train: int
    backbone: str
    backbone_epochs: int
    backbone_train: int
    preset: str
    masks_per_batch: int
    pools: tuple[str, ...]
    precision: str
    compile: bool
    bases: tuple[str, ...]
    workers: int
    frontier_train: int
    frontier_seeds: int
    budgets: tuple[float, ...]
    shares: tuple[float, ...]
    search_epochs: float


QUICK = Profile(
    name="quick",
    experiments=("redundancy", "samplers", "cost", "learning"),
    fashion=10_000,
    photos=3_000,
    photo_spaces=("pca", "patch"),
    masks=2,
    draws=20_000,
    split_batch=256,
    split_side=32,
    split_repeats=7,
    step_batch=64,
    step_repeats=5,
    train=3_000,
    test=1_500,
    side=32,
    epochs=6,
    batch=32,
    crop_seeds=(1010, 1011),
    model_seeds=(10,),
    stretched=0,
    curve=(1.0,),
    ratios=(),
    patch_ratios=(),
    random_ratio=False,
    fashion_train=0,
    backbone="",
    backbone_epochs=0,
    backbone_train=0,
    preset="tiny",
    masks_per_batch=2,
    pools=("avg",),
    precision="fp32",
    compile=False,
    bases=(),
    workers=2,
    frontier_train=1_000,
    frontier_seeds=1,
    budgets=(2, 4),
    shares=(0.05, 0.1, 0.2, 0.3, 0.5, 0.7),
    search_epochs=2,
)
FULL = replace(
    QUICK,
    name="full",
    masks_per_batch=4,
    pools=("avg", "cls"),
    experiments=("redundancy", "samplers", "cost", "learning", "architecture", "table1"),
    photo_spaces=("pca", "patch", "pixel", "dct", "kron", "patch_pca", "haar_pca", "rotation"),
    masks=4,
    split_repeats=15,
    step_repeats=15,
    train=6_000,
    test=3_000,
    epochs=30,
    batch=64,
    model_seeds=(10, 11, 12),
    stretched=1,
    curve=(0.25, 0.5, 0.75, 1.0),
    backbone="resnet18",
    backbone_epochs=2,
    backbone_train=1_000,
    frontier_train=1_500,
    budgets=(4, 8, 16),
    search_epochs=4,
)
GPU = replace(
    FULL,
    name="gpu",
    experiments=("redundancy", "samplers", "cost", "learning", "ratios", "frontier", "architecture", "table1"),
    split_batch=512,
    split_side=64,
    step_batch=512,
    train=50_000,
    test=10_000,
    side=64,
    epochs=60,
    batch=512,
    model_seeds=(10, 11, 12, 13, 14),
    stretched=5,
    ratios=(0.1, 0.3, 0.5),
    patch_ratios=(0.5, 0.6, 0.9),
    random_ratio=True,
    fashion_train=60_000,
    backbone_epochs=20,
    backbone_train=50_000,
    preset="vit_t8",
    precision="bf16",
    compile=True,
    bases=("kron", "dct"),
    workers=1,
    frontier_train=10_000,
    frontier_seeds=2,
    budgets=(3, 6, 12),
    search_epochs=3,
)
PAPER_PROFILE = replace(GPU, name="paper", experiments=("table1",))
PROFILES = {profile.name: profile for profile in (QUICK, FULL, GPU, PAPER_PROFILE)}
