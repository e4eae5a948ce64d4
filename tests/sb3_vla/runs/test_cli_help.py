"""What the command line says of itself."""

import argparse
import subprocess
import sys

import pytest

from sb3_vla.runs.cli import main
from sb3_vla.runs.parser import build_parser

from .small_settings import ALL


def _parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


@pytest.mark.parametrize("command", [*ALL, "config", "doctor", "memory", "push", "report"])
def test_help_describes_every_option(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "metaworld" not in text.lower()
    for action in _parsers()[command]._actions:
        for name in action.option_strings or [action.metavar]:
            assert name in text
        assert action.help and " ".join(action.help.split()) in text, action


def test_help_lists_every_command(capsys):
    assert sorted(_parsers()) == sorted([*ALL, "config", "doctor", "memory", "push", "report"])
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command}" in text for command in [*ALL, "config", "doctor", "memory", "push", "report"])


def test_unknown_option_shows_the_usage(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--epochs", "3"])
    assert end.value.code == 2 and "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["train", "--help"], ["train", "--epochs", "3"]])
def test_help_and_usage_do_not_wait_for_torch(argv):
    program = (
        "import atexit, sys; from sb3_vla.runs.cli import main\n"
        "atexit.register(lambda: print([name for name in ('torch', 'numpy', 'gymnasium') if name in sys.modules]))\n"
        "main(sys.argv[1:])"
    )
    process = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "[]"
