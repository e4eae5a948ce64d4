"""A stranger's file runs nothing, whatever it says."""

import base64
import io
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
import yaml
from gymnasium import spaces
from safetensors.torch import save
from stable_baselines3 import PPO
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

import sb3_vla
from sb3_vla import (
    ConstantWeight,
    EvaluationResult,
    PPOSelfBC,
    SmolVLMBackbone,
    VLAPolicy,
    load_normalizer,
    save_for_hub,
    save_normalizer,
)
from sb3_vla.common.plain_file import save_plain
from sb3_vla.common.plain_values import PlainValues
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.common.trusted_names import find_trusted
from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config

from ..conftest import _make_model


class Run:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    model = _make_model()
    model.learn(16)
    model.save(path)
    return path


@pytest.fixture
def saved(saved_once, tmp_path):
    return Path(shutil.copy(saved_once, tmp_path / "model.zip"))


def _changed(path, change=lambda content: content, **members):
    """The file with its content changed, and members replaced or added."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["model.json"] = json.dumps(change(json.loads(parts["model.json"]))).encode()
    changed = path.with_name("hostile.zip")
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in {**parts, **members}.items():
            archive.writestr(name, content)
    return changed


def test_nothing_in_a_model_is_pickled(saved):
    with zipfile.ZipFile(saved) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b":serialized:" not in content and b"data.pkl" not in content


@pytest.mark.parametrize("part", ["data", "policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
def test_pickled_files_of_sb3_run_nothing(part, saved, tmp_path, make_model):
    proof = tmp_path / "it ran"
    hostile = io.BytesIO()
    th.save({"x": Run(proof)}, hostile)
    data = {"policy_class": {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Run(proof))).decode()}}
    content = json.dumps(data).encode() if part == "data" else hostile.getvalue()
    path = _changed(saved, **{"data": b"{}", part: content})
    for load in (
        PPOSelfBC.load,
        lambda path: PPOSelfBC.load(path, policy_kwargs={}),
        lambda path: make_model().set_parameters(str(path)),
    ):
        with pytest.raises(ValueError, match=r"pickled file, which can run anything.*trust_pickle=True \(--trust pickle"):
            load(path)
    for command in ("eval", "record", "probe", "play"):
        assert main([command, str(path), "--tasks", "reach-v3", *(["--out", str(tmp_path / "out")])]) == 2
    assert main(["train", "--init", str(path), "--tasks", "reach-v3", "--out", str(tmp_path / "out")]) == 2
    assert not proof.exists() and not (tmp_path / "out").exists()


def test_a_pickled_file_that_is_trusted_is_loaded_and_can_be_saved_safely(saved, tmp_path):
    from stable_baselines3.common.save_util import save_to_zip_file

    model = PPOSelfBC.load(saved)
    excluded = {*model._excluded_save_params(), "policy"}
    data = {name: value for name, value in vars(model).items() if name not in excluded}
    save_to_zip_file(tmp_path / "old.zip", data=data, params=model.get_parameters())
    with pytest.warns(UserWarning, match="pickled file, which may run anything: save the model again"):
        old = PPOSelfBC.load(tmp_path / "old.zip", trust_pickle=True)
    old.save(tmp_path / "new.zip")
    new = PPOSelfBC.load(tmp_path / "new.zip")
    assert new.num_timesteps == 16
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, new.policy.state_dict()[name])


def test_a_model_of_sb3_that_is_trusted_is_loaded_and_learns_on(tmp_path):
    ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0).learn(32)
    ppo.save(tmp_path / "ppo.zip")
    with pytest.warns(UserWarning, match="pickled file"):
        ours = PPOSelfBC.load(tmp_path / "ppo.zip", gym.make("CartPole-v1"), device="cpu", trust_pickle=True)
    observation = np.array([0.1, 0.2, -0.1, 0.3], np.float32)
    values = [model.policy.predict_values(th.from_numpy(observation)[None]) for model in (ours, ppo)]
    assert th.equal(*values) and ours.lifetime_timesteps == 32
    ours.learn(16, reset_num_timesteps=False)
    assert ours.num_timesteps == 48


HOSTILE_NAMES = [
    *("os:system", "subprocess:Popen", "builtins:eval", "builtins:exec", "pickle:loads", "importlib:import_module"),
    *("torch:load", "torch.hub:load", "torch.utils.cpp_extension:load", "torch.nn.modules.module:warnings"),
    *("sb3_vla.ppo_self_bc.ppo_self_bc:PPOSelfBC", "stable_baselines3.common.policies:th", "numpy:load"),
    *("sb3_vla.policies.backbones.smolvlm:_load_pretrained", "torch.nn.modules.module:Module.register_forward_hook"),
    *("", ":", "os", "../evil:Run", "antigravity:x", "sb3_vla.policies.nowhere:X", "torch.optim.:X"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_only_parts_of_models_can_be_named(name):
    with pytest.raises(ValueError, match=r"which is not trusted"):
        find_trusted(name)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:eval"])
@pytest.mark.parametrize("kind", ["$class", "$function", "$instance"])
@pytest.mark.parametrize("attribute", ["policy_class", "learning_rate", "rollout_buffer_class"])
def test_names_in_a_model_run_nothing(attribute, kind, name, saved):
    def change(content):
        content["data"][attribute] = {kind: [name, {}] if kind == "$instance" else name}
        return content

    with pytest.raises(ValueError, match=f"hostile.zip' can't be read: the file names '{name}', which is not trusted"):
        PPOSelfBC.load(_changed(saved, change))


def test_networks_come_from_their_constructors_alone():
    hook = {"$instance": ["torch.nn.modules.linear:Linear", {"_forward_hooks": {}}]}
    with pytest.raises(ValueError, match="a file can't hold an object of"):
        PlainValues().decode(hook)


def test_methods_cannot_be_replaced(saved):
    def change(content):
        content["data"]["predict"] = {"$class": "torch.nn.modules.linear:Linear"}
        return content

    with pytest.raises(ValueError, match=r"\['predict'\] in place of methods"):
        PPOSelfBC.load(_changed(saved, change))


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/b.json", "..", "a\\b.json"])
def test_a_tokenizer_writes_no_other_files(name):
    with pytest.raises(ValueError, match="bare names"):
        SmolVLMBackbone(state_dim=3, tokenizer_files={name: "{}"})


def test_no_attention_is_downloaded(tiny_config):
    for key in ("attn_implementation", "_attn_implementation"):
        for config in ({**tiny_config, key: "user/kernel"}, {**tiny_config, "text_config": {key: "user/kernel"}}):
            with pytest.raises(ValueError, match=f"{key} must be one of"):
                SmolVLMBackbone(state_dim=3, config=config)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [],
        lambda content: {**content, "format": "another"},
        lambda content: {**content, "version": 99},
        lambda content: {**content, "data": 5},
        lambda content: {**content, "parameters": {"policy": {"$tensor": "nowhere"}}},
        lambda content: {**content, "data": {**content["data"], "action_space": {"$box": [1, 2]}}},
        lambda content: {**content, "data": {**content["data"], "n_steps": {"$nonsense": 1}}},
        lambda content: {**content, "data": {**content["data"], "n_steps": {"$instance": 7}}},
        lambda content: {
            **content,
            "data": {name: value for name, value in content["data"].items() if name != "n_steps"}
            | {"policy_class": {"$class": 5}},
        },
    ],
)
def test_content_that_makes_no_sense_is_named(change, saved):
    with pytest.raises(ValueError, match=r"hostile\.zip' can't be read"):
        PPOSelfBC.load(_changed(saved, change))


def test_tensors_that_make_no_sense_are_named(saved):
    for tensors in (b"", b"\xff" * 64, save({"0": th.zeros(1)})):
        with pytest.raises(ValueError, match=r"hostile\.zip' can't be read"):
            PPOSelfBC.load(_changed(saved, tensors=tensors))


VALUES = [
    *(None, True, 1, -0.5, "text", [1, [2]], (1, (2, "x")), {"a": {"b": ()}}, {1: "x", "$y": 2}, float("inf")),
    *(np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 2)), np.array(5.0), np.float32(0.5), np.bool_(True)),
    *(np.dtype("float32"), th.device("cpu"), Path("models"), th.arange(3), th.zeros(2, 0), th.ones(2, dtype=th.bfloat16)),
    *(spaces.Box(-1, 1, (2, 3)), spaces.Box(0, 255, (2,), np.uint8), spaces.Discrete(5, start=2), spaces.MultiBinary(3)),
    *(spaces.MultiDiscrete([2, 3]), spaces.Dict({"b": spaces.Discrete(2), "a": spaces.MultiBinary([2, 2])})),
    *(spaces.Tuple([spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (1,))]), th.nn.ReLU, th.optim.AdamW, PlainValues),
    *(ConstantWeight(0.25), FloatSchedule(LinearSchedule(1.0, 0.5, 0.25)), ConstantSchedule(2.0)),
]


def _same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    if hasattr(one, "__dict__") and not isinstance(one, type | spaces.Space | th.device):
        return vars(one).keys() == vars(other).keys() and all(_same(vars(one)[name], vars(other)[name]) for name in vars(one))
    return one == other


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__} {value!r:.20}")
def test_values_come_back_as_they_were(value):
    values = PlainValues()
    content = json.loads(json.dumps(values.encode(value)))
    again = PlainValues(values.tensors).decode(content)
    assert type(again) is type(value) and _same(value, again)


def test_ones_own_classes_and_functions_are_trusted_by_name(make_model, tmp_path, monkeypatch):
    from sb3_vla.common import trusted_names

    model = make_model(policy_kwargs={"backbone": OwnBackbone}, learning_rate=own_rate)
    model.save(tmp_path / "model.zip")
    assert PPOSelfBC.load(tmp_path / "model.zip").learning_rate is own_rate  # the process that saved it trusts them
    monkeypatch.setattr(trusted_names, "_trusted", {})
    with pytest.raises(ValueError, match=r"not trusted: if it is yours, import it and call sb3_vla\.trust\("):
        PPOSelfBC.load(tmp_path / "model.zip")
    sb3_vla.trust(OwnBackbone, own_rate)
    assert isinstance(PPOSelfBC.load(tmp_path / "model.zip").policy.backbone, OwnBackbone)
    with pytest.raises(TypeError, match="give it a name"):
        sb3_vla.trust(lambda: None)


class OwnBackbone(SmolVLMBackbone):
    pass


def own_rate(remaining):
    return 1e-3 * remaining


def test_a_pickled_policy_runs_nothing(tmp_path):
    proof = tmp_path / "it ran"
    th.save({"data": Run(proof), "state_dict": {}}, tmp_path / "new.pt")
    th.save({"data": Run(proof), "state_dict": {}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"pickled file, which can run anything.*trust_pickle=True"):
        VLAPolicy.load(tmp_path / "new.pt")
    with pytest.raises(ValueError, match="truncated, damaged or no file of sb3-vla"):
        VLAPolicy.load(tmp_path / "old.pt")
    assert not proof.exists()


def test_a_policy_alone_is_plain_and_comes_back(make_model, tmp_path):
    policy = make_model().policy
    policy.save(tmp_path / "policy")
    assert not zipfile.is_zipfile(tmp_path / "policy") and b"pickle" not in (tmp_path / "policy").read_bytes()
    loaded = VLAPolicy.load(tmp_path / "policy", device="cpu")
    for name, value in policy.state_dict().items():
        assert th.equal(value, loaded.state_dict()[name])
    BasePolicy.save(policy, tmp_path / "old")
    assert VLAPolicy.load(tmp_path / "old", trust_pickle=True).observation_space == policy.observation_space


def test_other_plain_files_are_no_policies_and_no_normalizers(make_vec_env, tmp_path):
    for content in ({"format": "x"}, [], 3):
        save_plain(tmp_path / "file", content)
        for load in (VLAPolicy.load, lambda path: load_normalizer(path, make_vec_env())):
            with pytest.raises(ValueError, match="file' is no "):
                load(tmp_path / "file")


def test_a_normalizer_comes_back_without_pickle(make_vec_env, tmp_path):
    normalizer = VecNormalize(make_vec_env(), norm_obs_keys=["state"], clip_obs=5.0)
    normalizer.reset()
    for _ in range(5):
        normalizer.step(np.stack([normalizer.action_space.sample() for _ in range(2)]))
    save_normalizer(normalizer, tmp_path / "file")
    loaded = load_normalizer(tmp_path / "file", make_vec_env(3))
    assert loaded.clip_obs == 5.0 and loaded.norm_obs_keys == ["state"] and loaded.returns.shape == (3,)
    raw = make_vec_env(1).reset()
    for key, values in normalizer.normalize_obs(raw).items():
        np.testing.assert_array_equal(loaded.normalize_obs(raw)[key], values)
    loaded.reset()


def test_a_class_of_ones_own_is_trusted_by_name_on_the_command_line(saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_schedules.py").write_text("class Half:\n    def __call__(self, progress):\n        return 0.5\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(content):
        content["data"]["learning_rate"] = {"$instance": ["my_schedules:Half", {}]}
        return content

    model = str(_changed(saved, change))
    push = ["push", str(tmp_path / "run"), "--repo-id", "a/b", "--local", str(tmp_path / "local")]
    assert main(["eval", model, "--tasks", "reach-v3"]) == 2
    assert "names 'my_schedules:Half', which is not trusted" in capsys.readouterr().err
    assert main(["eval", model, "--tasks", "reach-v3", "--trust", "my_schedules:Half"]) == 2
    assert "not trusted" not in capsys.readouterr().err, "it fails later, as the toy model does not fit the task"
    for name in ("my_schedules:Nothing", "my_schedules", "no_such_module:Half", ":"):
        assert main([*push, "--trust", name]) == 2
        assert f"'{name}' can't be trusted: give MODULE:NAME" in capsys.readouterr().err


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\nhyperparams = {{}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)


COMMANDS_WITH_A_SUITE = [
    "config --config run/config.yaml",
    "eval run/model.zip",
    "probe run/model.zip",
    "record run/model.zip --out films",
    "train --resume run",
    "quickstart --resume run",
    "push run --repo-id a/b --local card",
]


@pytest.mark.parametrize("command", COMMANDS_WITH_A_SUITE)
def test_a_suite_is_imported_only_where_the_user_names_it(command, evil, saved, tmp_path, capsys):
    run = RunFolder.create(tmp_path / "run", "sb3-vla", {**load_config(tasks="reach-v3").to_dict(), "suite": "evil:suite"})
    saved.rename(run.model)
    assert main(command.split()) == 2 and not (tmp_path / "it ran").exists()
    assert "config.yaml' names the suite 'evil:suite'" in capsys.readouterr().err
    assert main([*command.split(), "--suite", "evil:suite"]) == 2 and (tmp_path / "it ran").exists()
    assert "There is no suite 'suite'" in capsys.readouterr().err


def test_an_evaluation_names_no_suite_that_is_not_imported(evil, make_model, tmp_path):
    result = EvaluationResult([], {"tasks": ["climb"], "suite": "evil:suite"})
    with pytest.raises(ValueError, match="the evaluation' names the suite 'evil:suite', for which the module"):
        save_for_hub(make_model(), tmp_path / "card", None, result=result)
    assert not (tmp_path / "it ran").exists() and not (tmp_path / "card").exists()


@pytest.fixture
def zoo(evil, tmp_path, monkeypatch, capsys):
    """The zoo's command line in a folder of its own, and what a file may call; gives what it refuses."""
    for owner in (gym.wrappers, gym.wrappers.common):  # which rl_zoo3 replaces when it is imported
        monkeypatch.setattr(owner, "TimeLimit", owner.TimeLimit)
    from sb3_vla.zoo.launcher import main

    def refuse(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--env", "Pendulum-v1"])
        assert stop.value.code == 2 and not (tmp_path / "it ran").exists()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return refuse


RUN_FOLDER = "logs/ppo_self_bc/Pendulum-v1_1/Pendulum-v1"
PLAY = ["--algo", "ppo_self_bc", "-f", "logs", "-n", "1"]
OPEN = "open('it ran', 'w')"


def _write(name, content):
    """A run folder of the zoo with one file, a dictionary or a text, and nothing that is a model."""
    folder = Path(RUN_FOLDER)
    folder.mkdir(parents=True)
    (folder.parent / "Pendulum-v1.zip").touch()
    (folder / name).write_text(content if isinstance(content, str) else yaml.dump(content))
    return str(folder / name)


def _pickled_model(path, proof):
    run = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Run(proof))).decode()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": run}))


