"""Where the hyperparameters of an algorithm and an environment stand."""

from importlib.resources import files
from pathlib import Path

import yaml

from sb3_vla_envs import MT50

_TASK_PREFIX = "MetaWorldVLA/"


def find_config(algo: str, env_id: str, conf_file: str | None = None) -> str | None:
    """
    :param algo: Name of the algorithm
    :param env_id: Environment
    :param conf_file: What the user gave: a file, a Python module (as in the zoo), or the name of one of our files
        (``sac.yml``, ``zoo_configs/sac.yml``), which need not lie in the working directory
    :return: The file; without ``conf_file`` ours, or ``None`` where only the zoo may have hyperparameters for it
    :raises FileNotFoundError: if there is no such file, here or among ours
    :raises ValueError: if there are no hyperparameters
    """
    entries = (Path(str(entry)) for entry in files("sb3_vla.zoo_configs").iterdir())
    ours = {path.name: path for path in entries if path.suffix == ".yml"}
    if conf_file is None:
        path = ours.get(f"{algo}.yml")
        if path is None:
            return None
        known = yaml.safe_load(path.read_text(encoding="utf-8"))
        is_task = env_id.removeprefix(_TASK_PREFIX) in MT50 and env_id.startswith(_TASK_PREFIX)
        if env_id in known or ("default" in known and is_task):
            return str(path)
        if "default" in known:
            # The zoo would take them
            raise ValueError(
                f"there are no hyperparameters of {algo} for {env_id}, only for {sorted(set(known) - {'default'})} and any "
                f"{_TASK_PREFIX}<task>: give a --conf-file with an entry for it"
            )
        return None
    if Path(conf_file).is_file() or not conf_file.endswith((".yml", ".yaml", ".py")):
        return conf_file
    if Path(conf_file).name not in ours:
        raise FileNotFoundError(f"there is no file {conf_file!r}, nor one of that name in sb3-vla, which has {sorted(ours)}")
    return str(ours[Path(conf_file).name])
