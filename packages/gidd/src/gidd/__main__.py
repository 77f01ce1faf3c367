"""``python -m gidd``, and ``torchrun ... -m gidd train CONFIG``."""

from .cli import main

if __name__ == "__main__":
    main()
