import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_vla import fine_tune
from sb3_vla.imitation.demonstration_set import DemonstrationSet


def action_error(model, env, demonstrations) -> float:
    """Mean absolute error of the first action when the model acts in the environment as it was trained."""
    observation, errors = env.reset(), []
    for demonstration in demonstrations[:1]:
        for chunk in demonstration.actions:
            action, _ = model.predict(observation, deterministic=True)
            errors.append(np.abs(action - chunk).mean())
            observation, *_ = env.step(np.stack([chunk] * env.num_envs))
    return float(np.mean(errors))


def test_fine_tuning_follows_the_models_vec_normalize(make_model, make_vec_env, make_demonstrations):
    env = VecNormalize(make_vec_env(1), norm_obs_keys=["state"], gamma=0.9)
    env.obs_rms["state"].mean[:], env.obs_rms["state"].var[:], env.obs_rms["state"].count = 0.5, 0.01, 1e3
    model = make_model(env)
    demonstrations = make_demonstrations(3)
    fine_tune(model, demonstrations, n_epochs=25, batch_size=8, learning_rate=1e-2, max_shift=0, progress=False)
    env.training = False
    assert action_error(model, model.env, demonstrations) < 0.1
    states = np.concatenate([demonstration.observations["state"] for demonstration in demonstrations])
    assert env.obs_rms["state"].count > 1e3, "its statistics count the demonstrations"
    assert (states.mean(0)[2] - 0.5) * (env.obs_rms["state"].mean[2] - 0.5) > 0


def test_a_policy_alone_whose_observations_are_normalised_is_refused(make_model, make_vec_env, make_demonstrations):
    model = make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], gamma=0.9))
    with pytest.raises(ValueError, match=r"VecNormalize normalises the observations \['state'\].*fine_tune\(model"):
        fine_tune(model.policy, make_demonstrations(2), progress=False)


def test_frames_of_demonstrations_are_stacked_as_the_environment_does(make_model, make_vec_env, make_demonstrations):
    env = VecFrameStack(make_vec_env(1), 2)
    model = make_model(env)
    (demonstration,) = make_demonstrations(1)
    model.replay_buffer.add(demonstration)
    (held,) = model.replay_buffer.episodes["push"]
    observation = model.env.reset()
    for t in range(len(demonstration)):
        for key, values in held.observations.items():
            np.testing.assert_array_equal(values[t], observation[key][0], err_msg=key)
        observation, *_ = model.env.step(demonstration.actions[t][None])
    result = fine_tune(model, make_demonstrations(3), n_epochs=10, batch_size=8, learning_rate=1e-2, progress=False)
    assert result.train_losses[-1] < 0.5 * result.train_losses[0]


def test_images_are_not_copied(make_model, make_demonstrations):
    model = make_model()
    (demonstration,) = make_demonstrations(1)
    model.replay_buffer.add(demonstration)
    (held,) = model.replay_buffer.episodes["push"]
    assert np.shares_memory(held.observations["image"], demonstration.observations["image"])
    assert held.observations["image"].shape == (len(demonstration), 3, 8, 8)


def test_single_steps_become_chunks_that_begin_at_each_of_them(make_model, make_demonstrations):
    model = make_model()  # chunks of 3
    (steps,) = make_demonstrations(1, chunk_size=1)
    steps.actions[:, 0, 0] = np.arange(len(steps))
    assert len(steps) == 4 == steps.n_steps
    held = DemonstrationSet(model.observation_space, model.action_space, [steps])
    (matched,) = held.episodes["push"]
    batch = held.batch([(matched, number) for number in range(4)], "cpu")
    assert batch.actions[:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 0]]
    assert batch.chunk_lengths.tolist() == [3, 3, 2, 1]
    assert matched.n_steps == 4, "as long as it was, however much its chunks overlap"
    assert model.replay_buffer.add(steps) and model.replay_buffer.summary()["push"]["mean_steps"] == 4


def test_chunks_of_another_size_are_refused(make_model, make_demonstrations):
    with pytest.raises(
        ValueError, match=r"actions of shape \(2, 2\), the model \(3, 2\): .*same chunk_size, or of every step"
    ):
        make_model().replay_buffer.add(make_demonstrations(1, chunk_size=2)[0])


def test_frames_of_single_steps_are_not_stacked_as_if_they_were_a_chunk_apart(make_model, make_vec_env, make_demonstrations):
    model = make_model(VecFrameStack(make_vec_env(1), 2))
    with pytest.raises(ValueError, match=r"the model sees 2 frames, a chunk apart.*collect it without every_step"):
        model.replay_buffer.add(make_demonstrations(1, chunk_size=1)[0])


@pytest.mark.parametrize("key", ["instruction", "state", "image"])
def test_what_alone_is_a_fraction_of_the_models_is_no_frame(key, make_model, make_demonstrations):
    model = make_model()
    (demonstration,) = make_demonstrations(1)
    values = demonstration.observations[key]
    demonstration.observations[key] = (
        values[:, :, : values.shape[2] // 2] if key == "image" else values[:, : values.shape[1] // 2]
    )
    with pytest.raises(ValueError, match=rf"a demonstration's '{key}' has the shape \(.*\), the model's is"):
        model.replay_buffer.add(demonstration)


def test_extra_observations_are_kept_and_not_put_into_batches(make_model, make_demonstrations):
    model = make_model()
    (demonstration,) = make_demonstrations(1)
    demonstration.observations["depth"] = np.arange(len(demonstration), dtype=np.float32)[:, None]
    held = DemonstrationSet(model.observation_space, model.action_space, [demonstration], extra_keys=["depth"])
    (matched,) = held.episodes["push"]
    np.testing.assert_array_equal(matched.observations["depth"], demonstration.observations["depth"])
    assert "depth" not in held.batch([(matched, 0)], "cpu").observations
