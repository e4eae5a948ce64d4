import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import fine_tune
from sb3_vla.imitation import sft

SETTINGS = {"batch_size": 3, "learning_rate": 1e-2, "max_shift": 1, "progress": False}


def count_batches(monkeypatch, stop_after=None):
    """:return: A list that grows with each batch; of so many a fine-tuning ends by Ctrl-C"""
    update, done = sft.Progress.update, []

    def counted(progress, n=1, **figures):
        done.extend([n] * n)
        if n and len(done) == stop_after:
            raise KeyboardInterrupt
        update(progress, n, **figures)

    monkeypatch.setattr(sft.Progress, "update", counted)
    return done


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_weights(one, two):
    assert all(th.equal(value, weights(two)[name]) for name, value in weights(one).items())


VARIANTS = {
    "plain": ({}, {}),
    "patience": ({}, {"patience": 4, "learning_rate": 0.1}),
    "frozen": ({"frozen": ("vision",)}, {}),
    "random_head": ({"head": "flow", "head_kwargs": {}}, {}),  # which draws its noise from torch's global generator
    "auxiliary_target": ({}, {"auxiliary_targets": {"privileged": [0, 1]}}),
}


# Of 5 batches an epoch; the checkpoint is that after an even number of them
@pytest.mark.parametrize(
    ("variant", "n_batches"), [*(("plain", n) for n in (1, 5, 6, 10)), *((name, 18) for name in VARIANTS)]
)
def test_ends_as_if_it_had_never_stopped(
    variant, n_batches, make_model, make_vec_env, make_demonstrations, tmp_path, monkeypatch
):
    policy_kwargs, settings = VARIANTS[variant]
    settings = {**SETTINGS, **settings, "n_epochs": 4, "held_out_fraction": 0.2}
    demonstrations = make_demonstrations(9, privileged=True)
    for number, demonstration in enumerate(demonstrations if variant == "patience" else ()):  # nothing can be learned
        demonstration.actions[:] = 1.0 if number % 2 else -1.0
    if variant == "auxiliary_target":
        settings["auxiliary_episodes"] = make_demonstrations(4, privileged=True)

    def run(checkpoint=None):
        model = make_model(make_vec_env(privileged=True), policy_kwargs=policy_kwargs)
        th.manual_seed(5)
        return model, fine_tune(model, demonstrations, checkpoint=checkpoint, checkpoint_every=2, **settings)

    expected, expected_result = run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_batches(patch, n_batches)
        run(tmp_path / "sft")
    done = count_batches(monkeypatch)
    model, result = run(tmp_path / "sft")
    assert len(done) == 5 * len(result.train_losses) - n_batches // 2 * 2
    assert result == expected_result
    assert_same_weights(model, expected)
    assert variant != "patience" or result.kept_epoch < 3  # the weights of an epoch before the stop count


