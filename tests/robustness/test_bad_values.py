"""Values that make no sense are refused with their names, wherever they come from."""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_vla import EvaluationResult
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.ppo_self_bc.ppo_self_bc import PPOSelfBC
from sb3_vla.runs.cli import main

NOT_FINITE = [math.nan, math.inf, -math.inf]


NUMBERS = [name for name, limits in PPOSelfBC.argument_limits.items() if limits.choices is None]
NO_NUMBERS = st.one_of(
    *(st.text(max_size=3), st.binary(max_size=3), st.booleans(), st.complex_numbers(allow_nan=False), st.builds(object)),
    *(st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=3)),
)


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_not_finite(name, value, make_model):
    if name == "max_grad_norm" and value == math.inf:
        make_model(max_grad_norm=value)  # no limit
        return
    with pytest.raises((ValueError, TypeError)) as caught:
        make_model(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ") and str(caught.value).endswith(f"got {value}")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NUMBERS), NO_NUMBERS)
def test_what_is_no_number(make_model, name, value):
    with pytest.raises((ValueError, TypeError)) as caught:
        make_model(**{name: value})
    assert str(caught.value).startswith(f"{name} must be ") and f"got {value!r}"[:200] in str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_numbers(make_model, name):
    number = np.int64(2) if PPOSelfBC.argument_limits[name].whole else np.float64(0.9)  # the environments' discount
    model = make_model(**{"n_epochs": 1, name: number})
    model.learn(32)
    assert not isinstance(getattr(model, name), np.generic)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *((name, value, "above 0") for name in ("max_grad_norm", "target_kl", "clip_range_vf") for value in (0.0, -1.0)),
        *((name, value, "at least 1") for name in ("n_epochs", "micro_batch_size", "bc_batch_size") for value in (0, -1)),
        *((name, -1.0, "at least 0") for name in ("critic_learning_rate", "backbone_learning_rate", "vf_coef")),
        ("gae_lambda", 1.01, "at most 1"),
    ],
)
def test_numbers_out_of_range(name, value, allowed, make_model):
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got {value}"):
        make_model(**{name: value})


@pytest.mark.parametrize("value", [-0.1, *NOT_FINITE])
@pytest.mark.parametrize(
    "name", ["learning_rate", "critic_learning_rate", "backbone_learning_rate", "clip_range", "clip_range_vf"]
)
def test_schedules_that_go_out_of_range(name, value, make_model):
    model = make_model(**{name: lambda remaining: 1e-3 if remaining > 0.6 else value})
    with pytest.raises(ValueError, match=rf"^{name} at a progress of 0.5 must be"):
        model.learn(64)
    assert model.num_timesteps == 32


EPISODE = {"task": "push", "goal_index": 0, "success": True, "steps_to_success": 5, "n_steps": 7, "episode_return": 1.0}
NONSENSE = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.integers(max_value=-1), st.just(math.nan), st.just(2.5), st.just([])
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(EPISODE)), NONSENSE)
def test_episodes_that_cannot_be(name, value):
    content = EvaluationResult([EpisodeRecord(**EPISODE)], {}, {}).to_dict()
    content["episodes"] = [{**EPISODE, name: value}]
    sensible = {
        "task": isinstance(value, str),
        "success": value is True,
        # JSON has one kind of number, but a return of nan is none
        "episode_return": isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value),
    }
    if sensible.get(name, False):
        assert EvaluationResult.from_dict(content).episodes
    else:
        with pytest.raises(ValueError, match="evaluation result is damaged"):
            EvaluationResult.from_dict(content)


@pytest.mark.parametrize("changes", [{"steps_to_success": 8}, {"success": False}, {"steps_to_success": None}])
def test_episodes_that_contradict_themselves(changes):
    with pytest.raises(ValueError, match="success"):
        EpisodeRecord(**{**EPISODE, **changes})


@pytest.mark.parametrize("changes", [{"episodes": []}, {"settings": []}, {"versions": None}])
def test_results_without_content(changes, tmp_path):
    content = EvaluationResult([EpisodeRecord(**EPISODE)], {}, {}).to_dict()
    (tmp_path / "results.json").write_text(json.dumps({**content, **changes}))
    with pytest.raises(ValueError, match=r"Cannot read '.*results.json'"):
        EvaluationResult.load(tmp_path / "results.json")


@pytest.mark.parametrize("path", ["", "a\0b"])
@pytest.mark.parametrize("option", ["--out", "--config"])
def test_paths_that_are_none(option, path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["demos", "--out", "d.npz", option, path])
    assert caught.value.code == 2 and f"argument {option}: {path!r} is no path" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "cuda:99"])
@pytest.mark.parametrize("command", [["quickstart", "--out"], ["train", "--out"], ["eval", "model.zip", "--out"]])
def test_devices_that_compute_nothing(command, device, tmp_path, capsys):
    assert main([*command, str(tmp_path / "new"), "--device", device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"device is '{device}', but PyTorch can't compute there on this machine" in line
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written_to_are_named_before_the_work(capsys):
    assert main(["demos", "--tasks", "reach-v3", "--out", "/proc/nowhere/d.npz"]) == 2
    assert "can't write to '/proc/nowhere'" in capsys.readouterr().err


def test_actions_that_are_not_finite():
    from sb3_vla_envs import MetaWorldEnv

    env = MetaWorldEnv(["drawer-close-v3"])
    env.reset(seed=0)
    for value in NOT_FINITE:
        with pytest.raises(ValueError, match="is not finite"):
            env.step(np.full(4, value, np.float32))


@pytest.mark.parametrize("name", ["n_steps", "batch_size", "n_epochs"])
@pytest.mark.parametrize("value", [None, 0, -1])
def test_counts_that_are_none_or_not_positive_are_named(make_model, name, value):
    with pytest.raises((ValueError, TypeError), match=f"{name} must be (at least 1|an integer), got {value}"):
        make_model(**{name: value})


@pytest.mark.parametrize("arguments", [{"batch_size": 1}, {"n_steps": 1, "batch_size": 2}])
def test_batches_of_one_are_refused_where_advantages_are_standardised(make_model, make_vec_env, arguments):
    with pytest.raises(ValueError, match=r"n_steps=\d and batch_size=\d give batches of one.*normalize_advantage=False"):
        make_model(make_vec_env(1), **arguments)
    make_model(make_vec_env(1), **arguments, normalize_advantage=False)
