from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from sb3_vla.common.run_folder import RunFolder
from sb3_vla.runs.config import load_config
from sb3_vla_envs.suite import get_suite


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_anything_given_a_suite_and_its_default_tasks_are_chosen():
    config = load_config()
    assert config.tasks == get_suite(config.suite).default_tasks
    assert config.wrapping.cameras == get_suite(config.suite).wrapping.cameras
    assert config.seed == 0 and config.train.target_kl == 0.6


@pytest.mark.parametrize("suite", ["metaworld", "fetch"])
def test_a_suite_alone_takes_its_own_defaults(suite):
    config = load_config(suite=suite)
    assert config.suite == suite and config.tasks == get_suite(suite).default_tasks
    assert type(config.simulation) is get_suite(suite).simulation


def test_the_suite_is_found_by_its_tasks_where_it_is_not_given(write):
    assert load_config(tasks="FetchReach-v4").suite == "fetch"
    assert load_config(write("tasks: [FetchReach-v4]")).suite == "fetch"
    assert load_config(tasks="MT10").tasks == get_suite("metaworld").groups["MT10"]
    with pytest.raises(ValueError, match="FetchRech-v4"):
        load_config(tasks="FetchRech-v4")
    with pytest.raises(ValueError, match="FetchReach-v4"):
        load_config(tasks="FetchReach-v4", suite="metaworld")


