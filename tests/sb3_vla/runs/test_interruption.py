import os
import signal
import threading

import pytest
from stable_baselines3.common.callbacks import BaseCallback

from sb3_vla.runs.checkpoint import RunCheckpoint, load_checkpoint, newest_checkpoint
from sb3_vla.runs.interruption import Interrupted, StopRequest, stopping_at_once, stopping_later

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def _send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_stops_at_once(number):
    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as caught, stopping_at_once():
        _send(number)
        pytest.fail("went on")
    assert caught.value.exit_status == 128 + number


@pytest.mark.parametrize("number", NUMBERS)
def test_stops_at_the_end(number, capfd):
    finished = []
    with pytest.raises(Interrupted) as caught, stopping_later("the work ends first") as request:
        assert request.signal is None
        _send(number)
        finished.append(request.signal)
    assert finished == [number] and caught.value.exit_status == 128 + number
    assert f"{number.name}: the work ends first; a second signal stops at once" in capfd.readouterr().err


def test_a_second_signal_stops_at_once():
    with pytest.raises(Interrupted, match="stopped by SIGINT"), stopping_later("the work ends first"):
        _send(signal.SIGTERM)
        _send(signal.SIGINT)
        pytest.fail("went on")


def test_nothing_happens_without_a_signal():
    with stopping_at_once(), stopping_later("the work ends first") as request:
        pass
    assert request.signal is None


def test_what_the_process_is_to_ignore_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopping_at_once():
            _send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_have_no_signals():
    done = []

    def work():
        with stopping_at_once():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


class AskAfter(BaseCallback):
    """Asks for a stop after so many timesteps, or in so-manieth update."""

    def __init__(self, request, timesteps):
        super().__init__()
        self.request, self.timesteps = request, timesteps

    def _on_step(self):
        if self.num_timesteps >= self.timesteps:
            self.request.signal = signal.SIGTERM
        return True


def _stopped(model, folder, every, timesteps):
    request = StopRequest()
    model.learn(160, callback=[AskAfter(request, timesteps), RunCheckpoint(folder, every, request)])


def test_training_stopped_in_a_rollout_goes_on_from_the_update_before_it(make_model, make_vec_env, tmp_path):
    undisturbed, folder = make_model(), tmp_path / "checkpoints"
    undisturbed.learn(32)
    # An update each 16
    _stopped(make_model(), folder, every=1_000, timesteps=40)
    checkpoint = newest_checkpoint(folder)
    model = load_checkpoint(checkpoint, make_vec_env(), device="cpu")
    assert checkpoint.name == "32" and model.num_timesteps == model.lifetime_timesteps == 32
    assert model.num_primitive_steps == undisturbed.num_primitive_steps
    for name, value in model.policy.state_dict().items():
        assert (value == undisturbed.policy.state_dict()[name]).all(), name


def test_training_stopped_in_an_update_completes_it(make_model, tmp_path, monkeypatch):
    model, request = make_model(), StopRequest()
    update = type(model).train

    def train(model):
        update(model)
        if model.num_timesteps == 32:
            request.signal = signal.SIGTERM

    monkeypatch.setattr(type(model), "train", train)
    model.learn(160, callback=RunCheckpoint(tmp_path, 1_000, request))
    assert newest_checkpoint(tmp_path).name == "32"


def test_training_stopped_before_its_first_update_has_a_checkpoint(make_model, tmp_path):
    _stopped(make_model(), tmp_path, every=1_000, timesteps=2)
    assert newest_checkpoint(tmp_path).name == "0"
