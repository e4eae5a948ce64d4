"""The model card of a trained model: what the Hugging Face Hub shows of it, and nothing that isn't known."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from gymnasium import spaces
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import ConstantSchedule

from sb3_vla_envs.suite import Suite

from ..evaluation.result import EvaluationResult, EvaluationSummary
from ..policies.observation_checks import has_channels_first
from ..policies.vla_policy import VLAPolicy
from ..ppo_self_bc.ppo_self_bc import PPOSelfBC
from .model_usage import usage_code

# Arguments of PPOSelfBC that don't change what is learnt, or are shown in another place
_NO_HYPERPARAMETERS = {
    *("self", "policy", "env", "policy_kwargs", "rollout_buffer_class", "stats_window_size"),
    *("tensorboard_log", "verbose", "device", "_init_setup_model"),
}
_FILES = {
    "results.json": "every evaluated episode, for `sb3_vla.EvaluationResult.load`",
    "baseline_results.json": "those of the model before post-training",
    "config.yaml": "the command that made the model, and its whole configuration",
    "versions.json": "the software that it was made with",
    "demonstrations.npz": "demonstrations, for `model.load_replay_buffer`",
}


@dataclass(frozen=True)
class CardContent:
    """
    What a card tells. What is left empty, it is silent about.

    :param model: The model
    :param name: What it is called
    :param repo_id: Where it will be on the Hub, ``"user/name"``, ``None`` if it stays where it is
    :param filename: The model's file in the repository
    :param suite: Suite of the tasks that it was trained on
    :param tasks: Tasks that it was trained on
    :param env_kwargs: Settings of ``make_vla_env`` for a model in use
    :param result: Its evaluation
    :param baseline: Evaluation of the model before post-training, on the same goals
    :param command: The command that made it
    :param versions: Software that made it
    :param files: The other files of the repository
    :param metadata: Further metadata, or other values of it
    """

    model: PPOSelfBC
    name: str
    repo_id: str | None
    filename: str
    suite: Suite | None = None
    tasks: Sequence[str] = ()
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    result: EvaluationResult | None = None
    baseline: EvaluationResult | None = None
    command: str | None = None
    versions: Mapping[str, str | int | None] = field(default_factory=dict)
    files: Sequence[str] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_vla(self) -> bool:
        """Whether the model sees, reads and acts."""
        return isinstance(self.model.policy, VLAPolicy)


def make_model_card(content: CardContent) -> ModelCard:
    """
    :param content: What the card tells
    :return: The card; its ``save`` writes a ``README.md``
    """
    sections = (_introduction(content), _results(content), _usage(content), _training(content), _files(content))
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{_metadata(content).to_yaml()}\n---\n\n{text}\n")


def _metadata(content: CardContent) -> ModelCardData:
    tags = ["stable-baselines3", "sb3-vla", "ppo-self-bc", "reinforcement-learning", "deep-reinforcement-learning"]
    tags += ["robotics", "vision-language-action"] if content.is_vla else []
    tags += [content.suite.name] if content.suite else []
    metadata = {
        "library_name": "stable-baselines3",
        "pipeline_tag": "robotics" if content.is_vla else "reinforcement-learning",
        "tags": tags,
        **content.metadata,
    }
    if content.result is not None:
        metadata.update(model_name=content.name, eval_results=_eval_results(content, content.result))
    return ModelCardData(**metadata)


def _eval_results(content: CardContent, result: EvaluationResult) -> list[EvalResult]:
    """
    :param content: What the card tells
    :param result: The model's evaluation
    :return: Success and steps to success, of all tasks together and of each
    """
    suite = content.suite
    together = (suite and suite.group_name(list(result.tasks))) or ", ".join(result.tasks)
    summaries: dict[str, EvaluationSummary] = {"": result.overall}
    if len(result.tasks) > 1:
        summaries.update(result.tasks)
    return [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=suite.name if suite else "environment",
            dataset_name=f"{suite.name if suite else 'environment'} {task or together}".strip(),
            dataset_config=task or None,
            dataset_split=result.settings.get("goal_split"),
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(value, 4),
        )
        for task, summary in summaries.items()
        for metric, value in (("success_rate", summary.success), ("steps_to_success", summary.steps_to_success))
        if value is not None
    ]


def _introduction(content: CardContent) -> str:
    model = content.model
    lines = [f"# {content.name}\n"]
    if content.is_vla:
        lines.append(
            f"A vision-language-action policy that reads {_inputs(model)} and predicts chunks of "
            f"{model.action_space.shape[0]} actions of {model.action_space.shape[1]} numbers."  # type: ignore[index]
        )
    else:
        lines.append(f"A `{type(model.policy).__name__}` for the action space `{model.action_space}`.")
    if model.lifetime_timesteps:
        how = "without" if model.replay_buffer is None else "with"
        lines.append(f"It was trained by reinforcement learning with `PPOSelfBC` of sb3-vla, {how} self behaviour cloning")
        lines.append("([arXiv 2509.25718](https://arxiv.org/abs/2509.25718)).")
    else:
        lines.append("It is a `PPOSelfBC` model of sb3-vla, not yet trained by reinforcement learning.")
    if content.suite:
        lines.append(f"Tasks, all of the suite `{content.suite.name}`: {', '.join(content.tasks)}.")
    films = [f"![{name.split('/')[-1].removesuffix('.gif')}]({name})" for name in content.files if name.endswith(".gif")]
    return "\n".join(lines) + ("\n\n" + "\n".join(films) if films else "")


def _results(content: CardContent) -> str:
    if content.result is None:
        return ""
    columns = {"": content.result}
    if content.baseline is not None:
        columns = {" before post-training": content.baseline, " of this model": content.result}
    head = ["task"]
    for column in columns:
        head += [f"success{column} (95 % CI)", f"steps{column}", "episodes"]
    rows = [head, ["---"] * len(head)]
    for task in content.result.tasks:
        rows.append([task or "(no task)", *(cell for result in columns.values() for cell in _cells(result.tasks[task]))])
    rows.append(["**mean**", *(cell for result in columns.values() for cell in _cells(result.overall))])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"## Results\n\n{table}\n\n{_protocol(content.result.settings)}Success is the share of episodes, with Wilson's "
        "interval; steps are primitive steps to success, averaged over the successful episodes. The mean is that of the "
        "tasks, its interval that of all episodes."
    )


def _cells(summary: EvaluationSummary) -> tuple[str, str, str]:
    steps = "-" if summary.steps_to_success is None else f"{summary.steps_to_success:.1f}"
    success = f"{summary.success:.2f} ({summary.success_low:.2f}-{summary.success_high:.2f})"
    return success, steps, str(summary.n_episodes)


def _protocol(settings: Mapping[str, Any]) -> str:
    """
    :param settings: Of an evaluation
    :return: A sentence that says as much of them as there is
    """
    words = {
        "n_goals": "{} goals of each task and one episode of each",
        "goal_split": "the goals' `{}` split",
        "goal_seed": "goal seed {}",
        "horizon": "horizon {} primitive steps",
        "n_action_steps": "{} actions executed of each chunk",
        "seed": "seed {}",
    }
    parts = [text.format(settings[key]) for key, text in words.items() if settings.get(key) is not None]
    if "deterministic" in settings:
        parts.append("deterministic actions" if settings["deterministic"] else "sampled actions")
    return f"Evaluated with {', '.join(parts)}. " if parts else ""


def _usage(content: CardContent) -> str:
    blocks = usage_code(*(content.repo_id, content.filename, content.suite, content.tasks, content.env_kwargs, content.result))
    code = "\n\n".join(f"{title}:\n\n```python\n{block}```" for title, block in blocks.items())
    version = content.versions.get("sb3-vla")
    return (
        f"## Usage\n\nWith sb3-vla{f' {version}' if version else ''} installed. The model's file holds JSON and tensors: "
        f"loading it runs nothing that it says.\n\n{code}"
    )


def _training(content: CardContent) -> str:
    model = content.model
    lines = ["## Training\n"]
    if content.command:
        lines.append(f"Made by\n\n```bash\n{content.command}\n```\n")
    if model.lifetime_timesteps:
        # Of primitive steps only those of the last learn() are counted
        is_one = model.lifetime_timesteps == model.num_timesteps
        primitive = f", {model.num_primitive_steps:,} primitive steps" if is_one else ""
        lines.append(
            f"{model.lifetime_timesteps:,} timesteps of `PPOSelfBC` (decisions of the policy){primitive}, in {model.n_envs} "
            f"environments:\n\n```yaml\n{_dump(_hyperparameters(model))}```\n"
        )
    # Without the backbone's own configuration, which is long, and in the zip file
    policy_kwargs: dict[str, Any] = {
        key: value for key, value in (model.policy_kwargs or {}).items() if key != "backbone_kwargs"
    }
    lines.append(f"Policy: `{type(model.policy).__name__}`{_sizes(model)}")
    if policy_kwargs:
        lines.append(f"\n```yaml\n{_dump(policy_kwargs)}```")
    if "curves.png" in content.files:
        lines.append("\n![Learning curves](curves.png)")
    versions = [f"{name} {version}" for name, version in content.versions.items() if version is not None]
    if versions:
        lines.append(f"\nSoftware: {', '.join(versions)}.")
    return "\n".join(lines)


def _hyperparameters(model: PPOSelfBC) -> dict[str, Any]:
    names = [name for name in inspect.signature(PPOSelfBC.__init__).parameters if name not in _NO_HYPERPARAMETERS]
    return {name: getattr(model, name) for name in names}


def _dump(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump({name: _plain(value) for name, value in settings.items()}, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """
    :param value: Of a hyperparameter
    :return: What a reader recognises it by, in plain types
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # SB3 makes a schedule of every clip range
    schedule = getattr(value, "value_schedule", value)
    if isinstance(schedule, ConstantSchedule):
        return schedule.val
    return getattr(schedule, "__qualname__", None) or str(schedule)  # a class or a function, or an object


def _sizes(model: PPOSelfBC) -> str:
    policy = model.policy
    if not isinstance(policy, VLAPolicy):
        return "."
    parts = {"backbone": policy.backbone, "action head": policy.head, "value function, for training alone": policy.critic}
    sizes = [f"{sum(p.numel() for p in part.parameters()):,} ({name})" for name, part in parts.items()]
    return f" with a `{type(policy.backbone).__name__}`; parameters: {', '.join(sizes)}."


def _inputs(model: PPOSelfBC) -> str:
    assert isinstance(model.observation_space, spaces.Dict)
    described = []
    for key, space in model.observation_space.items():
        shape = space.shape or ()
        if isinstance(space, spaces.Box) and is_image_space(space):
            height, width = shape[1:] if has_channels_first(space) else shape[:2]
            described.append(f"`{key}` ({height} x {width})")
        elif key != "privileged":  # only the value function reads it, in training
            described.append(f"`{key}` ({shape[0]} {'bytes' if key == 'instruction' else 'numbers'})")
    return ", ".join(described)


def _files(content: CardContent) -> str:
    files = {content.filename: "the model", **{name: _FILES[name] for name in content.files if name in _FILES}}
    return "## Files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in files.items())
