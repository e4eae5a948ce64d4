"""The upload of a model's folder to the Hugging Face Hub."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str = "Upload a PPOSelfBC model with sb3-vla",
) -> str:
    """
    Upload a folder to the Hugging Face Hub, as one commit, to a repository that is made if there is none. Files that are
    there and not in the folder stay.

    :param folder: What :func:`~sb3_vla.save_for_hub` wrote
    :param repo_id: The repository, ``"user/name"``
    :param token: Access token, by default that of ``hf auth login`` or the environment variable ``HF_TOKEN``
    :param private: Whether a new repository is private, by default as the owner's settings say
    :param commit_message: Message of the commit
    :return: Where it is now
    :raises FileNotFoundError: If there is no such folder, or no model card in it
    :raises ValueError: If ``repo_id`` is no repository's id
    :raises PermissionError: If there is no token, or the Hub does not accept it
    """
    if not (Path(folder) / "README.md").is_file():
        raise FileNotFoundError(f"there is no model card '{folder}/README.md': give the folder that save_for_hub wrote")
    url = create_repo(repo_id, token, private)
    HfApi(token=token).upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return url


def check_license(name: str) -> None:
    """
    :param name: A licence, as the Hub calls it
    :raises TypeError: If it is no text
    :raises ValueError: If it can't be one
    """
    if not isinstance(name, str):
        raise TypeError(f"license must be a text, one of the Hub's names such as 'mit', got {name!r:.200}")
    if not re.fullmatch(r"[a-z0-9]+([.+-]+[a-z0-9]+)*\+*", name):
        raise ValueError(
            f"license must look like one of the Hub's names, such as 'mit' or 'apache-2.0', got {name!r}: see "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )


def create_repo(repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """
    Make sure that there is a repository to upload to. The arguments are those of :func:`push_to_hub`.

    :return: Its address
    """
    check_repo_id(repo_id)
    if token is None and get_token() is None:
        raise PermissionError(
            "there is no access token for the Hugging Face Hub: make one with write access at "
            "https://huggingface.co/settings/tokens, and run `hf auth login` or set HF_TOKEN"
        )
    try:
        return str(HfApi(token=token).create_repo(repo_id=repo_id, private=private, exist_ok=True))
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise
        raise PermissionError(
            f"the Hugging Face Hub does not let you write to {repo_id!r}: give a repository of your own or of your "
            f"organization, and a token with write access ({error})"
        ) from error


def check_repo_id(repo_id: str) -> None:
    """
    :param repo_id: Id of a repository
    :raises ValueError: If it is none, or without its owner
    """
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"the repository id {repo_id!r} has no owner: give 'user/{repo_id}'")
