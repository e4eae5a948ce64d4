import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_vla import fine_tune
from sb3_vla.common.chunk_mask import executed_mask, masked_mse
from sb3_vla.imitation.random_shift import random_shift


@pytest.fixture
def policy(make_model):
    return make_model().policy


def mean_error(policy, demonstrations) -> float:
    """Mean squared error over executed steps, one at a time."""
    errors = []
    for demonstration in demonstrations:
        for t in range(len(demonstration)):
            observation = {key: value[t] for key, value in demonstration.observations.items()}
            tensor, _ = policy.obs_to_tensor(observation)
            with th.no_grad():
                mean = policy.get_distribution(tensor).mode()[0].numpy()
            executed = demonstration.chunk_lengths[t]
            errors += [((mean - demonstration.actions[t])[step] ** 2).mean() for step in range(executed)]
    return float(np.mean(errors))


def test_learns_the_demonstrations(policy, make_demonstrations):
    demonstrations = make_demonstrations(6)
    before = mean_error(policy, demonstrations)
    result = fine_tune(policy, demonstrations, n_epochs=25, batch_size=8, learning_rate=1e-2, max_shift=1, progress=False)
    assert len(result.train_losses) == len(result.held_out_losses) == 25
    assert result.train_losses[-1] < 0.1 * result.train_losses[0]
    assert mean_error(policy, demonstrations) < 0.1 * before
    assert not policy.training


@pytest.mark.parametrize("head", ["gaussian", "token"])
def test_a_factor_of_the_noise_is_not_made_up_for(head, make_model, make_demonstrations):
    policies = []
    for scale in (1.0, 0.25):
        model = make_model(policy_kwargs={"head": head, "head_kwargs": {}}, noise_scale=scale)
        fine_tune(model, make_demonstrations(4), loss="nll", n_epochs=2, learning_rate=1e-2, progress=False)
        assert model.policy.head.noise_scale == scale
        policies.append(model.policy.state_dict())
    assert all(th.equal(value, policies[1][name]) for name, value in policies[0].items())


def test_held_out_episodes_are_read_as_in_acting(policy, make_demonstrations):
    modes = []
    policy.backbone.register_forward_hook(lambda *_: modes.append(policy.training))
    fine_tune(policy, make_demonstrations(4), n_epochs=2, batch_size=64, progress=False)
    assert modes == [True, False, True, False] and not policy.training


@pytest.fixture
def contradiction(make_demonstrations):
    """Two episodes that show the same and do the opposite: the better one is learnt, the worse the other is."""
    demonstrations = make_demonstrations(2)
    for demonstration, value in zip(demonstrations, (1.0, -1.0), strict=True):
        demonstration.actions[:] = value
    return demonstrations


@pytest.mark.parametrize("patience", [None, 7])
def test_keeps_the_weights_of_the_last_epoch_or_with_patience_of_the_best(patience, policy, contradiction):
    settings = dict(n_epochs=8, learning_rate=1e-2, patience=patience, max_shift=0, progress=False)
    result = fine_tune(policy, contradiction, **settings)
    losses = result.held_out_losses
    best = int(np.argmin(losses))
    assert len(losses) == 8 and best < 7 and result.kept_epoch == (7 if patience is None else best)
    errors = [mean_error(policy, [demonstration]) for demonstration in contradiction]
    assert min(abs(error - losses[result.kept_epoch]) for error in errors) < 1e-5 < losses[-1] - min(losses)


def test_stops_early_when_held_out_loss_no_longer_falls(policy, contradiction):
    result = fine_tune(policy, contradiction, n_epochs=30, learning_rate=1e-2, patience=2, max_shift=0, progress=False)
    assert len(result.held_out_losses) == result.kept_epoch + 3 < 30


