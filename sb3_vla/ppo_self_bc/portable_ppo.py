"""SB3's PPO with models that load anywhere, and run nothing that a file says."""

import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.common.utils import check_for_correct_spaces, get_system_info

from sb3_vla_envs.durable_files import replacing

from ..common.argument_checks import check_keywords, check_known
from ..common.ranks import Ranks
from ..policies.adapter import PolicyAdapter
from ..policies.finite import check_weights
from ..policies.lora import check_checkpoint
from .model_file import ModelContent, open_model, read_model, write_model, zip_path
from .parameters import check_shapes, fit_optimizer_state, merge_policy_kwargs

SelfPortablePPO = TypeVar("SelfPortablePPO", bound="PortablePPO")


class PortablePPO(PPO):
    """
    SB3's :class:`~stable_baselines3.PPO`, saved in the safe format of :mod:`~sb3_vla.ppo_self_bc.model_file`, with what its
    policy needs to be made again where there is neither a network nor a checkpoint.
    """

    adapter: PolicyAdapter
    ranks: Ranks

    def _on_loaded(self) -> None:
        """Called once a loaded model has its weights and its environment."""

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model to a zip file, without the demonstration buffer (:meth:`save_replay_buffer`).

        :param path: Path to the file, which ends in ``.zip`` if it has no other ending, or a file. One that is there already
            is replaced only once the new one is complete and on the disk. Of several ranks the first one alone writes to a
            path, and each to a file of its own
        :param exclude: Names of attributes that are left out, beside the default ones
        :param include: Names of attributes that are saved all the same
        :raises FloatingPointError: If a weight is not finite: a file of that name stays as it is
        """
        parameters = self.get_parameters()
        check_weights(parameters["policy"], "it is not saved")
        self.policy_kwargs = {**self.policy_kwargs, **self.adapter.portable_kwargs()}  # adapters may have been merged
        excluded = {*(exclude or ()), *self._excluded_save_params()}.difference(include or ())
        excluded |= {name.partition(".")[0] for name in parameters}
        content = ModelContent({name: value for name, value in vars(self).items() if name not in excluded}, parameters, {})
        if isinstance(path, str | pathlib.Path):
            if self.ranks.is_first:
                with replacing(zip_path(path)) as file:
                    write_model(file, content)
        else:
            write_model(path, content)

    @classmethod
    def load(
        cls: type[SelfPortablePPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trust_pickle: bool = False,
        **kwargs: Any,
    ) -> SelfPortablePPO:
        """
        Load a model, as SB3 does, but without running anything that the file says.

        :param path: Path to the file, or a file
        :param env: The environment to run the model on, ``None`` for prediction alone
        :param device: Device on which the code should run
        :param custom_objects: Objects that replace those of the file by name
        :param print_system_info: Whether to print the system of the saved model and this one
        :param force_reset: Whether ``learn`` begins with a reset of the environment
        :param trust_pickle: Whether to load a file that SB3 or an earlier sb3-vla saved, too, which can run anything
        :param kwargs: Arguments of the constructor to change. ``policy_kwargs`` go over those of the model; what they can't
            change are its networks. Optimizer groups that are no longer the same begin anew, e.g. after
            ``policy_kwargs=dict(frozen=("vision",))``
        :return: The model
        :raises TypeError: If there is no such argument
        :raises ValueError: If the file is truncated or damaged, is pickled, or names a class that is not trusted (see
            :func:`sb3_vla.trust`), ``policy_kwargs`` would make another network, or ``env`` lacks the ``VecNormalize`` that
            the model has learned with, or has one that it has not
        """
        if print_system_info:
            print("== CURRENT SYSTEM INFO ==")
            get_system_info()
            print("== SAVED MODEL SYSTEM INFO ==")
            with open_model(path) as archive:
                print(archive.read("system_info.txt").decode())
        data, parameters, left_out = read_model(path, custom_objects, trust_pickle)
        # SB3's PPO knows neither chunks nor what it learned before its last learn()
        if data.get("rollout_buffer_class") in (RolloutBuffer, DictRolloutBuffer):
            data["rollout_buffer_class"] = None
        data.setdefault("lifetime_timesteps", data.get("num_timesteps", 0))
        given = {name: value for name, value in kwargs.items() if name not in data}
        check_known("load", given, cls, ("policy", "env", "device", "_init_setup_model"))
        if missing := {name: text for name, text in left_out.items() if name not in kwargs}:
            warnings.warn(
                f"The file could not hold {missing}: what is an argument has its default, unless you give it, as in "
                f"load(path, {next(iter(missing))}=...)",
                stacklevel=2,
            )
        if wrong := [name for name in data if callable(getattr(cls, name, None))]:
            raise ValueError(f"{str(path)!r:.200} can't be read: it has {wrong} in place of methods")
        if "policy_kwargs" in kwargs:
            data["policy_kwargs"] = merge_policy_kwargs(data, check_keywords("policy_kwargs", kwargs.pop("policy_kwargs")))
        check_checkpoint(data.get("policy_kwargs") or {})
        if env is not None:
            env = cls._wrap_env(env, data["verbose"])
            check_for_correct_spaces(env, data["observation_space"], data["action_space"])
            if force_reset:  # see SB3 issue #597
                data["_last_obs"] = None
            data["n_envs"] = env.num_envs  # see SB3 issue #1018
        model = cls(data["policy_class"], env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
        vars(model).update(data)
        vars(model).update(kwargs)
        model._setup_model()
        model.set_parameters(parameters, device=device)
        if model.use_sde:
            model.policy.reset_noise()  # on the right device, see SB3 issue #44
        model._on_loaded()
        return model

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        params: Any = load_path_or_dict
        if not isinstance(params, dict):
            params = read_model(params).parameters
        check_shapes(self.policy, params.get("policy", {}))
        if "policy.optimizer" in params:
            params = {**params, "policy.optimizer": fit_optimizer_state(self.policy.optimizer, params["policy.optimizer"])}
        super().set_parameters(params, exact_match, device)
