"""
Hold our LeRobot datasets against LeRobot itself: it opens what we write, and we open what it writes.

Demonstrations of MetaWorld, of single steps and of chunks, are written with videos and with PNG pictures, by us and by
LeRobot, and both datasets are read by both. LeRobot needs Python 3.12 and other versions of torch and NumPy than ours, so it
has an environment of its own, which `make check-lerobot` makes.

    python scripts/lerobot/check_datasets.py build/lerobot_env/bin/python results/lerobot/datasets.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot_python import on_lerobot_side, versions

from sb3_vla_envs import Demonstration, collect_demonstrations, decode_instruction, make_vla_env, read_lerobot, write_lerobot
from sb3_vla_envs.lerobot.metadata import feature_name

TASKS = ("drawer-close-v3", "handle-press-v3")
CAMERAS = ({"name": "corner4", "height": 96, "width": 96}, {"name": "gripperPOV", "height": 64, "width": 64})
CHUNK_SIZE = 8
FPS = 80
LIBRARIES = ("av", "pyarrow", "numpy")
LEROBOT_SIDE = Path(__file__).with_name("lerobot_datasets.py")


def main() -> int:
    """:return: Exit status: 1 if something differs that must not"""
    parser = argparse.ArgumentParser(description="Hold our LeRobot datasets against LeRobot itself")
    parser.add_argument("python", help="the Python that has LeRobot")
    parser.add_argument("out", type=Path, help="where to write what was found (.json)")
    arguments = parser.parse_args()
    cases: dict[str, Any] = {}
    settings: dict[str, Any] = {"cameras": CAMERAS, "chunk_size": CHUNK_SIZE, "privileged": False}
    env = make_vla_env(TASKS, **settings)
    for every_step in (True, False):
        demos = collect_demonstrations(TASKS, 2, every_step=every_step, progress=False, **settings)
        for use_videos in (True, False):
            name = f"{'steps' if every_step else 'chunks'}, {'videos' if use_videos else 'pictures'}"
            with TemporaryDirectory() as folder:
                cases[name] = check(demos, env, every_step, use_videos, arguments.python, Path(folder))
            print(f"{name}: {'as it should be' if cases[name]['passed'] else 'NOT as it should be'}")
    env.close()
    result = {
        "passed": all(case["passed"] for case in cases.values()),
        "versions": {
            "LeRobot's": versions(arguments.python, "lerobot", *LIBRARIES),
            "ours": versions(sys.executable, "sb3-vla", *LIBRARIES),
        },
        "tasks": TASKS,
        "cases": cases,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["passed"] else 1


def check(
    demos: Sequence[Demonstration], env: gym.Env, every_step: bool, use_videos: bool, python: str, folder: Path
) -> dict[str, Any]:
    """
    :param demos: What is written
    :param env: Environment with their spaces
    :param every_step: Whether they are of single steps
    :param use_videos: Whether their pictures become videos
    :param python: The Python that has LeRobot
    :param folder: Where to write
    :return: What was found
    """
    written = as_arrays(demos)
    fps = FPS if every_step else FPS // CHUNK_SIZE
    write_lerobot(folder / "by_us", demos, fps=fps, use_videos=use_videos)
    info = json.loads((folder / "by_us/meta/info.json").read_text(encoding="utf-8"))
    np.savez(folder / "written.npz", **written, info=json.dumps(info))
    on_lerobot_side(python, LEROBOT_SIDE, "write", folder / "by_lerobot", folder / "written.npz")
    found: dict[str, Any] = {"episodes": len(demos), "frames": len(written["task"]), "passed": True}
    for writer in ("by_us", "by_lerobot"):
        on_lerobot_side(python, LEROBOT_SIDE, "read", folder / writer, folder / "read.npz")
        theirs = dict(np.load(folder / "read.npz"))
        ours = as_arrays(
            list(read_lerobot(folder / writer, env.observation_space, env.action_space, fps=FPS, every_step=every_step))
        )
        found[writer] = {
            "numbers_and_texts_equal": all(
                np.array_equal(np.squeeze(read[name]), np.squeeze(written[name]))
                for name in written
                for read in (ours, theirs)
                if not is_picture(written[name])
            ),
            "pictures": {
                name: {
                    "max_between_readers": difference(ours[name], theirs[name]).max().item(),
                    "max_from_written": difference(ours[name], written[name]).max().item(),
                    "mean_from_written": round(difference(ours[name], written[name]).mean().item(), 3),
                }
                for name in written
                if is_picture(written[name])
            },
        }
        found["passed"] &= found[writer]["numbers_and_texts_equal"]
        for picture in found[writer]["pictures"].values():
            found["passed"] &= picture["max_between_readers"] == 0 and (use_videos or picture["max_from_written"] == 0)
    found["max_relative_difference_of_statistics"] = statistics_difference(folder)
    found["passed"] &= found["max_relative_difference_of_statistics"] < 1e-4
    return found


def as_arrays(demos: Sequence[Demonstration]) -> dict[str, np.ndarray]:
    """
    :param demos: Some demonstrations
    :return: What their frames have, one after the other, by LeRobot's names
    """
    keys = [key for key in demos[0].observations if key != "instruction"]
    arrays = {feature_name(key): np.concatenate([demo.observations[key] for demo in demos]) for key in keys}
    actions = np.concatenate([demo.actions for demo in demos])
    if actions.shape[1] > 1:
        arrays["chunk_length"] = np.concatenate([demo.chunk_lengths for demo in demos])
    lengths = [len(demo) for demo in demos]
    succeeded = [np.arange(1, n + 1) == n * demo.success for n, demo in zip(lengths, demos, strict=True)]
    return {
        **arrays,
        "action": actions[:, 0] if actions.shape[1] == 1 else actions,
        "next.success": np.concatenate(succeeded),
        "episode_index": np.repeat(np.arange(len(demos)), lengths),
        "task": np.repeat([decode_instruction(demo.observations["instruction"][0]) for demo in demos], lengths),
    }


def is_picture(values: np.ndarray) -> bool:
    """
    :param values: ``(frames, ...)``
    :return: Whether each is a picture
    """
    return values.ndim == 4 and values.dtype == np.uint8


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """
    :param a: Pictures
    :param b: Others of the same shape
    :return: By how much they differ, in steps of 1/255
    """
    return np.abs(a.astype(np.int16) - b)


def statistics_difference(folder: Path) -> float:
    """
    :param folder: Where both datasets are
    :return: By how much the statistics of actions and states differ, as a part of the standard deviations
    """
    ours, theirs = (
        json.loads((folder / writer / "meta/stats.json").read_text(encoding="utf-8")) for writer in ("by_us", "by_lerobot")
    )
    return max(
        (np.abs(np.subtract(ours[name][kind], theirs[name][kind])) / np.maximum(ours[name]["std"], 1e-3)).max().item()
        for name in ("action", "observation.state")
        for kind in ("min", "max", "mean", "std")
    )


if __name__ == "__main__":
    sys.exit(main())