def test_held_out_loss_is_that_of_the_held_out_episodes(policy, make_demonstrations):
    """One of two episodes is held out: the loss must be that of either, by an independent loop."""
    demonstrations = make_demonstrations(2)
    result = fine_tune(policy, demonstrations, n_epochs=1, batch_size=4, progress=False)
    errors = [mean_error(policy, [demonstration]) for demonstration in demonstrations]
    assert abs(errors[0] - errors[1]) > 1e-4
    assert min(abs(error - result.held_out_losses[0]) for error in errors) < 1e-5


def test_the_held_out_loss_of_an_epoch_can_be_compared_with_the_next(make_model, make_demonstrations):
    """Flow matching draws noise, and without learning it draws the same."""
    policy = make_model(policy_kwargs={"head": "flow", "head_kwargs": {}}).policy
    result = fine_tune(policy, make_demonstrations(4), n_epochs=3, learning_rate=0, max_shift=0, progress=False)
    assert len(set(result.held_out_losses)) == 1 < len(set(result.train_losses))


def test_every_task_holds_out_its_part(make_model, make_demonstrations):
    """A constant policy, so that each number of held-out episodes has a loss of its own: 3 of 10 and 1 of 2."""
    policy = make_model().policy
    with th.no_grad():
        policy.head.mean_net[-1].weight.zero_()
        policy.head.mean_net[-1].bias.zero_()
    push, pull = make_demonstrations(10, task="push"), make_demonstrations(2, task="pull")
    for demonstration, value in [(demo, 1.0) for demo in push] + [(demo, 3.0) for demo in pull]:
        demonstration.actions[:] = value
    result = fine_tune(
        policy, push + pull, n_epochs=1, batch_size=64, held_out_fraction=0.3, learning_rate=1e-12, progress=False
    )
    assert result.held_out_losses == [pytest.approx((3 * 1.0 + 1 * 9.0) / 4, rel=1e-5)]
    assert result.train_losses == [pytest.approx((7 * 1.0 + 1 * 9.0) / 8, rel=1e-5)]


def test_unexecuted_actions_are_ignored(make_model, make_demonstrations):
    demonstrations = make_demonstrations(4)
    spoilt = copy.deepcopy(demonstrations)
    for demonstration in spoilt:
        for actions, length in zip(demonstration.actions, demonstration.chunk_lengths, strict=True):
            actions[length:] = 1e3
    results, policies = [], []
    for data in (demonstrations, spoilt):
        policies.append(make_model().policy)
        results.append(fine_tune(policies[-1], data, n_epochs=2, batch_size=4, progress=False))
    assert results[0] == results[1]
    states = [policy.state_dict() for policy in policies]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[0])