def test_a_suite_of_ones_own_is_imported_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "kitchen_suite.py").write_text(
        "from sb3_vla_envs.suite import Suite, register_suite\n"
        "class Kitchen(Suite):\n"
        "    name, default_tasks, tasks = 'kitchen', ('wash-up',), ('wash-up', 'dry-up')\n"
        "    def instructions(self, task): return (task,)\n"
        "    def make_simulation(self, tasks, render_mode=None, **simulation): raise NotImplementedError\n"
        "register_suite(Kitchen())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(suite="kitchen_suite:kitchen")
    assert (config.suite, config.tasks) == ("kitchen_suite:kitchen", ("wash-up",))


def test_file_goes_over_the_defaults_and_arguments_over_the_file(write):
    defaults = load_config()
    path = write("seed: 3\ndevice: cpu\ntrain: {n_steps: 7, n_epochs: 2, ent_coef: 0.5}\n")
    config = load_config(path, seed=4, train={"n_steps": 8, "total_timesteps": 16})
    assert (config.seed, config.device) == (4, "cpu")
    assert config.train == replace(defaults.train, n_steps=8, n_epochs=2, ent_coef=0.5, total_timesteps=16)
    assert config.simulation == defaults.simulation
    assert load_config() == defaults, "the defaults must stay as they are"


def test_arguments_that_are_none_change_nothing(write):
    path = write("seed: 3\nsft: {n_epochs: 2}\n")
    assert load_config(path, seed=None, tasks=None, sft={"n_epochs": None}) == load_config(path)
    assert load_config(path).sft.n_epochs == 2


def test_null_in_a_file_switches_off_what_is_on_by_default(write):
    assert load_config().train.target_kl is not None
    assert load_config(write("train: {target_kl: null}")).train.target_kl is None


def test_a_schedule_in_the_zoos_notation_falls_to_zero(write):
    config = load_config(write("train: {learning_rate: lin_7e-5, clip_range: lin_0.2}"))
    arguments = config.train.model_arguments()
    assert [arguments["learning_rate"](progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([7e-5, 3.5e-5, 0.0])
    assert arguments["clip_range"](1.0) == 0.2
    noise = load_config(write("train: {noise_scale: lin_1_0.2}")).train.model_arguments()["noise_scale"]
    assert [noise(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([1.0, 0.6, 0.2])
    assert load_config(write(yaml.safe_dump(config.to_dict()))).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("value", "words"), [("exp_1e-4", "'lin_' and one or two numbers"), ("lin_1_", "'lin_' and one"), ("lin_0", "above 0")]
)
def test_other_schedules_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
        load_config(train={"clip_range": value})


def test_empty_sections_change_nothing(write):
    assert load_config(write("train:\nseed:\n")) == load_config()


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2E5", 2e5), ("1.e-3", 1e-3), ("1.0e-4", 1e-4), ("3", 3)])
def test_numbers_with_an_exponent_need_no_point(write, text, value):
    assert load_config(write(f"train: {{learning_rate: {text}}}")).train.learning_rate == value


def test_run_gives_its_configuration_again(tmp_path):
    config = load_config(
        seed=5, wrapping={"cameras": [{"name": "corner4", "height": 32}]}, train={"target_kl": 0.1, "learning_rate": 1e-5}
    )
    folder = RunFolder.create(tmp_path / "run", "sb3-vla train", config.to_dict())
    for file in (folder.config_file, folder.began_file):
        assert load_config(file).to_dict() == config.to_dict()
        assert load_config(file, seed=6).to_dict() == replace(config, seed=6).to_dict()
    # Written out are all settings, so that other defaults in a later version change nothing
    assert yaml.safe_load(folder.config_file.read_text())["config"]["wrapping"]["max_instruction_bytes"] == 64


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("horizon: 100", ["no setting 'horizon'", "simulation"]),
        ("train: {lr: 1.0e-3}", ["train.lr", "learning_rate", "total_timesteps"]),
        ("train: {n_epochs: two}", ["train.n_epochs must be an integer, got 'two'"]),
        ("train: {n_envs: 0}", ["train.n_envs must be at least 1, got 0"]),
        ("train: {ratio_per: token}", ["train.ratio_per must be 'step' or 'chunk', got 'token'"]),
        ("sft: {epochs: 3}", ["sft.epochs", "n_epochs"]),
        ("sft: {n_epochs: 0}", ["sft.n_epochs must be at least 1, got 0"]),
        ("wrapping: {camera: corner4}", ["wrapping.camera", "cameras"]),
        ("wrapping: {n_action_steps: 9}", ["wrapping.n_action_steps=9 exceeds chunk_size=8"]),
        ("wrapping: {quality: best}", ["wrapping.quality must be", "'fast'", "got 'best'"]),
        ("simulation: {horizon: 0}", ["simulation.horizon must be at least 1, got 0"]),
        ("simulation: {horizn: 9}", ["simulation.horizn", "horizon"]),
        ("policy: {hidden: 3}", ["policy.hidden", "head"]),
        ("demos: {n: 3}", ["demos.n;", "n_per_task"]),
        ("demos: {n_workers: 0}", ["demos.n_workers must be at least 1, got 0"]),
        ("eval: {goals: 3}", ["eval.goals", "n_goals"]),
        ("eval: {n_goals: 0}", ["eval.n_goals must be at least 1, got 0"]),
        ("train: 3", ["train must be a mapping, got 3"]),
        ("seed: -1", ["seed must be at least 0, got -1"]),
        ("seed: zero", ["seed must be an integer, got 'zero'"]),
        ("tasks: 3", ["tasks must be", "got 3"]),
        ("suite: mars", ["'mars'", "'metaworld'"]),
        ("[1, 2]", ["mapping", "tasks"]),
        ("", ["mapping", "tasks"]),
        ("config: 3", ["mapping"]),
        ("{command: sb3-vla, config: {seed: 1}, seed: 3}", ["no setting 'command'"]),
        ("a: [", ["not a YAML file"]),
    ],
)
def test_mistakes_in_a_file_are_named(write, text, named):
    path = write(text)
    with pytest.raises(ValueError) as error:
        load_config(path)
    for part in named:
        assert part in str(error.value)


def test_mistakes_in_arguments_are_named():
    with pytest.raises(ValueError, match=r"^seed must be at least 0, got -1"):
        load_config(seed=-1)
    with pytest.raises(ValueError, match=r"^eval\.n_goals must be at least 1, got 0"):
        load_config(eval={"n_goals": 0})


@pytest.mark.parametrize(
    ("section", "name"), [("train", "gamma"), ("train", "seed"), ("eval", "horizon"), ("sft", "seed"), ("demos", "tasks")]
)
def test_what_another_setting_decides_is_no_setting_of_a_section(write, section, name):
    """Given twice, it would be a TypeError in the middle of the run."""
    with pytest.raises(ValueError, match=rf"there is no setting {section}\.{name};"):
        load_config(write(yaml.safe_dump({section: {name: 1}})))


def test_nobody_trains_on_the_goals_of_the_evaluation(write):
    with pytest.raises(ValueError, match=r"simulation\.goal_split must be 'train', got 'test'.*eval\.split"):
        load_config(write("simulation: {goal_split: test}"))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yml"):
        load_config(tmp_path / "nowhere.yml")


def test_binary_file_is_no_yaml(tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match="not a YAML file"):
        load_config(tmp_path / "model.zip")


def test_nested_mappings_are_merged(write):
    config = load_config(write("train: {policy_kwargs: {autocast: bfloat16}}\n"))
    assert config.train.policy_kwargs == {"frozen": ["vision", "connector"], "autocast": "bfloat16"}


def test_a_model_in_use_does_without_what_only_training_needs():
    settings: dict[str, Any] = {"n_goals": 3, "goal_order": "sequential", "horizon": 60}
    config = load_config(simulation=settings, wrapping={"quality": "full"})
    acting = config.acting_settings()
    assert (acting["horizon"], acting["quality"], acting["chunk_size"]) == (60, "full", 8)
    assert not {"n_goals", "goal_order", "goal_split", "gamma", "privileged", "task_ids"} & acting.keys()
    assert config.env_settings()["goal_order"] == "sequential" and config.env_settings()["gamma"] == 0.99


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "cpu"},
        {"train": {"total_timesteps": 10**6, "checkpoint_every": 7}},
        {"eval": {"n_goals": 3, "deterministic": False}},
    ],
)
def test_a_run_may_change_on_its_way_what_takes_effect_from_then_on(changes):
    load_config(**changes).check_resumes(load_config())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed is 1, but the run began with 0"),
        ({"tasks": "reach-v3"}, "tasks is ['reach-v3'], but the run began with ["),
        ({"suite": "fetch"}, "suite is 'fetch', but the run began with 'metaworld'"),
        ({"train": {"learning_rate": 1e-3}}, "train.learning_rate is 0.001, but the run began with 7e-05"),
        ({"simulation": {"horizon": 9}}, "simulation.horizon is 9"),
        ({"wrapping": {"cameras": ["corner4"]}}, "wrapping.cameras is ['corner4']"),
        ({"policy": {"autocast": None, "critic_net_arch": [3]}}, "policy.critic_net_arch is [3]"),
        ({"sft": {"n_epochs": 3}}, "sft.n_epochs is 3"),
    ],
)
def test_any_other_change_on_the_way_is_refused_by_name(changes, named):
    with pytest.raises(ValueError) as error:
        load_config(**changes).check_resumes(load_config())
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("eval", "split", "validation", "'train' or 'test' or 'benchmark'"),
        ("sft", "held_out_fraction", 0, "above 0"),
        ("sft", "held_out_fraction", 1.0, "below 1"),
        ("sft", "patience", 0, "at least 1"),
        ("sft", "loss", "l1", "'auto' or 'mse' or 'nll'"),
        ("sft", "max_shift", -1, "at least 0"),
        ("sft", "learning_rate", -1e-3, "at least 0"),
        ("train", "learning_rate", -1e-3, "at least 0"),
        ("train", "backbone_learning_rate", -1e-3, "at least 0"),
        ("train", "critic_learning_rate", -1e-3, "at least 0"),
        ("train", "gae_lambda", 1.5, "at most 1"),
        ("train", "gae_lambda", -0.5, "at least 0"),
        ("train", "clip_range", 0, "above 0"),
        ("train", "critic_warmup_steps", -1, "at least 0"),
        ("train", "target_kl", 0.0, "above 0"),
        ("train", "bc_weight", -1, "at least 0"),
    ],
)
def test_impossible_numbers_are_refused_with_the_settings_full_name(section, name, value, words):
    with pytest.raises(ValueError) as error:
        load_config(**{section: {name: value}})
    assert str(error.value) == f"{section}.{name} must be {words}, got {value!r}"


