"""What is installed: bounds that are those that are tested, extras without a stray, one version."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import sb3_vla
from sb3_vla.runs.cli import main

ROOT = Path(__file__).parents[1]
TOOLS = {"dev", "docs"}  # extras of who works on sb3-vla, not of who uses it


def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements():
    """What users of sb3-vla install, by name."""
    of_extras = [text for extra, text in setup()["options.extras_require"].items() if extra not in TOOLS]
    lines = "\n".join([setup()["options"]["install_requires"], *of_extras]).split("\n")
    found = [Requirement(line) for line in lines if line]
    return {canonical(requirement.name): requirement for requirement in found if requirement.name != "sb3-vla"}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(name):
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonical(pin.name): next(iter(pin.specifier)).version for pin in pins}


def test_every_requirement_has_a_lower_bound_and_it_is_the_one_that_is_tested():
    lowest = pinned("lowest")
    for name, requirement in requirements().items():
        if requirement.extras:  # bound where it is named without
            continue
        (bound,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
        assert Version(lowest[name]) == Version(bound), name


def test_newest_versions_are_allowed_and_not_older_than_the_lowest():
    lowest, newest = pinned("lowest"), pinned("newest")
    assert lowest.keys() == newest.keys()
    for name, requirement in requirements().items():
        assert requirement.specifier.contains(newest[name]), name
        assert Version(newest[name]) >= Version(lowest[name]), name


def test_extras_are_those_the_readme_names_and_all_is_all_of_them():
    extras = set(setup()["options.extras_require"]) - TOOLS
    (everything,) = (Requirement(line) for line in setup()["options.extras_require"]["all"].split())
    inner = {
        extra
        for name in everything.extras
        for line in setup()["options.extras_require"][name].split()
        if line.startswith("sb3-vla[")
        for extra in Requirement(line).extras
    }
    assert everything.extras | inner | {"all"} == extras
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = {extra for group in re.findall(r'pip install "\.\[(.*)\]"', readme) for extra in group.split(",")}
    assert named | inner | {"zoo"} == extras


def test_a_user_may_have_their_own_torch():
    assert requirements()["torch"].specifier.contains("2.8.0") and requirements()["torch"].specifier.contains("2.13.0+cpu")


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == sb3_vla.__version__ and changelog.split("## ")[1].startswith(sb3_vla.__version__)


@pytest.mark.parametrize("script", ["scripts/package/check.sh", "scripts/install_system.sh"])
def test_shell_scripts_are_well_formed(script):
    subprocess.run(["sh", "-n", ROOT / script], check=True)


def test_tiny_quickstart_of_the_package_check_is_a_configuration(capsys):
    assert main(["config", "--config", str(ROOT / "scripts/package/tiny.yml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["total_timesteps"] == 32