def test_same_seed_same_result(make_model, make_demonstrations):
    demonstrations = make_demonstrations(4)
    results = [
        fine_tune(make_model().policy, demonstrations, n_epochs=2, batch_size=4, seed=seed, progress=False)
        for seed in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


def test_state_is_standardised_with_the_training_episodes(policy, make_demonstrations):
    demonstrations = make_demonstrations(2)
    fine_tune(policy, demonstrations, n_epochs=1, progress=False)
    # The two episodes have the same states, so whichever is held out
    state, privileged = (demonstrations[0].observations[key] for key in ("state", "privileged"))
    assert np.allclose(policy.state_normalizer.mean, state.mean(0), atol=1e-6)
    # The last number never changes and keeps its scale
    assert state.std(0)[2] == 0
    assert np.allclose(policy.state_normalizer.std, [*state.std(0)[:2], 1.0], atol=1e-6)
    assert np.allclose(policy.privileged_normalizer.mean, privileged.mean(0), atol=1e-6)


@pytest.mark.parametrize("frozen", [("vision",), ("all",)])
def test_frozen_parts_and_the_critic_do_not_change(frozen, make_model, make_demonstrations):
    policy = make_model(policy_kwargs={"frozen": frozen}).policy
    part = policy.backbone.parts[frozen[0]]
    before = [p.clone() for p in (*part.parameters(), *policy.critic.parameters())]
    head = policy.head.mean_net[-1].weight.clone()
    fine_tune(policy, make_demonstrations(3), n_epochs=2, progress=False)
    assert all(th.equal(a, b) for a, b in zip(before, (*part.parameters(), *policy.critic.parameters()), strict=True))
    assert not th.equal(head, policy.head.mean_net[-1].weight)


@pytest.mark.parametrize("n_epochs", [1, 2, 19, 20])
def test_any_number_of_steps(policy, make_demonstrations, n_epochs):
    """One batch an epoch: 19 steps made OneCycleLR divide by zero."""
    result = fine_tune(policy, make_demonstrations(2), n_epochs=n_epochs, batch_size=64, progress=False)
    assert len(result.train_losses) == n_epochs


@pytest.mark.parametrize("has_learned", [False, True])
def test_a_critic_that_has_learned_goes_on_seeing_what_it_saw(has_learned, make_model, make_vec_env, make_demonstrations):
    model = make_model(make_vec_env(privileged=True), policy_kwargs={"optimizer_class": th.optim.SGD})  # which keeps nothing
    if has_learned:
        model.learn(16)
    observation, _ = model.policy.obs_to_tensor(model.env.reset())
    before = model.policy.predict_values(observation)
    fine_tune(model, make_demonstrations(4, privileged=True), n_epochs=1, progress=False)
    assert th.equal(model.policy.predict_values(observation), before) == has_learned


def test_the_fine_tuned_policy_goes_on_in_ppo(make_model, make_demonstrations):
    model = make_model()
    fine_tune(model.policy, make_demonstrations(4), n_epochs=40, batch_size=8, learning_rate=1e-2, progress=False)
    model.learn(16)
    # The expert needs two chunks; an untrained policy mostly fails
    assert np.mean(model.ep_success_buffer) > 0.5


# --- Augmentation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shift", [0, 1, 3])
def test_random_shift_equals_cropping_the_padded_image(max_shift):
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 5, 7), dtype=np.uint8)
    shifted = random_shift(th.tensor(images), max_shift, th.Generator().manual_seed(0)).numpy()
    assert shifted.dtype == np.uint8 and shifted.shape == images.shape
    used = set()
    for image, result in zip(images, shifted, strict=True):
        padded = np.pad(image, ((0, 0), (max_shift, max_shift), (max_shift, max_shift)), mode="edge")
        matches = [
            (dy, dx)
            for dy in range(2 * max_shift + 1)
            for dx in range(2 * max_shift + 1)
            if np.array_equal(padded[:, dy : dy + 5, dx : dx + 7], result)
        ]
        assert len(matches) == 1
        used.add(matches[0])
    assert len(used) > 1 or max_shift == 0


def test_random_shift_reaches_every_shift_both_ways():
    column = th.arange(9, dtype=th.uint8).view(1, 1, 9, 1).expand(500, 1, 9, 9)
    shifted = random_shift(column, 2, th.Generator().manual_seed(0))
    counts = np.bincount(shifted[:, 0, 4, 4].numpy(), minlength=9)
    assert (counts[[2, 3, 4, 5, 6]] > 70).all() and counts.sum() == 500


def test_random_shift_of_no_pixel_is_the_identity():
    images = th.randint(0, 256, (4, 3, 6, 6), dtype=th.uint8)
    assert th.equal(random_shift(images, 0, th.Generator()), images)


# --- Bad input --------------------------------------------------------------------------------------------------------


def test_too_few_demonstrations_are_refused(policy, make_demonstrations):
    with pytest.raises(ValueError, match="no demonstrations: collect some with"):
        fine_tune(policy, [], progress=False)
    with pytest.raises(ValueError, match="task 'push' has one successful demonstration"):
        fine_tune(policy, make_demonstrations(1), progress=False)
    with pytest.raises(ValueError, match="task 'pull' has one successful demonstration"):
        fine_tune(policy, [*make_demonstrations(2), *make_demonstrations(1, task="pull")], progress=False)


