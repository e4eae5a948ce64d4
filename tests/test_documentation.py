"""What README and docs say exists: files, names, commands and their options."""

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from sb3_vla.runs.config import load_config
from sb3_vla.runs.parser import build_parser
from sb3_vla.zoo import launcher

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
OURS = ("sb3_vla", "sb3_vla_envs")


def blocks(language):
    """Code blocks of a language, named after the page that they are on."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    found = [(page, block) for page in PAGES for block in pattern.findall(page.read_text(encoding="utf-8"))]
    return [pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}") for number, (page, block) in enumerate(found)]


def anchors(page):
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    alone = [page for page in pages if page.parent.name != "api"]
    assert [str(page) for page in alone if not re.search(rf"^(.*<)?{page.with_suffix('')}>?$", index, re.M)] == ["index.md"]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_uses_names_that_exist(block):
    tree = ast.parse(block)
    compile(block, "<documentation>", "exec")
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
        elif isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] in OURS]
            modules.update({name: importlib.import_module(name) for name in ours})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), ast.unparse(node)


class Parsed(Exception):
    """A command of the zoo has read its arguments."""


@pytest.fixture
def zoo_parses_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_args(parser, *args, **kwargs):
        arguments = parse(parser, *args, **kwargs)
        if parser.prog.startswith("sb3_vla.zoo "):
            raise Parsed
        return arguments

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


# Commands of clusters, which are not here
CLUSTERS = ("export", "ray", "sleep", "srun")


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_are_understood(block, zoo_parses_only):
    for line in block.replace("\\\n", " ").splitlines():
        if re.match(r"\w+=\$\(", line):  # the output of a command of the system's
            continue
        words = shlex.split(line, comments=True)
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if not words:
            continue
        if "sb3_vla" in words:  # python -m sb3_vla, whatever launches it
            words = ["sb3-vla", *words[words.index("sb3_vla") + 1 :]]
        if words[0] == "sb3-vla":
            build_parser().parse_args(words[1:])
        elif words[0] == "make":
            targets = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            rules = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
            assert targets <= {target for rule in rules for target in rule.split()}
        elif words[:3] == ["python", "-m", "sb3_vla.zoo"]:
            with pytest.raises(Parsed):
                launcher.main(words[3:])
        elif words[0] in ("python", ".venv/bin/python"):
            assert words[1] == "-m" or (ROOT / words[1]).is_file()
        else:
            assert words[0] in ("pip", "git", "docker", "pre-commit", *CLUSTERS), line


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if "apiVersion" not in block.values[0]])
def test_configurations_can_be_loaded(block, tmp_path):
    path = tmp_path / "config.yml"
    path.write_text(block, encoding="utf-8")
    assert load_config(path) != load_config()


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130
