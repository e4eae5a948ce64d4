import json

import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_vla import fine_tune
from sb3_vla.imitation.probe import probe


def changed(demonstrations, rng):
    """What the actor observes says nothing of `privileged` any more."""
    for demo in demonstrations:
        demo.observations["privileged"] = rng.normal(size=demo.observations["privileged"].shape).astype(np.float32)
    return demonstrations


def test_features_explain_what_the_pictures_show_and_nothing_else(make_model, make_demonstrations):
    model = make_model()
    settings = dict(n_epochs=20, batch_size=8, learning_rate=1e-2, max_shift=0, progress=False)
    fine_tune(model, make_demonstrations(6), auxiliary_targets={"privileged": None}, **settings)
    result = probe(model, make_demonstrations(10), make_demonstrations(5), {"time": [0], "progress": [1]})
    row = result.explained["push"]
    assert row["time"].features > 0.9 and row["progress"].features > 0.9
    assert row["time"].state > 0.9, "the toy's state tells the time"
    rng = np.random.default_rng(0)
    noise = probe(model, changed(make_demonstrations(20), rng), changed(make_demonstrations(20), rng), {"noise": [0, 1]})
    assert noise.explained["push"]["noise"].features < 0.2


def test_the_result_is_a_table_and_a_file(make_model, make_demonstrations, tmp_path):
    model = make_model()
    demonstrations = make_demonstrations(5) + make_demonstrations(5, task="pull")
    result = probe(model, demonstrations, demonstrations, {"time": [0]}, settings={"seed": 3})
    assert [line.split()[0] for line in result.table().splitlines()[1:3]] == ["push", "pull"]
    result.save(tmp_path / "probe.json")
    content = json.loads((tmp_path / "probe.json").read_text())
    assert content["settings"] == {"seed": 3} and content["explained"]["pull"]["time"].keys() == {"features", "state"}


def test_privileged_need_not_be_that_of_the_critic(make_model, make_demonstrations):
    model = make_model()
    demonstrations = make_demonstrations(4)
    expected = probe(model, demonstrations, demonstrations, {"time": [0]})
    for demo in demonstrations:  # as with another number of tasks
        demo.observations["privileged"] = np.tile(demo.observations["privileged"], 2)
    assert probe(model, demonstrations, demonstrations, {"time": [0]}) == expected


def test_what_can_not_be_asked_is_refused(make_model, make_demonstrations):
    model = make_model()
    with pytest.raises(ValueError, match="no held-out episodes of task 'push'"):
        probe(model, make_demonstrations(5), make_demonstrations(5, task="pull"), {"time": [0]})
    with pytest.raises(ValueError, match="one episode of task 'push' to fit on"):
        probe(model, make_demonstrations(1), make_demonstrations(5), {"time": [0]})
    with pytest.raises(ValueError, match="has no 'depth'"):
        probe(model, make_demonstrations(5), make_demonstrations(5), {"time": [0]}, key="depth")
    still = make_demonstrations(1)
    still[0].observations["privileged"][:] = 0.5
    with pytest.raises(ValueError, match=r"'time' does not vary in the held-out episodes of task 'push'.*several goals"):
        probe(model, make_demonstrations(5), still, {"time": [0]})
    other = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(TypeError, match="VLAPolicy, got ActorCriticPolicy"):
        probe(other, make_demonstrations(5), make_demonstrations(5), {"time": [0]})
