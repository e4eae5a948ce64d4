"""Where the hyperparameters of an algorithm and an environment stand."""

from importlib.resources import files
from pathlib import Path

import yaml

from sb3_vla_envs import MT50

from .hyperparams import NAME

# The task whose hyperparameters serve those that have none of their own
_EXAMPLE = "drawer-close-v3"


def find_config(algo: str, env_id: str, conf_file: str | None = None) -> tuple[str | None, str]:
    """
    :param algo: Name of the algorithm
    :param env_id: Environment
    :param conf_file: What the user gave: a file, a Python module (as in the zoo), or the name of one of our files
        (``sac.yml``, ``zoo_configs/sac.yml``), which need not lie in the working directory
    :return: The file, ``None`` for the zoo's own, and the environment whose entry counts: single tasks of MetaWorld that have
        none in our files share that of drawer-close-v3
    :raises FileNotFoundError: if there is no such file, here or among ours
    :raises ValueError: if our files have no hyperparameters for the algorithm and the environment, and the zoo can't have any
    """
    entries = (Path(str(entry)) for entry in files("sb3_vla.zoo_configs").iterdir())
    ours = {path.name: path for path in entries if path.suffix == ".yml"}
    if conf_file is None:
        return _find_among(ours.get(f"{algo}.yml"), algo, env_id)
    if Path(conf_file).is_file() or not conf_file.endswith((".yml", ".yaml", ".py")):
        return conf_file, env_id
    if Path(conf_file).name not in ours:
        raise FileNotFoundError(f"there is no file {conf_file!r}, nor one of that name in sb3-vla, which has {sorted(ours)}")
    return _find_among(ours[Path(conf_file).name], algo, env_id)


def _find_among(path: Path | None, algo: str, env_id: str) -> tuple[str | None, str]:
    """
    :param path: One of our files, if there is one for the algorithm
    :param algo: Name of the algorithm
    :param env_id: Environment
    :return: See :func:`find_config`
    :raises ValueError: likewise
    """
    namespace, _, task = env_id.rpartition("/")
    known = [] if path is None else list(yaml.safe_load(path.read_text(encoding="utf-8")))
    for entry in (env_id, *([f"{namespace}/{_EXAMPLE}"] if task in MT50 else [])):
        if entry in known:
            return str(path), entry
    if algo == NAME or namespace.startswith("MetaWorld"):
        raise ValueError(
            f"there are no hyperparameters of {algo} for {env_id}, only for {known}, and for any task in place of {_EXAMPLE}: "
            "give a --conf-file with an entry for it"
        )
    return None, env_id
