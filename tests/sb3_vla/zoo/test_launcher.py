"""Every command of ``python -m sb3_vla.zoo``, run small."""

import os
import re
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
import optuna
import pytest
import rl_zoo3.exp_manager
import rl_zoo3.utils
import yaml
from matplotlib import pyplot as plt
from sb3_contrib import TQC, RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from sb3_vla import PPOSelfBC
from sb3_vla.zoo.launcher import COMMANDS, main

VLA = "MetaWorldVLA/drawer-close-v3"
VLA_FOLDER = Path("logs/ppo_self_bc/MetaWorldVLA-drawer-close-v3_1")
SMALL = [
    *("-params", "n_envs:2", "n_steps:16", "batch_size:16", "critic_epochs:2", "critic_warmup_steps:32", "bc_batch_size:4"),
    "callback:[{'sb3_vla.SFTCallback': dict(n_per_task=3, n_epochs=1, verbose=0)}]",
]
ENV = ["--env-kwargs", "horizon:120", "cameras:['corner4']"]

TRAIN = [
    *("train", "--algo", "ppo_self_bc", "--env", VLA, "-n", "128", "--seed", "1", "--eval-freq", "64", "--eval-episodes", "2"),
    *("--save-freq", "96", "--verbose", "0", *SMALL, *ENV),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The working directory of a run of PPOSelfBC on pixels, with checkpoints and evaluations."""
    folder = tmp_path_factory.mktemp("zoo")
    before = os.getcwd()
    os.chdir(folder)
    try:
        main(TRAIN)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def in_the_run(trained, monkeypatch):
    monkeypatch.chdir(trained)


def test_train_finds_our_configuration_by_itself_and_leaves_what_the_zoo_leaves(trained):
    config = yaml.unsafe_load((VLA_FOLDER / VLA_FOLDER.name[:-2] / "config.yml").read_text())
    assert config["policy"] == "VLAPolicy"
    # The command line's over the configuration's
    assert config["env_kwargs"] == {"chunk_size": 8, "gamma": 0.99, "horizon": 120, "cameras": ["corner4"]}
    assert {path.name for path in VLA_FOLDER.iterdir()} >= {
        "best_model.zip",
        "MetaWorldVLA-drawer-close-v3.zip",
        "replay_buffer.pkl",
        "rl_model_96_steps.zip",
        "rl_model_replay_buffer_96_steps.pkl",
        "evaluations.npz",
    }
    evaluations = np.load(VLA_FOLDER / "evaluations.npz")
    assert list(evaluations["timesteps"]) == [64, 128]
    assert set(load_results(str(VLA_FOLDER)).columns) >= {"r", "l", "is_success"}
    model = PPOSelfBC.load(VLA_FOLDER / "MetaWorldVLA-drawer-close-v3.zip")
    assert model.num_timesteps == 128
    assert model.policy.frozen == ("vision", "connector")
    model.load_replay_buffer(VLA_FOLDER / "replay_buffer.pkl")
    assert model.replay_buffer.summary()["drawer-close-v3"]["episodes"] >= 3


@pytest.mark.parametrize("agent", ["MetaWorldVLA-drawer-close-v3.zip", "rl_model_96_steps.zip"])
def test_resume_continues_with_weights_and_demonstrations(agent, tmp_path, capsys):
    options = ["-n", "32", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path), "-i", str(VLA_FOLDER / agent)]
    small = [option for option in SMALL if not option.startswith("critic_warmup_steps")]
    arguments = ["train", "--algo", "ppo_self_bc", "--env", VLA, *options, *small, "learning_rate:0.0"]
    main([*arguments, "critic_learning_rate:0.0", *ENV])
    resumed_folder = tmp_path / "ppo_self_bc/MetaWorldVLA-drawer-close-v3_1"
    resumed = PPOSelfBC.load(resumed_folder / "MetaWorldVLA-drawer-close-v3.zip")
    before = PPOSelfBC.load(VLA_FOLDER / agent)
    assert resumed._n_updates > before._n_updates  # no warm-up of the value function once more
    for name, weights in before.policy.state_dict().items():
        np.testing.assert_array_equal(weights, resumed.policy.state_dict()[name], err_msg=name)
    # The episodes that the scripted expert gave at the start of the first run, not collected anew
    resumed.load_replay_buffer(resumed_folder / "replay_buffer.pkl")
    buffer = "replay_buffer.pkl" if "rl_model" not in agent else "rl_model_replay_buffer_96_steps.pkl"
    before.load_replay_buffer(VLA_FOLDER / buffer)
    assert len(resumed.replay_buffer) >= len(before.replay_buffer) > 0
    assert f"Loading demonstration buffer {VLA_FOLDER / buffer}" in capsys.readouterr().out


def test_resume_without_behaviour_cloning(tmp_path):
    agent = str(VLA_FOLDER / "MetaWorldVLA-drawer-close-v3.zip")
    options = ["-n", "32", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path), "-i", agent]
    main(["train", "--algo", "ppo_self_bc", "--env", VLA, *options, *SMALL, "bc_weight:0", *ENV])
    assert not list(tmp_path.glob("*/*/replay_buffer.pkl"))


def test_resume_of_other_algorithms_is_the_zoos(tmp_path):
    common = ["train", "--algo", "sac", "--env", "Pendulum-v1", "--eval-freq", "-1", "-f", str(tmp_path), "-n", "24"]
    small = ["-params", "learning_starts:8", "batch_size:4", "buffer_size:100", "normalize:True"]
    main([*common, "--save-replay-buffer", *small])
    again = [*common, "-i", str(tmp_path / "sac/Pendulum-v1_1/Pendulum-v1.zip"), "--save-replay-buffer", *small]
    with pytest.raises(SystemExit):
        main(again)
    assert not (tmp_path / "sac/Pendulum-v1_2").exists()
    main(["--trust", *again])
    resumed = SAC.load(tmp_path / "sac/Pendulum-v1_2/Pendulum-v1.zip")
    resumed.load_replay_buffer(tmp_path / "sac/Pendulum-v1_2/replay_buffer.pkl")
    assert resumed.replay_buffer.size() == 48


def test_what_it_wrote_itself_needs_no_trust(tmp_path):
    common = ["--algo", "ppo_self_bc", "--env", "Pendulum-v1", "-f", str(tmp_path)]
    params = ["n_envs:1", "n_steps:16", "batch_size:16"]
    params += ["normalize:'dict(norm_obs=True, norm_reward=False)'", "policy_kwargs:dict(activation_fn=nn.ReLU, net_arch=[8])"]
    train = ["train", *common, "-n", "16", "--eval-freq", "8", "--eval-episodes", "1", "-params", *params]
    main([*train, "--env-kwargs", "g:9.0"])
    main(["enjoy", *common, "-n", "2", "--no-render"])
    main(["record_video", *common, "-n", "2"])
    main([*train, "-i", str(tmp_path / "ppo_self_bc/Pendulum-v1_1/Pendulum-v1.zip")])
    statistics = tmp_path / "ppo_self_bc/Pendulum-v1_2/Pendulum-v1/vecnormalize.pkl"
    normalizer = VecNormalize.load(str(statistics), make_vec_env("Pendulum-v1"))
    assert normalizer.obs_rms.count == pytest.approx(34, abs=1)  # two resets and twice 16 steps: the second went on


def test_evaluation_follows_the_configuration_and_its_own_arguments(tmp_path):
    options = ["-n", "16", "--eval-freq", "8", "--eval-episodes", "1", "--verbose", "0", "-f", str(tmp_path)]
    arguments = ["--eval-env-kwargs", "horizon:40", "goal_split:'test'", "-params", *TINY["sac"]]
    main(["train", "--algo", "sac", "--env", VLA, *options, *arguments])
    evaluations = np.load(tmp_path / "sac/MetaWorldVLA-drawer-close-v3_1/evaluations.npz")
    assert (evaluations["steps"] == 40).all() and (evaluations["ep_lengths"] == 10).all()


def test_environment_arguments_reach_a_configuration_of_the_users_own(tmp_path):
    mine = {VLA: {"policy": "MultiInputPolicy", "n_timesteps": 8, "n_steps": 8, "batch_size": 8, "n_epochs": 1}}
    (tmp_path / "mine.yml").write_text(yaml.dump(mine))
    options = ["--conf-file", str(tmp_path / "mine.yml"), "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path)]
    main(["train", "--algo", "ppo", "--env", VLA, *options, "--env-kwargs", "horizon:40", "chunk_size:3"])
    (folder,) = tmp_path.glob("ppo/*_1")
    assert PPO.load(folder / "MetaWorldVLA-drawer-close-v3.zip").action_space.shape == (3, 4)
    config = yaml.unsafe_load((folder / folder.name[:-2] / "config.yml").read_text())
    assert config["env_kwargs"] == {"horizon": 40, "chunk_size": 3}
    assert config["gamma"] == pytest.approx(0.99**3), "which PPO discounts a chunk by"


def test_enjoy_plays_what_was_trained(capsys):
    main(["enjoy", "--algo", "ppo_self_bc", "--env", VLA, "-f", "logs", "-n", "31", "--no-render"])
    # 15 chunks of 8 steps reach the horizon of 120
    assert re.search(r"Success rate: \d+\.\d+%", capsys.readouterr().out)


def test_enjoy_shows_pictures_in_a_window(monkeypatch):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown = []
    monkeypatch.setattr(pygame.display, "flip", lambda: shown.append(pygame.display.get_surface().get_size()))
    main(["enjoy", "--algo", "ppo_self_bc", "--env", VLA, "-f", "logs", "-n", "3"])
    assert shown and set(shown) == {(240, 240)}


def video_frames(path):
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def test_videos_are_upright_and_in_real_time():
    main(["record_video", "--algo", "ppo_self_bc", "--env", VLA, "-f", "logs", "-n", "20", "--seed", "3"])
    (video,) = (VLA_FOLDER / "videos").glob("final-model*.mp4")
    meta, frames = video_frames(video)
    assert meta["fps"] == 10  # chunks of 8 steps of 12.5 ms
    picture = np.stack(frames)
    # Upright: the arm hangs from above, so red is in the upper half, and the table's wood in the lower one
    red = (picture[..., 0] > 90) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
    middle = picture.shape[1] // 2
    assert red[:, :middle].sum() > 3 * red[:, middle:].sum()


def test_plots_find_runs_by_the_name_of_their_folder(monkeypatch):
    matplotlib.use("agg")
    axes = []
    monkeypatch.setattr(plt, "show", lambda: axes.extend(plt.gcf().axes))
    folder = ["-a", "ppo_self_bc", "-e", VLA.replace("/", "-"), "-f", "logs"]
    main(["plot_train", *folder, "-w", "1", "-y", "success"])
    assert len(axes[0].lines) == 1
    main(["all_plots", *folder, "-k", "successes"])
    assert len(axes) == 2 and axes[1].lines


def test_a_search_tries_chunk_sizes_and_what_it_finds_can_be_trained(tmp_path, capsys):
    study = ["--storage", str(tmp_path / "study.log"), "--study-name", "chunks"]
    common = ["--algo", "ppo_self_bc", "--env", "Pendulum-v1", "-f", str(tmp_path), "--verbose", "0", "--eval-episodes", "1"]
    small = ["-n", "256", "-params", "n_envs:2", "n_steps:64"]
    search = ["-optimize", "--n-trials", "2", "--n-startup-trials", "2", "--sampler", "random", "--pruner", "none"]
    main(["train", *common, *small, *search, *study, "--no-optim-plots", "--n-evaluations", "1", "--seed", "0"])
    trials = optuna.load_study(
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(study[1])), study_name="chunks"
    ).trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * 2
    assert {"chunk_size", "bc_rule", "bc_strength", "episodes_per_task", "learning_rate"} <= set(trials[0].params)
    assert "critic_learning_rate" not in trials[0].params  # MlpPolicy has no parts
    assert list((tmp_path / "ppo_self_bc").glob("report_*.csv"))

    for number in (0, 1):
        main(["train", *common, *small, *study, "--trial-id", str(number), "--eval-freq", "-1"])
        # The search has made the first folder
        found = PPOSelfBC.load(tmp_path / f"ppo_self_bc/Pendulum-v1_{number + 2}/Pendulum-v1.zip")
        assert found.action_space.shape == (trials[number].params["chunk_size"], 1)
        assert found.bc_weight == trials[number].params["bc_rule"]
        assert found.n_steps == 64  # what the command line says counts


def test_a_search_on_pixels_reaches_the_parts_of_vla_policy(tmp_path):
    common = ["--algo", "ppo_self_bc", "--env", VLA, "-f", str(tmp_path), "--verbose", "0", "--eval-episodes", "1"]
    search = ["-optimize", "--n-trials", "1", "--n-evaluations", "1", "--no-optim-plots", "--seed", "0"]
    main(["train", *common, "-n", "64", *search, *SMALL, *ENV])
    (report,) = (tmp_path / "ppo_self_bc").glob("report_*.csv")
    header, row = (line.split(",") for line in report.read_text().splitlines())
    trial = dict(zip(header, row, strict=True))
    assert trial["state"] == "COMPLETE"
    assert {"params_critic_learning_rate", "params_backbone_learning_rate", "params_chunk_size"} <= trial.keys()


ALGORITHMS = {"ppo": PPO, "sac": SAC, "tqc": TQC, "ppo_lstm": RecurrentPPO, "ppo_self_bc": PPOSelfBC}
TINY = {
    "ppo": ["n_envs:1", "n_steps:8", "batch_size:8", "n_epochs:1"],
    "ppo_lstm": ["n_envs:1", "n_steps:8", "batch_size:8", "n_epochs:1"],
    "ppo_self_bc": ["n_envs:1", "n_steps:8", "batch_size:8", "n_epochs:1", "critic_epochs:1", "callback:None"],
    "sac": ["n_envs:1", "learning_starts:4", "buffer_size:50", "batch_size:4", "gradient_steps:1"],
    "tqc": ["n_envs:1", "learning_starts:4", "buffer_size:50", "batch_size:4", "gradient_steps:1"],
}


def read_config(algo):
    return yaml.safe_load((Path(__file__).parents[3] / f"zoo_configs/{algo}.yml").read_text())


def configured():
    return [(algo, env_id) for algo in ALGORITHMS for env_id in read_config(algo)]


def chunks_of(config):
    """Arguments of what makes the chunks."""
    wrappers = {
        name: kwargs for entry in config.get("env_wrapper", []) if isinstance(entry, dict) for name, kwargs in entry.items()
    }
    return wrappers.get("sb3_vla_envs.ChunkedActionWrapper") or config["env_kwargs"]


@pytest.mark.parametrize(("algo", "env_id"), configured())
def test_every_configuration_adds_up(algo, env_id):
    config = read_config(algo)[env_id]
    chunks = chunks_of(config)
    gamma = chunks["gamma"] if algo == "ppo_self_bc" else chunks["gamma"] ** chunks["chunk_size"]
    assert config["gamma"] == pytest.approx(gamma, abs=1e-4)
    if "n_steps" in config:
        assert config["n_envs"] * config["n_steps"] % config.get("batch_size", 64) == 0


@pytest.mark.parametrize(("algo", "env_id"), configured())
def test_every_configuration_trains(algo, env_id, tmp_path):
    options = ["-n", "16", "--eval-freq", "8", "--eval-episodes", "1", "--verbose", "0", "-f", str(tmp_path)]
    example = env_id.replace("*-v3", "drawer-close-v3").replace("*-v4", "FetchReach-v4")
    if example.startswith(("MetaWorld", "Fetch")):
        options += ["--eval-env-kwargs", "horizon:40"]
    main(["train", "--algo", algo, "--env", example, *options, "-params", *TINY[algo]])
    (model,) = tmp_path.glob(f"{algo}/*_1/{example.replace('/', '-')}.zip")
    assert ALGORITHMS[algo].load(model).action_space.shape[0] == chunks_of(read_config(algo)[env_id])["chunk_size"]


def test_its_commands_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)


def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "sb3_vla.zoo"]
    options = ["-n", "64", "--eval-freq", "-1", "-params", "n_envs:2", "n_steps:16", "batch_size:32"]
    arguments = ["train", "--algo", "ppo_self_bc", "--env", "Pendulum-v1", "--vec-env", "subproc", *options, "chunk_size:4"]
    # Our files are found by their name wherever one stands
    subprocess.run([*command, *arguments, "--conf-file", "zoo_configs/ppo_self_bc.yml"], cwd=tmp_path, check=True)
    model = PPOSelfBC.load(tmp_path / "logs/ppo_self_bc/Pendulum-v1_1/Pendulum-v1.zip")
    assert model.action_space.shape == (4, 1)


def test_algorithms_of_the_zoo_keep_their_own_hyperparameters(tmp_path, capsys):
    main(["train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "40", "--eval-freq", "-1", "-f", str(tmp_path)])
    assert "rl_zoo3/hyperparams/a2c.yml" in capsys.readouterr().out.replace(os.sep, "/")


def test_an_unknown_configuration_is_refused_with_the_names_that_there_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.yml.*ppo_self_bc.yml"):
        main(["train", "--algo", "ppo", "--env", "Pendulum-v1", "--conf-file", "nothing.yml", "-f", str(tmp_path)])


def test_a_chunk_size_where_there_are_no_chunks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"chunk_size=4.*ChunkedActionWrapper"):
        main(["train", "--algo", "a2c", "--env", "CartPole-v1", "-params", "chunk_size:4", "-f", str(tmp_path)])


def test_the_discount_reaches_the_chunks(tmp_path):
    options = ["-n", "32", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path)]
    params = ["-params", "n_envs:1", "n_steps:32", "gamma:0.9"]
    main(["train", "--algo", "ppo_self_bc", "--env", "Pendulum-v1", *options, *params])
    config = yaml.unsafe_load((tmp_path / "ppo_self_bc/Pendulum-v1_1/Pendulum-v1/config.yml").read_text())
    assert config["env_wrapper"] == [{"sb3_vla_envs.ChunkedActionWrapper": {"chunk_size": 2, "gamma": 0.9}}]


def test_a_discount_of_the_chunks_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gamma:0.95 is not the gamma=0.99.*-params gamma:0.95"):
        main(["train", "--algo", "ppo_self_bc", "--env", VLA, "-f", str(tmp_path), "--env-kwargs", "gamma:0.95"])


@pytest.mark.parametrize(
    ("algo", "env_id"), [("ppo_self_bc", "CartPole-v1"), ("ppo_self_bc", "MetaWorldVLA/MT50"), ("sac", "MetaWorldState/MT10")]
)
def test_without_hyperparameters_it_is_said_what_there_are(algo, env_id, tmp_path):
    with pytest.raises(ValueError, match=rf"no hyperparameters of {algo} for {env_id}.*MetaWorldState/\*-v3.*--conf-file"):
        main(["train", "--algo", algo, "--env", env_id, "-f", str(tmp_path)])


def test_an_entry_with_a_star_serves_every_environment_that_has_none_of_its_own(tmp_path, capsys):
    options = ["-n", "8", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path), "-params", *TINY["sac"]]
    main(["train", "--algo", "sac", "--env", "MetaWorldState/reach-v3", *options])
    assert "Using the hyperparameters of MetaWorldState/*-v3" in capsys.readouterr().out
    assert SAC.load(tmp_path / "sac/MetaWorldState-reach-v3_1/MetaWorldState-reach-v3.zip").action_space.shape == (4, 4)


@pytest.mark.parametrize(("given", "gamma"), [([], 0.99**3), (["gamma:0.5"], 0.5)])
def test_algorithms_that_discount_once_a_chunk_follow_its_size(given, gamma, tmp_path):
    options = ["-n", "8", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path)]
    main(["train", "--algo", "sac", "--env", "Pendulum-v1", *options, "-params", *TINY["sac"], "chunk_size:3", *given])
    assert SAC.load(tmp_path / "sac/Pendulum-v1_1/Pendulum-v1.zip").gamma == pytest.approx(gamma)
    config = yaml.unsafe_load((tmp_path / "sac/Pendulum-v1_1/Pendulum-v1/config.yml").read_text())
    assert config["gamma"] == pytest.approx(gamma)


def test_the_discount_follows_the_steps_that_are_executed(tmp_path):
    config = read_config("sac")["Pendulum-v1"]
    chunks_of(config).update(chunk_size=4, n_action_steps=2)
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"Pendulum-v1": {**config, "gamma": 0.9}}))
    options = ["--conf-file", str(tmp_path / "own.yml"), "-n", "8", "--eval-freq", "-1", "--verbose", "0", "-f", str(tmp_path)]
    main(["train", "--algo", "sac", "--env", "Pendulum-v1", *options, "-params", *TINY["sac"], "chunk_size:3"])
    assert SAC.load(tmp_path / "sac/Pendulum-v1_1/Pendulum-v1.zip").gamma == 0.9, "as many steps as before"


def test_a_search_in_threads_is_refused_where_it_would_draw(tmp_path):
    with pytest.raises(ValueError, match=r"--n-jobs 2.*--storage"):
        main(["train", "--algo", "ppo_self_bc", "--env", VLA, "-optimize", "--n-jobs", "2", "-f", str(tmp_path)])


@pytest.mark.parametrize("failing", [False, True])
def test_what_the_zoo_has_is_restored_afterwards(failing, tmp_path):
    owners = [rl_zoo3, rl_zoo3.utils, rl_zoo3.exp_manager, sys]
    before = [dict(vars(owner)) for owner in owners]
    if failing:
        with pytest.raises(FileNotFoundError):
            main(["train", "--env", "CartPole-v1", "--conf-file", "nothing.yml", "-f", str(tmp_path)])
    else:
        main(["enjoy", "--algo", "ppo_self_bc", "--env", VLA, "-f", "logs", "-n", "1", "--no-render"])
    for owner, attributes in zip(owners, before, strict=True):
        changed = [name for name, value in attributes.items() if vars(owner)[name] is not value]
        assert changed == [], owner
