import numpy as np
import pytest
import torch as th

from sb3_vla.common.chunk_mask import executed_mask
from sb3_vla.policies.adapter import ActionEvaluation
from sb3_vla.ppo_self_bc.losses import clipped_surrogate_loss, ppo_loss
from sb3_vla_envs import Demonstration

from .small_training import LOGGED, Fixed, UnexecutedEnv, bc_loss_of, collect, only_gradients, ppo_loss_of

# --- Chunks -----------------------------------------------------------------------------------------------------------


def first_ratios(model) -> th.Tensor:
    """Likelihood ratios of a fresh rollout, before any update."""
    (data,) = model.rollout_buffer.get()
    model.policy.set_training_mode(True)
    log_prob = model.adapter.evaluate(data.policy_input, data.actions, data.extras).log_prob
    return (log_prob - data.old_log_prob).exp().detach()


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_first_ratio_is_one_per_step(chunk_size, make_model, make_vec_env):
    model = make_model(make_vec_env(chunk_size=chunk_size))
    collect(model)
    ratios = first_ratios(model)
    assert ratios.shape == (16, chunk_size)
    assert th.allclose(ratios, th.ones_like(ratios), atol=1e-5)


@pytest.mark.parametrize(("ratio_per", "clipped"), [("step", 0.0), ("chunk", 0.0)])
def test_first_update_sees_no_clipping_and_no_divergence(ratio_per, clipped, make_model, record_logs):
    model = make_model(ratio_per=ratio_per, batch_size=16, bc_weight=0)
    logs = record_logs(model)
    model.learn(16)
    assert logs[-1]["train/clip_fraction"] == clipped
    assert logs[-1]["train/approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ratio_per", ["step", "chunk"])
def test_ppo_loss_gives_unexecuted_steps_exactly_no_gradient(ratio_per, make_model):
    model = make_model(UnexecutedEnv(), ratio_per=ratio_per, ent_coef=0.1, bc_weight=0, n_steps=6)
    collect(model)
    (data,) = model.rollout_buffer.get()
    assert sorted(set(data.chunk_lengths.tolist())) == [1, 2, 3]
    values, log_prob, entropy = model.adapter.evaluate(data.policy_input, data.actions, data.extras)
    watched = [log_prob.detach().requires_grad_(), entropy.detach().requires_grad_()]
    loss = ppo_loss(ActionEvaluation(values, *watched), data, 0.2, ratio_per_step=ratio_per == "step")
    (loss.policy + loss.entropy).backward()
    unexecuted = executed_mask(data.chunk_lengths, 3) == 0
    for tensor in watched:
        assert (tensor.grad[unexecuted] == 0).all()
        assert (tensor.grad[~unexecuted] != 0).all()


@pytest.mark.parametrize("bc_loss", ["mse", "nll"])
def test_bc_loss_gives_unexecuted_steps_exactly_no_gradient(bc_loss, make_model, make_demonstrations):
    # 4 steps of progress in chunks of 3: the second chunk runs for one step
    model = make_model(bc_loss=bc_loss)
    model.replay_buffer.extend(make_demonstrations(2))
    batch = model.replay_buffer.sample(16)
    assert set(batch.chunk_lengths.tolist()) == {1, 3}
    last_layer = model.policy.head.mean_net[-1]
    outputs = []

    def keep(module, args, output):
        output.retain_grad()
        outputs.append(output)

    last_layer.register_forward_hook(keep)
    bc_loss_of(model, batch).backward()
    gradient = outputs[0].grad.view(16, 3, 2)
    executed = executed_mask(batch.chunk_lengths, 3) == 1
    assert (gradient[~executed] == 0).all() and (gradient[executed] != 0).all()


def moved_by_hand(model, change):
    """:return: A rollout, and the log-probabilities of its steps once the policy has moved"""
    collect(model)
    (data,) = model.rollout_buffer.get()
    with th.no_grad():
        model.policy.head.log_std += change
        return data, model.adapter.evaluate(data.policy_input, data.actions, data.extras).log_prob


