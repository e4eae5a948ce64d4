"""What makes the chunks, in all the ways in which a configuration may name it."""

import optuna
import pytest
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor

from sb3_vla.zoo.environment import chunk_settings
from sb3_vla.zoo.experiment_manager import ChunkExperimentManager, TrialSuccessCallback
from sb3_vla_envs import ChunkedActionWrapper

WRAPPER = "sb3_vla_envs.ChunkedActionWrapper"


class Mine(ChunkedActionWrapper):
    """A user's own, under another name."""


@pytest.mark.parametrize(
    ("env_wrapper", "name"),
    [
        (WRAPPER, WRAPPER),
        ({WRAPPER: {}}, WRAPPER),
        ([{WRAPPER: None}], WRAPPER),
        (["gymnasium.wrappers.FlattenObservation", {WRAPPER: {"gamma": 0.9}}], WRAPPER),
        ([{Mine: {"gamma": 0.9}}], Mine),
    ],
)
def test_wrapper_in_any_form(env_wrapper, name):
    hyperparams = {"env_kwargs": {}, "env_wrapper": env_wrapper}
    settings, defaults = chunk_settings(hyperparams, "Pendulum-v1")
    settings["chunk_size"] = 3
    assert hyperparams["env_wrapper"][-1][name]["chunk_size"] == 3
    assert defaults["gamma"] == 1.0


def test_schedules_of_our_own_arguments():
    given = {"learning_rate": "lin_3e-4", "critic_learning_rate": "lin_1e-3", "noise_scale": "lin_1_0.2", "n_steps": 8}
    made = ChunkExperimentManager._preprocess_schedules(given)
    names = ("learning_rate", "critic_learning_rate", "noise_scale")
    assert [made[name](0.5) for name in names] == pytest.approx([1.5e-4, 5e-4, 0.6]) and made["n_steps"] == 8
    with pytest.raises(ValueError, match="Invalid value"):
        ChunkExperimentManager._preprocess_schedules({"noise_scale": ["lin_1"]})


def test_environments_that_make_chunks_themselves():
    hyperparams = {"env_kwargs": {"horizon": 40}}
    settings, defaults = chunk_settings(hyperparams, "MetaWorldVLA/reach-v3")
    assert settings is hyperparams["env_kwargs"]
    assert (defaults["chunk_size"], defaults["gamma"]) == (8, 0.99)


@pytest.mark.parametrize("env_wrapper", [None, "gymnasium.wrappers.FlattenObservation"])
def test_environments_without_chunks(env_wrapper):
    assert chunk_settings({"env_kwargs": {}, "env_wrapper": env_wrapper}, "MetaWorldState/reach-v3")[0] is None


@pytest.mark.parametrize("chunk_size", [1, 2, 4])
def test_the_score_of_a_trial_counts_primitive_steps(chunk_size, make_model, make_env, make_vec_env):
    env = Monitor(make_env(chunk_size=chunk_size, goal=4, horizon=7))
    model = make_model(make_vec_env(chunk_size=chunk_size))
    # Success at the fourth step, whatever the chunks: a positive first number is progress
    model.policy.head.mean_net[-1].weight.data.zero_()
    model.policy.head.mean_net[-1].bias.data.fill_(1.0)
    model.set_logger(Logger(None, []))
    study = optuna.create_study(direction="maximize")
    callback = TrialSuccessCallback(env, study.ask(), n_eval_episodes=2, eval_freq=1)
    callback.init_callback(model)
    callback.on_training_start({}, {})
    assert callback.on_step()
    assert callback.last_mean_reward == pytest.approx(0.99**4), "whatever the model's own discount"
