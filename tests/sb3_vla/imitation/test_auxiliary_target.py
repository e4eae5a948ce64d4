from dataclasses import replace

import numpy as np
import pytest
import torch as th

from sb3_vla import fine_tune
from sb3_vla.imitation.auxiliary_target import AuxiliaryTarget
from sb3_vla_envs import Demonstration


def episode(task: str, numbers: np.ndarray) -> Demonstration:
    length = len(numbers)
    return Demonstration(
        task=task,
        observations={"privileged": numbers.astype(np.float32)},
        actions=np.zeros((length, 1, 1), np.float32),
        chunk_lengths=np.ones(length, np.int64),
        success=True,
    )


def test_numbers_are_standardised_within_each_task_and_those_that_do_not_vary_do_not_count():
    rng = np.random.default_rng(0)
    # The second number only tells apart the tasks
    near = episode("near", np.stack([rng.normal(1, 0.1, 50), np.full(50, 7.0), np.full(50, 1.0)], axis=1))
    far = episode("far", np.stack([rng.normal(9, 2.0, 50), np.full(50, 8.0), np.full(50, 1.0)], axis=1))
    auxiliary = AuxiliaryTarget(4, {"privileged": [0, 1]}, [near, far])
    targets = auxiliary.of([near, far])
    assert targets.counts.tolist() == [[1.0, 0.0]] * 100
    for part in (targets.values[:50, 0], targets.values[50:, 0]):
        assert part.mean().abs() < 1e-5 and abs(part.std(correction=0) - 1) < 1e-5
    assert targets.at(np.array([70, 3]), th.device("cpu")).values[:, 0].tolist() == targets.values[[70, 3], 0].tolist()


def test_loss_is_the_share_of_the_variance_that_is_not_explained():
    demo = episode("near", np.random.default_rng(0).normal(size=(64, 2)))
    auxiliary = AuxiliaryTarget(4, {"privileged": None}, [demo])
    with th.no_grad():
        for parameter in auxiliary.network[-1].parameters():
            parameter.zero_()  # it says the mean
    assert auxiliary.loss(th.zeros(64, 4), auxiliary.of([demo])).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"depth": None}, r"has no 'depth', only \['privileged'\]"),
        ({"privileged": [2]}, r"'privileged' has 2 numbers, got the indices \[2\]"),
        ({"privileged": [1]}, "none of these numbers varies by 0.005 or more within a task"),
    ],
)
def test_targets_that_are_not_there_or_never_vary_are_refused(targets, message):
    demo = episode("near", np.stack([np.arange(9.0), np.ones(9)], axis=1))
    with pytest.raises(ValueError, match=message):
        AuxiliaryTarget(4, targets, [demo])


def test_features_learn_what_the_actor_does_not_observe(make_model, make_demonstrations):
    """An actor without `privileged` is told of it: what its features explain of held-out episodes grows."""
    policy = make_model().policy
    targets = {"privileged": [0, 1]}
    settings = dict(n_epochs=30, batch_size=8, learning_rate=1e-2, max_shift=0, progress=False)
    result = fine_tune(policy, make_demonstrations(6), auxiliary_targets=targets, **settings)
    assert len(result.unexplained) == 30
    assert result.unexplained[-1] < 0.2 < result.unexplained[0]
    assert result.train_losses[-1] < 0.2 * result.train_losses[0], "it still imitates"
    assert fine_tune(make_model().policy, make_demonstrations(3), n_epochs=1, progress=False).unexplained == []


def test_other_episodes_teach_the_targets_whatever_was_done_in_them(make_model, make_demonstrations):
    targets = {"privileged": [0, 1]}
    settings = dict(n_epochs=10, batch_size=8, learning_rate=1e-2, max_shift=0, progress=False)
    failures = [replace(episode, success=False) for episode in make_demonstrations(4, task="pull")]
    opposite = [replace(episode, actions=-episode.actions) for episode in failures]
    reversed_ = [
        replace(episode, observations=episode.observations | {"privileged": episode.observations["privileged"][::-1]})
        for episode in failures
    ]
    weights = []
    for others in ((), failures, opposite, reversed_):
        policy = make_model().policy
        result = fine_tune(policy, make_demonstrations(3), auxiliary_targets=targets, auxiliary_episodes=others, **settings)
        assert result.unexplained[-1] < 0.2 and result.train_losses[-1] < 0.2 * result.train_losses[0]
        weights.append(th.cat([parameter.flatten() for parameter in policy.backbone.parameters()]))
    none, given, acted_otherwise, saw_otherwise = weights
    assert th.equal(given, acted_otherwise)
    assert not th.allclose(given, none, atol=1e-3) and not th.allclose(given, saw_otherwise, atol=1e-3)
    with pytest.raises(ValueError, match="auxiliary_episodes teach auxiliary_targets: name some"):
        fine_tune(make_model().policy, make_demonstrations(3), auxiliary_episodes=failures, **settings)


def test_targets_need_not_be_among_what_the_policy_reads(make_model, make_vec_env, make_demonstrations):
    policy = make_model(make_vec_env(privileged=False)).policy
    settings = dict(n_epochs=2, batch_size=8, progress=False)
    result = fine_tune(policy, make_demonstrations(4), auxiliary_targets={"privileged": None}, **settings)
    assert len(result.unexplained) == 2
    with pytest.raises(ValueError, match=r"lacks the observations|has no 'privileged'"):
        demonstrations = make_demonstrations(4, privileged=False)
        fine_tune(policy, demonstrations, auxiliary_targets={"privileged": None}, **settings)


def test_weight_zero_trains_as_without_targets(make_model, make_demonstrations):
    weights = []
    for kwargs in ({}, {"auxiliary_targets": {"privileged": None}, "auxiliary_weight": 0.0}):
        policy = make_model().policy
        fine_tune(policy, make_demonstrations(4), n_epochs=2, batch_size=8, progress=False, **kwargs)
        weights.append(policy.state_dict())
    assert all(th.allclose(first, second, atol=1e-5) for first, second in zip(*(w.values() for w in weights), strict=True))
