"""``sb3-vla memory``: what post-training by a configuration will take."""

import math

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_vla_envs import make_vla_env
from sb3_vla_envs.suite import get_suite

from ..policies.backbones import without_weights
from ..policies.observation_checks import is_image_key
from ..ppo_self_bc.bc_weight import make_bc_weight
from ..ppo_self_bc.memory_estimate import MemoryEstimate, MemoryEstimator
from .checks import refusals
from .config import Config

#: GiB of the devices that a micro-batch is named for
DEVICES = (8, 16, 24, 48, 80)
_ROWS = {
    "parameters": "weights",
    "gradients": "gradients",
    "optimizer": "state of the optimizer",
    "update": "an update beside them: minibatch, activations",
    "acting": "or a step of the rollout",
    "encoded": "what frozen parts make of the rollout",
    "cache": "and of the demonstrations",
    "device": "all on the device",
    "rollout": "rollout buffer",
    "demonstrations": "demonstration buffer",
    "making": "or float32 weights while the model is made",
    "host": "all in the machine's memory",
    "without_gpu": "all together, without a GPU",
}


def estimator_of(config: Config, n_cameras: int | None = None) -> MemoryEstimator:
    """
    :param config: Configuration of ``sb3-vla train --init``
    :param n_cameras: Number of cameras, all like the first one; by default those of the configuration
    :return: What tells what it takes
    :raises ValueError: If the configuration does not work, or there is no such backbone
    """
    train, suite = config.train, get_suite(config.suite)
    policy_kwargs = config.policy_in_training()
    with refusals():
        env = make_vla_env(config.tasks, suite=config.suite, **config.training_env_settings())
        observation_space, action_space, horizon = env.observation_space, env.action_space, config.simulation.horizon
        env.close()
        backbone, backbone_kwargs = without_weights(policy_kwargs["backbone"], policy_kwargs["backbone_kwargs"] or {})
        is_imitating = not make_bc_weight(train.bc_weight, train.bc_weight_kwargs).is_off
        executed = config.wrapping.n_action_steps or config.wrapping.chunk_size
        episodes = len(config.tasks) * (train.replay_buffer_kwargs or {}).get("episodes_per_task", 100)
        assert isinstance(observation_space, spaces.Dict) and isinstance(action_space, spaces.Box)
        return MemoryEstimator(
            with_cameras(observation_space, n_cameras),
            action_space,
            max((text for task in config.tasks for text in suite.instructions(task)), key=len),
            {**policy_kwargs, "backbone": backbone, "backbone_kwargs": backbone_kwargs},
            n_envs=train.n_envs,
            n_steps=train.n_steps,
            batch_size=train.batch_size,
            bc_batch_size=is_imitating * (train.bc_batch_size or train.batch_size),
            n_demonstrations=is_imitating * episodes * math.ceil(horizon / executed),
            ratio_per_step=train.ratio_per == "step",
        )


def with_cameras(observation_space: spaces.Dict, n_cameras: int | None) -> spaces.Dict:
    """
    :param observation_space: Of an environment
    :param n_cameras: Number of cameras, ``None`` for those that it has
    :return: What a policy sees of it: pictures come with their channels first
    """
    pictures = {key: VecTransposeImage.transpose_space(space) for key, space in observation_space.items() if is_image_key(key)}  # type: ignore[arg-type]
    others = {key: space for key, space in observation_space.items() if key not in pictures}
    if n_cameras is not None:
        names = ("image", *(f"image_{number}" for number in range(2, n_cameras + 1)))
        pictures = dict.fromkeys(names, pictures["image"])
    return spaces.Dict({**pictures, **others})


def table(estimate: MemoryEstimate) -> str:
    """
    :param estimate: What post-training takes
    :return: The same in lines
    """
    values = estimate.to_dict()
    return "\n".join(f"{label:48}{values[name] / 2**30:8.2f} GiB" for name, label in _ROWS.items())
