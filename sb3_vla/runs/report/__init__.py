"""``sb3-vla report``: runs, seeds and experiments on one page."""
