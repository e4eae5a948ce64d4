"""Policies as LeRobot saves them: a configuration, one file of weights, and the statistics by which it normalises."""

import json
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from .base import Normalization

# Statistics that become -1 and 1, by normalisation mode
_RANGES = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}


class LeRobotCheckpoint:
    """
    A policy's files. Only what is safe is read: JSON and safetensors.

    :param name_or_path: Name on the Hugging Face Hub or local folder
    """

    def __init__(self, name_or_path: str) -> None:
        self.name_or_path = name_or_path

    def config(self) -> dict[str, Any]:
        """
        :return: What its configuration says
        :raises ValueError: If there is none
        """
        return self._read_json("config.json")

    def weights(self) -> dict[str, th.Tensor]:
        """
        :return: Its weights by name, in float32
        :raises ValueError: If their file is missing or broken
        """
        return {name: tensor.float() for name, tensor in self._read_tensors("model.safetensors").items()}

    def normalization(self, pipeline: str, step: str, feature: str, kind: str) -> Normalization | None:
        """
        :param pipeline: ``"policy_preprocessor"`` or ``"policy_postprocessor"``
        :param step: Its step that normalises: ``"normalizer_processor"`` or ``"unnormalizer_processor"``
        :param feature: Such as ``"action"``
        :param kind: Such as ``"ACTION"``
        :return: How it is normalised, ``None`` if the checkpoint has no statistics of it
        :raises ValueError: If a file is missing or broken, or normalises in a way that is not known
        """
        found = self._step(pipeline, step)
        if found is None or feature not in found["config"]["features"]:
            return None
        config, file = found["config"], found.get("state_file", "")
        mode = config["norm_map"].get(kind, "IDENTITY")
        if mode == "IDENTITY":
            (length,) = config["features"][feature]["shape"]
            return Normalization([0.0] * length, [1.0] * length, f"{pipeline}.json of {self.name_or_path!r}")
        statistics = self._read_tensors(file) if file else {}
        # Such as "action.mean"
        known = {name.rpartition(".")[2]: tensor for name, tensor in statistics.items() if name.startswith(f"{feature}.")}
        return self._normalization(known, mode, config["eps"], file) if known else None

    def _step(self, pipeline: str, name: str) -> dict[str, Any] | None:
        """
        :param pipeline: Whose file need not be there
        :param name: Of one of its steps
        :return: What the file says of it
        """
        if self._find(f"{pipeline}.json", required=False) is None:
            return None
        steps = self._read_json(f"{pipeline}.json")["steps"]
        return next((step for step in steps if step.get("registry_name") == name), None)

    def _normalization(self, known: dict[str, th.Tensor], mode: str, eps: float, file: str) -> Normalization:
        """
        :param known: Statistics of a feature by name
        :param mode: LeRobot's name of how they are used
        :param eps: Keeps it from dividing by zero
        :param file: Where they are from
        :return: The same as shift and scale
        """
        whose = f"{file} of {self.name_or_path!r}"
        needed = ("mean", "std") if mode == "MEAN_STD" else _RANGES.get(mode, ())
        if not needed or any(name not in known for name in needed):
            raise ValueError(
                f"{whose} normalises by {mode!r} with the statistics {sorted(known)}; known are IDENTITY, MEAN_STD (mean, "
                f"std) and {', '.join(f'{name} ({low}, {high})' for name, (low, high) in _RANGES.items())}: pass "
                "backbone_kwargs=dict(use_statistics=False) to do without"
            )
        if mode == "MEAN_STD":
            shift, scale = known["mean"], known["std"] + eps
        else:
            low, high = (known[name] for name in _RANGES[mode])
            width = high - low
            scale = th.where(width == 0, eps, width) / 2
            shift = low + scale
        return Normalization(shift.tolist(), scale.tolist(), whose)

    def _read_json(self, file: str) -> dict[str, Any]:
        path = self._find(file)
        try:
            with open(path, encoding="utf-8") as stream:
                content: dict[str, Any] = json.load(stream)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): fetch the checkpoint {self.name_or_path!r} again") from error
        return content

    def _read_tensors(self, file: str) -> dict[str, th.Tensor]:
        path = self._find(file)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is broken ({error}): fetch the checkpoint {self.name_or_path!r} again") from error

    def _find(self, file: str, required: bool = True) -> Any:
        try:
            path = cached_file(self.name_or_path, file, _raise_exceptions_for_missing_entries=required)
        except OSError as error:
            raise ValueError(
                f"the checkpoint {self.name_or_path!r} has no {file}: give the folder of a whole one, or a name on the "
                f"Hugging Face Hub (needs the network, or the checkpoint in the local cache) ({error})"
            ) from error
        return path
