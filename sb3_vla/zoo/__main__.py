"""``python -m sb3_vla.zoo``."""

from .launcher import main

if __name__ == "__main__":
    main()