HOSTILE_RUNS = [
    "x: !!python/object/apply:builtins.open ['it ran', w]",
    "x: !!python/object/new:evil.X {}",
    "x: !!python/object:evil.X {}",
    "x: !!python/module:evil",
    "x: !!python/name:evil.X",
    "x: !!python/name:os.system",
    "x: !!python/object/apply:collections.OrderedDict [[[a, !!python/name:evil.X '']]]",
    "!!python/tuple [!!python/object/apply:builtins.eval [\"open('it ran', 'w')\"]]",
    {"normalize": OPEN},
    {"normalize": f"dict(a=[{OPEN}])"},
    {"normalize": f"dict(**{OPEN})"},
    {"normalize": f"[0 for _ in {OPEN}]"},
    {"normalize": "nn.modules.module.sys.modules['builtins'].open('it ran', 'w')"},
    {"normalize": "nn.Linear(1, 1)"},
    {"env_wrapper": "evil.Wrapper"},
    {"env_wrapper": ["gymnasium.wrappers.FlattenObservation", {"evil.Wrapper": {}}]},
    {"env_wrapper": "stable_baselines3.common.save_util.open_path"},
    {"env_wrapper": "gymnasium.wrappersevil.X"},
    {"vec_env_wrapper": {"evil.Wrapper": {}}},
    {"env_kwargs": {"suite": "evil:suite"}},
    {"env_kwargs": [["suite", "evil:suite"]]},
]


