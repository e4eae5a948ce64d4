"""
The zip file of a model, from which nothing that it says is run.

====================  ===========================================================================================
``model.json``        format and version; attributes of the model and the optimizer's state, without their tensors
``tensors``           all of these, in the safetensors format
``system_info.txt``   what the model was saved on
====================  ===========================================================================================

SB3's own zip files, whose ``data`` is pickled, run what they say when they are read.
"""

import io
import json
import pathlib
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from stable_baselines3.common.save_util import load_from_zip_file, open_path
from stable_baselines3.common.utils import get_system_info

from ..common.plain_values import PlainValues
from ..common.trusted_names import UntrustedError

_FORMAT, _VERSION = "sb3-vla model", 1
_CONTENT, _TENSORS = "model.json", "tensors"
# What reading a file raises that is not as write_model wrote it
_DAMAGE = (
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, ValueError, RecursionError, StopIteration),
    *(OverflowError, RuntimeError, SafetensorError),
)
# The one of SB3
_PICKLED = "data"


class ModelContent(NamedTuple):
    """
    What a model's file holds.

    :param data: Attributes of the model
    :param parameters: ``state_dict()`` of policy and optimizer, by name
    :param left_out: Attributes that no file can hold, as text
    """

    data: dict[str, Any]
    parameters: dict[str, Any]
    left_out: dict[str, str]


def write_model(path: str | pathlib.Path | io.BufferedIOBase | Any, content: ModelContent) -> None:
    """
    :param path: The file, open for writing
    :param content: What it shall hold; what no file can hold is left out with a warning
    """
    values, data, left_out = PlainValues(), {}, dict(content.left_out)
    for name, value in content.data.items():
        try:
            data[name] = values.encode(value)
        except TypeError as error:
            left_out[name] = f"{value!r:.200}"
            warnings.warn(f"The model is saved without its {name}, which no file can hold: {error}", stacklevel=3)
    parts = {"data": data, "parameters": values.encode(content.parameters), "left_out": left_out}
    text = json.dumps({"format": _FORMAT, "version": _VERSION, **parts})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_CONTENT, text)
        archive.writestr(_TENSORS, save_tensors(values.tensors))
        archive.writestr("system_info.txt", get_system_info(print_info=False)[1])


def read_model(
    path: str | pathlib.Path | io.BufferedIOBase,
    custom_objects: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> ModelContent:
    """
    :param path: Path to the file, whose ending ``.zip`` may be left out, or a file
    :param custom_objects: Attributes that replace those of the file, which are not read then
    :param trust_pickle: Whether to read a pickled file of SB3 too, which runs what it says
    :return: What it holds
    :raises UntrustedError: If it is pickled and not trusted, or names what is not trusted
    :raises ValueError: If it is truncated, damaged or no model
    """
    with open_model(path) as archive:
        names = archive.namelist()
        if _PICKLED not in names:
            return _content(path, archive.read(_CONTENT), archive.read(_TENSORS), custom_objects or {})
    if not trust_pickle:
        raise UntrustedError(
            f"{str(path)!r:.200} is a pickled file, which can run anything when it is read: only if you trust whoever made "
            "it, give trust_pickle=True (--trust pickle, in the zoo --trust), and save the model again"
        )
    warnings.warn(f"{str(path)!r:.200} is a pickled file, which may run anything: save the model again", stacklevel=3)
    data, parameters, _ = load_from_zip_file(path, device="cpu", custom_objects=dict(custom_objects or {}))
    if not isinstance(path, str | pathlib.Path):
        path.seek(0)
    assert data is not None
    return ModelContent(data, parameters, {})


def _content(path: Any, text: bytes, tensors: bytes, custom_objects: Mapping[str, Any]) -> ModelContent:
    try:
        content = json.loads(text)
        if content["format"] != _FORMAT or content["version"] != _VERSION:
            raise ValueError(f"it is of version {content['version']}, and this sb3-vla reads {_VERSION}")
        values = PlainValues(load_tensors(tensors))
        saved = {name: value for name, value in content["data"].items() if name not in custom_objects}
        data = {**values.decode(saved), **custom_objects}
        left_out = {name: str(text) for name, text in content["left_out"].items() if name not in custom_objects}
        return ModelContent(data, values.decode(content["parameters"]), left_out)
    except _DAMAGE as error:
        kind = UntrustedError if isinstance(error, UntrustedError) else ValueError
        raise kind(f"{str(path)!r:.200} can't be read: {error}") from error


def zip_path(path: str | pathlib.Path) -> pathlib.Path:
    """
    :param path: Where to save a model
    :return: The same with SB3's ending, if it has none
    """
    path = pathlib.Path(path)
    return path if path.suffix else path.with_name(f"{path.name}.zip")


@contextmanager
def open_model(path: str | pathlib.Path | io.BufferedIOBase) -> Iterator[zipfile.ZipFile]:
    """
    Open the zip file of a model, and see that it is whole.

    :param path: Path to the file, whose ending ``.zip`` may be left out, or a file, which is left at its beginning
    :return: Context manager that gives the archive
    :raises ValueError: If it is truncated, damaged or no zip file
    """
    file = open_path(path, "r", suffix="zip")
    try:
        with zipfile.ZipFile(file) as archive:
            if (member := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {member}")
            # Half a file of SB3 may end in a whole zip file, that of its weights
            if _PICKLED not in archive.namelist() and not {_CONTENT, _TENSORS} <= set(archive.namelist()):
                raise zipfile.BadZipFile(f"it lacks {_CONTENT} or {_TENSORS}")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{str(path)!r:.200} is truncated, damaged or no model's zip file ({error}): take another copy of it, such as "
            "model.zip of the run's newest checkpoint or best_model.zip, or save the model again"
        ) from error
    finally:
        if isinstance(path, str | pathlib.Path):
            file.close()
        else:
            file.seek(0)
