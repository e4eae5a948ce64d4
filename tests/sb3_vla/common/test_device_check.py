"""Devices on which nothing can be computed are refused, by SB3's classes too, which would take the CPU without a word."""

import pytest
import torch as th

from sb3_vla import PPOSelfBC, VLAPolicy
from sb3_vla.common.device_check import check_device

NONE_HERE = ["meta", "cuda:99", "nonsense", ""]


@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:0", th.device("cpu")])
def test_what_can_compute_passes(device):
    check_device(device)


@pytest.mark.parametrize("device", NONE_HERE)
def test_what_cannot_compute_is_refused(device):
    with pytest.raises(ValueError, match=f"device is '{device}', but PyTorch can't compute there on this machine"):
        check_device(device)


@pytest.mark.parametrize("device", [None, 0.5, True, [], ("cpu",)])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(TypeError, match=r"device must be a name such as 'auto', 'cpu' or 'cuda', or a torch.device, got "):
        check_device(device)


@pytest.mark.parametrize("device", NONE_HERE)
def test_models_and_policies_are_not_put_elsewhere(device, make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "model.zip")
    model.policy.save(str(tmp_path / "policy"))
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        make_model(device=device)
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        PPOSelfBC.load(tmp_path / "model.zip", device=device)
    with pytest.raises(ValueError, match=f"device is '{device}'"):
        VLAPolicy.load(str(tmp_path / "policy"), device=device)
