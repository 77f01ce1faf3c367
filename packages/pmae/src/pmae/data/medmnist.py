"""MedMNIST v2, at 28 to 224 pixels: twelve sets of biomedical images in 2-D (Yang et al. 2023), read from npz files."""

from __future__ import annotations

from pathlib import Path

from ..errors import MissingSourceError
from .arrays import read_npz
from .imageset import ImageSet, pair

HOME = Path("~/.medmnist")  # where the medmnist package keeps them
SIZES = (28, 64, 128, 224)
_ORGANS = [
    "bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver", "left lung", "right lung",
    "pancreas", "spleen",
]  # fmt: skip
CLASSES = {
    "pathmnist": ["adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal mucosa",
                  "cancer-associated stroma", "adenocarcinoma epithelium"],
    "chestmnist": ["atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
                   "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"],
    "dermamnist": ["actinic keratosis", "basal cell carcinoma", "benign keratosis", "dermatofibroma", "melanoma",
                   "melanocytic nevus", "vascular lesion"],
    "octmnist": ["choroidal neovascularization", "diabetic macular edema", "drusen", "normal"],
    "pneumoniamnist": ["normal", "pneumonia"],
    "retinamnist": ["0", "1", "2", "3", "4"],
    "breastmnist": ["malignant", "normal or benign"],
    "bloodmnist": ["basophil", "eosinophil", "erythroblast", "immature granulocyte", "lymphocyte", "monocyte",
                   "neutrophil", "platelet"],
    "tissuemnist": ["collecting duct", "distal convoluted tubule", "glomerular endothelium",
                    "interstitial endothelium", "leukocyte", "podocyte", "proximal tubule", "thick ascending limb"],
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip


def obtain(name: str) -> str:
    """How to get the files."""
    return (
        f"download {name}.npz (28 pixels) or {name}_64.npz (also _128, _224) from https://zenodo.org/records/10519652 "
        f"into ~/.medmnist, or give the file or its folder: {name}:PATH"
    )


def read(name: str, split: str, path: Path | None = None, size: int | tuple[int, int] | None = None) -> ImageSet:
    """A set from its file, from a folder of such files, or from ~/.medmnist.

    size : of a folder's files the smallest is taken whose images are as large, else the largest; None is the smallest
    Raises MissingSourceError, DataError.
    """
    home = (path or HOME).expanduser()
    file = home if home.is_file() else _choose(name, home, 0 if size is None else max(pair(size)))
    found = read_npz(split, file, layout="NHWC", name=name)
    return ImageSet(found.images, found.labels, CLASSES[name], name)


def _choose(name: str, home: Path, least: int) -> Path:
    files = {size: home / (f"{name}.npz" if size == 28 else f"{name}_{size}.npz") for size in SIZES}
    files = {size: file for size, file in files.items() if file.is_file()}
    if not files:
        raise MissingSourceError(f"{name}: no {name}.npz in {home}: {obtain(name)}")
    return next((file for size, file in files.items() if size >= least), files[max(files)])
