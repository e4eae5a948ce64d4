"""A short quickstart with whatever version of the packages is importable; prints what it measured as JSON."""

import inspect
import json
import resource
import statistics
import time
from pathlib import Path

import sb3_vla  # isort: skip  # before torch, as the command line does, so that it says how torch's threads wait

import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback

from sb3_vla import PPOSelfBC, VLAPolicy, fine_tune, make_vla_vec_env
from sb3_vla_envs import collect_demonstrations

# The quickstart's, read without help of a version's own functions
DEFAULTS = Path(__file__).parents[2] / "sb3_vla" / "runs" / "defaults.yml"
TASKS = ("window-open-v3", "drawer-close-v3", "button-press-topdown-v3")
N_PER_TASK, N_EPOCHS, N_UPDATES = 12, 3, 5
# The first updates, in which the critic learns alone
N_WARMUP = 1


class UpdateClock(BaseCallback):
    """Notes when each rollout begins and ends, and how many primitive steps were taken by then."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[tuple[float, int]] = []
        self.ends: list[float] = []

    def _on_rollout_start(self) -> None:
        self.starts.append((time.perf_counter(), self.model.num_primitive_steps))  # type: ignore[attr-defined]

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True


def main() -> None:
    """Fine-tune on a few demonstrations, then post-train for a few updates, with the quickstart's settings."""
    config = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
    settings, wrapping = config["train"], config["wrapping"]
    if "head_kwargs" not in inspect.signature(VLAPolicy).parameters:  # the head's arguments were the policy's own
        config["policy"] |= config["policy"].pop("head_kwargs")
    for name in ("total_timesteps", "checkpoint_every"):
        del settings[name]
    # What "auto" comes to on this machine, which all versions know by its name
    config["policy"]["autocast"] = "bfloat16" if th.cpu._is_avx512_bf16_supported() else None
    n_envs, policy_kwargs = settings.pop("n_envs"), {**config["policy"], **settings.pop("policy_kwargs")}
    n_chunks = n_envs * settings["n_steps"]
    settings |= {"critic_warmup_steps": N_WARMUP * n_chunks, "gamma": wrapping["gamma"], "seed": 0}

    demonstrations = collect_demonstrations(TASKS, n_per_task=N_PER_TASK, progress=False, **wrapping)
    env = make_vla_vec_env(TASKS, n_envs, **wrapping)
    sft = PPOSelfBC("VLAPolicy", env, gamma=wrapping["gamma"], n_steps=4, batch_size=4, policy_kwargs=config["policy"], seed=0)
    start = time.perf_counter()
    fine_tune(sft.policy, demonstrations, n_epochs=N_EPOCHS, progress=False)  # type: ignore[arg-type]
    sft_seconds = time.perf_counter() - start

    model = PPOSelfBC("VLAPolicy", env, policy_kwargs=policy_kwargs, **settings)
    model.policy.load_state_dict(sft.policy.state_dict())
    assert model.replay_buffer is not None
    model.replay_buffer.extend(demonstrations)
    clock = UpdateClock()
    model.learn((N_WARMUP + N_UPDATES + 1) * n_chunks, callback=clock)
    env.close()

    starts, ends = clock.starts[N_WARMUP:], clock.ends[N_WARMUP:]
    seconds, n_primitive_steps = (last - first for first, last in zip(starts[0], starts[-1], strict=True))
    rollouts = [end - start for (start, _), end in zip(starts, ends, strict=True)]
    updates = [start - end for (start, _), end in zip(starts[1:], ends, strict=False)]
    measured = {
        "package": str(Path(sb3_vla.__file__).parent),
        "primitive_steps_per_second": n_primitive_steps / seconds,
        "seconds_of_a_rollout": statistics.fmean(rollouts),
        "seconds_of_an_update": statistics.fmean(updates),
        "sft_samples_per_second": N_EPOCHS * sum(map(len, demonstrations)) / sft_seconds,
        "megabytes_of_the_learner": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
