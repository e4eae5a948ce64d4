"""For those who import from here still; goes away."""

from .episode_schedule import EpisodeJob, EpisodeSchedule, episode_jobs, episode_seed
from .evaluate import evaluate, evaluate_on_tasks
from .model_fit import check_model_fits, model_settings

evaluate_on_metaworld = evaluate_on_tasks
metaworld_env_kwargs = model_settings
TRAINING_ONLY = ("gamma", "privileged", "task_ids", "goal_order", "task_order")
