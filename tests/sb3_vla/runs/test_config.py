from pathlib import Path

import pytest
import yaml

from sb3_vla.runs.config import load_config
from sb3_vla.common.run_folder import RunFolder


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_defaults_hold_every_section():
    config = load_config()
    assert set(config) == {"tasks", "seed", "device", "env", "policy", "demos", "sft", "train", "eval"}
    assert len(config["tasks"]) == 3


def test_file_goes_over_the_defaults_and_arguments_over_the_file(write):
    defaults = load_config()
    path = write("seed: 3\ndevice: cpu\ntrain: {n_steps: 7, n_epochs: 2, ent_coef: 0.5}\n")
    config = load_config(path, seed=4, train={"n_steps": 8, "total_timesteps": 16})
    assert (config["seed"], config["device"]) == (4, "cpu")
    assert config["train"] == {**defaults["train"], "n_steps": 8, "n_epochs": 2, "ent_coef": 0.5, "total_timesteps": 16}
    assert config["env"] == defaults["env"]
    assert load_config() == defaults, "the defaults must stay as they are"


def test_arguments_that_are_none_change_nothing(write):
    path = write("seed: 3\nsft: {n_epochs: 2}\n")
    assert load_config(path, seed=None, tasks=None, sft={"n_epochs": None}) == load_config(path)
    assert load_config(path)["sft"]["n_epochs"] == 2


def test_null_in_a_file_switches_off_what_is_on_by_default(write):
    assert load_config()["train"]["target_kl"] is not None
    assert load_config(write("train: {target_kl: null}"))["train"]["target_kl"] is None


def test_empty_sections_change_nothing(write):
    assert load_config(write("train:\nseed:\n")) == load_config()


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E5", 2e5), ("1.e-3", 1e-3), ("1.0e-4", 1e-4), ("3", 3)])
def test_numbers_with_an_exponent_need_no_point(write, text, value):
    assert load_config(write(f"train: {{learning_rate: {text}}}"))["train"]["learning_rate"] == value


def test_run_gives_its_configuration_again(tmp_path):
    config = load_config(seed=5, env={"cameras": [{"name": "corner4", "height": 32}]}, train={"target_kl": 0.1})
    config["train"]["clip_range_vf"] = None
    folder = RunFolder.create(tmp_path / "run", "sb3-vla train", config)
    assert load_config(folder.config_file) == config == folder.read_config()
    assert load_config(folder.config_file, seed=6) == {**config, "seed": 6}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("horizon: 100", ["'horizon'", "'env'"]),
        ("train: {lr: 1.0e-3}", ["'train'", "'lr'", "'learning_rate'", "'total_timesteps'"]),
        ("sft: {epochs: 3}", ["'sft'", "'epochs'", "'n_epochs'"]),
        ("env: {camera: corner4}", ["'env'", "'camera'", "'cameras'", "'horizon'"]),
        ("policy: {hidden: 3}", ["'policy'", "'hidden'", "'head_dim'"]),
        ("demos: {n: 3}", ["'demos'", "'n'", "'n_per_task'"]),
        ("eval: {goals: 3}", ["'eval'", "'goals'", "'n_goals'"]),
        ("train: 3", ["'train'", "mapping", "3"]),
        ("[1, 2]", ["mapping", "'tasks'"]),
        ("", ["mapping", "'tasks'"]),
        ("config: 3", ["mapping"]),
        ("a: [", ["not a YAML file"]),
    ],
)
def test_mistakes_in_a_file_are_named(write, text, named):
    path = write(text)
    with pytest.raises(ValueError) as error:
        load_config(path)
    for part in [str(path), *named]:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("env", "goal_split"),
        ("env", "tasks"),
        ("env", "render_mode"),
        ("train", "gamma"),
        ("train", "seed"),
        ("eval", "horizon"),
        ("sft", "seed"),
        ("demos", "tasks"),
    ],
)
def test_what_another_setting_decides_is_no_setting_of_a_section(write, section, setting):
    """Given twice, it would be a TypeError in the middle of the run, or break a promise (training on test goals)."""
    with pytest.raises(ValueError, match=f"'{section}' has no setting '{setting}'"):
        load_config(write(yaml.safe_dump({section: {setting: 1}})))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        load_config(tmp_path / "nowhere.yml")


def test_binary_file_is_no_yaml(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_config(tmp_path / "model.zip")


def test_nested_mappings_are_merged(write):
    config = load_config(write("train: {policy_kwargs: {autocast: bfloat16}}\n"))
    assert config["train"]["policy_kwargs"] == {"frozen": ["vision", "connector"], "autocast": "bfloat16"}
