import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import fine_tune
from sb3_vla.imitation import sft
from sb3_vla.imitation.sft_checkpoint import WrongCheckpoint

SETTINGS = {"batch_size": 3, "learning_rate": 1e-2, "max_shift": 1, "progress": False}


def stop_after(monkeypatch, n_batches):
    """Fine-tunings end by Ctrl-C after so many batches."""
    step, done = sft._Learner.step, []

    def counted(learner, *args):
        if len(done) == n_batches:
            raise KeyboardInterrupt
        done.append(step(learner, *args))

    monkeypatch.setattr(sft._Learner, "step", counted)


def weights(model):
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


VARIANTS = {
    "plain": ({}, {}),
    "patience": ({}, {"patience": 2}),
    "frozen": ({"frozen": ("vision",)}, {}),
    "random_head": ({"head": "flow", "head_kwargs": {}}, {}),  # which draws its noise from torch's global generator
    "auxiliary_target": ({}, {"auxiliary_targets": {"privileged": [0, 1]}}),
}


# Of 5 batches an epoch
@pytest.mark.parametrize(("variant", "n_batches"), [*(("plain", n) for n in (1, 5, 6)), *((name, 13) for name in VARIANTS)])
def test_ends_as_if_it_had_never_stopped(
    variant, n_batches, make_model, make_vec_env, make_demonstrations, tmp_path, monkeypatch
):
    policy_kwargs, settings = VARIANTS[variant]
    settings = {**SETTINGS, **settings, "n_epochs": 4, "held_out_fraction": 0.2}
    demonstrations = make_demonstrations(9, privileged=True)
    if "auxiliary_targets" in settings:
        settings["auxiliary_episodes"] = make_demonstrations(4, privileged=True)

    def run(checkpoint=None):
        model = make_model(make_vec_env(privileged=True), policy_kwargs=policy_kwargs)
        th.manual_seed(5)
        return model, fine_tune(model, demonstrations, checkpoint=checkpoint, checkpoint_every=2, **settings)

    expected, expected_result = run()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, n_batches)
        run(tmp_path / "sft")
    assert (tmp_path / "sft").exists() == (n_batches >= 2)
    done = []
    step = sft._Learner.step
    monkeypatch.setattr(sft._Learner, "step", lambda *args: done.append(step(*args)))
    model, result = run(tmp_path / "sft")
    n_in_all = 5 * len(expected_result.train_losses)
    assert len(done) == n_in_all - n_batches // 2 * 2
    assert result == expected_result
    assert all(th.equal(value, weights(expected)[name]) for name, value in weights(model).items())


def test_goes_on_with_the_very_model_that_was_stopped(make_model, make_vec_env, make_demonstrations, tmp_path, monkeypatch):
    """As in a notebook: neither weights nor the statistics of VecNormalize count what was done twice."""
    demonstrations = make_demonstrations(4)
    settings = {**SETTINGS, "n_epochs": 3, "checkpoint_every": 1}

    def make():
        return make_model(VecNormalize(make_vec_env(), norm_obs_keys=["state"], norm_reward=False))

    expected, model = make(), make()
    fine_tune(expected, demonstrations, **settings)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 4)
        fine_tune(model, demonstrations, checkpoint=tmp_path / "sft", **settings)
    fine_tune(model, demonstrations, checkpoint=tmp_path / "sft", **settings)
    assert all(th.equal(value, weights(expected)[name]) for name, value in weights(model).items())
    its_own, other = (each.env.obs_rms["state"] for each in (model, expected))
    assert its_own.count == other.count and np.array_equal(its_own.mean, other.mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 1e-3},
            "another fine-tuning, whose learning_rate is 0.01 and not 0.001: give another",
        ),
        ({"n_epochs": 3}, "whose n_epochs is 2 and not 3"),
        ({"n_demonstrations": 5}, "whose demonstrations is '.*' and not '.*'"),
        ({"auxiliary_targets": {"state": [0]}}, r"whose auxiliary_targets is {} and not {'state': \[0\]}"),
        ({"policy_kwargs": {"head_kwargs": {"hidden_dim": 8}}}, "whose number of weights is"),
    ],
)
def test_the_checkpoint_of_another_call_is_refused_and_changes_nothing(
    change, message, make_model, make_demonstrations, tmp_path
):
    path, settings = tmp_path / "sft", {**SETTINGS, "n_epochs": 2, "checkpoint_every": 1}
    fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **settings)
    written, model = path.read_bytes(), make_model(policy_kwargs=change.pop("policy_kwargs", {}))
    before, demonstrations = weights(model), make_demonstrations(change.pop("n_demonstrations", 4))
    with pytest.raises(WrongCheckpoint, match=message):
        fine_tune(model, demonstrations, checkpoint=path, **{**settings, **change})
    assert path.read_bytes() == written
    assert all(th.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"{}"])
def test_a_damaged_checkpoint_is_refused(damage, make_model, make_demonstrations, tmp_path):
    path, settings = tmp_path / "sft", {**SETTINGS, "n_epochs": 1, "checkpoint_every": 1}
    fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **settings)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WrongCheckpoint, match=r"sft' is truncated, damaged or .*: delete it to begin anew"):
        fine_tune(make_model(), make_demonstrations(4), checkpoint=path, **settings)


def test_a_model_is_no_checkpoint(make_model, make_demonstrations, tmp_path):
    model = make_model()
    model.policy.save(tmp_path / "policy")
    with pytest.raises(WrongCheckpoint):
        fine_tune(model, make_demonstrations(4), checkpoint=tmp_path / "policy", **SETTINGS)


def test_where_nothing_can_be_written_is_known_before_the_work(make_model, make_demonstrations, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        fine_tune(make_model(), make_demonstrations(4), checkpoint=tmp_path / "file" / "sft", **SETTINGS)
