"""Command lines with one thing in them that makes no sense, of all options and settings: one line says what it is."""

import argparse
import io
import math
import random
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from run_settings import SUITE, settings
from tally import Tally

from sb3_vla.runs.cli import main
from sb3_vla.runs.config import load_config
from sb3_vla.runs.parser import build_parser

_SECONDS = 120  # for one command: what is accepted is done, on the smallest of tasks
_MAY_BE_ZERO = {"--seed", "--goal"}
_USED = {
    "train": (None, "simulation", "wrapping", "policy", "train"),
    "quickstart": (None, "simulation", "wrapping", "policy", "train", "demos", "sft", "eval"),
}
_WRITTEN = {"--out", "--local", "--to-lerobot"}
_NOT_YAML = [
    "tasks: [",
    "{",
    "a: b: c",
    "- 1\n- 2\n",
    "5",
    "nonsense",
    "\0",
    "train:\n\tgamma: 1",
    "!!python/object:os.system {}",
]


def give_nonsense(n: int, seed: int) -> Tally:
    """
    :param n: Command lines
    :param seed: Of what makes no sense in them
    :return: What came of them
    """
    tally, rng = Tally("command lines and configurations that make no sense"), random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        maker = _CommandLines(Path(temporary), rng)
        for number in range(n):
            argv, wrong = maker.make()
            fault = _what_is_wrong(argv, wrong)
            if fault is None:
                tally.survived("one line, which names it")
            else:
                tally.lose(f"command line {number} of seed {seed}, {argv} ({wrong}): {fault}")
    return tally


