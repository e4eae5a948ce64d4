"""Looks at web pages in headless Chromium, at the widths of a phone and of a desktop."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 1280)
_LOOK = """<!doctype html><title>look</title><body><script>
const overflowing = (page, width) => [...page.body.querySelectorAll('*')].filter(element => {
  if (element.getBoundingClientRect().right <= width + 1) return false
  for (let box = element; box; box = box.parentElement)  // what is cut off or scrolls by itself is no matter
    if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(box).overflowX) && box !== page.body) return false
  return element.getClientRects().length > 0
}).map(element => `<${element.tagName} class="${element.className}"> ${element.textContent.trim().slice(0, 40)}`)
const look = async (path, width) => {
  const frame = document.createElement('iframe')
  frame.style = `width: ${width}px; height: 900px; border: 0`
  await new Promise(done => { frame.onload = done; frame.src = path; document.body.append(frame) })
  const page = frame.contentDocument, troubles = []
  for (const image of page.images) {
    image.loading = 'eager'
    await image.decode().catch(() => troubles.push(`picture that does not show: ${image.src.slice(0, 80)}`))
  }
  if (page.documentElement.scrollWidth > width)
    troubles.push(`wider than ${width}: ${overflowing(page, width).slice(0, 3).join(', ')}`)
  frame.remove()
  return troubles.map(trouble => `${path}: ${trouble}`)
}
(async () => {
  const {paths, widths} = await (await fetch('/__look__.json')).json(), troubles = []
  for (const path of paths) for (const width of widths) troubles.push(...await look(path, width))
  await fetch('/__look__', {method: 'POST', body: JSON.stringify(troubles)})
})()
</script>"""


class _Server(ThreadingHTTPServer):
    """Serves a folder, and the page that looks at its pages."""

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.paths = paths
        self.missing: list[str] = []
        self.troubles: list[str] = []
        self.has_looked = threading.Event()


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        own = {
            "/__look__": _LOOK,
            "/__look__.json": json.dumps({"paths": self.server.paths, "widths": WIDTHS}),
            "/favicon.ico": "",
        }
        if self.path not in own:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if self.path.endswith("json") else "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(own[self.path].encode())

    def do_POST(self) -> None:
        self.server.troubles = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.has_looked.set()

    def send_error(self, code: int, *args: Any) -> None:
        self.server.missing.append(f"{self.path}: {code}")
        super().send_error(code, *args)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def _serving(folder: Path, paths: Sequence[str]) -> Iterator[_Server]:
    with _Server(folder, paths) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def find_troubles(folder: Path, paths: Sequence[str], profile: Path, timeout: float = 300) -> list[str]:
    """
    :param folder: What is served
    :param paths: Its pages to look at, relative to it
    :param profile: Where the browser keeps its own files
    :param timeout: Seconds that it may take
    :return: Pages that scroll sideways, pictures that do not show, files that are missing, what went to the console
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    logging = ["--enable-logging=stderr", "--log-level=0"]
    log = profile.with_suffix(".log")
    with _serving(folder, [f"/{path}" for path in paths]) as server, log.open("w") as file:
        command = [chromium(), *options, *logging, f"http://127.0.0.1:{server.server_port}/__look__"]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        try:
            assert server.has_looked.wait(timeout), f"the browser gave up: {log.read_text()[-2000:]}"
        finally:
            browser.terminate()
            browser.wait(30)
    said = [line.split(":CONSOLE", 1)[1] for line in log.read_text(errors="replace").splitlines() if ":CONSOLE" in line]
    return [*server.troubles, *server.missing, *said]


def chromium() -> str:
    """:return: The browser, without which the test is skipped, saying how to install it"""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium: `make browser` installs it (Debian's package chromium)")
    return found


@pytest.fixture(scope="session")
def look_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Sequence[str]], list[str]]:
    """Opens pages of a folder in a browser at two widths, and says what is wrong with them."""

    def look_at(folder: Path, paths: Sequence[str]) -> list[str]:
        return find_troubles(folder, paths, tmp_path_factory.mktemp("browser") / "profile")

    return look_at
