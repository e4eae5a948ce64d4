"""Calls from Python with one argument that makes no sense: the error comes at the call, and names argument or value."""

import math
import random
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from point import PointEnv, expert
from run_settings import make_model, settings
from tally import Tally

import sb3_vla
import sb3_vla_envs
from sb3_vla.runs.config import load_config

_TEXTS = ["", "nonsense", "\u2603", "no/such/thing"]
# What makes no sense, by what an argument has to be
_NOT_NUMBERS: list[Any] = ["many", "", [], {}, {"a": 1}, object(), math.nan, [1, 2], 1j]
_NONSENSE: dict[str, list[Any]] = {
    "count": [*_NOT_NUMBERS, 0, -1, -12345, 1.5, math.inf, -math.inf],
    "index": [*_NOT_NUMBERS, -1, -12345, 1.5, math.inf, -math.inf],
    "positive": [*_NOT_NUMBERS, 0, -1, -0.5, math.inf, -math.inf],
    "above 0": [*_NOT_NUMBERS, 0, -1, -0.5, -math.inf],
    "not negative": [*_NOT_NUMBERS, -1, -0.5, math.inf, -math.inf],
    "fraction": [*_NOT_NUMBERS, -0.5, 1.5, -1, 2, math.inf, -math.inf],
    "number": [*_NOT_NUMBERS, math.inf, -math.inf],
    "name": [*_TEXTS, 7, 0.5, math.nan, [], {}, {"a": 1}, object()],
    "device": ["", "nonsense", "cuda:99", "meta", 0.5, [], {}, object()],
    "arguments": ["nonsense", 7, [1], {"nonsense": 1}, {5: 5}, math.nan, object()],
    "names": ["nonsense", 7, ["nonsense"], [None], [7], math.nan, object()],
    "widths": ["nonsense", 7, ["nonsense"], [None], [0], [-3], [1.5], math.nan, object()],
    "rule": [*_TEXTS, [], {}, object(), math.nan, -1, math.inf],
    "path": ["no/such/file.zip", "/proc/nowhere/file", 7, None, [], {}, object()],
}


def call_with_nonsense(n: int, seed: int) -> Tally:
    """
    :param n: Calls
    :param seed: Of what makes no sense in them
    :return: What came of them
    """
    tally, rng = Tally("calls from Python with arguments that make no sense"), random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = _calls(Path(temporary))
        choices = [
            (call, name, value)
            for call, (_, kinds) in calls.items()
            for name, kind in kinds.items()
            for value in _NONSENSE[kind]
        ]
        for number in range(n):
            call, name, value = rng.choice(choices)
            wrong = _what_is_wrong(calls[call][0], name, value)
            if wrong is None:
                tally.survived("an error, which names it")
            else:
                tally.lose(f"call {number} of seed {seed}, {call}(..., {name}={value!r}): {wrong}")
    return tally


def _what_is_wrong(call: Callable[..., Any], name: str, value: Any) -> str | None:
    try:
        call(**{name: value})
    except (ValueError, TypeError, OSError) as error:
        said = str(error)
        texts = value if isinstance(value, list | dict) else [value]
        words = [
            name,
            repr(value),
            repr([*texts]),
            "os.PathLike",
            *(text for text in texts if isinstance(text, str) and len(text) > 3),
        ]
        return None if any(word in said for word in words) else f"only said {error!r}"
    except Exception as error:
        return f"{error!r}"
    return "was accepted"


