"""Saves checkpoints of a growing training for ever, and says after each that it is saved: python writer.py FOLDER"""

import itertools
import sys
from pathlib import Path

from run_settings import settings

from sb3_vla import PPOSelfBC
from sb3_vla.runs.checkpoint import save_checkpoint
from sb3_vla.runs.config import load_config
from sb3_vla.vec_env.make import make_vla_vec_env
from sb3_vla_envs.durable_files import replace_text


def main() -> None:
    """Write until something stops it."""
    folder = Path(sys.argv[1])
    config = load_config(None, **settings(100))
    venv = make_vla_vec_env(config.tasks, 1, suite=config.suite, **config.training_env_settings())
    arguments = {**config.train.model_arguments(), "policy_kwargs": dict(vars(config.policy))}
    model = PPOSelfBC("VLAPolicy", venv, gamma=config.wrapping.gamma, device="cpu", **arguments)
    print("ready", flush=True)
    for number in itertools.count(1):
        model.num_timesteps = number
        save_checkpoint(model, folder / "checkpoints")
        model.save(folder / "model.zip")
        replace_text(folder / "results.json", f'{{"number": {number}}}\n')
        print(number, flush=True)


if __name__ == "__main__":
    main()
