import pmae.models  # noqa: F401 (before a test imports timm, torchvision or transformers: see torchvision_operators)
