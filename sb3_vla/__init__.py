"""Post-train vision-language-action policies with reinforcement learning, the Stable-Baselines3 way."""

from .backbones import BackboneFeatures, SmolVLMBackbone, VLABackbone
from .bc_weight import BCWeight, ConstantWeight, GradientBalance, LossWeights, SuccessDriven, TanhWarmup, TrainingStatistics
from .demonstration_buffer import DemonstrationBuffer
from .evaluation import EpisodeSchedule, episode_jobs, evaluate, evaluate_on_metaworld
from .evaluation_result import EvaluationResult
from .hub import push_to_hub, save_for_hub
from .ppo_self_bc import PPOSelfBC
from .sft import fine_tune
from .sft_callback import SFTCallback
from .shared_memory_vec_env import SharedMemoryVecEnv
from .success_eval_callback import SuccessEvalCallback
from .vec_env import make_vla_vec_env
from .vla_policy import VLAPolicy

__version__ = "0.1.0"

__all__ = [
    "BCWeight",
    "BackboneFeatures",
    "ConstantWeight",
    "DemonstrationBuffer",
    "EpisodeSchedule",
    "EvaluationResult",
    "GradientBalance",
    "LossWeights",
    "PPOSelfBC",
    "SFTCallback",
    "SharedMemoryVecEnv",
    "SmolVLMBackbone",
    "SuccessDriven",
    "SuccessEvalCallback",
    "TanhWarmup",
    "TrainingStatistics",
    "VLABackbone",
    "VLAPolicy",
    "episode_jobs",
    "evaluate",
    "evaluate_on_metaworld",
    "fine_tune",
    "make_vla_vec_env",
    "push_to_hub",
    "save_for_hub",
]
