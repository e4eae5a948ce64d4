import pytest
import torch as th

from sb3_vla import VLAPolicy
from sb3_vla.common.tensor_memory import TensorMemory
from sb3_vla.policies.backbones import without_weights
from sb3_vla.ppo_self_bc.memory_estimate import MemoryEstimator
from sb3_vla.ppo_self_bc.update_memory import state_bytes

from ..policies.backbones.tiny_checkpoints import MADE_BY_LEROBOT, TINY_FAMILIES

N_ENVS, N_STEPS, BATCH = 2, 8, 8


def estimator_for(model, policy_kwargs, **kwargs):
    settings = {"n_envs": N_ENVS, "n_steps": N_STEPS, "batch_size": BATCH, "bc_batch_size": BATCH, "n_demonstrations": 10}
    return MemoryEstimator(
        model.observation_space, model.action_space, "pull the lever", policy_kwargs, **{**settings, **kwargs}
    )


HEADS = {
    "gaussian": {},
    "token": {"head": "token", "head_kwargs": {"n_bins": 16}},
    "autoregressive": {"head": "token", "head_kwargs": {"n_bins": 16, "decoding": "autoregressive"}},
    "flow-noise": {"head": "flow", "head_kwargs": {}},
    "flow-sde": {"head": "flow", "head_kwargs": {"noise": "sde"}},
}


@pytest.mark.parametrize(
    ("head", "frozen"), [*((head, ()) for head in HEADS), ("flow-sde", ("vision", "connector")), ("gaussian", ("all",))]
)
def test_what_is_told_beforehand_is_there_afterwards(head, frozen, make_model, make_demonstrations):
    kwargs = {**HEADS[head], "frozen": frozen}
    model = make_model(micro_batch_size=4, bc_weight=0.5, policy_kwargs=kwargs)
    estimate = estimator_for(model, model._given_policy_kwargs).estimate(4)
    model.replay_buffer.extend(make_demonstrations())
    model.learn(N_ENVS * N_STEPS)
    parameters = list(model.policy.parameters())
    assert estimate.parameters == sum(tensor.nbytes for tensor in (*parameters, *model.policy.buffers()))
    assert estimate.gradients == sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    assert estimate.optimizer == pytest.approx(state_bytes(model.policy.optimizer), rel=0.02)
    buffer = model.rollout_buffer
    kept = [buffer.actions, buffer.log_probs, buffer.values, buffer.advantages, *buffer.observations.values()]
    assert 0 <= estimate.rollout - sum(array.nbytes for array in kept) <= 8 * 8 * N_ENVS * N_STEPS  # and some single numbers
    tensors = (*buffer._encoded.tensors.values(), *buffer._extras.tensors.values())
    assert estimate.encoded == sum(tensor.nbytes for tensor in tensors)
    assert estimate.cache == 10 * model._cache._bytes_per_observation()


@pytest.mark.parametrize("micro_batch_size", [None, 4])
@pytest.mark.parametrize("head", HEADS)
def test_an_update_takes_what_was_told(head, micro_batch_size, make_model, make_demonstrations):
    model = make_model(micro_batch_size=micro_batch_size, bc_weight=0.5, batch_size=BATCH, policy_kwargs=HEADS[head])
    estimate = estimator_for(model, model._given_policy_kwargs).estimate(micro_batch_size)
    model.replay_buffer.extend(make_demonstrations())
    model.learn(N_ENVS * N_STEPS)  # now there is an optimizer's state
    model.policy.optimizer.zero_grad()
    with TensorMemory() as memory:
        model.train()
    assert estimate.gradients + estimate.update == pytest.approx(memory.peak, rel=0.15)


@pytest.mark.parametrize(
    ("name", "lora"),
    [*((name, None) for name in [*sorted(TINY_FAMILIES), "smolvla"]), ("qwen3_vl", {"r": 4}), ("smolvla", {})],
)
def test_any_checkpoint_is_told_of_without_its_weights(name, lora, make_model, tmp_path):
    kwargs = {}
    if name == "smolvla":
        backbone, kwargs = MADE_BY_LEROBOT, {"vlm": str(MADE_BY_LEROBOT / "vlm"), "use_statistics": False}
    else:
        TINY_FAMILIES[name].save(tmp_path)
        backbone = tmp_path
    model = make_model()
    policy_kwargs = {"backbone": str(backbone), "backbone_kwargs": kwargs, "lora": lora, "head": "flow"}
    policy = VLAPolicy(model.observation_space, model.action_space, lambda _: 0.0, **policy_kwargs)
    if name != "smolvla":
        (tmp_path / "model.safetensors").unlink()
    cls, arguments = without_weights(str(backbone), kwargs)
    estimator = estimator_for(model, {**policy_kwargs, "backbone": cls, "backbone_kwargs": arguments})
    few, more = estimator.estimate(2), estimator.estimate(6)
    assert few.parameters == sum(tensor.nbytes for tensor in (*policy.parameters(), *policy.buffers()))
    assert few.gradients == sum(parameter.nbytes for parameter in policy.parameters() if parameter.requires_grad)
    assert few.making == sum(4 * parameter.numel() for parameter in policy.parameters()) <= min(few.host, few.without_gpu)
    assert few.update < more.update and few.device < more.device and few.host == more.host


def test_more_cameras_environments_and_demonstrations_take_more(make_model):
    model = make_model()
    kwargs = model._given_policy_kwargs
    usual = estimator_for(model, kwargs).estimate(4)
    more = estimator_for(model, kwargs, n_envs=2 * N_ENVS, n_steps=3 * N_STEPS, n_demonstrations=20).estimate(4)
    assert more.rollout == 6 * usual.rollout
    assert more.demonstrations == 2 * usual.demonstrations
    assert usual.without_gpu == usual.device + usual.rollout + usual.demonstrations
    assert usual.device >= usual.parameters + usual.gradients + usual.optimizer + usual.update


def test_the_largest_micro_batch_takes_nine_tenths_at_most(make_model):
    model = make_model()
    estimator = estimator_for(model, model._given_policy_kwargs, batch_size=8)
    whole = estimator.estimate(None).device
    assert estimator.largest_micro_batch(10 * whole) == estimator.n_samples == 8 + BATCH
    assert estimator.largest_micro_batch(estimator.estimate(2).parameters) == 0
    size = estimator.largest_micro_batch(whole)
    assert 4 < size < estimator.n_samples
    assert estimator.estimate(size).device == pytest.approx(0.9 * whole, rel=0.1)


def test_nothing_is_computed(make_model):
    model = make_model()
    estimator = estimator_for(model, model._given_policy_kwargs)
    estimator.estimate(4)
    assert all(type(parameter.data) is not th.Tensor for parameter in estimator.policy.parameters())
