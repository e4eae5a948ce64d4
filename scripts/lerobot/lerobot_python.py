"""The Python that has LeRobot, as the checks use it."""

import json
import subprocess
import sys
from pathlib import Path


def on_lerobot_side(python: str, script: Path, *arguments: str | Path) -> None:
    """
    Run a script, and end with its error if it fails.

    :param python: The Python that has LeRobot
    :param script: What it runs
    :param arguments: Of the script
    """
    done = subprocess.run([python, script, *arguments], capture_output=True, text=True)
    if done.returncode:  # else it only tells which decoders are not there
        sys.exit(done.stderr)


def versions(python: str, *packages: str) -> dict[str, str]:
    """
    :param python: A Python
    :param packages: What is installed there
    :return: Their versions by name
    """
    code = "import sys, json; from importlib.metadata import version; print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
