import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecNormalize

from sb3_vla import PPOSelfBC, SuccessEvalCallback

# Ranks can't import this file
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Seen(VecEnvWrapper):
    """Keeps the observations."""

    def reset(self):
        self.observations = [self.venv.reset()]
        return self.observations[0]

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        self.observations.append(observations)
        return observations, *rest


def pendulum(n_envs=2):
    return Seen(DummyVecEnv([lambda: Monitor(gym.make("Pendulum-v1", max_episode_steps=5))] * n_envs))


def pendulum_model(env, **kwargs):
    settings = {"n_steps": 12, "batch_size": 24, "n_epochs": 1, "bc_weight": 0, "device": "cpu", "seed": 3}
    return PPOSelfBC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **{**settings, **kwargs})


def weights(model):
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


def learn_normalized(folder):
    env = VecNormalize(pendulum())
    model = pendulum_model(env, verbose=1, tensorboard_log=str(folder / "tensorboard"))
    first = weights(model)
    model.learn(96, progress_bar=True)
    model.save(folder / f"model_of_rank{model.ranks.rank}")
    return {
        "first": first,
        "weights": weights(model),
        "timesteps": (model.num_timesteps, model.lifetime_timesteps, model.num_primitive_steps),
        "episodes": [info["r"] for info in model.ep_info_buffer],
        "statistics": [(rms.mean, rms.var, rms.count) for rms in (env.obs_rms, env.ret_rms)],
        "observations": np.concatenate(env.venv.observations),
        "seeds": [each.unwrapped.np_random_seed for each in env.unwrapped.envs],
        "verbose": model.verbose,
    }


def learn_demonstrations(make_model, make_vec_env):
    env = make_vec_env(goal=2, horizon=4)
    model = make_model(env, n_steps=16, bc_weight="success", policy_kwargs={"head_kwargs": {"log_std_init": 0.5}})
    model.learn(192)
    episodes = {
        task: [(demo.actions, demo.observations["image"]) for demo in held]
        for task, held in model.replay_buffer.episodes.items()
    }
    successes = {task: list(outcomes) for task, outcomes in model._recorder.successes.items()}
    drawn = model.replay_buffer.sample(4).actions
    return {"weights": weights(model), "episodes": episodes, "successes": successes, "drawn": drawn}


class StopsOnOneRank(BaseCallback):
    def __init__(self):
        super().__init__()
        self.events = []

    def _on_step(self):
        return self.model.ranks.rank == 0 or self.n_calls < 15

    def _on_rollout_end(self):
        self.events.append("rollout")

    def _on_training_end(self):
        self.events.append("end")


def stop_on_one_rank():
    callback = StopsOnOneRank()
    model = pendulum_model(pendulum()).learn(480, callback=callback)
    return model._n_updates, callback.events


def fails(what, *args):
    try:
        what(*args)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)


def other_environments():
    rank = pendulum_model(pendulum()).ranks.rank
    pendulum_model(pendulum(2 + rank)).learn(48)


def other_arguments():
    rank = pendulum_model(pendulum()).ranks.rank
    pendulum_model(pendulum(), clip_range=0.1 + 0.1 * rank).learn(48)


class ChangesWeights(BaseCallback):
    def _on_step(self):
        return True

    def _on_rollout_end(self):
        if self.model.ranks.rank == 1:
            with th.no_grad():
                self.model.policy.value_net.bias += 1e-6


def change_weights():
    pendulum_model(pendulum()).learn(48, callback=ChangesWeights())


class Rated(gym.Wrapper):
    """Each episode has a higher reward than the one before, or a lower one."""

    def __init__(self, change):
        super().__init__(gym.make("Pendulum-v1", max_episode_steps=2))
        self.change, self.reward_of_episode = change, 0.0

    def reset(self, **kwargs):
        self.reward_of_episode += self.change
        return super().reset(**kwargs)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, self.reward_of_episode, *rest


class CountCalls(BaseCallback):
    def _on_step(self):
        return True


def evaluate_differently():
    model = pendulum_model(pendulum())
    env = Monitor(Rated(1 if model.ranks.is_first else -1))
    best = CountCalls()
    callback = SuccessEvalCallback(env, callback_on_new_best=best, n_eval_episodes=1, eval_freq=6, verbose=0)
    model.learn(48, callback=callback)
    return best.n_calls, callback.best_mean_reward