@pytest.mark.parametrize("command", ["enjoy", "record_video"])
@pytest.mark.parametrize("content", HOSTILE_RUNS, ids=str)
def test_run_folders_of_the_zoo_run_nothing(content, command, zoo):
    path = _write("config.yml", content)
    line = zoo(command, *PLAY)
    assert line.startswith(f"python -m sb3_vla.zoo {command}: '{path}' h") and "--trust" in line


@pytest.mark.parametrize("content", [HOSTILE_RUNS[0], {"env_kwargs": {"suite": "evil:suite"}}], ids=str)
def test_arguments_in_run_folders_of_the_zoo_run_nothing(content, zoo):
    path = _write("args.yml", content)
    for command in ("enjoy", "record_video"):
        assert f"'{path}' h" in zoo(command, *PLAY)


@pytest.mark.filterwarnings("ignore:.*is a pickled file, which may run anything")
@pytest.mark.parametrize("hostile", ["config.yml", "model"])
def test_what_is_trusted_in_the_zoo_runs(hostile, zoo, tmp_path):
    from sb3_vla.zoo.launcher import main

    path = Path(_write("config.yml", {"normalize": OPEN} if hostile == "config.yml" else {}))
    _pickled_model(path.parents[1] / "Pendulum-v1.zip", tmp_path / "it ran")
    with pytest.raises((TypeError, AttributeError)):  # from what becomes of an open file
        main(["--trust", "enjoy", *PLAY, "--no-render", "--env", "Pendulum-v1"])
    assert (tmp_path / "it ran").exists()


