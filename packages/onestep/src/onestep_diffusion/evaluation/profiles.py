"""How much of everything a profile does: one value each."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAIN = ("teacher", "random", "single_level", "off_level")
OTHERS = ("clone_map", "features_only", "map_only", "scrambled", "blocks:block*", "freeze:block*")
BOUNDED = ("rkl", "js", "ns", "fkl", "jeffreys", "hellinger", "skew_js")
UNBOUNDED = ("chi2", "neyman")


@dataclass(frozen=True)
class Profile:
    """Sizes.

    Attributes
    ----------
    experiments : in their order
    data, features : what students learn, and the features that they are judged in
    net, net_kwargs : preset of the network
    retrain : train the teachers that the package ships, for so many steps
    batch, lr, ratio_lr : of students; precision, steps_per_call
    seeds, other_seeds : of the four main initialisations, of which further ones have the first; of comparisons within
        the method
    updates, aux, score_aux : of the generator; of the ratio, and the fake score, per update of it
    evaluations : how often a run is judged; samples : by so many samples
    others : further initialisations; divergences, unbounded
    short : updates of comparisons within the method
    side_by_side : runs are trained in one program
    verifier_groups, verifier_seeds : candidates a sample, replications with the exact ratio; refit : steps
    bias_steps, bias_seeds : of the oracle laboratory; ring_seeds, ring_updates
    second_teacher, second_updates, second_seeds : the two claims on the initialisation once more, on other data
    repeats : of timings
    workers : processes
    """

    name: str
    experiments: tuple[str, ...]
    data: str
    features: str
    net: str
    net_kwargs: tuple[tuple[str, int], ...]
    retrain: int
    batch: int
    lr: float
    ratio_lr: float
    precision: str
    steps_per_call: int
    seeds: tuple[int, ...]
    other_seeds: tuple[int, ...]
    updates: int
    aux: int
    score_aux: int
    evaluations: int
    samples: int
    others: tuple[str, ...]
    divergences: tuple[str, ...]
    unbounded: tuple[str, ...]
    short: int
    side_by_side: bool
    verifier_groups: tuple[int, ...]
    verifier_seeds: int
    refit: int
    bias_steps: int
    bias_seeds: tuple[int, ...]
    ring_seeds: tuple[int, ...]
    ring_updates: int
    second_teacher: int
    second_updates: int
    second_seeds: tuple[int, ...]
    repeats: int
    workers: int


QUICK = Profile(
    name="quick",
    experiments=("exactness", "cost", "initialisation"),
    data="digits",
    features="digits",
    net="mlp",
    net_kwargs=(("hidden", 128), ("blocks", 3)),
    retrain=0,
    batch=128,
    lr=2e-4,
    ratio_lr=1e-3,
    precision="f32",
    steps_per_call=50,
    seeds=(0, 1, 2),
    other_seeds=(0, 1),
    updates=300,
    aux=2,
    score_aux=1,
    evaluations=3,
    samples=2_000,
    others=(),
    divergences=(),
    unbounded=(),
    short=0,
    side_by_side=True,
    verifier_groups=(1, 2, 4, 8, 16),
    verifier_seeds=10,
    refit=0,
    bias_steps=0,
    bias_seeds=(),
    ring_seeds=(),
    ring_updates=0,
    second_teacher=0,
    second_updates=0,
    second_seeds=(),
    repeats=5,
    workers=2,
)
FULL = replace(
    QUICK,
    name="full",
    experiments=(
        "exactness", "cost", "initialisation", "verifier", "divergences", "tricks", "bias", "rings", "second",
        "scratch",
    ),
    retrain=6_000,
    seeds=(0, 1, 2, 3),
    updates=500,
    aux=4,
    other_seeds=(0, 1, 2),
    evaluations=5,
    others=OTHERS,
    divergences=BOUNDED,
    unbounded=UNBOUNDED,
    short=250,
    refit=3_000,
    bias_steps=3_000,
    bias_seeds=(0, 1, 2, 3),
    ring_seeds=(0, 1, 2, 3),
    ring_updates=1_000,
    second_teacher=2_000,
    second_updates=250,
    second_seeds=(0, 1, 2),
)  # fmt: skip
GPU = replace(
    FULL,
    name="gpu",
    experiments=("exactness", "cost", "initialisation", "verifier"),
    data="fashion-mnist",
    features="fashion",
    net="unet32",
    net_kwargs=(),
    retrain=2_000,
    batch=512,
    lr=1e-4,
    precision="bf16",
    seeds=(0, 1, 2),
    other_seeds=(0,),
    updates=500,
    aux=4,
    evaluations=5,
    samples=5_000,
    others=(),
    side_by_side=False,
    repeats=20,
    workers=1,
)
PAPER_PROFILE = replace(
    GPU,
    name="paper",
    data="cifar10:DIR",
    features="inception:FILE",
    net="cifar10",
    retrain=400_000,
    lr=1e-5,
    ratio_lr=1e-4,
    batch=256,
    updates=400_000,
    samples=50_000,
    evaluations=40,
)
PROFILES = {profile.name: profile for profile in (QUICK, FULL, GPU, PAPER_PROFILE)}
