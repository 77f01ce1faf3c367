"""The space in which images are masked: standardisation, an orthonormal basis, and the split into seen and hidden.

x is a standardised image, V_M the columns of the hidden components, P_M = V_M V_Mᵀ. The encoder sees x − P_M x, the
loss is taken on V_Mᵀ(x̂ − x) (arXiv:2502.06314, section 3).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from . import losses
from .bases import BASES, Request, build, restore
from .bases.base import Basis
from .bases.pca import SOLVERS, Stream
from .bases.simple import Custom
from .errors import CheckpointError, DataError, ShapeError
from .files import write_file, write_tensors
from .images import as_source
from .processes import rank_and_size
from .standardize import STD_FLOOR, Standardizer, fit_standardizer

FORMAT = "pmae-space/1"
BUCKETS = 8  # sizes that the rows of hidden components are padded to
GROWTH = 1.5  # from one to the next


class Split(NamedTuple):
    """visible : (B, C, H, W), standardised. target : (B, |M|) for a shared mask, (B, K) zero-filled otherwise."""

    visible: Tensor
    target: Tensor


class MaskSpace(nn.Module):
    """An orthonormal basis of standardised images, and masks over groups of its components.

    Attributes
    ----------
    image_shape : (C, H, W); dim : D = C·H·W
    n_components, n_groups : K coefficients in groups that are masked together
    shares : float64 (n_groups,), share of the variance; sums to 1, to less for a truncated basis
    variances : float64 (K,), of each coefficient
    total_variance : T
    mean, std : broadcast to image_shape
    """

    def __init__(
        self, standardizer: Standardizer, basis: Basis, total_variance: float, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.standardizer, self.basis, self.total_variance = standardizer, basis, total_variance
        self.options = options or {}
        self.image_shape = standardizer.image_shape
        self.dim, self.n_components, self.n_groups = basis.dim, basis.n_components, basis.n_groups
        self.variances = basis.variances
        self.shares = basis.grouped(basis.variances) / total_variance
        self.radii = None if basis.radii is None else basis.radii
        self.basis_name = basis.name

    @property
    def mean(self) -> Tensor:
        return self.standardizer.mean

    @property
    def std(self) -> Tensor:
        return self.standardizer.std

    @property
    def complete(self) -> bool:
        """Whether the basis spans all images, so that nothing lies outside it."""
        return self.n_components == self.dim

    # --- maps ---------------------------------------------------------------------------------------------------------

    def standardize(self, x: Tensor) -> Tensor:
        """(B, C, H, W) on the [0, 1] scale to standardised units."""
        return self.standardizer.standardize(x)

    def destandardize(self, x: Tensor) -> Tensor:
        """The way back."""
        return self.standardizer.destandardize(x)

    def analysis(self, x_std: Tensor) -> Tensor:
        """Coefficients (B, K) of standardised images (B, C, H, W)."""
        with _exactly(x_std):
            return self.basis.analysis(self.flat(x_std))

    def synthesis(self, z: Tensor) -> Tensor:
        """Images (B, C, H, W) of coefficients (B, K)."""
        if z.ndim != 2 or z.shape[1] != self.n_components:
            raise ShapeError(f"coefficients have shape {tuple(z.shape)}, (B, {self.n_components}) is needed")
        with _exactly(z):
            return self.image(self.basis.synthesis(z.to(self.mean.dtype)))

    def project(self, x_std: Tensor, mask: Tensor) -> Tensor:
        """P_M x, (B, C, H, W): the hidden part. mask : bool (n_groups,) or (B, n_groups), True = hidden."""
        return self.hidden(mask).project(x_std)

    def split(self, x_std: Tensor, mask: Tensor, residual: str = "keep") -> Split:
        """Visible image and target; targets of a shared mask in ascending order of the components.

        residual : whether what lies outside the span of the basis stays visible ("keep") or is dropped ("drop").
        """
        return self.hidden(mask).split(x_std, residual)

    def component_loss(
        self, pred_std: Tensor, x_std: Tensor, mask: Tensor, reduction: str = "variance", gamma: float = 0.0
    ) -> Tensor:
        """(1/n) ‖V_Mᵀ(x̂ − x)‖², mean over the batch; n by ``reduction``: "count" |M|, "variance" T Σ_M λ."""
        hidden = self.hidden(mask, reduction=reduction, gamma=gamma)
        return hidden.loss(pred_std, hidden.target(x_std))[0]

    def hidden(self, mask: Tensor, pad: bool = False, reduction: str = "variance", gamma: float = 0.0) -> Hidden:
        """Everything that one mask needs, gathered once."""
        return Hidden(self, mask, pad, reduction, gamma)

    def matrix(self, force: bool = False) -> Tensor:
        """V, (D, K). Raises ValueError where it is not stored, unless ``force`` computes it."""
        rows = self.basis.matrix_t()
        if rows is None and not (force and self.basis.linear):
            raise ValueError(
                f"basis={self.basis_name!r} has no stored matrix: matrix(force=True) computes a linear one"
            )
        if rows is None:
            eye = torch.eye(self.n_components, dtype=self.mean.dtype, device=self.mean.device)
            rows = self.basis.synthesis(eye)
        return rows.T

    def flat(self, x: Tensor) -> Tensor:
        """(B, C, H, W) as (B, D) in the precision of the space. Raises ShapeError."""
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            raise ShapeError(
                f"images have shape {tuple(x.shape)}, (B, {', '.join(map(str, self.image_shape))}) is needed"
            )
        return x.to(self.mean.dtype).reshape(len(x), self.dim)

    def image(self, x: Tensor) -> Tensor:
        """(B, D) as (B, C, H, W)."""
        return x.reshape(len(x), *self.image_shape)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """One .safetensors file with its description inside; the old file or the new one, never half of one."""
        self.check_savable()
        about = {"pmae": json.dumps(self._description(), sort_keys=True)}
        write_file(Path(path), lambda temporary: write_tensors(temporary, self._tensors(), about))

    def check_savable(self) -> None:
        """Raises ValueError for a basis of the caller's, which no file can hold."""
        if isinstance(self.basis, Custom):
            raise ValueError("a space with a custom basis cannot be saved: save what makes the basis instead")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskSpace:
        """Raises CheckpointError for what is no space file, FileNotFoundError."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such space file; `pmae fit-basis` makes one")
        try:
            with safe_open(path, framework="pt") as file:
                description = json.loads((file.metadata() or {})["pmae"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if description["format"] != FORMAT:
                raise CheckpointError(f"{path} has format {description['format']}, this version reads {FORMAT}")
            shape = tuple(description["image_shape"])
            standardizer = Standardizer(
                shape, tensors.pop("mean"), tensors.pop("std"), tensors.pop("varies"), description["standardize"]
            )
            basis = restore(description["basis"], shape, tensors, description["options"])
            return cls(standardizer, basis, description["total_variance"], description["options"])
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} is no space file, or damaged: {error}") from error

    def fingerprint(self) -> str:
        """A digest of all numbers; equal for equal spaces."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _tensors(self) -> dict[str, Tensor]:
        kept = {"mean": self.mean, "std": self.std, "varies": self.standardizer.varies, "variances": self.variances}
        kept |= dict(self.basis.named_buffers())
        if self.basis.group_of is not None:
            kept["group_of"] = self.basis.group_of
        return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "basis": self.basis_name, "image_shape": list(self.image_shape),
            "standardize": self.standardizer.mode, "total_variance": self.total_variance, "options": self.options,
        }  # fmt: skip

    def extra_repr(self) -> str:
        return f"basis={self.basis_name!r}, image_shape={self.image_shape}, n_groups={self.n_groups}"


