"""What ``enjoy`` and the films of the zoo show: captioned pictures, success and primitive steps."""

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.wrappers import HumanRendering
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_vla_envs import EpisodeCaption
from sb3_vla_envs.wrappers.episode_progress import EpisodeProgress

from .environment import env_creator, wrapper_entries

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
        if show and "rgb_array" in getattr(env_creator(env_id), "metadata", {}).get("render_modes", []):
            _require_screen()
            # The zoo asks for "human", which has no captions and which many environments don't know
            env_kwargs["render_mode"] = "rgb_array"
        if env_kwargs.get("render_mode") == "rgb_array":
            # Inside the other wrappers, so that a chunk's single steps show where a wrapper makes the chunks
            shown = [EpisodeCaption, *([HumanRendering] if show else [])]
            hyperparams["env_wrapper"] = [*shown, *wrapper_entries(hyperparams)]
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
        self._running = [EpisodeProgress() for _ in range(self.num_envs)]
        self._ended: list[EpisodeProgress] = []

    def reset(self) -> VecEnvObs:
        """:return: Observations"""
        self._running = [EpisodeProgress() for _ in range(self.num_envs)]
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """:return: Observations, rewards, dones, infos"""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i, (done, info) in enumerate(zip(dones, infos, strict=True)):
            episode = self._running[i]
            episode.add(info)
            if done:
                self._running[i] = EpisodeProgress()
                self._ended.append(episode)
                print(f"{info['task']}: {_how_it_ended(episode)}" if "task" in info else _how_it_ended(episode))
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Print the summary and release the environments."""
        reported = [episode for episode in self._ended if episode.success is not None]
        successes = [episode.steps_to_success for episode in reported if episode.steps_to_success is not None]
        if reported:
            mean = f", after {np.mean(successes):.1f} primitive steps on average" if successes else ""
            print(f"Success in {len(successes)} of {len(reported)} episodes{mean}")
        elif self._ended:
            print(f"{np.mean([episode.steps for episode in self._ended]):.1f} primitive steps an episode")
        self._ended = []
        super().close()


def _how_it_ended(episode: EpisodeProgress) -> str:
    if episode.steps_to_success is not None:
        return f"success after {episode.steps_to_success} primitive steps"
    return f"{'' if episode.success is None else 'no success in '}{episode.steps} primitive steps"


def _require_screen() -> None:
    names = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in names):
        raise RuntimeError("there is no screen to show the episodes on: use --no-render, or record_video in place of enjoy")
