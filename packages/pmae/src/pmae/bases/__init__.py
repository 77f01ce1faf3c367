"""Orthonormal bases of image space, by name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import BasisTooLargeError
from ..processes import summed
from . import blocks, pca, separable, simple
from .base import Basis, Dense
from .pca import Stream

__all__ = ["BASES", "Basis", "Request", "build", "restore"]

# Options of each basis and what they are if not given; None: chosen by the size of the images.
BASES: dict[str, dict[str, Any]] = {
    "pca": {},
    "kron": {},
    "patch_pca": {"block_size": None, "per_block": False},
    "haar_pca": {"levels": None},
    "truncated": {},
    "dct": {"color": True},
    "rotation": {},
    "pixel": {},
    "patch": {"patch_size": None},
}
MOST = 16 * 2**30  # bytes of a dense basis unless the caller allows more
RANK = 512  # of a truncated basis, if not given
COARSE = 1024  # coordinates of the coarse band at most, if levels are not given


@dataclass(frozen=True)
class Request:
    """What is to be fitted."""

    basis: Any
    shape: tuple[int, int, int]
    n: int
    rank: int | None
    solver: str
    seed: int
    dtype: torch.dtype
    max_bytes: int | None
    device: torch.device
    given: dict[str, Any]

    @property
    def dim(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    def options(self) -> dict[str, Any]:
        """Options with the sizes filled in. Raises ValueError for one that the basis does not have."""
        if not isinstance(self.basis, str):
            return {}
        known = BASES[self.basis]
        for name in self.given:
            if name not in known:
                raise ValueError(f"basis={self.basis!r} has no option {name!r}: {', '.join(known) or 'it has none'}")
        chosen = known | self.given
        for name in ("block_size", "patch_size"):
            if name in chosen and chosen[name] is None:
                chosen[name] = block_for(self.shape)
        if "levels" in chosen and chosen["levels"] is None:
            chosen["levels"] = levels_for(self.shape)
        return chosen

    def check(self) -> None:
        """Raises ValueError for what is no basis, or unknown options; BasisTooLargeError where it does not fit."""
        if not isinstance(self.basis, str):
            simple.check_map(self.basis)
            return
        need = self.bytes_needed()
        most = free_bytes(self.device) if self.max_bytes is None else self.max_bytes
        if need > most:
            raise BasisTooLargeError(
                f"basis={self.basis!r} for images of {'×'.join(map(str, self.shape))} (D = {self.dim:,}) needs "
                f"{need:,} bytes, {most:,} are allowed: use basis='kron', 'patch_pca' with smaller blocks, "
                f"'haar_pca' with more levels, or 'truncated' with a smaller rank"
            )  # fmt: skip

    def bytes_needed(self) -> int:
        """What is dense: the components in float32, or the matrix in float64 that they are computed from."""
        options = self.options()
        if self.basis == "patch_pca":
            block = self.shape[0] * options["block_size"] ** 2
            return 8 * block**2 * (self.dim // block if options["per_block"] else 1)
        if self.basis == "rotation":
            return 8 * self.dim**2
        if self.basis == "haar_pca" and options["levels"] > 0:
            return 8 * (self.dim // 4 ** options["levels"]) ** 2
        if self.basis not in ("pca", "truncated", "haar_pca"):
            return 0
        k = min(self.dim, self.n)
        k, solver = min(k, self.leading() or k), self.solver_for()
        work = {"cov": 8 * self.dim**2, "gram": 8 * min(self.n, self.dim) ** 2}.get(solver, 16 * self.dim * k)
        return max(4 * self.dim * k, work)

    def leading(self) -> int | None:
        """How many components of a PCA are asked for."""
        return (self.rank or min(RANK, self.n, self.dim)) if self.basis == "truncated" else self.rank

    def solver_for(self) -> str:
        """The solver, by size if it was left open."""
        if self.solver != "auto":
            return self.solver
        small, rank = min(self.n, self.dim), self.leading()
        if rank is not None and small > 2048 and rank < small // 5:
            return "randomized"
        return "gram" if self.n < self.dim else "cov"


def build(request: Request, stream: Stream) -> tuple[Basis, float]:
    """The basis, and the total variance T of the standardised images."""
    shape, options, name = request.shape, request.options(), request.basis
    if not isinstance(name, str):
        total = float(power(stream).sum())
        return simple.Custom(name, shape, total), total
    if name in ("pca", "truncated"):
        return pca.fit(stream, request.solver_for(), request.leading(), request.seed, request.dtype, name)
    if name in ("pixel", "patch"):
        variances = power(stream)
        groups = simple.patches_of(shape, options["patch_size"]) if name == "patch" else None
        return simple.Pixels(name, variances, groups), float(variances.sum())
    zeros = torch.zeros(request.dim, dtype=torch.float64)
    basis: Basis
    if name == "kron":
        basis = separable.Separable(name, separable.kron_factors(stream, shape), zeros)
    elif name == "dct":
        factors = separable.cosine_factors(stream, shape, options["color"])
        basis = separable.Separable(name, factors, zeros, separable.frequencies(shape))
    elif name == "rotation":
        basis = Dense(name, simple.random_rotation(request.dim, request.seed).to(stream.device), zeros)
    elif name == "patch_pca":
        rows = blocks.block_rows(stream, shape, options["block_size"])
        basis = blocks.PatchPCA(shape, options["block_size"], rows, zeros, options["per_block"])
    else:
        coarse, details = blocks.haar_factors(stream, shape, options["levels"])
        basis = blocks.HaarPCA(shape, options["levels"], coarse, details, zeros)
    basis.variances = measured(basis, stream, request.dim)
    return basis, float(basis.variances.sum())


def restore(name: str, shape: tuple[int, int, int], tensors: dict[str, Tensor], options: dict[str, Any]) -> Basis:
    """The basis of a file."""
    variances = tensors["variances"]
    if name in ("pca", "truncated", "rotation"):
        return Dense(name, tensors["rows"], variances)
    if name in ("pixel", "patch"):
        return simple.Pixels(name, variances, tensors.get("group_of"))
    if name in ("kron", "dct"):
        radii = separable.frequencies(shape) if name == "dct" else None
        factors = (tensors["channels"], tensors["height"], tensors["width"])
        return separable.Separable(name, factors, variances, radii)
    if name == "patch_pca":
        return blocks.PatchPCA(shape, options["block_size"], tensors["rows"], variances, options["per_block"])
    return blocks.HaarPCA(shape, options["levels"], tensors["coarse"], tensors["details"], variances)


def measured(basis: Basis, stream: Stream, n: int) -> Tensor:
    """Mean square of each coefficient, float64 (K,)."""
    total = torch.zeros(n, dtype=torch.float64, device=stream.device)
    for batch in stream.batches():
        total += basis.analysis(batch.double()).square().sum(0)
    return (summed(total) / stream.n).cpu()


def power(stream: Stream) -> Tensor:
    """Mean square of each coordinate, float64 (D,)."""
    total = torch.zeros(stream.dim, dtype=torch.float64, device=stream.device)
    for batch in stream.batches():
        total += batch.double().square().sum(0)
    return (summed(total) / stream.n).cpu()


def block_for(shape: tuple[int, int, int]) -> int:
    """The largest usual block that divides the image and leaves at least 4 along each side."""
    sizes = (size for size in (16, 14, 8, 7, 4, 2) if not (shape[1] % size or shape[2] % size))
    return next((size for size in sizes if min(shape[1], shape[2]) // size >= 4), 1)


def levels_for(shape: tuple[int, int, int]) -> int:
    """The fewest halvings that leave a coarse band of at most COARSE coordinates, as far as the sides allow."""
    level = 0
    while shape[0] * (shape[1] >> level) * (shape[2] >> level) > COARSE:
        if shape[1] % 2 ** (level + 1) or shape[2] % 2 ** (level + 1):
            break
        level += 1
    return level


def free_bytes(device: torch.device) -> int:
    """60 % of the free memory of the machine or the accelerator, 16 GB at most."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        try:
            with open("/proc/meminfo") as file:  # what the cache would give back counts as free
                free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        except (OSError, StopIteration):
            pass
    return min(int(0.6 * free), MOST)
