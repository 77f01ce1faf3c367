"""``python -m dars``."""

from .cli import main

main()
