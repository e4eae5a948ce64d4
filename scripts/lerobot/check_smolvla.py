"""
Hold our SmolVLA against LeRobot's: from the same observations and the same noise both draw the same chunks.

LeRobot makes a small SmolVLA of random weights, once for each way of normalising, saves it, and writes down what it draws; we
load it, and once more what we saved ourselves. LeRobot has an environment of its own, which `make check-lerobot` makes.

    python scripts/lerobot/check_smolvla.py build/lerobot_env/bin/python results/lerobot/smolvla.json [--keep FOLDER]
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch as th
from gymnasium import spaces
from lerobot_python import on_lerobot_side, versions

from sb3_vla import VLAPolicy
from sb3_vla_envs import encode_instruction

MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY")
TOLERANCE = 1e-4
LEROBOT_SIDE = Path(__file__).with_name("lerobot_smolvla.py")


def main() -> int:
    """:return: Exit status: 1 if chunks differ"""
    parser = argparse.ArgumentParser(description="Hold our SmolVLA against LeRobot's")
    parser.add_argument("python", help="the Python that has LeRobot")
    parser.add_argument("out", type=Path, help="where to write what was found (.json)")
    parser.add_argument("--keep", type=Path, help="where to leave the first checkpoint, which our tests read")
    arguments = parser.parse_args()
    cases = {}
    for mode in MODES:
        with TemporaryDirectory() as name:
            folder = Path(name)
            on_lerobot_side(arguments.python, LEROBOT_SIDE, folder / "made", mode)
            cases[mode] = check(folder / "made", folder / "policy.pt")
            if arguments.keep is not None and mode == MODES[0]:
                shutil.copytree(folder / "made", arguments.keep, dirs_exist_ok=True)
        print(f"{mode}: {cases[mode]}")
    passed = all(difference < TOLERANCE for case in cases.values() for difference in case.values())
    names = ("torch", "transformers", "safetensors")
    result = {
        "passed": passed,
        "tolerance": TOLERANCE,
        "versions": {
            "LeRobot's": versions(arguments.python, "lerobot", *names),
            "ours": versions(sys.executable, "sb3-vla", *names),
        },
        "max_difference_of_chunks": cases,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def check(checkpoint: Path, saved: Path) -> dict[str, float]:
    """
    :param checkpoint: What LeRobot made
    :param saved: Where to save our policy
    :return: How far our chunks are from LeRobot's, as loaded, and as saved by us and loaded again
    """
    expected = dict(np.load(checkpoint / "expected.npz"))
    instructions = [encode_instruction(str(prompt), 64) for prompt in expected["prompts"]]
    observation = {
        **{key: expected[key].transpose(0, 3, 1, 2) for key in ("image", "image_wrist")},
        "state": expected["state"],
        "instruction": np.stack(instructions),
    }
    policy = VLAPolicy(
        spaces.Dict({key: space_of(values[0]) for key, values in observation.items()}),
        spaces.Box(-1, 1, expected["chunk"].shape[1:], np.float32),
        lambda _: 0.0,
        backbone=str(checkpoint),
        backbone_kwargs={"vlm": str(checkpoint / "vlm")},
        head="flow",
        head_kwargs={"n_flow_steps": int(expected["n_steps"])},
    )
    policy.save(str(saved))
    policies = {"loaded": policy, "saved_and_loaded_again": VLAPolicy.load(str(saved))}
    return {name: difference(each, observation, expected) for name, each in policies.items()}


def space_of(values: np.ndarray) -> spaces.Box:
    """
    :param values: An observation
    :return: Where it is from
    """
    low, high = (0, 255) if values.dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, values.shape, values.dtype.type)


def difference(policy: VLAPolicy, observation: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """
    :param policy: Our policy
    :param observation: What it sees
    :param expected: What LeRobot drew of it, and from what noise
    :return: The largest difference of a number of an action
    """
    with th.no_grad():
        tensors, _ = policy.obs_to_tensor(observation)
        distribution = policy.get_distribution(tensors)
        chunk = distribution.to_env(distribution.follow(th.as_tensor(expected["noise"])))
    return float(np.abs(chunk.numpy() - expected["chunk"]).max())


if __name__ == "__main__":
    sys.exit(main())
