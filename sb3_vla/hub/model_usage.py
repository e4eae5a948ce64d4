"""Code that uses a model, for its card: a reader copies it, and it runs."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from sb3_vla_envs.suite import Suite

from ..evaluation.evaluate import evaluate_on_tasks
from ..evaluation.result import EvaluationResult

_LOAD = """\
from sb3_vla import PPOSelfBC

# JSON and tensors: nothing in the file is run
model = PPOSelfBC.load("{filename}")  # in this folder
"""
_LOAD_FROM_THE_HUB = """\
from huggingface_hub import hf_hub_download
from sb3_vla import PPOSelfBC

# JSON and tensors: nothing in the file is run
model = PPOSelfBC.load(hf_hub_download("{repo_id}", "{filename}"))
"""
_ACT = """\
observation = model.observation_space.sample()  # put an observation of your environment here
action, _ = model.predict(observation, deterministic=True)
"""
_ACT_IN_THE_SUITE = """\
from sb3_vla_envs import make_vla_env

env = make_vla_env({arguments})
observation, info = env.reset(seed=0)
done = False
while not done:
    action, _ = model.predict(observation, deterministic={deterministic})  # a chunk of actions
    observation, reward, terminated, truncated, info = env.step(action)
    done = terminated or truncated
print(info["is_success"], info.get("steps_to_success"))
"""
_EVALUATE = """\
from sb3_vla import evaluate_on_tasks

if __name__ == "__main__":  # the environments run in processes of their own
    result = evaluate_on_tasks(
        model,
        {arguments},
    )
    print(result.table())
"""


def usage_code(
    repo_id: str | None,
    filename: str,
    suite: Suite | None = None,
    tasks: Sequence[str] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    result: EvaluationResult | None = None,
) -> dict[str, str]:
    """
    :param repo_id: Where the model is on the Hub, ``None`` if it is not there
    :param filename: Its file
    :param suite: Suite of the tasks that it was trained on, if any
    :param tasks: These tasks
    :param env_kwargs: Settings of ``make_vla_env`` for a model in use; of plain types, as the code is made of their ``repr``
    :param result: Evaluation that the code repeats
    :return: Pieces of code by their titles, each going on where the one before it ended
    """
    load = {"Load": (_LOAD if repo_id is None else _LOAD_FROM_THE_HUB).format(repo_id=repo_id, filename=filename)}
    if suite is None:
        return {**load, "Act": _ACT}
    env_kwargs = {"suite": suite.address, **(env_kwargs or {})}
    settings = result.settings if result else {}
    act = _ACT_IN_THE_SUITE.format(
        arguments=_arguments(", ", tasks[0], goal_split="test", **env_kwargs),
        deterministic=settings.get("deterministic", True),
    )
    evaluation = {"n_goals": settings.get("n_goals"), "split": settings.get("goal_split")}
    evaluation.update({name: settings.get(name) for name in ("seed", "goal_seed", "deterministic")})
    parameters = inspect.signature(evaluate_on_tasks).parameters
    defaults = {"goal_seed": suite.simulation().goal_seed, **{name: each.default for name, each in parameters.items()}}
    evaluation = {
        name: value
        for name, value in evaluation.items()
        if value is not None and (name == "n_goals" or value != defaults[name])
    }
    evaluated = settings.get("tasks", tasks)
    arguments = _arguments(",\n        ", suite.group_name(evaluated) or list(evaluated), **{**env_kwargs, **evaluation})
    title = "Evaluate, as above" if result else "Evaluate"
    return {**load, "Act": act, title: _EVALUATE.format(arguments=arguments)}


def _arguments(separator: str, *positional: Any, **by_name: Any) -> str:
    return separator.join([*map(_literal, positional), *(f"{name}={_literal(value)}" for name, value in by_name.items())])


def _literal(value: Any) -> str:
    code = repr(value)
    return code if '"' in code else code.replace("'", '"')
