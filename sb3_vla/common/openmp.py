"""
How torch's threads wait for each other: without a spin. Importing this module, before torch, is all there is to do.

GNU OpenMP's threads spin at barriers as long as there seem to be enough processors. Beside another busy process that made
training up to sixty times slower on two cores (``benchmarks/speed/busy.py``), and everyone runs two seeds side by side. The
library reads the variable once, when torch is imported; a user's own setting counts.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