def _calls(folder: Path) -> dict[str, tuple[Callable[..., Any], Mapping[str, str]]]:
    """:return: Calls that work without arguments, and what these have to be"""
    config, model = load_config(None, **settings(16)), make_model()
    suite, own = config.suite, config.env_settings()
    demonstrations = sb3_vla_envs.collect_demonstrations("point", 2, suite=suite, progress=False, **own)
    policy = dict(vars(config.policy))

    def of_policy(**changes: Any) -> Any:
        return make_model(policy_kwargs={**policy, **changes})

    def of_head(head: str) -> Callable[..., Any]:
        return lambda **changes: of_policy(head=head, head_kwargs=changes)

    def collect(n_per_task: int = 1, **changes: Any) -> Any:
        return sb3_vla_envs.collect_demonstrations("point", n_per_task, suite=suite, progress=False, **{**own, **changes})

    def evaluate(tasks: Any = "point", **changes: Any) -> Any:
        sensible = {"n_goals": 1, "n_envs": 1, "suite": suite, "progress": False, **config.acting_settings()}
        return sb3_vla.evaluate_on_tasks(model, tasks, **{**sensible, **changes})

    simulation = {
        **{"n_goals": "count", "goal_seed": "index", "horizon": "count", "settle_steps": "index", "goal_split": "name"},
        **{"task_order": "name", "goal_order": "name", "reward": "name"},
    }
    wrapping = {
        "chunk_size": "count",
        "n_action_steps": "count",
        "gamma": "fraction",
        "max_instruction_bytes": "count",
        "quality": "name",
    }
    return {
        "PPOSelfBC": (
            make_model,
            {
                **{
                    "learning_rate": "not negative",
                    "critic_learning_rate": "not negative",
                    "backbone_learning_rate": "not negative",
                },
                **{
                    "n_steps": "count",
                    "batch_size": "count",
                    "n_epochs": "count",
                    "gamma": "fraction",
                    "gae_lambda": "fraction",
                },
                **{"clip_range": "positive", "clip_range_vf": "positive", "target_kl": "positive", "ent_coef": "number"},
                **{"vf_coef": "not negative", "max_grad_norm": "above 0", "normalize_advantage": "name", "ratio_per": "name"},
                **{"critic_warmup_steps": "index", "critic_epochs": "count", "noise_scale": "positive", "bc_loss": "name"},
                **{
                    "micro_batch_size": "count",
                    "bc_batch_size": "count",
                    "bc_weight": "rule",
                    "bc_weight_kwargs": "arguments",
                },
                **{
                    "replay_buffer_kwargs": "arguments",
                    "policy_kwargs": "arguments",
                    "device": "device",
                    "stats_window_size": "count",
                },
            },
        ),
        "VLAPolicy": (
            of_policy,
            {
                **{"backbone": "name", "backbone_kwargs": "arguments", "frozen": "names", "lora": "arguments", "head": "name"},
                **{
                    "head_kwargs": "arguments",
                    "critic_net_arch": "widths",
                    "autocast": "name",
                },
                **{"optimizer_kwargs": "arguments"},
            },
        ),
        "GaussianHead": (
            of_head("gaussian"),
            {
                "hidden_dim": "count",
                "log_std_init": "number",
                "noise_correlation": "fraction",
                "noise_probability": "fraction",
            },
        ),
        "TokenHead": (
            of_head("token"),
            {
                **{"n_bins": "count", "bins": "name", "decoding": "name", "temperature": "positive", "hidden_dim": "count"},
                **{"n_layers": "count"},
            },
        ),
        "FlowHead": (
            of_head("flow"),
            {
                "n_flow_steps": "count",
                "noise": "name",
                "log_std_init": "number",
                "noise_level": "positive",
                "net_arch": "widths",
            },
        ),
        "ConstantWeight": (sb3_vla.ConstantWeight, {"weight": "not negative"}),
        "TanhWarmup": (sb3_vla.TanhWarmup, {"weight": "not negative", "warmup_timesteps": "positive"}),
        "SuccessDriven": (sb3_vla.SuccessDriven, {"weight": "not negative", "minimum": "not negative"}),
        "GradientBalance": (sb3_vla.GradientBalance, {"ratio": "not negative", "maximum": "not negative"}),
        "DemonstrationBuffer": (
            lambda **changes: sb3_vla.DemonstrationBuffer(model.observation_space, model.action_space, **changes),
            {"episodes_per_task": "count", "rule": "name", "gamma": "fraction", "seed": "index"},
        ),
        "ChunkedActionWrapper": (
            lambda **changes: sb3_vla_envs.ChunkedActionWrapper(PointEnv(), **{"chunk_size": 3, **changes}),
            {"chunk_size": "count", "n_action_steps": "count", "gamma": "fraction"},
        ),
        "PictureObservation": (
            lambda **changes: sb3_vla_envs.PictureObservation(PointEnv("rgb_array"), **changes),
            {"height": "count", "width": "count"},
        ),
        "InstructionObservation": (
            lambda **changes: sb3_vla_envs.InstructionObservation(PointEnv(), **{"instruction": "go", **changes}),
            {"max_bytes": "count"},
        ),
        "Camera": (
            lambda **changes: sb3_vla_envs.Camera(**{"name": "corner", **changes}),
            {"height": "count", "width": "count", "fovy": "positive"},
        ),
        "SimulationSettings": (sb3_vla_envs.SimulationSettings, simulation),
        "WrappingSettings": (sb3_vla_envs.WrappingSettings, wrapping),
        "make_vla_env": (
            lambda tasks="point", **changes: sb3_vla_envs.make_vla_env(tasks, **{"suite": suite, **own, **changes}),
            {**simulation, **wrapping, "tasks": "names", "suite": "name"},
        ),
        "make_vla_vec_env": (
            lambda tasks="point", **changes: sb3_vla.make_vla_vec_env(
                tasks, **{"suite": suite, "n_envs": 1, **own, **changes}
            ),
            {"n_envs": "count", "seed": "index", "tasks": "names", "chunk_size": "count", "horizon": "count"},
        ),
        "collect_demonstrations": (
            collect,
            {
                **{"n_per_task": "count", "action_noise": "not negative", "noise_correlation": "fraction", "seed": "index"},
                **{"n_workers": "count", "chunk_size": "count"},
            },
        ),
        "evaluate_on_tasks": (
            evaluate,
            {"n_goals": "count", "n_envs": "count", "split": "name", "seed": "index", "tasks": "names", "chunk_size": "count"},
        ),
        "fine_tune": (
            lambda **changes: sb3_vla.fine_tune(model, demonstrations, **{"n_epochs": 1, "progress": False, **changes}),
            {
                **{
                    "n_epochs": "count",
                    "batch_size": "count",
                    "learning_rate": "not negative",
                    "weight_decay": "not negative",
                },
                **{"max_grad_norm": "above 0", "loss": "name", "held_out_fraction": "fraction", "patience": "count"},
                **{
                    "max_shift": "index",
                    "auxiliary_targets": "arguments",
                    "auxiliary_weight": "not negative",
                    "seed": "index",
                },
            },
        ),
        "SFTCallback": (
            sb3_vla.SFTCallback,
            {
                **{"n_per_task": "count", "action_noise": "not negative", "n_workers": "count", "n_epochs": "count"},
                **{"batch_size": "count", "learning_rate": "not negative"},
            },
        ),
        "episode_jobs": (
            lambda **changes: sb3_vla.episode_jobs(**{"tasks": ["point"], "n_goals": 1, **changes}),
            {"n_goals": "count", "seed": "index"},
        ),
        "encode_instruction": (
            lambda **changes: sb3_vla_envs.encode_instruction(**{"instruction": "go", "max_bytes": 8, **changes}),
            {"max_bytes": "count"},
        ),
        "GymSuite": (
            lambda **changes: sb3_vla_envs.GymSuite(
                **{"name": "p", "tasks": {"p": sb3_vla_envs.GymTask("TorturePoint-v0", ("go",))}, "expert": expert, **changes}
            ),
            {"horizon": "count"},
        ),
        "SharedMemoryVecEnv": (
            lambda **changes: sb3_vla.SharedMemoryVecEnv([PointEnv], **changes).close(),
            {"n_workers": "count", "start_method": "name", "probe_steps": "index", "timeout": "positive"},
        ),
        "PPOSelfBC.load": (lambda path: sb3_vla.PPOSelfBC.load(path), {"path": "path"}),
        "VLAPolicy.load": (lambda path: sb3_vla.VLAPolicy.load(path), {"path": "path"}),
        "EvaluationResult.load": (lambda path: sb3_vla.EvaluationResult.load(path), {"path": "path"}),
        "load_demonstrations": (lambda path: sb3_vla_envs.load_demonstrations(path), {"path": "path"}),
    }
