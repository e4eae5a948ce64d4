"""Making and loading the model of a run."""

from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from ..common.device_check import check_device
from ..evaluation.model_fit import check_model_fits
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .config import Config
from .settings import deep_update


def new_model(
    config: Config, arguments: dict[str, Any], venv: VecEnv, initial_model: str | Path | None, trust_pickle: bool
) -> PPOSelfBC:
    """
    :param config: Configuration
    :param arguments: Of PPOSelfBC; ``policy_kwargs`` go over those of the initial model, and count only with one
    :param venv: Training environment
    :param initial_model: Model whose weights to take over, or ``None``
    :param trust_pickle: Whether it may be a pickled file
    :return: The model to train
    """
    policy_kwargs = dict(vars(config.policy))
    if initial_model is not None:
        initial = load_model(initial_model, config.device, trust_pickle)
        check_model_fits(initial, venv)
        policy_kwargs = deep_update(initial.policy_kwargs, arguments["policy_kwargs"] or {})
    common = {"gamma": config.wrapping.gamma, "seed": config.seed, "device": config.device}
    model = PPOSelfBC("VLAPolicy", venv, **{**common, **arguments, "policy_kwargs": policy_kwargs})
    if initial_model is not None:
        model.policy.load_state_dict(initial.policy.state_dict())
        assert isinstance(model.policy, VLAPolicy)
        model.policy.head.restart((arguments["policy_kwargs"] or {}).get("head_kwargs") or {})
    return model


def load_model(path: str | Path, device: str = "auto", trust_pickle: bool = False) -> PPOSelfBC:
    """
    :param path: A model's zip file
    :param device: Where it goes
    :param trust_pickle: Whether to load a pickled file too, which can run anything
    :return: The model
    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is no PPOSelfBC model, or PyTorch can't compute on the device here
    """
    check_device(device)
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model {str(path)!r}: give the zip file of `sb3-vla sft` or `sb3-vla train`")
    try:
        return PPOSelfBC.load(path, device=device, trust_pickle=trust_pickle)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{str(path)!r} can't be loaded as a PPOSelfBC model: {error}") from error
