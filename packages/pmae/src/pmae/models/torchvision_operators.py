"""Lets timm be imported where torchvision's compiled operators do not match the installed torch.

timm needs torchvision's Python code only. A torchvision built for CUDA beside a torch built for the CPU, which is what
package mirrors often give, fails to load its operators and then stops its own import because they are not declared.
"""

from importlib import import_module

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # a library's declarations live as long as it does


def declare_missing() -> None:
    """Import torchvision, declaring the operators whose absence stops that import; calling them still fails."""
    global _library
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            _library.define(schema)  # type: ignore[no-untyped-call]
        import_module("torchvision")
