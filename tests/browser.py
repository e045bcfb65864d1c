"""Headless Chromium, and a JupyterLab on this machine whose notebooks it opens.

Requests to other machines are refused and count as errors of the page. Playwright waits for a script or for
a page to close without a limit; `limited` kills the browser after some time, so that the call raises.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from dulvos.study.rows import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
SIZE = {"width": 1280, "height": 1080}  # of the window, in CSS pixels
LIMIT = 300  # seconds for a test and its fixtures
SESSION = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext"
EVALUATE = f"""async ([code, seconds]) => {{
  const options = {{code: "", silent: true, user_expressions: {{value: code}}}};
  const reply = {SESSION}.session.kernel.requestExecute(options).done;
  const late = new Promise((_, refuse) => setTimeout(refuse, 1000 * seconds, Error("the kernel is busy")));
  return (await Promise.race([reply, late])).content.user_expressions.value; }}"""
RUN = """async () => {
  window.ended = false;
  await window.jupyterapp.commands.execute("notebook:clear-all-cell-outputs");  // no widget of an earlier run
  window.jupyterapp.commands.execute("notebook:run-all-cells").then(() => { window.ended = true; }); }"""


@functools.cache
def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome that starts."""
    for name in BROWSERS:
        path = shutil.which(name)
        # in Ubuntu such a package may be a stub that only asks for the snap
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def lacking() -> str | None:
    """A line that says what this machine lacks for these tests, or None."""
    absent = [name for name in ("playwright", "anywidget", "jupyterlab") if util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install {' '.join(absent)}"
    return None if find_browser() else f"no browser ({', '.join(BROWSERS)}); as root: apt install chromium"


# On a busy machine, a browser may lose an event. A failed test is tried again; pytest counts it as "rerun".
MARKS = [pytest.mark.skipif(lacking() is not None, reason=str(lacking())), pytest.mark.flaky(reruns=1)]


def of_cells(*cells: str) -> nbformat.NotebookNode:
    """A notebook of code cells."""
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=[*map(new_code_cell, cells)], metadata=kernel)


@contextlib.contextmanager
def limited(seconds: float, grace: float = 20) -> Iterator[None]:
    """Kill the browser after this time, and then playwright's own process if that does not help."""
    done = threading.Event()

    def watch() -> None:
        for wait, name in ((seconds, "chrom"), (grace, "node")):
            if done.wait(wait):
                return
            print(f"killed {name}*: the browser's tests took longer than {seconds} s", file=sys.stderr)
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith(name):
                        process.kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


class Chromium:
    """A browser that starts when it is first needed, and again after it was killed."""

    def __init__(self, playwright) -> None:
        self._playwright, self._context = playwright, None

    @property
    def context(self):
        """The context of all pages, so that scripts are loaded once."""
        if self._context is None or not self._context.browser.is_connected():
            browser = self._playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
            self._context = browser.new_context(viewport=SIZE)
            self._context.route(lambda address: urlsplit(address).hostname not in ("127.0.0.1", None),
                                lambda route: route.abort())
        return self._context


@contextlib.contextmanager
def start() -> Iterator[Chromium]:
    """A browser that ends with the block."""
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    try:
        yield Chromium(playwright)
    finally:
        with limited(60):
            playwright.stop()