def test_failures_are_not_imitated(policy, make_demonstrations):
    failures = make_demonstrations(2)
    for demonstration in failures:
        demonstration.success = False
    with pytest.raises(ValueError, match=r"no successful ones among the 2 demonstrations.*success=True"):
        fine_tune(policy, failures, progress=False)


def test_demonstrations_of_other_chunks_are_refused(policy, make_demonstrations):
    with pytest.raises(ValueError, match=r"actions of shape \(4, 2\), the model \(3, 2\).*chunk_size"):
        fine_tune(policy, make_demonstrations(2, chunk_size=4), progress=False)


def test_demonstrations_without_an_observation_are_refused(policy, make_demonstrations):
    demonstrations = make_demonstrations(2)
    del demonstrations[1].observations["state"]
    with pytest.raises(ValueError, match=r"lacks the observations \['state'\].*cameras and options"):
        fine_tune(policy, demonstrations, progress=False)


def test_what_the_critic_alone_reads_may_be_missing_until_it_learns(make_model, make_demonstrations):
    model, real = make_model(), make_demonstrations(4, privileged=False)
    result = fine_tune(model, real, n_epochs=10, batch_size=8, learning_rate=1e-2, progress=False)
    assert result.train_losses[-1] < 0.5 * result.train_losses[0]
    assert model.policy.state_normalizer.is_fitted and not model.policy.privileged_normalizer.is_fitted
    with pytest.raises(ValueError, match=r"lacks the observations \['privileged'\].*only fine-tune on it: the critic alone"):
        model.replay_buffer.extend(real)
    state = model.policy.state_normalizer.mean.clone()
    fine_tune(model, make_demonstrations(4), n_epochs=1, progress=False)
    assert model.policy.privileged_normalizer.is_fitted
    assert th.equal(model.policy.state_normalizer.mean, state)


@pytest.mark.parametrize("learned_by", ["fine-tuning", "post-training"])
def test_a_policy_that_has_learned_goes_on_from_what_it_is(learned_by, make_model, make_demonstrations):
    model = make_model(policy_kwargs={"head": "token", "head_kwargs": {"bins": "quantile", "n_bins": 8}})
    if learned_by == "fine-tuning":
        fine_tune(model, make_demonstrations(4), n_epochs=5, learning_rate=1e-2, progress=False)
    else:
        model.learn(16)
    observation = model.env.reset()
    before, _ = model.predict(observation, deterministic=True)
    others = make_demonstrations(4)
    for demonstration in others:
        demonstration.observations["state"] = 5 * demonstration.observations["state"] + 3
        demonstration.actions[:] *= 0.1
    fine_tune(model, others, n_epochs=1, learning_rate=1e-12, progress=False)
    after, _ = model.predict(observation, deterministic=True)
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("demos.npz", "got 'demos.npz' of type str:"),
        (Path("demos.npz"), "got .*Path"),
        (["demos.npz"], r"got \['demos.npz'\] of type list:"),
        (None, "got None of type NoneType:"),
    ],
)
def test_what_is_no_demonstrations_is_said_with_how_to_get_some(given, what, make_model):
    model = make_model()
    for take in (partial(fine_tune, model, progress=False), model.replay_buffer.extend):
        with pytest.raises(TypeError, match=f"demonstrations must be a sequence.*{what}.*load_demonstrations"):
            take(given)


def test_a_single_demonstration_and_a_buffer_are_no_sequences(make_model, make_demonstrations):
    model = make_model()
    for given in (make_demonstrations(1)[0], model.replay_buffer):
        with pytest.raises(TypeError, match=r"into a list.*out of its `episodes`"):
            fine_tune(model, given, progress=False)


def test_actions_in_other_units_are_warned_of_once(make_model, make_demonstrations):
    model, demonstrations = make_model(), make_demonstrations(3)
    for demonstration in demonstrations:
        demonstration.actions[:] *= 90
    for take in (partial(fine_tune, model, n_epochs=1, progress=False), model.replay_buffer.extend):
        with pytest.warns(
            UserWarning, match="of task 'push' has actions from .* to 72, the model's go from -1 to 1"
        ) as caught:
            take(demonstrations)
        assert len([warning for warning in caught if "other units" in str(warning.message)]) == 1


