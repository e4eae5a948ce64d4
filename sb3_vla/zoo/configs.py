"""Where the hyperparameters of an algorithm and an environment stand."""

from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path

import yaml

from .hyperparams import NAME


def find_config(algo: str, env_id: str, conf_file: str | None = None) -> tuple[str | None, str]:
    """
    :param algo: Name of the algorithm
    :param env_id: Environment
    :param conf_file: What the user gave: a file, a Python module (as in the zoo), or the name of one of our files
        (``sac.yml``, ``zoo_configs/sac.yml``), which need not lie in the working directory
    :return: The file, ``None`` for the zoo's own, and its entry that counts: that of the environment, or else the first whose
        name is a pattern that the environment's id matches (``Namespace/*``)
    :raises FileNotFoundError: If there is no such file, here or among ours
    :raises ValueError: If our files have no hyperparameters for the algorithm and the environment, and the zoo can't have any
    """
    entries = (Path(str(entry)) for entry in files("sb3_vla.zoo_configs").iterdir())
    ours = {path.name: path for path in entries if path.suffix == ".yml"}
    if conf_file is None:
        return _find_among(ours.get(f"{algo}.yml"), algo, env_id)
    if Path(conf_file).suffix == ".yml" and not Path(conf_file).is_file() and Path(conf_file).name in ours:
        return _find_among(ours[Path(conf_file).name], algo, env_id)
    if conf_file.endswith((".yml", ".yaml")):
        if not Path(conf_file).is_file():
            raise FileNotFoundError(
                f"there is no file {conf_file!r}, nor one of that name in sb3-vla, which has {sorted(ours)}"
            )
        return conf_file, _matching(env_id, Path(conf_file)) or env_id
    return conf_file, env_id


def _find_among(path: Path | None, algo: str, env_id: str) -> tuple[str | None, str]:
    """
    :param path: One of our files, if there is one for the algorithm
    :param algo: Name of the algorithm
    :param env_id: Environment
    :return: See :func:`find_config`
    :raises ValueError: likewise
    """
    entry = path and _matching(env_id, path)
    if entry:
        return str(path), entry
    known = _entries(path) if path else []
    namespace = env_id.rpartition("/")[0]
    if algo == NAME or namespace in [name.rpartition("/")[0] for name in known if "/" in name]:
        raise ValueError(
            f"there are no hyperparameters of {algo} for {env_id}, only for {', '.join(known)}: give a --conf-file with an "
            "entry for it"
        )
    return None, env_id


def _matching(env_id: str, path: Path) -> str | None:
    """The entry of a file for an environment: of its own name, or else the first that matches it."""
    entries = _entries(path)
    return env_id if env_id in entries else next((entry for entry in entries if fnmatchcase(env_id, entry)), None)


def _entries(path: Path) -> list[str]:
    return list(yaml.safe_load(path.read_text(encoding="utf-8")))
