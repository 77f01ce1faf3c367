"""Random crops and flips of a batch, on its device.

torchvision draws one crop per call. Here every image has its own: a crop that is resized is a linear map of the rows
and another of the columns, so that a batch is two batched matrix products. The weights are those of Pillow and of
torchvision with ``antialias=True``: bicubic, widened by the factor of shrinking, nothing from outside of the box.
"""

from __future__ import annotations

import torch
from torch import Tensor

CUBIC = -0.5  # free parameter of the cubic kernel (Keys 1981); Pillow's
TRIES = 10  # as torchvision: draws of a box before the middle of the image is taken


def random_views(
    images: Tensor,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Float32 (B, C, height, width) in [0, 1]: a random box of each image, resized; half of them mirrored.

    images : uint8 or float in [0, 1], (B, C, H, W)
    generator : on any device; all that is random comes from it
    scale, ratio : bounds of the box's share of the area, and of its width over height
    size : of the views; None is that of the images
    """
    boxes = random_boxes(len(images), (images.shape[-2], images.shape[-1]), generator, scale, ratio)
    flips = torch.rand(len(images), generator=generator, device=generator.device) < (0.5 if flip else 0.0)
    return crop_resize(images, boxes, flips, size)


def random_boxes(
    n: int,
    image_size: tuple[int, int],
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Float32 (n, 4) of whole numbers: top, left, height, width, on the generator's device.

    The law of torchvision's RandomResizedCrop: area uniform, log aspect uniform, drawn again if the box is larger than
    the image; after ten draws the largest box in the middle whose aspect is allowed. Raises ValueError.
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"scale={scale}, ratio={ratio}: 0 < low <= high, and a scale of at most 1")
    height, width = image_size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device)

    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform(n, TRIES))
    low, high = torch.tensor(ratio).log().tolist()
    aspect = (low + (high - low) * uniform(n, TRIES)).exp()
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = w.gather(1, first).squeeze(1), h.gather(1, first).squeeze(1)
    top = (uniform(n) * (height - h + 1)).floor().minimum(height - h)
    left = (uniform(n) * (width - w + 1)).floor().minimum(width - w)
    middle_h, middle_w = min(height, round(width / ratio[0])), min(width, round(height * ratio[1]))
    middle = torch.tensor(
        [(height - middle_h) // 2, (width - middle_w) // 2, middle_h, middle_w], device=w.device, dtype=w.dtype
    )
    return torch.where(fits.any(1, keepdim=True), torch.stack([top, left, h, w], 1), middle)


def crop_resize(
    images: Tensor, boxes: Tensor, flips: Tensor | None = None, size: int | tuple[int, int] | None = None
) -> Tensor:
    """Float32 (B, C, height, width) in [0, 1]: the box of each image, resized and, where ``flips``, mirrored.

    images : uint8 or float in [0, 1], (B, C, H, W)
    boxes : (B, 4): top, left, height, width in pixels, within the image; fractions are allowed
    flips : bool (B,)
    """
    height, width = images.shape[-2:] if size is None else (size, size) if isinstance(size, int) else size
    boxes = boxes.to(images.device, torch.float32, non_blocking=True)
    with torch.autocast(images.device.type, enabled=False):
        rows = resize_weights(boxes[:, 0], boxes[:, 2], images.shape[-2], height)
        columns = resize_weights(boxes[:, 1], boxes[:, 3], images.shape[-1], width)
        if flips is not None:
            flips = flips.to(images.device, non_blocking=True)
            columns = torch.where(flips[:, None, None], columns.flip(1), columns)
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        views = rows[:, None] @ pixels @ columns[:, None].mT
    return views.clamp_(0, 1)  # the cubic overshoots at edges


def resize_weights(start: Tensor, length: Tensor, old: int, new: int) -> Tensor:
    """(B, new, old): weights of ``old`` pixels in each of ``new`` pixels that divide [start, start + length] evenly."""
    step = (length / new)[:, None, None]
    wide = step.clamp(min=1)  # shrinking: the kernel covers all pixels that fall into a new one
    at = torch.arange(old, device=start.device) + 0.5
    centre = start[:, None, None] + step * (torch.arange(new, device=start.device)[:, None] + 0.5)
    within = (at > start[:, None, None]) & (at < (start + length)[:, None, None])
    weights = cubic((at - centre) / wide) * within
    return weights / weights.sum(-1, keepdim=True)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, 0 beyond ±2."""
    x, a = x.abs(), CUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
