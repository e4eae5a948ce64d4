"""What the environments of a vectorised one go on from in another process."""

from collections.abc import Sequence

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from .env_state import EnvState, get_env_state, set_env_state
from .worker_vec_env import WorkerVecEnv


def get_states(venv: VecEnv) -> list[EnvState]:
    """
    :param venv: A vectorised environment, without what is wrapped around it
    :return: What each of its environments goes on from
    :raises NotImplementedError: If they can't tell
    """
    if isinstance(venv, WorkerVecEnv):
        return venv.get_states()
    if isinstance(venv, DummyVecEnv):
        return [get_env_state(env) for env in venv.envs]
    raise NotImplementedError(f"{type(venv).__name__} can't tell the states of its environments")


def set_states(venv: VecEnv, states: Sequence[EnvState]) -> None:
    """
    :param venv: A vectorised environment like the one that the states are of
    :param states: What :func:`get_states` returned
    :raises NotImplementedError: If its environments can't go on from a state
    :raises ValueError: If they are others, or not as many
    """
    if len(states) != venv.num_envs:
        raise ValueError(f"there are states of {len(states)} environments for {venv.num_envs}")
    if isinstance(venv, WorkerVecEnv):
        venv.set_states(states)
    elif isinstance(venv, DummyVecEnv):
        for env, state in zip(venv.envs, states, strict=True):
            set_env_state(env, state)
    else:
        raise NotImplementedError(f"{type(venv).__name__} can't let its environments go on from a state")