@contextlib.contextmanager
def serve(folder: Path, chromium: Chromium) -> Iterator[Lab]:
    """Start JupyterLab in an empty folder, with its own settings, runtime files and results.

    Raises RuntimeError with the server's last lines if it does not answer.
    """
    config, log, token = folder / "config", folder / "server.log", secrets.token_hex()
    for new in (folder / "notebooks", config / "labconfig"):
        new.mkdir(parents=True)
    # this extension asks the network for news and covers the page with a notice
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "labconfig" / "page_config.json").write_text(json.dumps(news))
    own = ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR",
           "JUPYTER_RUNTIME_DIR")
    environment = {**os.environ, **dict.fromkeys(own, str(config)), "JUPYTER_TOKEN": token,
                   "DULVOS_RESULTS": str(folder / "results"),
                   "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               "--expose-app-in-browser", *(["--allow-root"] if os.getuid() == 0 else [])]
    with open(log, "w") as stream:
        server = subprocess.Popen(command, cwd=folder / "notebooks", env=environment, stdout=stream,
                                  stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(server, f"http://127.0.0.1:{port}/api", log)
        yield Lab(folder, f"http://127.0.0.1:{port}/doc/tree/{{}}?token={token}", chromium)
    finally:
        server.terminate()  # and its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _wait(server: subprocess.Popen, url: str, log: Path, seconds: float = 90) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            return direct.open(url, timeout=10).close()
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {seconds:.0f} s:\n{log.read_text()[-2000:]}")


@dataclass
class Lab:
    """A running JupyterLab: its folder (with notebooks/ and results/), a notebook's address, the browser."""

    folder: Path
    address: str
    chromium: Chromium

    @contextlib.contextmanager
    def open(self, source: Path | nbformat.NotebookNode, name: str,
             parameters: dict | None = None) -> Iterator[Notebook]:
        """Open a copy of a notebook in a new page, with parameters as papermill sets them."""
        path = self.folder / "notebooks" / f"{name}.ipynb"
        node = load_notebook_node(str(source)) if isinstance(source, Path) else source
        nbformat.write(parameterize_notebook(node, parameters) if parameters else node, path)
        page = self.chromium.context.new_page()
        notebook = Notebook(path, page)
        page.on("pageerror", lambda error: notebook.console.append(str(error)))
        page.on("console", lambda message: message.type == "error" and notebook.console.append(
            f"{message.text} ({message.location.get('url', '')})"))
        try:
            # "doc" is the single-document mode: no file browser beside the notebook
            page.goto(self.address.format(path.name), timeout=60_000)
            page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
            yield notebook
        finally:
            page.evaluate(f"{SESSION}?.shutdown()")  # so that the next notebook has the memory
            page.close()


@dataclass
class Notebook:
    """An open notebook: its file, playwright's page, and in `console` all errors of the page."""

    path: Path
    page: object
    console: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        """Run all cells within this time, and save."""
        connected = f"{SESSION}?.session?.kernel?.connectionStatus === 'connected'"
        self.page.wait_for_function(connected, timeout=60_000)
        self.page.evaluate(RUN)
        self.page.wait_for_function("window.ended", timeout=seconds * 1000)
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def red_cells(self) -> list[str]:
        """What failed in the saved notebook: "Error: message" of red cells, and cells that did not run."""
        found = []
        for cell in nbformat.read(self.path, as_version=4).cells:
            if cell.cell_type == "code":
                errors = [output for output in cell.outputs if output.output_type == "error"]
                found += [f"{error.ename}: {error.evalue}" for error in errors]
                if cell.source.strip() and cell.execution_count is None:
                    found.append(f"not run: {cell.source.splitlines()[0]}")
        return found

    def evaluate(self, expression: str, seconds: float = 60):
        """Value of an expression in the kernel, sent as JSON; arrays become nested lists.

        Raises RuntimeError if the expression raised, playwright's Error if the kernel was busy too long.
        """
        wrapped = f"__import__('json').dumps({expression}, default=lambda value: value.tolist())"
        value = self.page.evaluate(EVALUATE, [wrapped, seconds])
        if value["status"] != "ok":
            raise RuntimeError(f"{expression}: {value['ename']}: {value['evalue']}")
        return json.loads(ast.literal_eval(value["data"]["text/plain"]))

    def wait_for(self, expression: str, seconds: float = 30):
        """Wait until an expression is true in the kernel, but not longer; its last value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)) and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)  # unlike time.sleep, lets the page work
        return value
