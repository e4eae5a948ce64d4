"""The Python of README and docs runs: in small, that is with few and short episodes and few updates, in one process."""

import re
from pathlib import Path

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

import sb3_vla
import sb3_vla_envs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TASK = "drawer-close-v3"
# What is written, and what is run in its place
SMALLER = {
    r"n_envs=\d+": "n_envs=1",
    r"n_per_task=\d+": "n_per_task=2",
    r'"MT10", n_per_task': f'"{TASK}", n_per_task',
    r"learn\([\d_]+": "learn(24",
    r"n_steps=120, batch_size=160": "n_steps=8, batch_size=8",
    r"critic_epochs=20, critic_warmup_steps=1920": "critic_epochs=2, critic_warmup_steps=8",
}
# Run by tests of their own, on small checkpoints: tests/sb3_vla/policies/test_lora.py
NEEDS_DOWNLOAD = "HuggingFaceTB/SmolVLM-500M-Instruct"


def blocks():
    for page in PAGES:
        found = re.findall(r"^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S)
        for number, (indent, block) in enumerate(found):
            if NEEDS_DOWNLOAD not in block:
                code = "".join(line.removeprefix(indent) for line in block.splitlines(keepends=True))
                yield pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")


def with_arguments(function, **forced):
    """:return: The function with some of its arguments as they are here, whatever the caller gives"""
    return lambda *args, **kwargs: function(*args, **{**kwargs, **forced})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What a block has from the one before it, or from its reader: a model, its file, a LeRobot dataset."""
    folder = tmp_path_factory.mktemp("blocks")
    env = sb3_vla.make_vla_vec_env(TASK, 1)
    model = sb3_vla.PPOSelfBC("VLAPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    model.save(folder / "drawer_close")
    model.save_replay_buffer(folder / "drawer_close_demos")
    episodes = sb3_vla_envs.collect_demonstrations("window-open-v3", 1, privileged=False, every_step=True)
    for episode in episodes:
        episode.observations["image_top"] = episode.observations.pop("image")
        episode.observations["instruction"][:] = sb3_vla_envs.encode_instruction("Open the window", 64)
    sb3_vla_envs.write_lerobot(folder / "FOLDER", episodes, fps=80)
    exported = {name: getattr(module, name) for module in (sb3_vla, sb3_vla_envs) for name in module.__all__}
    return folder, {**exported, "env": env, "model": model}


@pytest.mark.parametrize("block", list(blocks()))
def test_python_runs(block, made, monkeypatch):
    folder, names = made
    monkeypatch.chdir(folder)
    evaluate = with_arguments(sb3_vla.evaluate_on_tasks, n_goals=1, n_envs=1, horizon=16, progress=False)
    fine_tune = with_arguments(sb3_vla.fine_tune, n_epochs=1, progress=False)
    monkeypatch.setattr("sb3_vla.api.evaluate_on_tasks", evaluate)
    monkeypatch.setattr("sb3_vla.api.fine_tune", fine_tune)
    monkeypatch.setattr("sb3_vla.api.push_to_hub", lambda folder, repo_id: None)
    # There is no cluster here but that of tests/sb3_vla/vec_env/test_ray_vec_env.py
    monkeypatch.setattr("sb3_vla.api.RayVecEnv", lambda env_fns, address: DummyVecEnv(env_fns))
    for written, run in SMALLER.items():
        block = re.sub(written, run, block)
    exec(block, {**names, "evaluate_on_tasks": evaluate, "fine_tune": fine_tune, "__name__": "__main__"})


def test_what_is_made_smaller_is_there():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [written for written in SMALLER if not re.search(written, text)]
