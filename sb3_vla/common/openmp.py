"""
Torch's threads spin briefly while they wait for each other. Importing this module, before torch, is all there is to do.

GNU OpenMP's threads spin at barriers for long as long as there seem to be enough processors. Beside another busy process that
made training up to ninety times slower on two cores (``benchmarks/speed/busy.py``), and everyone runs two seeds side by side.
Not to spin at all (``OMP_WAIT_POLICY=passive``) takes a process that is alone 1.6 times as long, as a sleeping thread is slow
to wake. The library reads the variables once, when torch is imported; a user's own setting counts.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "4000"
