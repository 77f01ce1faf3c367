"""``python -m onestep_diffusion``"""

from .cli import main

if __name__ == "__main__":
    main()
