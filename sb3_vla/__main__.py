"""``python -m sb3_vla`` is ``sb3-vla``, for launchers that start modules: ``torchrun --nproc-per-node 2 -m sb3_vla train``."""

import sys

from .runs.cli import main

if __name__ == "__main__":
    sys.exit(main())
