import re

import pytest

from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla.runs.memory import estimator_of

from ..policies.backbones.tiny_checkpoints import TINY_FAMILIES

SETTINGS = """
tasks: drawer-close-v3
wrapping: {cameras: [{name: corner4, height: 32, width: 32}]}
train: {n_envs: 2, n_steps: 8, batch_size: 8, bc_batch_size: 8}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "settings.yml"
    path.write_text(SETTINGS)
    return str(path)


def gib(output, label):
    return float(re.search(rf"^{label}.* (\d+\.\d+) GiB$", output, re.M)[1])


def test_it_says_what_training_takes_without_the_weights(config, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    TINY_FAMILIES["smolvlm"].save(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    options = [
        "--backbone",
        str(checkpoint),
        "--lora-rank",
        "4",
        "--head",
        "flow",
        "--cameras",
        "2",
        "--micro-batch-size",
        "4",
    ]
    assert main(["memory", "--config", config, *options]) == 0
    output = capsys.readouterr().out
    assert output.startswith("4 of 16 samples of a minibatch and its demonstrations at a time:")
    assert gib(output, "all on the device") >= gib(output, "weights")
    assert "16 in 8 GiB" in output and "16 in 80 GiB" in output


def test_a_chunk_that_is_not_executed_whole_makes_more_demonstrated_pairs(config):
    small, large = (estimator_of(load_config(config, wrapping={"n_action_steps": n})) for n in (8, 4))
    # Of an episode of 500 steps
    assert large.estimate().demonstrations / 125 == small.estimate().demonstrations / 63 > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cameras", "0"], "--cameras must be at least 1, got 0"),
        (["--backbone", "no/such/folder"], "there is no backbone 'no/such/folder'"),
        (["--batch-size", "1"], "train.batch_size must be at least 2, got 1"),
        (["--head", "tokens"], "there is no head 'tokens'"),
        (["--lora-rank", "4"], "lora=... adapts pretrained weights, and SmolVLMBackbone has none"),
    ],
)
def test_mistakes_end_in_one_line(config, options, message, capsys):
    assert main(["memory", "--config", config, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