def everything(folder, make_model, make_vec_env):
    """All that is asked of two ranks, in one pair of processes."""
    return {
        "normalized": learn_normalized(folder),
        "demonstrations": learn_demonstrations(make_model, make_vec_env),
        "stop": stop_on_one_rank(),
        "evaluations": evaluate_differently(),
        **{what.__name__: fails(what) for what in (other_environments, other_arguments, change_weights)},
    }


@pytest.fixture(scope="module")
def both(start_ranks, tmp_path_factory):
    """What both ranks return, and the folder that they write to."""
    done = []

    def both(*arguments):
        if not done:
            folder = tmp_path_factory.mktemp("run")
            done.extend([*start_ranks(everything, 2, folder, *arguments).results(), folder])
        return done

    return both


@pytest.fixture
def ranks(both, make_model, make_vec_env):
    first, second, folder = both(make_model, make_vec_env)
    assert not any(isinstance(result, Exception) for result in (first, second)), (first, second)
    return first, second, folder


def test_ranks_have_one_model_and_count_together(ranks):
    first, second = (rank["normalized"] for rank in ranks[:2])
    assert th.equal(first["weights"], second["weights"]) and th.equal(first["first"], second["first"])
    assert not th.equal(first["first"], first["weights"])
    # Two rollouts of 12 steps in two environments of each of two ranks
    assert first["timesteps"] == second["timesteps"] == (96, 96, 96)
    assert first["episodes"] == second["episodes"] and len(first["episodes"]) == len(set(first["episodes"])) == 16
    # As one process with four environments seeds them
    assert first["seeds"] + second["seeds"] == [3, 4, 5, 6]


def test_normalisation_is_by_what_all_ranks_have_seen(ranks):
    first, second = (rank["normalized"] for rank in ranks[:2])
    for one, other in zip(first["statistics"], second["statistics"], strict=True):
        for value, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(value, same)
    seen = np.concatenate([first["observations"], second["observations"]])
    mean, var, count = first["statistics"][0]
    assert count == pytest.approx(len(seen), rel=1e-4)
    np.testing.assert_allclose(mean, seen.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(var, seen.var(axis=0), atol=1e-4)


def test_only_the_first_rank_writes_and_prints(ranks):
    first, second, folder = ranks
    assert (first["normalized"]["verbose"], second["normalized"]["verbose"]) == (1, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["model_of_rank0.zip", "tensorboard"]
    assert len(list((folder / "tensorboard").rglob("events*"))) == 1


def test_what_one_rank_finds_worth_imitating_all_imitate(ranks):
    first, second = (rank["demonstrations"] for rank in ranks[:2])
    assert th.equal(first["weights"], second["weights"])
    assert first["successes"] == second["successes"] and sum(map(len, first["successes"].values())) > 20
    assert first["episodes"].keys() == second["episodes"].keys() == {"push", "pull"}
    for task, episodes in first["episodes"].items():
        assert len(episodes) == len(second["episodes"][task]) > 0
        for one, other in zip(episodes, second["episodes"][task], strict=True):
            for array, same in zip(one, other, strict=True):
                np.testing.assert_array_equal(array, same)
    assert not th.equal(first["drawn"], second["drawn"]), "each rank draws pairs of its own"


def test_one_rank_that_stops_stops_all_before_anything_is_learned_from_half_a_rollout(ranks):
    # The 15th call is in the second rollout
    assert ranks[0]["stop"] == ranks[1]["stop"] == (1, ["rollout", "end"])


def test_what_is_best_on_the_first_rank_is_best_on_all(ranks):
    n_best, reward = ranks[0]["evaluations"]
    assert n_best == 2 and reward > 0
    assert ranks[1]["evaluations"] == (n_best, reward)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("other_environments", "the ranks differ in environments: n_envs is 2 on rank 0 and 3 on rank 1"),
        ("other_arguments", "the ranks differ in arguments of the algorithm: clip_range is"),
        ("change_weights", "the weights of rank 1 are no longer those of rank 0 (in value_net.bias)"),
    ],
)
def test_ranks_that_are_not_alike_say_so(ranks, what, text):
    for rank in ranks[:2]:
        kind, message = rank[what]
        assert kind == ("RuntimeError" if what == "change_weights" else "ValueError")
        assert text in message and "\n" not in message