HOSTILE_HYPERPARAMS = [
    *(
        {name: OPEN}
        for name in ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
    ),
    *({name: "evil.X"} for name in ("policy", "env_wrapper", "vec_env_wrapper", "callback")),
    *({name: [{"os.system": {"command": "touch 'it ran'"}}]} for name in ("env_wrapper", "vec_env_wrapper", "callback")),
    *({"callback": each} for each in ("subprocess.Popen", "sb3_vla.load_normalizer", "rl_zoo3.plots.plot_from_file.X")),
    {"env_kwargs": {"suite": "evil:suite"}},
]


@pytest.mark.parametrize("content", HOSTILE_HYPERPARAMS, ids=str)
def test_configurations_of_the_zoo_run_nothing(content, zoo, tmp_path):
    entry = {"policy": "MlpPolicy", "n_timesteps": 8, **content}
    (tmp_path / "hostile.yml").write_text(yaml.dump({"Pendulum-v1": entry}))
    for algo in ("ppo_self_bc", "sac"):
        line = zoo("train", "--algo", algo, "--conf-file", "hostile.yml")
        named = "suite" if "env_kwargs" in content else next(iter(content))
        assert line.startswith(f"python -m sb3_vla.zoo train: 'hostile.yml' has the {named} ")


@pytest.mark.parametrize("config", ["evil.py", "evil"])
def test_configurations_in_python_are_not_run(config, zoo):
    assert f"'{config}' is Python" in zoo("train", "--algo", "ppo_self_bc", "--conf-file", config)


