"""Who acts in the environments: the policy of a rollout."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_vla_envs.demonstrations import ARRAY_KEY

from ..common.device_transfer import observations_to_device
from ..common.random_source import drawing_from
from ..policies.adapter import PolicyAdapter, RolloutStep
from ..policies.finite import check_actions
from .finite import check_last_observation


class EnvStep(NamedTuple):
    """
    A step of all environments.

    :param observations: What was seen before it, by key, before ``VecNormalize``
    :param sampled: What the policy made of it
    :param actions: The policy's, before clipping
    :param clipped_actions: What the environments got
    :param original_rewards: ``(n_envs,)``, before ``VecNormalize``
    :param new_obs: What came of it, as SB3 has it, and so for those below
    :param rewards: ``(n_envs,)``
    :param dones: ``(n_envs,)``
    :param infos: One an environment
    """

    observations: dict[str, np.ndarray]
    sampled: RolloutStep
    actions: np.ndarray
    clipped_actions: np.ndarray
    original_rewards: np.ndarray
    new_obs: Any
    rewards: np.ndarray
    dones: np.ndarray
    infos: list[dict[str, Any]]


class Actor:
    """
    Lets a policy act in environments, and says what it expects there.

    :param env: The environments
    :param adapter: Of the policy
    :param use_sde: Whether it explores by generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Steps between two noise matrices of gSDE, -1 for one a rollout
    :param generator: What the actions are drawn with, by default torch's global one
    """

    def __init__(
        self,
        env: VecEnv,
        adapter: PolicyAdapter,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        generator: th.Generator | None = None,
    ) -> None:
        self.env = env
        self.adapter = adapter
        self.use_sde = use_sde
        self.sde_sample_freq = sde_sample_freq
        self.generator = generator
        #: Observations that the policy reads
        self.read_keys: Collection[str] = tuple(getattr(adapter.read_space, "spaces", (ARRAY_KEY,)))
        self._normalizer = unwrap_vec_normalize(env)

    @property
    def value_keys(self) -> Collection[str]:
        """Those of them that its value function reads."""
        return self.adapter.critic_keys or self.read_keys

    def begin(self) -> None:
        """Get ready for a rollout."""
        if self.use_sde:
            self._sample_noise_matrix()

    def steps(self, obs: Any, n_steps: int) -> Iterator[EnvStep]:
        """
        :param obs: What the environments have shown last
        :param n_steps: Number of steps
        :return: Iterator over them, each of which is taken when it is asked for
        :raises FloatingPointError: If the policy chooses what is not finite
        """
        for number in range(n_steps):
            if self.use_sde and self.sde_sample_freq > 0 and number % self.sde_sample_freq == 0:
                self._sample_noise_matrix()
            with th.no_grad():
                sampled = self.adapter.act(self._to_tensors(obs, self.read_keys), self.generator)
            actions = sampled.actions.cpu().numpy()
            check_actions(actions, self.adapter.policy)
            clipped_actions = self._to_env_actions(actions)
            observations = self._original_observations(obs)
            obs, rewards, dones, infos = self.env.step(clipped_actions)
            infos = list(infos) or [{} for _ in range(self.env.num_envs)]
            original_rewards = rewards if self._normalizer is None else self._normalizer.get_original_reward()
            yield EnvStep(observations, sampled, actions, clipped_actions, original_rewards, obs, rewards, dones, infos)

    def values(self, obs: Any) -> th.Tensor:
        """
        :param obs: Observations of all environments
        :return: What the policy expects, ``(n_envs, 1)``
        """
        with th.no_grad():
            return self.adapter.policy.predict_values(self._to_tensors(obs, self.value_keys))

    def last_value(self, info: dict[str, Any], env_number: int) -> th.Tensor | None:
        """
        :param info: Of the step that ended an episode
        :param env_number: Of the environment
        :return: What the policy expects of the last observation if a time limit ended the episode, else ``None``
        :raises FloatingPointError: If that observation is not finite
        """
        seen = info.get("terminal_observation")
        if seen is None or not info.get("TimeLimit.truncated", False):
            return None
        check_last_observation(seen, env_number, info, self.value_keys)
        if isinstance(seen, dict):
            seen = {key: seen[key] for key in self.value_keys}
        policy = self.adapter.policy
        with th.no_grad():
            return policy.predict_values(policy.obs_to_tensor(seen)[0])[0]  # type: ignore[arg-type]

    def _sample_noise_matrix(self) -> None:
        with th.no_grad(), drawing_from(self.generator):
            self.adapter.policy.reset_noise(self.env.num_envs)

    def _original_observations(self, obs: Any) -> dict[str, np.ndarray]:
        """
        :param obs: What the environments have shown last
        :return: What the policy reads of it, by key, before ``VecNormalize``, whose statistics go on changing
        """
        if self._normalizer is not None and self._normalizer.norm_obs:
            obs = self._normalizer.get_original_obs()
        return {key: obs[key] for key in self.read_keys} if isinstance(obs, dict) else {ARRAY_KEY: obs}

    def _to_tensors(self, obs: Any, keys: Collection[str]) -> PyTorchObs:
        """
        :param obs: Observations of all environments
        :param keys: Of a dictionary of them what is read
        :return: The same where the policy reads it
        """
        device = self.adapter.policy.device
        if not isinstance(obs, dict):
            return obs_as_tensor(obs, device)
        return observations_to_device({key: obs[key] for key in keys}, device, self.adapter.host_keys)

    def _to_env_actions(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: As the policy draws them
        :return: Within the environment's bounds
        """
        policy = self.adapter.policy
        if not isinstance(policy.action_space, spaces.Box):
            return actions
        if policy.squash_output:
            # Unscale the actions to match env bounds if they were previously squashed (scaled in [-1, 1])
            return policy.unscale_action(actions)
        # Otherwise, clip the actions to avoid out of bound error as we are sampling from an unbounded Gaussian distribution
        return np.clip(actions, policy.action_space.low, policy.action_space.high)
