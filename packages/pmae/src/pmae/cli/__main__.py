"""``torchrun --nproc-per-node 8 -m pmae.cli pretrain ...``"""

from . import main

if __name__ == "__main__":
    main()