def test_a_study_of_the_zoo_runs_nothing(zoo):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("study.log"))
    study = optuna.create_study(storage=storage, study_name="x")
    choices = {"bc_rule": "success", "bc_strength": 0.1, "episodes_per_task": 10, "n_epochs": 1, "policy_kwargs": OPEN}
    distributions = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in choices.items()}
    for _ in range(2):
        study.add_trial(optuna.create_trial(value=0.0, params=choices, distributions=distributions))
    options = ["train", "--algo", "ppo_self_bc", "--storage", "study.log", "--study-name", "x"]
    for number in ("0", "1"):
        assert "'study.log' has the policy_kwargs" in zoo(*options, "--trial-id", number)
    assert "'study.log' may hold a pickled sampler" in zoo(*options, "-optimize", "--sampler", "auto")


@pytest.mark.parametrize("algo", ["ppo_self_bc", "sac"])
def test_pickled_models_and_statistics_run_nothing_in_the_zoo(algo, zoo, tmp_path):
    folder = tmp_path / f"logs/{algo}/Pendulum-v1_1/Pendulum-v1"
    folder.mkdir(parents=True)
    model, statistics = folder.parent / "Pendulum-v1.zip", folder / "vecnormalize.pkl"
    _pickled_model(model, tmp_path / "it ran")
    play = ["--algo", algo, "-f", "logs", "-n", "1", "--no-render"]
    commands = [["enjoy", *play], ["record_video", *play], ["train", "--algo", algo, "-f", "new", "-i", str(model)]]
    for command in commands:
        line = zoo(*command)
        assert "Pendulum-v1.zip' is a pickled" in line and "--trust" in line
    (folder / "config.yml").write_text("normalize: true")
    for content in (Run(tmp_path / "it ran"), [VecNormalize, Run(tmp_path / "it ran")], VecNormalize.save, np.zeros(2)):
        statistics.write_bytes(pickle.dumps(content))
        for command in commands if algo == "ppo_self_bc" else commands[:2]:  # others' models are refused before
            line = zoo(*command)
            assert "vecnormalize.pkl' holds " in line or "vecnormalize.pkl' is no VecNormalize" in line


def test_a_demonstration_buffer_of_ppo_self_bc_is_not_unpickled(make_model, tmp_path):
    (tmp_path / "replay_buffer.pkl").write_bytes(pickle.dumps(Run(tmp_path / "it ran")))
    with pytest.raises(ValueError, match=r"replay_buffer\.pkl"):
        make_model().load_replay_buffer(tmp_path / "replay_buffer.pkl")
    assert not (tmp_path / "it ran").exists()


def test_plots_of_the_zoo_unpickle_nothing(zoo, tmp_path):
    from sb3_vla.zoo.launcher import main

    folder = tmp_path / "logs/ppo/Pendulum-v1_1"
    folder.mkdir(parents=True)
    np.savez(folder / "evaluations.npz", timesteps=[1], results=np.array([Run(tmp_path / "it ran")], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        main(["all_plots", "-a", "ppo", "-e", "Pendulum-v1", "-f", "logs", "--no-display"])
    assert not (tmp_path / "it ran").exists()