@pytest.mark.parametrize("every", [1, 100])
def test_goes_on_with_the_very_model_that_was_stopped(
    every, make_model, make_vec_env, make_demonstrations, tmp_path, monkeypatch
):
    """As in a notebook: neither weights nor the statistics of VecNormalize count what was done twice, and the critic stays."""
    demonstrations = make_demonstrations(4)
    settings = {**SETTINGS, "n_epochs": 3, "checkpoint_every": every}

    def make():
        return make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], norm_reward=False))

    expected, model = make(), make()
    fine_tune(expected, demonstrations, **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_batches(patch, 4)
        fine_tune(model, demonstrations, checkpoint=tmp_path / "sft", **settings)
    fine_tune(model, demonstrations, checkpoint=tmp_path / "sft", **settings)
    assert_same_weights(model, expected)
    its_own, other = (each.env.obs_rms["state"] for each in (model, expected))
    assert its_own.count == other.count and np.array_equal(its_own.mean, other.mean)


def test_complete_it_is_done_again_from_its_last_batches(make_model, make_demonstrations, tmp_path, monkeypatch):
    models, settings = [make_model(), make_model()], {**SETTINGS, "n_epochs": 2, "checkpoint": tmp_path / "sft"}
    results = [fine_tune(models[0], make_demonstrations(4), checkpoint_every=1, **settings)]
    done = count_batches(monkeypatch)
    results.append(fine_tune(models[1], make_demonstrations(4), **settings))
    assert not done and results[0] == results[1]
    assert_same_weights(*models)


def test_nothing_is_written_without_a_number_of_batches(make_model, make_demonstrations, tmp_path):
    fine_tune(make_model(), make_demonstrations(4), **SETTINGS, n_epochs=1, checkpoint=tmp_path / "sft", checkpoint_every=None)
    assert not (tmp_path / "sft").exists()


CHANGES = [
    (
        {"learning_rate": 1e-3},
        r"is of a fine-tuning with learning_rate=0.01, not 0.001: give what it began with, or move the file",
    ),
    ({"n_epochs": 3}, "with n_epochs=2, not 3"),
    ({"auxiliary_targets": {"state": [0]}}, r"with auxiliary_targets=\[\], not \[\['state', \[0\]\]\]"),
    ({"n_demonstrations": 5}, "with other demonstrations: give what it began with"),
    ({"pictures": 1}, "with other demonstrations"),
    ({"states": 0.5}, "with other demonstrations"),
    ({"auxiliary": 2, "auxiliary_targets": {"privileged": [0]}}, "with other auxiliary_episodes"),
    ({"policy_kwargs": {"head_kwargs": {"hidden_dim": 8}}}, "with other networks"),
    ({"policy_kwargs": {"frozen": ("vision",)}}, "with other networks"),
    ({"policy_kwargs": {"autocast": "bfloat16"}}, "with autocast=None, not 'bfloat16'"),
    ({"normalized": ["state"]}, r"with normalized_keys=\[\], not \['state'\]"),
    ({"lifetime_timesteps": 16}, "with lifetime_timesteps=0, not 16"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_the_checkpoint_of_another_call_is_refused_and_changes_nothing(
    change, message, make_model, make_vec_env, make_demonstrations, tmp_path
):
    def call(
        n_demonstrations=4,
        pictures=0,
        states=0.0,
        auxiliary=0,
        policy_kwargs=None,
        normalized=None,
        lifetime_timesteps=0,
        **given,
    ):
        env = make_vec_env(privileged=True)
        if normalized:
            env = VecNormalize(env, norm_obs_keys=normalized, norm_reward=False)
        model = make_model(env, policy_kwargs=policy_kwargs or {})
        model.lifetime_timesteps = lifetime_timesteps
        demonstrations = make_demonstrations(n_demonstrations, privileged=True)
        demonstrations[0].observations["image"][:] += np.uint8(pictures)
        demonstrations[0].observations["state"][:] += np.float32(states)
        if auxiliary:
            given["auxiliary_episodes"] = make_demonstrations(auxiliary, privileged=True)
        before = weights(model)
        try:
            fine_tune(model, demonstrations, **{**SETTINGS, "n_epochs": 2, **given}, checkpoint=path)
        except ValueError:
            assert all(th.equal(value, before[name]) for name, value in weights(model).items())
            raise

    path = tmp_path / "sft"
    call()
    written = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        call(**change)
    assert path.read_bytes() == written


def test_what_is_frozen_must_be_the_same(make_model, make_demonstrations, tmp_path):
    settings = {**SETTINGS, "n_epochs": 1, "checkpoint": tmp_path / "sft"}
    model, other = (make_model(seed=seed, policy_kwargs={"frozen": ("vision",)}) for seed in (1, 2))
    fine_tune(model, make_demonstrations(4), **settings)
    with pytest.raises(ValueError, match="with other networks"):
        fine_tune(other, make_demonstrations(4), **settings)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"{}"])
def test_a_damaged_checkpoint_is_refused(damage, make_model, make_demonstrations, tmp_path):
    path, settings = tmp_path / "sft", {**SETTINGS, "n_epochs": 1, "checkpoint_every": 1}
    fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **settings)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"sft' is truncated, damaged or .*; move it elsewhere to begin anew"):
        fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **settings)


def test_a_policy_is_no_checkpoint(make_model, make_demonstrations, tmp_path):
    model = make_model()
    model.policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match="policy' is not what a fine-tuning goes on from"):
        fine_tune(model, make_demonstrations(4), checkpoint=tmp_path / "policy", **SETTINGS)


def test_where_nothing_can_be_written_is_known_before_the_first_batch(make_model, make_demonstrations, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    done = count_batches(monkeypatch)
    for path in (tmp_path / "file" / "sft", tmp_path):
        with pytest.raises(OSError, match=str(tmp_path)):
            fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **SETTINGS)
    assert not done
