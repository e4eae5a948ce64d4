"""The policies of MT10 in the repository do what their cards say, on a few goals."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sb3_vla import EvaluationResult, PPOSelfBC
from sb3_vla.common.run_folder import RunFolder
from sb3_vla.runs.cli import main

MODELS = Path(__file__).parents[1] / "results" / "mt10" / "models"
NAMES = ("demos_10", "demos_10_sft", "demos_100", "demos_100_sft")
FILE = "ppo_self_bc-metaworld-MT10.zip"
# Which every one of them does
TASKS = ("drawer-open-v3", "window-close-v3")


@pytest.mark.parametrize("name", NAMES)
def test_a_published_model_loads_and_its_card_tells_its_evaluation(name):
    assert (MODELS / name / FILE).stat().st_size < 15e6
    model = PPOSelfBC.load(MODELS / name / FILE)
    assert model.action_space.shape == (8, 4)
    assert (model.num_timesteps == 0) == name.endswith("sft")
    overall = EvaluationResult.load(MODELS / name / "results.json").overall
    card = ModelCard.load(MODELS / name / "README.md")
    command, _ = RunFolder.open(MODELS / name).read_config()
    assert command.startswith("sb3-vla ") and " /" not in command, "others have other folders"
    assert overall.n_episodes == 500 and f"{overall.success:.2f} ({overall.success_low:.2f}" in card.text


@pytest.mark.parametrize("name", NAMES)
def test_one_command_evaluates_a_published_model(name, tmp_path, in_this_process):
    out = tmp_path / "results.json"
    command = ["eval", str(MODELS / name / FILE), "--tasks", ",".join(TASKS), "--n-goals", "2", "--out", str(out)]
    assert main(command) == 0
    told = json.loads((MODELS / name / "results.json").read_text())["episodes"]
    told_steps = {(each["task"], each["goal_index"]): each["steps_to_success"] for each in told}
    for episode in EvaluationResult.load(out).episodes:
        steps = told_steps[episode.task, episode.goal_index]
        # Another CPU rounds differently
        assert episode.success and episode.steps_to_success == pytest.approx(steps, rel=0.2, abs=5)
