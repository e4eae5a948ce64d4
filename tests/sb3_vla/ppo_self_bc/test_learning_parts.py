import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_vla import PPOSelfBC

from .small_training import changed, collect, drift, parameters_equal, snapshot


def test_separate_learning_rates_reach_their_parts(make_model, record_logs):
    model = make_model(
        learning_rate=lambda progress: 1e-3 * progress, backbone_learning_rate=1e-4, critic_learning_rate=lambda p: 0.1 * p
    )
    logs = record_logs(model)
    model.learn(32)
    rates = {group["name"]: group["lr"] for group in model.policy.optimizer.param_groups}
    # The last of two updates: half of the way at the first, all of it at the second
    assert rates == pytest.approx({"backbone": 1e-4, "head": 0.0, "critic": 0.0})
    assert [row["train/learning_rate"] for row in logs] == pytest.approx([0.5e-3, 0.0])


def test_a_part_without_a_learning_rate_does_not_move(make_model):
    model = make_model(backbone_learning_rate=0.0)
    before = snapshot(model)
    model.learn(16)
    assert changed(model, before) == {"head", "critic"}


@pytest.mark.parametrize("privileged", [True, False])
def test_critic_warmup_changes_only_the_critic(privileged, make_model, make_vec_env, make_demonstrations, record_logs):
    model = make_model(make_vec_env(privileged=privileged), critic_warmup_steps=32)
    model.replay_buffer.extend(make_demonstrations(2, privileged=privileged))
    logs = record_logs(model)
    before = snapshot(model)
    model.learn(32)
    assert changed(model, before) == {"critic"}
    assert "train/value_loss" in logs[-1] and "train/policy_gradient_loss" not in logs[-1]
    model.learn(16, reset_num_timesteps=False)
    assert changed(model, before) == {"critic", "head", "backbone"}
    assert "train/policy_gradient_loss" in logs[-1]


@pytest.mark.parametrize("privileged", [True, False])
def test_further_epochs_of_the_critic_change_only_the_critic(privileged, make_model, make_vec_env):
    without, equal, further = (
        make_model(make_vec_env(privileged=privileged), critic_epochs=epochs, bc_weight=0).learn(16) for epochs in (None, 1, 4)
    )
    assert parameters_equal(without, equal)
    assert changed(further, snapshot(without)) == {"critic"}
    assert further._n_updates == without._n_updates == 1


@pytest.mark.parametrize("warmup", [0, 16])
def test_a_critic_that_reads_the_backbone_has_it_run_once_for_all_epochs_in_which_it_learns_alone(
    warmup, make_model, make_vec_env, monkeypatch
):
    def learn():
        settings = {"critic_epochs": 5, "critic_warmup_steps": warmup, "batch_size": 16, "bc_weight": 0}
        model = make_model(make_vec_env(privileged=False), critic_learning_rate=1e-2, **settings)
        runs = []

        def train():
            hook = model.policy.backbone.register_forward_hook(lambda *_: runs.append(1))
            PPOSelfBC.train(model)
            hook.remove()

        model.train = train
        return model.learn(16), len(runs)

    once, n_runs = learn()
    monkeypatch.setattr(type(once.adapter), "critic_reads_features", False)
    each_time, n_runs_each_time = learn()
    assert (n_runs, n_runs_each_time) == ((2, 5) if warmup == 0 else (1, 5))
    for name, weight in each_time.policy.state_dict().items():
        np.testing.assert_allclose(once.policy.state_dict()[name], weight, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "head",
    [
        {"head": "gaussian", "head_kwargs": {"hidden_dim": 16}},
        {"head": "token", "head_kwargs": {"hidden_dim": 16}},
        {"head": "token", "head_kwargs": {"hidden_dim": 16, "decoding": "autoregressive"}},
    ],
    ids=str,
)
def test_noise_follows_its_schedule_from_rollout_to_rollout(head, make_model, record_logs, tmp_path):
    def spread(model):
        th.manual_seed(0)
        observation = model.env.reset()
        mode = model.predict(observation, deterministic=True)[0]
        return np.mean([np.square(model.predict(observation)[0] - mode).mean() for _ in range(20)])

    model = make_model(policy_kwargs=head, noise_scale=LinearSchedule(1.0, 0.2, 1.0), learning_rate=0.0)
    wide = spread(model)
    logs = record_logs(model)
    model.learn(32)
    # Of the second of two rollouts; both are learned from with the noise that they were collected with
    assert model.policy.head.noise_scale == pytest.approx(0.6)
    assert len(logs) == 2 and all(abs(row["train/approx_kl"]) < 1e-5 for row in logs)
    del model.train  # of record_logs, which no file can hold
    model.save(tmp_path / "model.zip")
    loaded = PPOSelfBC.load(tmp_path / "model.zip", env=model.env)
    assert loaded.policy.head.noise_scale == pytest.approx(0.2) and spread(loaded) < spread(model) < wide