class _CommandLines:
    """
    Makes command lines.

    :param folder: Gets the files that they name
    :param rng: Chooses
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng, self.n_made = folder, rng, 0
        made = settings(16)
        made["train"]["policy_kwargs"] = {}  # which would go over those of the policy
        self.settings = {**made, "demos": {"n_per_task": 2}, "sft": {"n_epochs": 1}, "eval": {"n_goals": 1}}
        self.config, self.demos, self.run = folder / "config.yml", folder / "demos.npz", folder / "run"
        self.config.write_text(yaml.safe_dump(self.settings))
        (folder / "garbage").write_bytes(bytes(range(256)) * 4)
        (folder / "empty").write_bytes(b"")
        for argv in (["demos", "--out", self.demos], ["train", "--out", self.run]):
            if main([*map(str, argv), "--config", str(self.config), "--suite", SUITE]) != 0:
                raise RuntimeError(f"{argv} does not work at all")
        commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
        self.options = {
            name: [option for option in parser._actions if option.nargs != 0 and option.dest != "help"]
            for name, parser in commands.choices.items()
            if name != "doctor"  # has none
        }

    def make(self) -> tuple[list[str], list[str]]:
        """:return: Arguments, and of what an error has to say one: option, setting or value"""
        self.n_made += 1
        command = self.rng.choice(list(self.options))
        if self.rng.random() < 0.4:
            command = self.rng.choice(["config", "demos", "sft", "train", "eval", "quickstart", "memory"])
            argv = self._sensible(command)
            argv["--config"], wrong = self._nonsense_config(command)
            return self._joined(command, argv), wrong
        option = self.rng.choice(self.options[command])
        argv, name = self._sensible(command), (option.option_strings or [option.dest])[-1]
        if name == "--resume":
            argv.pop("--out", None)
        argv[name] = self._nonsense(option, name)
        value = argv[name]
        words = [word for word in name.split("-") if len(word) > 3]
        return self._joined(command, argv), [*words, str(option.metavar), repr(value), value, str(Path(value).parent)]

    def _sensible(self, command: str) -> dict[str, str]:
        """:return: Options and their values, with which the command would work"""
        new, model = str(self.folder / f"new{self.n_made}"), str(self.run / "model.zip")
        argv = {
            "config": {},
            "demos": {"--out": new + ".npz"},
            "sft": {"--demos": str(self.demos), "--out": new},
            "train": {"--out": new},
            "eval": {"model": model, "--out": new + ".json"},
            "probe": {"model": model, "--episodes": "5"},
            "play": {"model": model, "--out": new + ".npz", "--n-per-task": "1"},
            "record": {"model": model, "--out": new},
            "quickstart": {"--out": new},
            "memory": {},
            "report": {"runs": str(self.run), "--out": new + ".html"},
            "push": {"run_folder": str(self.run), "--repo-id": "user/name", "--local": new},
        }[command]
        if command == "report":
            return argv
        return {**argv, "--suite": SUITE} | ({} if command == "push" else {"--config": str(self.config)})

    @staticmethod
    def _joined(command: str, argv: dict[str, str]) -> list[str]:
        named = [f"{name}={value}" for name, value in argv.items() if name.startswith("--")]
        return [command, *named, *(value for name, value in argv.items() if not name.startswith("--"))]

    def _nonsense(self, option: argparse.Action, name: str) -> str:
        if option.type is int:
            number = self.rng.randrange(1, 10**6)
            return self.rng.choice(
                [f"-{number}", f"{number}.5", "nan", "inf", "", f"{number}x", *["0"] * (name not in _MAY_BE_ZERO)]
            )
        if option.type is not None:  # a path
            return self.rng.choice(["", "a\0b", *(self._unwritable(option) if name in _WRITTEN else self._unreadable(option))])
        if name == "--license":  # a word is one
            return self.rng.choice(["no/such", "\u2603", " "])
        return self.rng.choice(["nonsense", "no/such:thing", "no.such.module:Thing", "-1", "%s", " ", "\u2603", "a" * 5000])

    def _unwritable(self, option: argparse.Action) -> list[str]:
        below_a_file = str(self.demos / "below")
        if option.metavar == "FOLDER":
            return [below_a_file, "/proc/nowhere/new", *[str(self.run)] * ("new or empty" in str(option.help))]
        return [below_a_file, "/proc/nowhere/new", str(self.folder)]

    def _unreadable(self, option: argparse.Action) -> list[str]:
        names = ["missing", "garbage", *["empty"] * (option.dest != "config")]  # without settings, which is no mistake
        return [*(str(self.folder / name) for name in names), str(self.demos / "below"), str(self.folder)]

    def _nonsense_config(self, command: str) -> tuple[str, list[str]]:
        path = self.folder / f"nonsense{self.n_made}.yml"
        if self.rng.random() < 0.1:
            path.write_text(self.rng.choice(_NOT_YAML))
            return str(path), [path.name]
        everything = load_config(str(self.config)).to_dict()
        section, name = self.rng.choice(
            [(None, name) for name in everything]
            + [(section, name) for section, content in everything.items() if isinstance(content, dict) for name in content]
        )
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in self.settings.items()}
        place = content if section is None else content.setdefault(section, {})
        if self.rng.random() < 0.1:
            name = f"{name}_"
        before = (everything if section is None else everything[section]).get(name)
        values = _of_wrong_types(before)
        if section in _USED.get(command, ()):  # who does not use it can't know that there is no such thing
            values += _of_no_sense(before)
        value = self.rng.choice(values)
        if name == "ent_coef" and isinstance(value, int | float):
            value = math.nan  # one below 0 is allowed
        place[name] = value
        path.write_text(yaml.safe_dump(content))
        return str(path), [name, *map(repr, value if isinstance(value, list) else [value])]


def _of_wrong_types(before: Any) -> list[Any]:
    wrong: dict[type, list[Any]] = {
        bool: ["perhaps", 7, [], {"a": 1}, None],
        int: ["many", 0.5, [], {"a": 1}, [1, 2]],
        float: [[], {"a": 1}, [1, 2]],
        str: [7, -0.5, [], {"a": 1}],
        dict: ["nonsense", 7, ["a"], {5: 5}],
        list: [7, {"a": 1}],
    }
    return [math.nan, *wrong.get(type(before), [{"surely": ["not"], 5: 5}])]


def _of_no_sense(before: Any) -> list[Any]:
    wrong: dict[type, list[Any]] = {
        int: [-7, -123456],
        float: ["much", -7, -0.5, -math.inf, math.inf],
        str: ["nonsense", "", "no.such.module:Thing"],
        dict: [{"nonsense": 1}],
        list: [["nonsense"], [None], [-7]],
    }
    return wrong.get(type(before), [])


def _what_is_wrong(argv: list[str], named: list[str]) -> str | None:
    said = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(said), _limited():
            status = main(argv)
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]
    except BaseException as error:
        return f"a traceback, {error!r}"
    if status == 0:
        return "was accepted"
    last = (said.getvalue().strip().splitlines() or [""])[-1]
    is_named = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", last) for word in named if word.strip("."))
    return None if is_named else f"only said {last!r}"


@contextmanager
def _limited() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
