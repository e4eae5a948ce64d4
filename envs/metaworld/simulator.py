"""Building one MetaWorld simulator: the only place that knows how MetaWorld wants to be set up."""

from __future__ import annotations

import copy
import hashlib
from functools import cached_property, lru_cache, partial
from inspect import signature
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import mujoco
    from metaworld.policies.policy import Policy
    from metaworld.sawyer_xyz_env import SawyerXYZEnv
    from numpy.typing import NDArray

    _Simulator = SawyerXYZEnv
else:
    _Simulator = object  # the mixin needs no MetaWorld before it is mixed in

_INSTALL_HINT = "MetaWorld is not installed: pip install 'sb3-vla[metaworld]'"
_GEOMETRY = ("bvh_", "oct_")  # search trees of the meshes: megabytes, which follow from the meshes
_MAX_REMEMBERED = 256  # starts of episodes a simulator, 6 kB each


class Quick(_Simulator):
    """
    Mixed into a MetaWorld class: the same numbers to the last bit, in less time.

    Every method stands in for the one of its name in MetaWorld 3.1.1; ``tests/envs/metaworld/test_simulator.py`` compares all
    tasks with an untouched MetaWorld.
    """

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """``MujocoEnv``'s compiles the model anew for every simulator, which takes ten times as long as to copy it."""
        import mujoco

        model = copy.copy(_compiled(self.fullpath))
        return model, mujoco.MjData(model)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """
        ``SawyerXYZEnv``'s places everything twice: where the last episode has ended, then from MuJoCo's initial state, which
        alone counts. From the initial state both times, the first needs no simulation: ``_reset_hand`` remembers it.
        """
        import mujoco

        mujoco.mj_resetData(self.model, self.data)
        return super().reset(seed=seed, options=options)

    def _reset_hand(self, steps: int = 50) -> None:
        """
        ``SawyerXYZEnv``'s moves the hand to where it begins, by 250 steps of MuJoCo: nearly all the time of a reset.

        Where that leads is remembered: it follows from the state and the model, in which MetaWorld moves bodies (and a user
        may change masses or friction). The last step is always taken: it computes what is no part of the state, such as the
        positions of bodies.
        """
        import mujoco

        settings = np.array([*np.asarray(self.hand_init_pos), steps, self.model.opt.timestep])
        numbers = (self._physics_state(), settings, *self._model_numbers)
        start = hashlib.blake2b(b"".join([array.tobytes() for array in numbers])).digest()
        if start not in self._remembered:
            super()._reset_hand(steps - 1)
            if len(self._remembered) == _MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[start] = self._physics_state()
        mujoco.mj_setState(self.model, self.data, self._remembered[start], mujoco.mjtState.mjSTATE_INTEGRATION)
        super()._reset_hand(1)

    def _physics_state(self) -> NDArray[np.float64]:
        """Everything that MuJoCo's next step depends on, except for the model."""
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state

    @cached_property
    def _model_numbers(self) -> list[NDArray[np.float64]]:
        """The model's own arrays of numbers: places, masses, friction, gains and so on (25 kB)."""
        names = (name for name in dir(self.model) if not name.startswith(_GEOMETRY))
        arrays = [*(getattr(self.model, name, None) for name in names), self.model.opt.gravity, self.model.opt.wind]
        return [array for array in arrays if isinstance(array, np.ndarray) and array.dtype == np.float64]

    @cached_property
    def _remembered(self) -> dict[bytes, NDArray[np.float64]]:
        return {}

    def _get_curr_obs_combined_no_goal(self) -> NDArray[np.float64]:
        """``SawyerXYZEnv``'s splits and stacks arrays of a few numbers again and again."""
        left, right = self.data.body("leftclaw").xpos, self.data.body("rightclaw").xpos
        objects = np.hstack((self._get_pos_objects().reshape(-1, 3), self._get_quat_objects().reshape(-1, 4))).ravel()
        observation = np.zeros(4 + self._obs_obj_max_len)
        observation[:3] = self.get_endeff_pos()
        observation[3] = min(max(float(np.linalg.norm(right - left)) / 0.1, 0.0), 1.0)
        observation[4 : 4 + len(objects)] = objects
        return observation

    def touching_object(self, object_geom_id: int) -> bool:
        """``SawyerXYZEnv``'s iterates over MuJoCo's list of contacts twice, 0.1 ms each time, instead of over its arrays."""
        contact, forces = self.data.contact, self.data.efc_force
        contacts = list(zip(contact.geom.tolist(), contact.efc_address.tolist(), strict=True))

        def touches(pad: str) -> bool:
            pad_id = self.data.geom(pad).id
            return 0 < sum(forces[address] for geoms, address in contacts if pad_id in geoms and object_geom_id in geoms)

        return touches("leftpad_geom") and touches("rightpad_geom")


def _without_checks(method: FunctionType) -> FunctionType:
    """
    A task's ``_get_quat_objects``, its ``Rotation`` replaced by one that takes MuJoCo's matrices for the rotations they are.

    ``Rotation.from_matrix`` spends four fifths of its time on checking that, 70 us a step, unless told not to (SciPy 1.17).
    """
    rotation: Any = method.__globals__.get("Rotation")
    if rotation is None or "assume_valid" not in signature(rotation.from_matrix).parameters:
        return method
    from_matrix = staticmethod(partial(rotation.from_matrix, assume_valid=True))
    names = {**method.__globals__, "Rotation": type("Rotation", (rotation,), {"from_matrix": from_matrix})}
    return FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)


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
    metaworld_class: Any = ALL_V3_ENVIRONMENTS[task]
    methods = {"_get_quat_objects": _without_checks(metaworld_class._get_quat_objects)}
    simulator: SawyerXYZEnv = type(metaworld_class.__name__, (Quick, metaworld_class), methods)()
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
