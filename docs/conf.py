"""The documentation site, of these pages, the pages at the root of the repository and the docstrings: ``make docs``."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import sb3_vla  # noqa: E402

project = "sb3-vla"
author = "The sb3-vla authors"
copyright = "2026, the sb3-vla authors. MIT licence"
version = release = sb3_vla.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"sb3-vla {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [
    # Without a network there is nothing to link them to
    (
        "py:.*",
        r"(abc|collections|gymnasium|io|mujoco|np|numpy|os|PIL|pathlib|stable_baselines3|th|torch|transformers|typing)\..*",
    ),
    ("py:.*", r"BaseCallback|BatchNorm|Dropout|GoalEnv|SawyerXYZEnv|VecEnv|load"),
    # The pages are of what may be relied on, whose docstrings name what is inside
    ("py:.*", r"sb3_vla(_envs)?\.\w+\..*|_\w+|rewards|Self\w+|\w+\.(match|prefix)|fine_tune"),
    ("py:class", r"PolicyAdapter|ConvStem|FetchSettings|\w+Distribution|GymTaskEnv|MultiTaskEnv"),
]

#: Pages of the site whose text is elsewhere in the repository, where people look for it
ELSEWHERE = {
    "start": "README.md",
    "examples": "examples/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}


def take_text_from_elsewhere(app: Sphinx, page: str, content: list[str]) -> None:
    """Put in the pages that are elsewhere, and have links lead to where their targets are on the site."""
    path = ROOT / ELSEWHERE.get(page, f"docs/{page}.md")
    text = path.read_text(encoding="utf-8") if page in ELSEWHERE else content[0]
    here = (ROOT / "docs" / page).parent

    def link(match: re.Match[str]) -> str:
        opening, label, target, anchor = match.groups()
        file = (path.parent / target).resolve()
        name = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else ""
        page_there = next((page for page, other in ELSEWHERE.items() if other == name), None)
        if file.is_dir():  # the site has none
            return label if label.strip("`") == name else f"{label} (`{name}`)"
        file = ROOT / "docs" / f"{page_there}.md" if page_there else file
        return f"{opening}[{label}]({os.path.relpath(file, here)}{anchor or ''})"

    content[0] = re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s#]+)(#[^)\s]*)?\)", link, text)


def setup(app: Sphinx) -> None:
    app.connect("source-read", take_text_from_elsewhere)
