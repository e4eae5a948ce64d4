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
        if self._find(f"{pipeline}.json", required=False) is None:
            return None
        for each in self._read_json(f"{pipeline}.json")["steps"]:
            if each.get("registry_name") == step and "state_file" in each:
                file, config = each["state_file"], each["config"]
                statistics = self._read_tensors(file)
                # Such as "action.mean"
                known = {name.rpartition(".")[2]: statistics[name] for name in statistics if name.startswith(f"{feature}.")}
                return self._normalization(known, config["norm_map"].get(kind, "IDENTITY"), config["eps"], file)
        return None

    def _normalization(self, known: dict[str, th.Tensor], mode: str, eps: float, file: str) -> Normalization | None:
        """
        :param known: Statistics of a feature by name
        :param mode: LeRobot's name of how they are used
        :param eps: Keeps it from dividing by zero
        :param file: Where they are from
        :return: The same as shift and scale, ``None`` if there are none
        """
        if not known:
            return None
        whose = f"{file} of {self.name_or_path!r}"
        length = len(next(iter(known.values())))
        needed = ("mean", "std") if mode == "MEAN_STD" else _RANGES.get(mode, ())
        if (mode != "IDENTITY" and not needed) or any(name not in known for name in needed):
            raise ValueError(
                f"{whose} normalises by {mode!r} with the statistics {sorted(known)}; known are IDENTITY, MEAN_STD (mean, "
                f"std) and {', '.join(f'{name} ({low}, {high})' for name, (low, high) in _RANGES.items())}: pass "
                "backbone_kwargs=dict(use_statistics=False) to do without"
            )
        if mode == "IDENTITY":
            shift, scale = th.zeros(length), th.ones(length)
        elif mode == "MEAN_STD":
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
