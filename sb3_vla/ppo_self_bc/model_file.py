"""The zip file of a model."""

import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from stable_baselines3.common.save_util import open_path


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
            if "data" not in archive.namelist():  # half a model may end in a whole zip file, that of its weights
                raise zipfile.BadZipFile("nothing in it is called 'data'")
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
