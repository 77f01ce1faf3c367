"""How much of everything a profile does: one value each."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Profile:
    """Sizes.

    Attributes
    ----------
    experiments : in their order, "E1" to "E10"
    n : samples of the linear experiments; seeds : replications of everything that has no number of its own
    etas : sizes of the perturbation in E1
    sizes, replications : of E2
    manifold_n, manifold_d : samples and dimensions of E5 and E6; thetas : distances from isometry; noises, of E6
    autoencoders : train them in E6
    image_kinds : (kind, d, n) of E7
    bound_runs, bound_n : of E9
    patches : samples of the photographs' patches in E10; repeats : of timings
    big_n, big_d : samples and sources of the accelerator's experiment, 0 for none
    """

    name: str
    experiments: tuple[str, ...]
    n: int
    seeds: tuple[int, ...]
    etas: tuple[float, ...]
    sizes: tuple[int, ...]
    replications: int
    manifold_n: int
    manifold_d: tuple[int, ...]
    thetas: tuple[float, ...]
    noises: tuple[float, ...]
    autoencoders: bool
    image_kinds: tuple[tuple[str, int, int], ...]
    bound_runs: int
    bound_n: int
    patches: int
    repeats: int
    big_n: int = 0
    big_d: int = 0


QUICK = Profile(
    name="quick",
    experiments=("E1", "E3", "E4", "E6", "E9"),
    n=50_000,
    seeds=(0, 1, 2, 3, 4),
    etas=(0.02, 0.05, 0.1),
    sizes=(),
    replications=0,
    manifold_n=800,
    manifold_d=(2,),
    thetas=(0.05, 0.1, 0.2),
    noises=(0.02,),
    autoencoders=False,
    image_kinds=(),
    bound_runs=20,
    bound_n=10_000,
    patches=0,
    repeats=0,
)
FULL = replace(
    QUICK,
    name="full",
    experiments=("E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10"),
    etas=(0.01, 0.02, 0.05, 0.1, 0.2),
    sizes=(500, 2_000, 10_000, 100_000),
    replications=100,
    manifold_n=1_500,
    manifold_d=(2, 3),
    thetas=(0.03, 0.06, 0.1, 0.15, 0.2),
    noises=(0.02, 0.05),
    autoencoders=True,
    image_kinds=(("sprite", 2, 1_500), ("lanes", 2, 1_500), ("lanes", 3, 3_000)),
    bound_runs=100,
    bound_n=20_000,
    patches=20_000,
    repeats=3,
)
GPU = replace(
    FULL,
    name="gpu",
    experiments=("E7", "big"),
    image_kinds=(("lanes", 4, 200_000), ("multi", 6, 200_000)),
    big_n=10_000_000,
    big_d=64,
)
PAPER_PROFILE = replace(
    FULL,
    name="paper",
    seeds=tuple(range(20)),
    manifold_n=20_000,
    manifold_d=(2, 3, 5, 10),
    n=1_000_000,
)
PROFILES = {profile.name: profile for profile in (QUICK, FULL, GPU, PAPER_PROFILE)}