def test_unknown_devices_are_refused():
    with pytest.raises(ValueError, match=r"device must be 'auto' or one of PyTorch's such as .*, got 'gpu'"):
        load_config(device="gpu")
    assert load_config(device="cuda:7").device == "cuda:7"  # of a run on another machine


def test_another_head_leaves_nothing_of_the_arguments_of_the_one_before(write):
    assert load_config().policy.head_kwargs == {"log_std_init": -1.7, "noise_correlation": 1.0}
    assert load_config(write("policy: {head: gaussian, head_kwargs: {log_std_init: -1}}")).policy.head_kwargs == {
        "log_std_init": -1,
        "noise_correlation": 1.0,
    }
    assert load_config(write("policy: {head: token}")).policy.head_kwargs is None
    token = write("policy: {head: token, head_kwargs: {n_bins: 32}}")
    assert load_config(token).policy.head_kwargs == {"n_bins": 32}
    assert load_config(token, policy={"head": "flow"}).policy.head_kwargs is None
    assert load_config(token, policy={"head": "token"}).policy.head_kwargs == {"n_bins": 32}


def test_a_suites_own_chunks_are_those_of_its_runs(write):
    fetch = get_suite("fetch").wrapping
    config = load_config(suite="fetch")
    assert config.wrapping.chunk_size == fetch.chunk_size == 4
    assert load_config(write("wrapping: {gamma: 0.9}"), suite="fetch").wrapping.chunk_size == 4
