"""The documentation site, built and opened in a browser."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_vla
import sb3_vla_envs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("furo", reason="the site is built by Sphinx: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # Without the pages of source code, half of its time; `make docs` has them
    extensions = ["-D", "extensions=myst_parser,sphinx.ext.autodoc"]
    options = ["-q", "-W", "--keep-going", "-n", "-b", "html", "-d", folder / "doctrees", *extensions]
    command = [sys.executable, "-m", "sphinx", *options, ROOT / "docs", folder / "html"]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def pages(site):
    return sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_modules" not in path.parts)


def test_every_page_is_well_laid_out_at_the_widths_of_phone_and_desktop(site, look_at):
    paths = pages(site)
    assert {"index.html", "start.html", "search.html", "api/algorithm.html", "howto/collapse.html"} <= set(paths)
    assert not look_at(site, paths)


def test_browser_sees_what_is_wrong(tmp_path, look_at):
    (tmp_path / "wide.html").write_text('<body style="margin: 0"><div id="a" style="width: 2000px">x</div>')
    (tmp_path / "gone.html").write_text('<img src="gone.png"><script>nonsense()</script>')
    (tmp_path / "good.html").write_text('<div style="overflow-x: auto"><div style="width: 2000px">x</div></div>')
    troubles = look_at(tmp_path, ["wide.html", "gone.html", "good.html"])
    assert any("wide.html: wider than 390" in trouble for trouble in troubles)
    assert any("gone.html: picture that does not show" in trouble for trouble in troubles)
    assert any("nonsense is not defined" in trouble for trouble in troubles)
    assert "/gone.png: 404" in troubles and not [trouble for trouble in troubles if "good.html" in trouble]


def test_site_needs_no_network(site):
    for path in pages(site):
        text = (site / path).read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text), path


def test_search_works_without_a_server(site):
    """The index is a script that the page includes, which a browser loads from a folder, too."""
    text = (site / "search.html").read_text(encoding="utf-8")
    assert 'src="searchindex.js"' in text
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(") and "howto/collapse" in index and "ChunkedActionWrapper" in index


@pytest.mark.parametrize("package", [sb3_vla, sb3_vla_envs])
def test_reference_has_every_exported_name(package, site):
    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    aliases = {"evaluate_on_metaworld"}
    missing = [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in text and name not in aliases]
    assert not missing


def test_no_link_leads_nowhere(site):
    ids = {path: set(re.findall(r'\bid="([^"]+)"', (site / path).read_text(encoding="utf-8"))) for path in pages(site)}
    for path in pages(site):
        for link in re.findall(r'<a [^>]*href="([^"]+)"', (site / path).read_text(encoding="utf-8")):
            if re.match(r"https?:|mailto:", link):
                continue
            target, _, anchor = link.partition("#")
            file = ((site / path).parent / target).resolve() if target else (site / path).resolve()
            assert file.exists(), (path, link)
            name = str(file.relative_to(site.resolve()))
            assert not anchor or name not in ids or anchor in ids[name], (path, link)
