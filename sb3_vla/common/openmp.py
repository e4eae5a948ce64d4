"""
How torch's threads wait for each other: without a spin. Importing this module, before torch, is all there is to do.

GNU OpenMP's threads spin at barriers as long as there seem to be enough processors. With one more busy process on the machine
that made training sixty times slower on two cores, and without one it gains little: see ``benchmarks/speed/busy.py``. The
library reads the variable once, when torch is imported; a user's own setting counts.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
