"""``sb3-vla push``: upload a run's model."""

from argparse import Namespace
from tempfile import TemporaryDirectory

from ...hub.model_folder import check_new_folder, save_for_hub
from ...hub.upload import check_license, check_repo_id, create_repo, push_to_hub
from ..publish import read_run
from . import Work
from .given import trusts_pickle


def prepare(arguments: Namespace) -> Work:
    """
    :param arguments: Of the command
    :return: The work
    """
    check_repo_id(arguments.repo_id)
    metadata = {}
    if arguments.license is not None:
        check_license(arguments.license)
        metadata["license"] = arguments.license
    contents, missing = read_run(arguments.run_folder, arguments.with_demos, trusts_pickle(arguments), arguments.suite)
    if arguments.local is None:
        create_repo(arguments.repo_id, private=arguments.private)
    else:
        check_new_folder(arguments.local)

    def work() -> None:
        with TemporaryDirectory() as temporary_folder:
            folder = arguments.local or temporary_folder
            files = save_for_hub(folder=folder, repo_id=arguments.repo_id, metadata=metadata, **contents)
            if arguments.local is None:
                where = push_to_hub(folder, arguments.repo_id)
            else:
                where = f"{folder}; to upload it: hf upload {arguments.repo_id} {folder}"
        for line in missing:
            print(f"Left out, as the run has no {line}")
        print(f"Wrote {', '.join(files)} to {where}")

    return work