def test_policy_loss_of_a_rollout_is_the_masked_surrogate(make_model):
    """Against a loop over executed steps."""
    model = make_model(UnexecutedEnv(dims=2), bc_weight=0, n_steps=6)
    data, log_prob = moved_by_hand(model, 0.3)
    gains = []
    for i, length in enumerate(data.chunk_lengths.tolist()):
        for step in range(length):
            ratio = np.exp(log_prob[i, step].item() - data.old_log_prob[i, step].item())
            advantage = data.advantages[i].item()
            gains.append(min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
    assert ppo_loss_of(model, data).policy.item() == pytest.approx(-np.mean(gains), rel=1e-4)


def test_ratio_per_chunk_is_the_product_of_the_executed_steps(make_model):
    model = make_model(UnexecutedEnv(dims=2), bc_weight=0, n_steps=6, ratio_per="chunk")
    data, log_prob = moved_by_hand(model, 0.1)
    ratios = []
    for i, length in enumerate(data.chunk_lengths.tolist()):
        ratios.append(np.exp((log_prob[i, :length] - data.old_log_prob[i, :length]).sum().item()))
    expected = clipped_surrogate_loss(th.tensor(ratios, dtype=th.float32), data.advantages, 0.2)
    loss = ppo_loss_of(model, data)
    assert loss.policy.item() == pytest.approx(expected.item(), rel=1e-4)
    assert loss.clip_fraction == pytest.approx(np.mean([abs(ratio - 1) > 0.2 for ratio in ratios]))


# --- Micro-batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [1, 3, 100])
@pytest.mark.parametrize("bc_loss", ["mse", "nll"])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch_size, bc_loss, make_model, make_demonstrations):
    models = []
    for size in (None, micro_batch_size):
        model = make_model(
            UnexecutedEnv(dims=2),
            micro_batch_size=size,
            ent_coef=0.01,
            n_steps=6,
            batch_size=6,
            bc_loss=bc_loss,
            bc_batch_size=16,
            bc_weight=Fixed(ppo=0.7, bc=0.4),
        )
        model.replay_buffer.extend(unexecuted_demonstrations())
        collect(model)
        models.append(only_gradients(model))
    whole, pieces = models
    for (name, a), b in zip(whole.policy.named_parameters(), pieces.policy.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert th.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4), name


def unexecuted_demonstrations() -> list[Demonstration]:
    env = UnexecutedEnv(dims=2)
    env.reset()
    observation, rng = env._observation(), np.random.default_rng(0)
    return [
        Demonstration(
            task,
            {key: np.stack([value] * 4) for key, value in observation.items()},
            rng.normal(size=(4, 3, 2)).astype(np.float32),
            np.array([1, 2, 3, 1]),
            True,
        )
        for task in ("a", "b")
    ]


# --- Chunks without noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("privileged", [True, False])
def test_the_backbone_reads_only_chunks_with_noise_and_learns_the_same(
    privileged, micro_batch_size, make_model, make_vec_env, make_demonstrations
):
    models, n_read = [], []
    for reads_all in (False, True):
        model = make_model(
            make_vec_env(privileged=privileged),
            policy_kwargs={"head_kwargs": {"noise_probability": 0.5}},
            micro_batch_size=micro_batch_size,
            ent_coef=0.01,
            batch_size=16,
            bc_batch_size=5,
        )
        model.replay_buffer.extend(make_demonstrations(2, privileged=privileged))
        collect(model)
        (data,) = model.rollout_buffer.get()
        if reads_all:
            model.adapter.needed_features = lambda extras: None
        read = []
        model.policy.backbone.register_forward_hook(lambda module, args, output, read=read: read.append(len(args[1])))
        models.append(only_gradients(model))
        n_read.append(sum(read))
    with_noise = int(data.extras["has_noise"].sum())
    assert 0 < with_noise < 16
    assert n_read == [(with_noise if privileged else 16) + 5, 16 + 5]
    for (name, a), b in zip(models[0].policy.named_parameters(), models[1].policy.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert th.allclose(a.grad, b.grad, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("ratio_per", ["step", "chunk"])
@pytest.mark.parametrize("target_kl", [None, 1e-4])
def test_micro_batches_learn_the_same_and_stop_as_early(ratio_per, target_kl, make_model, make_demonstrations, record_logs):
    models, logs = [], []
    for size in (None, 3):
        model = make_model(micro_batch_size=size, n_epochs=3, ratio_per=ratio_per, target_kl=target_kl)
        model.replay_buffer.extend(make_demonstrations(3))
        logs.append(record_logs(model))
        # SGD, because Adam's first steps are signs of gradients, which rounding may flip
        model.policy.optimizer = th.optim.SGD(model.policy.optimizer.param_groups)
        model.lr_schedule = lambda progress: 0.03
        models.append(model.learn(16))
    for a, b in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(a, b, atol=1e-5)
    for name in (*LOGGED, "n_updates"):
        assert logs[1][-1][f"train/{name}"] == pytest.approx(logs[0][-1][f"train/{name}"], rel=1e-3, abs=1e-5), name
    assert (logs[0][-1]["train/n_updates"] < 3) == (target_kl is not None)
