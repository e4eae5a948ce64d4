"""What ``enjoy`` and the films of the zoo show: captioned pictures, success and primitive steps."""

import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.wrappers import HumanRendering
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_vla_envs import EpisodeCaption

CreateTestEnv = Callable[..., VecEnv]


def watched(create_test_env: CreateTestEnv, in_a_window: bool, report: bool) -> CreateTestEnv:
    """
    :param create_test_env: The zoo's function of that name
    :param in_a_window: Whether pictures are for the screen; else they are for a film
    :param report: Whether to print how each episode ends
    :return: A function that does the same, with captions on pictures
    """

    def create_watched_env(
        env_id: str,
        *args: Any,
        should_render: bool = True,
        hyperparams: dict[str, Any] | None = None,
        env_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> VecEnv:
        hyperparams, env_kwargs = dict(hyperparams or {}), dict(env_kwargs or {})
        show = should_render and in_a_window
        if show and "rgb_array" in _render_modes(env_id):
            _require_screen()
            # The zoo asks for "human", which has no captions and which many environments don't know
            env_kwargs["render_mode"] = "rgb_array"
        if env_kwargs.get("render_mode") == "rgb_array":
            # Inside the other wrappers, so that a chunk's single steps show where a wrapper makes the chunks
            wrappers = hyperparams.get("env_wrapper") or []
            wrappers = wrappers if isinstance(wrappers, list) else [wrappers]
            hyperparams["env_wrapper"] = [EpisodeCaption, *([HumanRendering] if show else []), *wrappers]
        env = create_test_env(
            env_id, *args, should_render=should_render, hyperparams=hyperparams, env_kwargs=env_kwargs, **kwargs
        )
        return EpisodeReport(env) if report else env

    return create_watched_env


class EpisodeReport(VecEnvWrapper):
    """
    Prints how each episode ends, in primitive steps, and a summary when it is closed.

    :param venv: Environments; ``info`` may have ``chunk_length``, ``task``, ``is_success`` and ``steps_to_success``
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self._steps = np.zeros(self.num_envs, dtype=int)
        self._lengths: list[int] = []
        self._steps_to_success: list[int | None] = []

    def reset(self) -> VecEnvObs:
        """:return: Observations"""
        self._steps[:] = 0
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """:return: Observations, rewards, dones, infos"""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i, (done, info) in enumerate(zip(dones, infos, strict=True)):
            self._steps[i] += info.get("chunk_length", 1)
            if done:
                self._end_episode(int(self._steps[i]), info)
                self._steps[i] = 0
        return observations, rewards, dones, infos

    def _end_episode(self, steps: int, info: dict[str, Any]) -> None:
        self._lengths.append(steps)
        name = f"{info['task']}: " if "task" in info else ""
        if "is_success" not in info:
            print(f"{name}{steps} primitive steps")
            return
        to_success = int(info.get("steps_to_success", steps)) if info["is_success"] else None
        self._steps_to_success.append(to_success)
        end = f"no success in {steps}" if to_success is None else f"success after {to_success}"
        print(f"{name}{end} primitive steps")

    def close(self) -> None:
        """Print the summary and release the environments."""
        successes = [steps for steps in self._steps_to_success if steps is not None]
        if self._steps_to_success:
            mean = f", after {np.mean(successes):.1f} primitive steps on average" if successes else ""
            print(f"Success in {len(successes)} of {len(self._steps_to_success)} episodes{mean}")
        elif self._lengths:
            print(f"{np.mean(self._lengths):.1f} primitive steps an episode")
        self._lengths, self._steps_to_success = [], []
        super().close()


def _render_modes(env_id: str) -> list[str]:
    entry_point = gym.spec(env_id).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return list(getattr(creator, "metadata", {}).get("render_modes", []))


def _require_screen() -> None:
    names = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in names):
        raise RuntimeError("there is no screen to show the episodes on: use --no-render, or record_video in place of enjoy")