@pytest.mark.parametrize("n_epochs", [0, -1])
def test_no_epochs_are_refused(policy, make_demonstrations, n_epochs):
    with pytest.raises(ValueError, match=f"n_epochs must be at least 1, got {n_epochs}"):
        fine_tune(policy, make_demonstrations(2), n_epochs=n_epochs, progress=False)


def test_training_loss_is_that_of_the_masked_mean(policy, make_demonstrations):
    """With a learning rate of almost nothing and no shifts, the first epoch's loss is that of the policy given."""
    demonstrations = make_demonstrations(2)
    fine_tune(policy, demonstrations, n_epochs=1, learning_rate=1e-12, max_shift=0, progress=False)
    result = fine_tune(policy, demonstrations, n_epochs=1, batch_size=64, learning_rate=1e-12, max_shift=0, progress=False)
    losses = []
    for demonstration in demonstrations:
        obs, _ = policy.obs_to_tensor(demonstration.observations)
        lengths = th.tensor(demonstration.chunk_lengths)
        with th.no_grad():
            mean = policy.get_distribution(obs).mode()
            losses.append(masked_mse(mean, th.tensor(demonstration.actions), executed_mask(lengths, 3)).item())
    assert sorted([result.train_losses[0], result.held_out_losses[0]]) == pytest.approx(sorted(losses), rel=1e-4)


def test_a_gradient_that_is_not_finite_leaves_the_weights_of_before(policy, make_demonstrations):
    policy.head.log_std.requires_grad_(False)
    policy.head.mean_net[0].weight.register_hook(lambda gradient: gradient * np.nan)
    before = {name: value.clone() for name, value in policy.state_dict().items() if name.startswith(("head", "backbone"))}
    with pytest.raises(FloatingPointError, match=r"epoch 0 of SFT .* gradient nan: the weights are those of before"):
        fine_tune(policy, make_demonstrations(2), n_epochs=2, progress=False)
    assert all(th.equal(value, policy.state_dict()[name]) for name, value in before.items())
    assert not policy.training


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", -1e-3, "learning_rate must be at least 0, got -0.001"),
        ("auxiliary_weight", float("nan"), "auxiliary_weight must be finite, got nan"),
        ("held_out_fraction", 1.0, "held_out_fraction must be below 1, got 1.0"),
        ("patience", 0, "patience must be at least 1, got 0"),
        ("max_shift", -1, "max_shift must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(policy, make_demonstrations, name, value, message):
    with pytest.raises(ValueError, match=message):
        fine_tune(policy, make_demonstrations(2), **{name: value})


@pytest.mark.parametrize("head", [{}, {"head": "token", "head_kwargs": {"bins": "quantile", "n_bins": 8}}])
def test_single_steps_and_chunks_may_be_mixed(head, make_model, make_demonstrations):
    model = make_model(policy_kwargs=head)
    # Seven steps in all, which are no whole number of chunks of three
    demonstrations = make_demonstrations(2) + make_demonstrations(3, chunk_size=1)
    fine_tune(model, demonstrations, n_epochs=1, batch_size=4, held_out_fraction=0.2, progress=False)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_quantile_bins_are_those_of_executed_actions(make_model, make_demonstrations):
    model = make_model(policy_kwargs={"head": "token", "head_kwargs": {"bins": "quantile", "n_bins": 8}})
    demonstrations = make_demonstrations(6)
    for demonstration in demonstrations:  # 4 steps in chunks of 3
        assert demonstration.chunk_lengths.tolist() == [3, 1]
        demonstration.actions[1, 1:] = -0.9
    fine_tune(model, demonstrations, n_epochs=1, batch_size=4, progress=False)
    assert th.isclose(model.policy.head.unit_bins[0], th.tensor(0.8)).any()
    assert not th.isclose(model.policy.head.unit_bins[0], th.tensor(-0.9)).any()
