"""
An environment of your own, made ready for a vision-language-action policy, and one post-trained on it.

Shows: ``ReachTarget`` stands for what you have: a Gymnasium environment (no MetaWorld, no MuJoCo) with a vector observation,
single actions and ``render()``. ``make_vla_ready`` wraps it into what ``VLAPolicy`` takes: a picture, the robot's own state,
an instruction in words, chunks of actions. Then, as for MetaWorld: demonstrations, supervised fine-tuning, PPO with self
behaviour cloning, evaluation by task.

Run: python examples/own_environment.py      (about one and a half minutes on two cores)
See: two tables of success and steps. Fine-tuned on a slow expert the policy takes about 18 steps, post-trained about 10.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_vla import EpisodeSchedule, EvaluationResult, PPOSelfBC, episode_jobs, evaluate, fine_tune
from sb3_vla_envs import ChunkedActionWrapper, Demonstration, InstructionObservation

COLOURS = {"red": (220, 50, 47), "green": (60, 160, 60), "blue": (50, 90, 220)}
CHUNK_SIZE, GAMMA = 4, 0.99


class ReachTarget(gym.Env):
    """
    A hand on a table, (-1, 1) wide, that has to reach the target of the colour that it is told.

    It observes its own position and, relative to it, those of all targets and of the right one. An action is a velocity.
    The reward is 1 at the right target, which ends the episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  # declared as an instance attribute by gym
    speed, reach, horizon = 0.15, 0.2, 60

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-2, 2, (10,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.render_mode = "rgb_array"
        self.instructions = [f"go to the {colour} target" for colour in COLOURS]
        self.instruction = self.instructions[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        drawn = list(COLOURS)[self.np_random.integers(len(COLOURS))]
        # With the option, evaluation picks the task
        self.task = (options or {}).get("task", drawn)
        self.instruction = f"go to the {self.task} target"
        self.n_steps = 0
        # The hand in the lower half, the targets in the upper one, each anywhere in its third
        targets = np.array([(-0.6, -0.5), (0.0, -0.5), (0.6, -0.5)]) + self.np_random.uniform(-0.2, 0.2, (3, 2))
        self.positions = np.array([self.np_random.uniform((-0.9, 0.1), (0.9, 0.9)), *targets])
        return self._observation(), {"task": self.task}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n_steps += 1
        self.positions[0] = np.clip(self.positions[0] + self.speed * np.clip(action, -1, 1), -1, 1)
        success = bool(np.linalg.norm(self.to_goal) < self.reach)
        # What PPOSelfBC reads: is_success is all it needs, task gives each its own statistics and its own demonstrations
        info = {"task": self.task, "is_success": success, **({"steps_to_success": self.n_steps} if success else {})}
        return self._observation(), float(success), success, self.n_steps >= self.horizon, info

    def render(self) -> np.ndarray:
        """Targets as coloured discs, the hand a white one, ``(64, 64, 3)``."""
        picture = np.full((64, 64, 3), 30, dtype=np.uint8)
        y, x = np.mgrid[-1:1:64j, -1:1:64j]
        for (x0, y0), colour in zip(self.positions[[1, 2, 3, 0]], [*COLOURS.values(), (255, 255, 255)], strict=True):
            picture[(x - x0) ** 2 + (y - y0) ** 2 < 0.15**2] = colour
        return picture

    @property
    def to_goal(self) -> np.ndarray:
        return self.positions[1 + list(COLOURS).index(self.task)] - self.positions[0]

    def _observation(self) -> np.ndarray:
        return np.concatenate(
            [self.positions[0], (self.positions[1:] - self.positions[0]).ravel(), self.to_goal], dtype=np.float32
        )


def make_vla_ready() -> gym.Env:
    """The twenty lines: your environment in, what ``VLAPolicy`` takes out."""
    env: gym.Env = ReachTarget()
    # Of the vector, `state` is what a robot feels of itself: the rest must come from the picture. The value function, which is
    # needed in training only, may know everything
    low, high = env.observation_space.low, env.observation_space.high
    observed = gym.spaces.Dict(state=gym.spaces.Box(low[:2], high[:2]), privileged=gym.spaces.Box(low, high))
    env = TransformObservation(env, lambda full: {"state": full[:2], "privileged": full}, observed)
    # Single actions become chunks, each a timestep of the algorithm
    env = ChunkedActionWrapper(env, CHUNK_SIZE, gamma=GAMMA)
    # Outside of the chunks, so that there is one picture a chunk: what render() gives. A MuJoCo environment with `model` and
    # `data` can have sb3_vla_envs.CameraObservation instead: any cameras, quicker
    env = AddRenderObservation(env, render_only=False, render_key="image")
    # The attribute `instruction` as bytes. It may change with each reset; `instructions` has all, whose length is checked now
    return InstructionObservation(env, max_bytes=32)


def demonstrate(env: gym.Env, task: str, seed: int) -> Demonstration:
    """An episode of a scripted expert, who goes straight to the target at less than half of the speed that is possible."""
    robot = env.unwrapped
    observation, info = env.reset(seed=seed, options={"task": task})
    observations, chunks, lengths, done = [], [], [], False
    while not done:
        step = robot.to_goal / np.linalg.norm(robot.to_goal) * 0.4
        chunks.append(np.tile(step, (CHUNK_SIZE, 1)).astype(np.float32))
        observations.append(observation)
        observation, _, terminated, truncated, info = env.step(chunks[-1])
        lengths.append(info["chunk_length"])
        done = terminated or truncated
    stacked = {key: np.stack([seen[key] for seen in observations]) for key in observation}
    return Demonstration(task, stacked, np.stack(chunks), np.array(lengths), success=info["is_success"])


def evaluated(model: PPOSelfBC, n_episodes: int) -> EvaluationResult:
    """The same episodes each time, ``n_episodes`` of each task."""
    envs = DummyVecEnv([lambda: EpisodeSchedule(make_vla_ready())] * min(20, n_episodes))
    return evaluate(model, envs, episode_jobs(list(COLOURS), n_episodes), progress=False)


def main(arguments: Sequence[str] | None = None) -> PPOSelfBC:
    parser = argparse.ArgumentParser(description="A vision-language-action policy in an environment of your own")
    parser.add_argument("--timesteps", type=int, default=15_000, help="chunks to post-train with")
    parser.add_argument("--demonstrations", type=int, default=100, help="of each task")
    parser.add_argument("--epochs", type=int, default=15, help="of supervised fine-tuning")
    parser.add_argument("--eval-episodes", type=int, default=50, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    env = DummyVecEnv([lambda: Monitor(make_vla_ready())] * 16)
    settings = {"learning_rate": 2e-4, "n_steps": 60, "batch_size": 160, "n_epochs": 2, "gae_lambda": 0.9, "bc_weight": 0.1}
    critic = {"critic_learning_rate": 1e-3, "critic_epochs": 10, "critic_warmup_steps": 2 * 960}
    policy = {"head_kwargs": {"noise_correlation": 1.0}, "autocast": "auto"}
    model = PPOSelfBC("VLAPolicy", env, gamma=GAMMA, policy_kwargs=policy, seed=args.seed, verbose=1, **settings, **critic)

    expert_env = make_vla_ready()
    demonstrations = [demonstrate(expert_env, task, args.seed + i) for task in COLOURS for i in range(args.demonstrations)]
    fine_tune(model, demonstrations, n_epochs=args.epochs, max_shift=2, seed=args.seed)
    print(f"After fine-tuning on {len(demonstrations)} demonstrations\n{evaluated(model, args.eval_episodes).table()}")

    model.replay_buffer.extend(demonstrations)
    model.learn(args.timesteps)
    print(f"After {model.num_primitive_steps} primitive steps of post-training")
    print(evaluated(model, args.eval_episodes).table())
    return model


if __name__ == "__main__":
    main()
