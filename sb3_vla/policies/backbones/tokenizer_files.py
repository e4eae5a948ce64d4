"""Tokenizers as the text of their files, which a saved policy holds."""

import re
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def save_tokenizer(tokenizer: Any) -> dict[str, str]:
    """
    :param tokenizer: A tokenizer of ``transformers``
    :return: The text of each of its files, by name
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir() if path.is_file()}


def load_tokenizer(files: dict[str, str]) -> Any:
    """
    :param files: What :func:`save_tokenizer` returned
    :return: The tokenizer
    :raises ValueError: If the name of a file is a path: it may come from a stranger's model
    """
    if wrong := [name for name in files if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise ValueError(f"the files of a tokenizer have bare names, got {wrong}")
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
