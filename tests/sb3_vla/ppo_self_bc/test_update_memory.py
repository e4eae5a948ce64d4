import pytest
import torch as th

from sb3_vla.ppo_self_bc.update_memory import missing_optimizer_state, state_bytes


@pytest.mark.parametrize(("optimizer", "times"), [(th.optim.Adam, 2), (th.optim.AdamW, 2), (th.optim.SGD, 0)])
def test_the_optimizers_state_is_known_before_it_is_there(make_model, optimizer, times):
    model = make_model(policy_kwargs={"optimizer_class": optimizer})
    expected = times * sum(parameter.nbytes for parameter in model.policy.parameters())
    assert missing_optimizer_state(model.policy) == pytest.approx(expected, rel=0.01) and not state_bytes(
        model.policy.optimizer
    )
    model.learn(16)
    # Beside the moments a number for each tensor
    assert state_bytes(model.policy.optimizer) == pytest.approx(expected, rel=0.01)
    assert missing_optimizer_state(model.policy) <= 0.01 * expected
