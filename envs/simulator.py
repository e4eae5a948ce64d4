"""Building one MetaWorld simulator: the only place that knows how MetaWorld wants to be set up."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mujoco
    from metaworld.policies.policy import Policy
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

_INSTALL_HINT = "MetaWorld is not installed: pip install 'sb3-vla[metaworld]'"


class _CompiledOnce:
    """Mixed into a MetaWorld class, makes its simulators copy a model compiled once: a tenth of the time."""

    fullpath: str

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        import mujoco

        model = copy.copy(_compiled(self.fullpath))
        return model, mujoco.MjData(model)


@lru_cache(maxsize=16)  # 20 MB each
def _compiled(path: str) -> mujoco.MjModel:
    import mujoco

    return mujoco.MjModel.from_xml_path(path)


def build_simulator(task: str) -> SawyerXYZEnv:
    """
    Create the state-only simulator of a task, with the goal visible in its observation.

    :param task: Name of a MetaWorld v3 task
    :return: A MetaWorld environment that takes its object and goal positions from ``_last_rand_vec`` at each reset
    :raises ImportError: If MetaWorld is not installed
    """
    # Imported here: the wrappers of this package need no simulator, and registering ids must stay quick.
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ModuleNotFoundError as error:
        raise ImportError(_INSTALL_HINT) from error
    metaworld_class = ALL_V3_ENVIRONMENTS[task]
    simulator: SawyerXYZEnv = type(metaworld_class.__name__, (_CompiledOnce, metaworld_class), {})()
    simulator._partially_observable = False
    del simulator.sawyer_observation_space  # cached while the goal was still hidden; step() clips with it
    simulator._set_task_called = True
    simulator._freeze_rand_vec = True
    return simulator


def build_expert(task: str) -> Policy:
    """
    Create MetaWorld's scripted policy for a task.

    :param task: Name of a MetaWorld v3 task
    :return: An object whose ``get_action`` maps the full observation ``(39,)`` to an action ``(4,)``, not clipped
    :raises ImportError: If MetaWorld is not installed
    """
    try:
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise ImportError(_INSTALL_HINT) from error
    policy_class: Any = ENV_POLICY_MAP[task]
    expert: Policy = policy_class()
    return expert
