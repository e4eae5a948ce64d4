"""All that ``sb3_vla`` offers, imported: torch and SB3, which takes seconds; transformers comes with the first backbone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .callbacks.sft_callback import SFTCallback
from .callbacks.success_eval_callback import SuccessEvalCallback
from .common.normalizer_state import load_normalizer, save_normalizer
from .common.trusted_names import trust
from .evaluation.collect import collect_episodes
from .evaluation.episode_schedule import EpisodeSchedule, episode_jobs
from .evaluation.evaluate import evaluate, evaluate_on_tasks
from .evaluation.result import EvaluationResult
from .hub.model_folder import save_for_hub
from .hub.upload import push_to_hub
from .imitation.demonstration_buffer import DemonstrationBuffer
from .imitation.sft import fine_tune
from .policies.backbones import BackboneFeatures, VLABackbone
from .policies.heads import ActionHead, ChunkDistribution, ChunkSample, FlowHead, GaussianHead, TokenHead
from .policies.vla_policy import VLAPolicy
from .ppo_self_bc.bc_weight import (
    BCWeight,
    ConstantWeight,
    GradientBalance,
    LossWeights,
    SuccessDriven,
    TanhWarmup,
    TrainingStatistics,
)
from .ppo_self_bc.ppo_self_bc import PPOSelfBC
from .vec_env.make import make_vla_vec_env
from .vec_env.ray_vec_env import RayVecEnv
from .vec_env.shared_memory_vec_env import SharedMemoryVecEnv

if TYPE_CHECKING:
    from .policies.backbones.pretrained import PretrainedBackbone
    from .policies.backbones.smolvlm import SmolVLMBackbone

evaluate_on_metaworld = evaluate_on_tasks  # its name before there were other suites

__all__ = [
    "ActionHead",
    "BCWeight",
    "BackboneFeatures",
    "ChunkDistribution",
    "ChunkSample",
    "ConstantWeight",
    "DemonstrationBuffer",
    "EpisodeSchedule",
    "EvaluationResult",
    "FlowHead",
    "GaussianHead",
    "GradientBalance",
    "LossWeights",
    "PPOSelfBC",
    "PretrainedBackbone",
    "RayVecEnv",
    "SFTCallback",
    "SharedMemoryVecEnv",
    "SmolVLMBackbone",
    "SuccessDriven",
    "SuccessEvalCallback",
    "TanhWarmup",
    "TokenHead",
    "TrainingStatistics",
    "VLABackbone",
    "VLAPolicy",
    "collect_episodes",
    "episode_jobs",
    "evaluate",
    "evaluate_on_metaworld",
    "evaluate_on_tasks",
    "fine_tune",
    "load_normalizer",
    "make_vla_vec_env",
    "push_to_hub",
    "save_for_hub",
    "save_normalizer",
    "trust",
]


def __getattr__(name: str) -> Any:
    modules = {"PretrainedBackbone": "pretrained", "SmolVLMBackbone": "smolvlm"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".policies.backbones.{modules[name]}", __package__), name)
