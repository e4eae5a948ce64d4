"""Calls from Python with one argument that makes no sense: the error comes at the call, and names argument or value."""

import math
import random
import warnings
from collections.abc import Callable
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


_SIMULATION = {
    "count": "n_goals horizon",
    "index": "goal_seed settle_steps",
    "name": "goal_split task_order goal_order reward",
}
_WRAPPING = {"count": "chunk_size n_action_steps max_instruction_bytes", "fraction": "gamma", "name": "quality"}


def call_with_nonsense(n: int, seed: int) -> Tally:
    """
    :param n: Calls
    :param seed: Of what makes no sense in them
    :return: What came of them
    """
    tally, rng = Tally("calls from Python with arguments that make no sense"), random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        choices = [
            (call, work, name, value)
            for call, work, arguments in _calls()
            for kind, names in arguments.items()
            for name in names.split()
            for value in _NONSENSE[kind]
        ]
        for number in range(n):
            call, work, name, value = rng.choice(choices)
            wrong = _what_is_wrong(work, name, value)
            if wrong is None:
                tally.survived("an error, which names it")
            else:
                tally.lose(f"call {number} of seed {seed}, {call}(..., {name}={value!r}): {wrong}")
    return tally


def _what_is_wrong(work: Callable[..., Any], name: str, value: Any) -> str | None:
    try:
        work(**{name: value})
    except (ValueError, TypeError, OSError) as error:
        said = str(error)
        items = [*value] if isinstance(value, list | dict) else [value]
        texts = [item for item in items if isinstance(item, str) and len(item) > 3]
        is_named = any(word in said for word in (name, repr(value), repr(items), "os.PathLike", *texts))
        return None if is_named else f"only said {error!r}"
    except Exception as error:
        return f"{error!r}"
    return "was accepted"


