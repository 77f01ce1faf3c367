"""The evaluation profiles: each is one value, read like a table."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Profile:
    """Sizes of the experiments.

    Seeds of searches on MutBench are drawn by the evaluation's own seed, none twice, from the few for which the
    outcomes of all tests are shipped: there can be no more of them than ``trials.RECORDED``.

    Attributes
    ----------
    name, experiments : what is run.
    flips : searches with flipped coins for each case of the closed form.
    random_trees : random skeletons, and random paths, on which counts are compared.
    map_points : of p and of q in the map of where trees beat restarts.
    restore_ways : backends of LocalEnvironment that are compared, git and replay among them.
    restore_files, restore_depths, restore_rounds : size of the package, depths that are restored, how often.
    snapshot_files : size of the package on which a snapshot and a restore are timed together.
    ledger_gaps : actions around the four stages of the path.  ledger_chars : of an observation.
    ledger_high, ledger_low : tokens at which blockwise elision begins and ends.
    log_scales : multiples of LOG_GAPS (``overhead``), each one tree.  log_chars : of an observation.
    memory_nodes : of the tree whose memory is measured.
    repair_budgets, repair_seeds : calls at which strategies are compared, and seeds for each task.
    repair_verified : states of the shipped table that are executed again; None for all.
    repair_grid, repair_grid_seeds : values of the model's rho over which DARS and restarts are compared.
    choosing_seeds : searches of each task whose candidates are reviewed.
    ablation_seeds, ablation_local : seeds for each task; searches that are repeated in a real workspace.
    package_tasks, package_calls : tasks from packages on PyPI, and calls for each.
    verifier_functions : to train on, and held out, at most.  verifier_size : layers, width, bytes of a function.
    verifier_pairs, verifier_steps, verifier_seconds : pairs of a step, and the limits of the training.
    critic_functions, critic_candidates : functions, and candidates of each, that the language model scores.
    device : "auto", "cpu" or "cuda", of what is trained.
    worker_step_s, worker_rounds : duration of a step, and how often one and four workers are compared.
    """

    name: str
    experiments: tuple[str, ...]
    flips: int
    random_trees: int
    map_points: int
    restore_ways: tuple[str, ...]
    restore_files: int
    restore_depths: tuple[int, ...]
    restore_rounds: int
    snapshot_files: int
    ledger_gaps: tuple[int, int, int, int, int]
    ledger_chars: int
    ledger_high: int
    ledger_low: int
    log_scales: tuple[float, ...]
    log_chars: int
    memory_nodes: int
    worker_step_s: float
    worker_rounds: int
    repair_budgets: tuple[int, ...]
    repair_seeds: int
    repair_verified: int | None
    repair_grid: tuple[float, ...]
    repair_grid_seeds: int
    choosing_seeds: int
    ablation_seeds: int
    ablation_local: int
    package_tasks: int
    package_calls: int
    verifier_functions: tuple[int, int]
    verifier_size: tuple[int, int, int]
    verifier_pairs: int
    verifier_steps: int
    verifier_seconds: float
    critic_functions: int
    critic_candidates: int
    device: str = "auto"


QUICK = Profile(
    name="quick",
    experiments=("traversal", "restore", "ledger", "overhead", "repair", "choosing"),
    flips=20_000,
    random_trees=100,
    map_points=41,
    restore_ways=("git", "replay"),
    restore_files=300,
    restore_depths=(1, 2, 4, 8, 16, 32),
    restore_rounds=5,
    snapshot_files=1_000,
    ledger_gaps=(6, 1, 4, 8, 0),
    ledger_chars=4_000,
    ledger_high=6_000,
    ledger_low=2_000,
    log_scales=(0.25, 0.5, 1),
    log_chars=20_000,
    memory_nodes=400,
    worker_step_s=0.02,
    worker_rounds=1,
    repair_budgets=(25, 50, 100, 200),
    repair_seeds=3,
    repair_verified=5,
    repair_grid=(),
    repair_grid_seeds=0,
    choosing_seeds=3,
    ablation_seeds=0,
    ablation_local=0,
    package_tasks=0,
    package_calls=0,
    verifier_functions=(4_000, 200),
    verifier_size=(2, 64, 256),
    verifier_pairs=32,
    verifier_steps=2_000,
    verifier_seconds=40.0,
    critic_functions=8,
    critic_candidates=4,
)
FULL = replace(
    QUICK,
    name="full",
    experiments=("traversal", "restore", "ledger", "overhead", "repair", "choosing", "ablations", "packages", "critic"),
    flips=200_000,
    random_trees=400,
    map_points=81,
    restore_ways=("git", "replay", "copy", "overlay"),
    restore_files=1_000,
    restore_depths=(1, 2, 4, 8, 16, 32, 64),
    restore_rounds=4,
    ledger_gaps=(8, 2, 8, 14, 0),
    ledger_chars=8_000,
    ledger_high=16_000,
    ledger_low=5_000,
    log_scales=(0.25, 0.5, 1, 2),
    memory_nodes=1_000,
    worker_step_s=0.2,
    worker_rounds=3,
    repair_verified=40,
    repair_grid=(0.0, 0.25, 0.5, 0.75, 1.0),
    repair_grid_seeds=2,
    ablation_seeds=3,
    ablation_local=4,
    package_tasks=16,
    package_calls=40,
    critic_functions=30,
)
GPU = replace(
    FULL,
    name="gpu",
    experiments=("traversal", "verifier"),
    verifier_functions=(80_000, 2_000),
    verifier_size=(8, 512, 640),
    verifier_pairs=128,
    verifier_steps=100_000,
    verifier_seconds=400.0,
)
PAPER = replace(FULL, name="paper")
PROFILES = {profile.name: profile for profile in (QUICK, FULL, GPU, PAPER)}