def test_a_schedule_without_a_name_can_be_given_again_in_silence(make_model, tmp_path, recwarn):
    model = make_model(noise_scale=lambda progress: 0.2 + 0.8 * progress)
    model.save(tmp_path / "model.zip")
    assert len(recwarn) == 1 and "noise_scale" in str(recwarn.pop().message)
    PPOSelfBC.load(tmp_path / "model.zip", noise_scale=lambda progress: 0.5)
    assert not recwarn


def test_schedules_end_where_the_last_rollout_goes_beyond_the_end():
    schedules = {"learning_rate": lambda progress: 3e-4 * progress, "clip_range": lambda progress: 0.2 * progress}
    model = PPOSelfBC("MlpPolicy", "Pendulum-v1", n_steps=64, n_epochs=1, bc_weight=0, **schedules)
    assert model.learn(100).num_timesteps == 128 and model._n_updates == 2
    assert model.policy.optimizer.param_groups[0]["lr"] == 0.0


def test_critic_epochs_improve_the_value(make_model):
    losses = []
    for epochs in (1, 30):
        model = make_model(n_steps=32, critic_epochs=epochs, critic_learning_rate=1e-2, bc_weight=0).learn(64)
        (data,) = model.rollout_buffer.get()
        with th.no_grad():
            values = model.policy.predict_values(data.observations).flatten()
        losses.append((values - data.returns).square().mean().item())
    assert losses[1] < 0.8 * losses[0]


def test_epochs_of_the_critic_are_made_up_for_where_the_kl_limit_ends_those_of_the_policy(make_model, monkeypatch):
    n_steps_alone = []
    train_critic = PPOSelfBC._train_critic
    monkeypatch.setattr(PPOSelfBC, "_train_critic", lambda *args: (n_steps_alone.append(1), train_critic(*args))[1])
    settings = dict(n_epochs=2, target_kl=1e-9, learning_rate=1e-2, bc_weight=0)
    make_model(**settings).learn(16)
    assert not n_steps_alone, "as in SB3"
    model = make_model(critic_epochs=4, **settings).learn(16)
    n_minibatches = 16 // model.batch_size
    assert model._n_updates == 1 and len(n_steps_alone) == 4 * n_minibatches


@pytest.mark.parametrize("warmup", [0, 32])
def test_a_critic_that_has_not_learned_yet_drops_no_demonstration(warmup, make_model, make_demonstrations):
    model = make_model(critic_warmup_steps=warmup)
    demonstrations = make_demonstrations(4)
    for demonstration in demonstrations:  # worse than any critic expects
        demonstration.rewards = np.full(len(demonstration), -10, np.float32)
    model.replay_buffer.extend(demonstrations)

    def held():
        return sum(demonstration.rewards[0] == -10 for held in model.replay_buffer.episodes.values() for demonstration in held)

    model.learn(max(warmup, 16))
    assert held() == 4
    model.learn(16, reset_num_timesteps=False)
    assert held() == 0


def test_critic_warmup_of_an_mlp_policy_runs_on_the_value_loss():
    model = PPOSelfBC("MlpPolicy", drift(), n_steps=16, batch_size=8, n_epochs=1, critic_warmup_steps=16, seed=0, device="cpu")
    before = snapshot(model)
    model.learn(16)
    assert changed(model, before) == {"mlp_extractor", "value_net"}


@pytest.mark.parametrize("frozen", [("vision",), ("text", "connector"), ("all",)])
def test_frozen_parts_do_not_change(frozen, make_model, make_demonstrations):
    model = make_model(policy_kwargs={"frozen": frozen})
    model.replay_buffer.extend(make_demonstrations(2))
    parts = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in model.policy.backbone.parts.items()}
    model.learn(32)
    for name, part in model.policy.backbone.parts.items():
        if name == "all":
            continue
        same = all(th.equal(value, parts[name][key]) for key, value in part.state_dict().items())
        assert same == (name in frozen or frozen == ("all",)), name


def test_advantages_are_normalised_per_task(make_model, make_vec_env):
    model = make_model(normalize_advantage="task", n_epochs=1)
    model.learn(16)
    tasks, advantages = model.rollout_buffer.tasks.flatten(), model.rollout_buffer.advantages.flatten()
    assert tasks.tolist() == ["push"] * 8 + ["pull"] * 8, "one environment after the other, as SB3 flattens"
    for task in ("push", "pull"):
        assert advantages[tasks == task].mean() == pytest.approx(0, abs=1e-5)
        assert advantages[tasks == task].std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("normalize_advantage", [True, False, "task"])
def test_a_rollout_can_be_trained_on_twice(normalize_advantage, make_model):
    model = make_model(normalize_advantage=normalize_advantage).learn(16)
    before = model.rollout_buffer.advantages.copy()
    model.train()
    assert np.array_equal(model.rollout_buffer.advantages, before)
    collect(model)
    model.train()
    assert not np.array_equal(model.rollout_buffer.advantages, before)