def _calls() -> list[tuple[str, Callable[..., Any], dict[str, str]]]:
    """:return: Calls that work, by name, and what their arguments have to be: names by kind"""
    config, model = load_config(None, **settings(16)), make_model()
    own = {"suite": config.suite, **config.env_settings()}
    acting = {"suite": config.suite, **config.acting_settings()}
    demonstrations = sb3_vla_envs.collect_demonstrations("point", 2, progress=False, **own)
    policy, spaces = dict(vars(config.policy)), (model.observation_space, model.action_space)
    task = sb3_vla_envs.GymTask("TorturePoint-v0", ("go",))

    def with_policy(**changes: Any) -> Any:
        return make_model(policy_kwargs={**policy, **changes})

    def with_head(head: str) -> Callable[..., Any]:
        return lambda **changes: with_policy(head=head, head_kwargs=changes)

    def given(work: Callable[..., Any], *arguments: Any, **sensible: Any) -> Callable[..., Any]:
        return lambda **changes: work(*arguments, **{**sensible, **changes})

    return [
        (
            "PPOSelfBC",
            make_model,
            {
                "count": "n_steps batch_size n_epochs critic_epochs micro_batch_size bc_batch_size stats_window_size",
                "index": "critic_warmup_steps seed",
                "positive": "clip_range clip_range_vf target_kl noise_scale",
                "above 0": "max_grad_norm",
                "not negative": "learning_rate critic_learning_rate backbone_learning_rate vf_coef",
                "fraction": "gamma gae_lambda",
                "number": "ent_coef",
                "name": "normalize_advantage ratio_per bc_loss overlap shard",
                "rule": "bc_weight",
                "arguments": "policy_kwargs bc_weight_kwargs replay_buffer_kwargs",
                "device": "device",
            },
        ),
        (
            "VLAPolicy",
            with_policy,
            {
                "name": "backbone head autocast",
                "names": "frozen",
                "widths": "critic_net_arch",
                "arguments": "backbone_kwargs head_kwargs lora optimizer_kwargs",
            },
        ),
        (
            "GaussianHead",
            with_head("gaussian"),
            {"count": "hidden_dim", "number": "log_std_init", "fraction": "noise_correlation noise_probability"},
        ),
        (
            "TokenHead",
            with_head("token"),
            {"count": "n_bins hidden_dim n_layers", "positive": "temperature", "name": "bins decoding"},
        ),
        (
            "FlowHead",
            with_head("flow"),
            {
                "count": "n_flow_steps",
                "number": "log_std_init",
                "positive": "noise_level",
                "name": "noise",
                "widths": "net_arch",
            },
        ),
        ("ConstantWeight", sb3_vla.ConstantWeight, {"not negative": "weight"}),
        ("TanhWarmup", sb3_vla.TanhWarmup, {"not negative": "weight", "positive": "warmup_timesteps"}),
        ("SuccessDriven", sb3_vla.SuccessDriven, {"not negative": "weight minimum"}),
        ("GradientBalance", sb3_vla.GradientBalance, {"not negative": "ratio maximum"}),
        (
            "DemonstrationBuffer",
            given(sb3_vla.DemonstrationBuffer, *spaces),
            {"count": "episodes_per_task", "index": "seed", "fraction": "gamma", "name": "rule"},
        ),
        (
            "ChunkedActionWrapper",
            given(sb3_vla_envs.ChunkedActionWrapper, PointEnv(), chunk_size=3),
            {"count": "chunk_size n_action_steps", "fraction": "gamma"},
        ),
        ("PictureObservation", given(sb3_vla_envs.PictureObservation, PointEnv("rgb_array")), {"count": "height width"}),
        ("InstructionObservation", given(sb3_vla_envs.InstructionObservation, PointEnv()), {"count": "max_bytes"}),
        ("Camera", given(sb3_vla_envs.Camera, "corner"), {"count": "height width", "positive": "fovy"}),
        ("SimulationSettings", sb3_vla_envs.SimulationSettings, _SIMULATION),
        ("WrappingSettings", sb3_vla_envs.WrappingSettings, _WRAPPING),
        ("GymSuite", given(sb3_vla_envs.GymSuite, "p", {"p": task}, expert=expert), {"count": "horizon"}),
        ("make_vla_env", given(sb3_vla_envs.make_vla_env, tasks="point", **own), {"names": "tasks", "name": "suite"}),
        ("make_vla_env, simulation", given(sb3_vla_envs.make_vla_env, "point", **own), _SIMULATION),
        ("make_vla_env, wrapping", given(sb3_vla_envs.make_vla_env, "point", **own), _WRAPPING),
        (
            "make_vla_vec_env",
            given(sb3_vla.make_vla_vec_env, tasks="point", n_envs=1, **own),
            {"count": "n_envs chunk_size horizon", "index": "seed", "names": "tasks"},
        ),
        (
            "SharedMemoryVecEnv",
            given(sb3_vla.SharedMemoryVecEnv, [PointEnv]),
            {"count": "n_workers", "index": "probe_steps", "positive": "timeout", "name": "start_method"},
        ),
        (
            "collect_demonstrations",
            given(sb3_vla_envs.collect_demonstrations, "point", n_per_task=1, progress=False, **own),
            {
                "count": "n_per_task n_workers chunk_size",
                "index": "seed",
                "not negative": "action_noise",
                "fraction": "noise_correlation",
            },
        ),
        (
            "fine_tune",
            given(sb3_vla.fine_tune, model, demonstrations, n_epochs=1, progress=False),
            {
                "count": "n_epochs batch_size patience",
                "index": "max_shift seed",
                "above 0": "max_grad_norm",
                "not negative": "learning_rate weight_decay auxiliary_weight",
                "fraction": "held_out_fraction",
                "name": "loss",
                "arguments": "auxiliary_targets",
            },
        ),
        (
            "SFTCallback",
            sb3_vla.SFTCallback,
            {
                "count": "n_per_task n_workers n_epochs batch_size",
                "index": "seed",
                "not negative": "action_noise learning_rate",
            },
        ),
        (
            "evaluate_on_tasks",
            given(sb3_vla.evaluate_on_tasks, model, tasks="point", n_goals=1, n_envs=1, progress=False, **acting),
            {"count": "n_goals n_envs chunk_size", "index": "seed", "name": "split", "names": "tasks"},
        ),
        ("episode_jobs", given(sb3_vla.episode_jobs, ["point"], n_goals=1), {"count": "n_goals", "index": "seed"}),
        ("encode_instruction", given(sb3_vla_envs.encode_instruction, "go"), {"count": "max_bytes"}),
        ("PPOSelfBC.load", sb3_vla.PPOSelfBC.load, {"path": "path"}),
        ("VLAPolicy.load", sb3_vla.VLAPolicy.load, {"path": "path"}),
        ("EvaluationResult.load", sb3_vla.EvaluationResult.load, {"path": "path"}),
        ("load_demonstrations", sb3_vla_envs.load_demonstrations, {"path": "path"}),
    ]
