"""LeRobot datasets by a configuration: read, and written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym

from sb3_vla_envs import Demonstration, load_demonstrations, make_vla_env, read_lerobot, save_demonstrations, write_lerobot
from sb3_vla_envs.suite import get_suite

from .checks import check_tasks, refusals
from .config import Config


def import_lerobot(config: Config, folder: str | Path, path: str | Path) -> list[Demonstration]:
    """
    Read the demonstrations of a LeRobot dataset that fit the configuration's environment, and save them.

    :param config: Configuration
    :param folder: The dataset
    :param path: Where to write
    :return: The demonstrations
    :raises FileNotFoundError: If a file of the dataset is missing
    :raises ValueError: If the dataset does not fit the environment, or is damaged, or two tasks have an instruction in common
    """
    suite, settings = get_suite(config.suite), dict(vars(config.lerobot))
    del settings["use_videos"]
    named = settings.pop("tasks") or {}
    unknown = sorted({*named.values()} - {*config.tasks})
    if unknown:
        raise ValueError(f"lerobot.tasks names the tasks {unknown}, but those of this run are {', '.join(config.tasks)}")
    texts: dict[str, str] = {}
    for task in config.tasks:
        for text in (task, *suite.instructions(task)):
            if texts.setdefault(text, task) != task and text not in named:
                raise ValueError(
                    f"{text!r} is an instruction of both {texts[text]!r} and {task!r}: say in lerobot.tasks which of them the "
                    "dataset means by it, or read one task at a time"
                )
    with _environment(config) as env:
        settings["fps"] = settings["fps"] or _steps_a_second(env)
        demonstrations = read_lerobot(
            folder,
            env.observation_space,
            env.action_space,
            tasks={**texts, **named},
            # What the environment will say, whatever the dataset's wording is
            instructions={task: suite.instructions(task)[0] for task in config.tasks},
            every_step=config.demos.every_step,
            **settings,
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_demonstrations(path, demonstrations)
    return load_demonstrations(path)


def export_lerobot(config: Config, demonstrations: Sequence[Demonstration], folder: str | Path) -> None:
    """
    Write demonstrations as a LeRobot dataset, at the frame rate of the configuration's environment.

    :param config: Configuration
    :param demonstrations: The demonstrations
    :param folder: Where to write, new or empty
    :raises FileExistsError: If the folder holds something
    :raises ValueError: If there are no demonstrations, or some are not of the configuration's tasks
    """
    check_tasks(config, demonstrations)
    with _environment(config) as env:
        fps = config.lerobot.fps or _steps_a_second(env)
    steps_a_frame = max((int(demo.chunk_lengths.max()) for demo in demonstrations), default=1)
    write_lerobot(
        folder, demonstrations, fps=fps / steps_a_frame, keys=config.lerobot.keys, use_videos=config.lerobot.use_videos
    )


@contextmanager
def _environment(config: Config) -> Iterator[gym.Env]:
    """The configuration's environment, which shows spaces and frame rate."""
    with refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **config.env_settings())
    try:
        yield env
    finally:
        env.close()


def _steps_a_second(env: gym.Env) -> float:
    """
    :param env: An environment, wrapped or not
    :return: Primitive steps a second
    """
    return float(env.unwrapped.metadata["render_fps"])