class Hidden:
    """One mask (or one per image) made ready: the rows of the hidden components, weights and norms.

    With a stored basis and a shared mask, three products with |M| rows do all: z = V_Mᵀx, x − V_M z, and V_Mᵀx̂. Rows
    are padded with zeros (``pad``) to one of eight sizes, so that compiled code sees few shapes; zeros change nothing.
    """

    def __init__(self, space: MaskSpace, mask: Tensor, pad: bool, reduction: str, gamma: float) -> None:
        losses.check(reduction, gamma)
        mask = torch.as_tensor(mask)
        groups = mask.shape[-1] if mask.ndim else -1
        if mask.ndim not in (1, 2) or groups != space.n_groups:
            raise ShapeError(f"mask has shape {tuple(mask.shape)}: ({space.n_groups},) or (B, {space.n_groups})")
        if mask.dtype != torch.bool:
            raise ShapeError(f"mask has type {mask.dtype}: a tensor of torch.bool is needed, True = hidden")
        self.space, self.shared = space, mask.ndim == 1
        device, dtype = space.mean.device, space.mean.dtype
        cpu = space.basis.spread(mask.cpu())
        self.n = int(cpu.sum()) if self.shared else space.n_components
        size = _bucket(self.n, space.n_components) if pad else self.n
        norm = losses.norm(space.variances, cpu, reduction)
        weight = losses.weights(space.variances / space.total_variance, cpu, gamma) / norm
        unexplained = cpu / losses.norm(space.variances, cpu, "variance")
        scale = cpu.any(-1) / norm.squeeze(-1)
        if self.shared:
            index = cpu.nonzero().squeeze(1)
            self.index = index.to(device)
            weight = torch.nn.functional.pad(weight[index], (0, size - self.n))
            unexplained = torch.nn.functional.pad(unexplained[index], (0, size - self.n))
        self.mask = cpu.to(device)
        self.weight, self.unexplained = weight.to(device, dtype), unexplained.to(device, dtype)
        self.scale = scale.to(device, dtype)  # one over the norm, () or (B,)
        rows = space.basis.matrix_t() if self.shared else None
        self.rows = None
        if rows is not None:
            self.rows = rows.new_empty(size, space.dim)
            torch.index_select(rows, 0, self.index, out=self.rows[: self.n])
            self.rows[self.n :] = 0
        self.size = size

    def target(self, x_std: Tensor) -> Tensor:
        """V_Mᵀx: (B, |M|), padded if asked for; (B, K) with zeros where visible if the mask is per image."""
        with _exactly(x_std):
            return self._coefficients(self.space.flat(x_std))

    def split(self, x_std: Tensor, residual: str = "keep") -> Split:
        """What is seen and what is to be predicted."""
        if residual not in ("keep", "drop"):
            raise ValueError(f"residual={residual!r}: one of keep, drop")
        space, basis = self.space, self.space.basis
        with _exactly(x_std):
            x = space.flat(x_std)
            self._check(x)
            if not basis.linear:
                z = basis.analysis(x)
                target = z[:, self.index] if self.shared else z * self.mask
                return Split(space.image(basis.synthesis(z * ~self.mask)), self._padded(target))
            z = self._coefficients(x)
            dropped = residual == "drop" and not space.complete
            rows = basis.matrix_t()
            if self.rows is not None and rows is not None and (dropped or (space.complete and 2 * self.n > len(rows))):
                seen = rows[~self.mask]
                return Split(space.image((x @ seen.T) @ seen), z)
            visible = basis.synthesis(basis.analysis(x)) if dropped else x
            return Split(space.image(visible - self._synthesis(z)), z)

    def project(self, x_std: Tensor) -> Tensor:
        """P_M x."""
        space = self.space
        if not space.basis.linear:
            return x_std - self.split(x_std).visible
        with _exactly(x_std):
            x = space.flat(x_std)
            self._check(x)
            return space.image(self._synthesis(self._coefficients(x)))

    def loss(self, pred_std: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The component loss and the fraction of variance unexplained, scalars, means over the batch."""
        with _exactly(pred_std):
            error = (self._coefficients(self.space.flat(pred_std)) - target).square()
            return (error * self.weight).sum(1).mean(), (error * self.unexplained).sum(1).mean()

    def image_loss(self, pred_std: Tensor, x_std: Tensor) -> Tensor:
        """‖x̂ − P_M x‖² over the same norm: the hidden part as a full image target (an ablation)."""
        with _exactly(pred_std):
            error = pred_std.to(self.space.mean.dtype) - self.project(x_std)
            return (error.flatten(1).square().sum(1) * self.scale).mean()

    def _coefficients(self, x: Tensor) -> Tensor:
        self._check(x)
        if self.rows is not None:
            return x @ self.rows.T
        z = self.space.basis.analysis(x)
        return self._padded(z[:, self.index]) if self.shared else z * self.mask

    def _synthesis(self, z: Tensor) -> Tensor:
        if self.rows is not None:
            return z @ self.rows
        if self.shared:
            full = z.new_zeros(len(z), self.space.n_components)
            z = full.index_copy(1, self.index, z[:, : self.n])
        return self.space.basis.synthesis(z)

    def _padded(self, z: Tensor) -> Tensor:
        return torch.nn.functional.pad(z, (0, self.size - self.n)) if self.shared and self.size > self.n else z

    def _check(self, x: Tensor) -> None:
        if not self.shared and len(x) != len(self.mask):
            raise ShapeError(f"{len(self.mask)} masks for {len(x)} images: one, or one for each")


def _bucket(n: int, most: int) -> int:
    """The smallest of eight geometric sizes up to K that holds n rows."""
    sizes = (math.ceil(most * GROWTH**-step) for step in reversed(range(BUCKETS)))
    return next(size for size in sizes if size >= n)


def _exactly(like: Tensor) -> AbstractContextManager[Any]:
    """No autocast: a visible image rounded to bfloat16 would leak what is hidden."""
    return torch.autocast(like.device.type, enabled=False)


# --- fitting ----------------------------------------------------------------------------------------------------------


def fit_space(
    images: Any,
    basis: Any = "pca",
    standardize: str | Standardizer = "pixel",
    std_floor: float = STD_FLOOR,
    layout: str = "NCHW",
    rank: int | None = None,
    solver: str = "auto",
    chunk: int = 4096,
    fit_views: str = "clean",
    views: int = 1,
    device: str | torch.device = "cpu",
    seed: int = 0,
    max_bytes: int | None = None,
    dtype: torch.dtype = torch.float32,
    **basis_kwargs: Any,
) -> MaskSpace:
    """Fit a standardisation and a basis; images are read in chunks, on several processes each reads its share.

    Parameters
    ----------
    images : uint8 or float in [0, 1], (N, C, H, W), (N, H, W), (N, H, W, C) with layout="NHWC"; an array, tensor,
        memory map, or a map-style data set of images or (image, label)
    basis : pca, kron, patch_pca, haar_pca, truncated, dct, rotation, pixel, patch; or an object with analysis
        (B, C, H, W) → (B, K), synthesis back, and shares (K,)
    standardize : pixel, channel, global, none; or a Standardizer, so that the images are read once less
    rank : of a truncated basis; solver : auto, cov, gram, randomized, incremental
    fit_views : "clean", or "augmented": the basis (not the standardisation) is fitted on random crops and flips,
        ``views`` of each image
    max_bytes : for a dense basis; 60 % of the free memory, 16 GB at most, unless given
    dtype : float32, or float64 for exact work
    basis_kwargs : patch_size (patch), block_size and per_block (patch_pca), levels (haar_pca), color (dct)

    Raises ShapeError, DataError, BasisTooLargeError (before anything is read), ValueError.
    """
    source = as_source(images, layout)
    if isinstance(basis, str) and basis not in BASES:
        raise ValueError(
            f"basis={basis!r}: one of {', '.join(BASES)}, or an object with analysis, synthesis and shares"
        )
    if solver not in ("auto", *SOLVERS):
        raise ValueError(f"solver={solver!r}: one of auto, {', '.join(SOLVERS)}")
    if fit_views not in ("clean", "augmented"):
        raise ValueError(f"fit_views={fit_views!r}: one of clean, augmented")
    if rank is not None and not 1 <= rank <= math.prod(source.shape):
        raise ValueError(f"rank={rank}: from 1 to the {math.prod(source.shape)} coordinates of an image")
    if chunk < 1 or views < 1:
        raise ValueError(f"chunk={chunk} and views={views} have to be at least 1")
    copies = views if fit_views == "augmented" else 1
    request = Request(
        basis,
        source.shape,
        len(source) * copies,
        rank,
        solver,
        seed,
        dtype,
        max_bytes,
        torch.device(device),
        basis_kwargs,
    )
    request.check()
    if isinstance(standardize, Standardizer):
        standardizer = standardize.to(device)
        if standardizer.image_shape != source.shape:
            raise ShapeError(f"the standardizer is for {standardizer.image_shape}, the images are {source.shape}")
    else:
        # In float64, so that moments are those of the data and not of its rounding.
        standardizer = fit_standardizer(source, standardize, std_floor, layout, chunk, device, torch.float64)
    wide = standardizer.to(torch.float64)

    def batches() -> Iterator[Tensor]:
        rank_, size = rank_and_size()
        generator = torch.Generator(device).manual_seed(seed + 7919 * rank_)
        for _ in range(copies):
            for part in source.parts(chunk, rank_, size):
                part = part.to(device)
                if fit_views == "augmented":
                    from .engine.augment import random_views

                    part = random_views(part, generator)
                yield wide.standardize(part.double()).flatten(1)

    stream = Stream(batches, request.n, math.prod(source.shape), torch.device(device))
    made, total = build(request, stream)
    if not total > 0:
        raise DataError("all images are the same: there is nothing to learn")
    return MaskSpace(wide, made, total, request.options()).to(dtype)
