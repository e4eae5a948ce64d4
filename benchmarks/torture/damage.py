"""Files with random damage: they read as they were, or one error names them."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from run_settings import make_model, settings
from tally import Tally

from sb3_vla import EvaluationResult, PPOSelfBC, VLAPolicy
from sb3_vla.common.plain_file import load_plain, save_plain
from sb3_vla.evaluation.result import EpisodeRecord
from sb3_vla.runs.config import load_config
from sb3_vla_envs import collect_demonstrations, load_demonstrations, save_demonstrations


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(len(content)) :]


def _blank(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 4096))
    content[start:end] = bytes(end - start)


def _scramble(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 512))
    content[start:end] = rng.randbytes(end - start)


def _repeat(content: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(content))
    content[start:start] = content[start : start + rng.randrange(1, 512)]


DAMAGES = (_flip, _cut, _blank, _scramble, _repeat)


def damage_files(n: int, seed: int) -> Tally:
    """
    :param n: Files
    :param seed: Of the damage
    :return: What came of them
    """
    tally, rng = (
        Tally("random damage to models, policies, demonstrations, results, training states and configurations"),
        random.Random(seed),
    )
    with tempfile.TemporaryDirectory() as temporary:
        readers = _write_all(Path(temporary))
        names = sorted(readers)
        for number in range(n):
            path = Path(temporary) / names[number % len(names)]
            intact = path.read_bytes()
            content, damage = bytearray(intact), rng.choice(DAMAGES)
            damage(content, rng)
            path.write_bytes(content)
            try:
                readers[path.name](path)
            except (ValueError, OSError):
                tally.survived("an error")
            except Exception as error:
                tally.lose(f"file {number} of seed {seed}, {path.name}, {damage.__name__}: {error!r}")
            else:
                tally.survived("read")
            path.write_bytes(intact)
    return tally


def _write_all(folder: Path) -> dict[str, Callable[[Path], Any]]:
    """
    :param folder: Gets a file of each kind
    :return: What reads each
    """
    config, model = load_config(None, **settings(16)), make_model()
    model.learn(16)
    model.save(folder / "model.zip")
    model.policy.save(str(folder / "policy"))
    demonstrations = collect_demonstrations("point", 5, suite=config.suite, progress=False, **config.env_settings())
    save_demonstrations(folder / "demos.npz", demonstrations)
    EvaluationResult([EpisodeRecord("point", 0, True, 5, 5, 1.0)], {}, {}).save(folder / "results.json")
    save_plain(folder / "training_state.safetensors", {"random": [1, 2], "array": demonstrations[0].actions})
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    return {
        "model.zip": lambda path: PPOSelfBC.load(path, device="cpu"),
        "policy": lambda path: VLAPolicy.load(str(path), device="cpu"),
        "demos.npz": load_demonstrations,
        "results.json": EvaluationResult.load,
        "training_state.safetensors": load_plain,
        "config.yaml": load_config,
    }
