"""Notebooks in a real JupyterLab: a server on loopback, headless Chromium, and a second client of the kernel.

What a page requests from beyond loopback is refused, and then stands among its errors.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import os
import queue
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path
from urllib.parse import quote, urlsplit

import nbformat
from jupyter_client import BlockingKernelClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from dulvos.study.rows import ROOT

__all__ = ["Lab", "Notebook", "find_browser", "lacking", "serve"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
SIZE = {"width": 1280, "height": 1080}  # of the window, in CSS pixels
SESSION = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext"


@functools.cache
def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome that starts."""
    for name in BROWSERS:
        path = shutil.which(name)
        # Ubuntu's packages of this name may be stubs that only ask for the snap
        if path and subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def lacking() -> str | None:
    """What this machine lacks for these tests, in words, or None."""
    absent = [name for name in ("playwright", "anywidget", "jupyterlab") if util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install {' '.join(absent)}"
    return None if find_browser() else f"no browser ({', '.join(BROWSERS)}); as root: apt install chromium"


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Lab]:
    """JupyterLab and a browser in an empty folder, with settings, runtime files and results of their own.

    Raises RuntimeError with the server's last lines if it does not answer.
    """
    from playwright.sync_api import sync_playwright

    (folder / "notebooks").mkdir(parents=True)
    config, runtime, log = folder / "config", folder / "runtime", folder / "server.log"
    (config / "labconfig").mkdir(parents=True)
    # asks the network for news and puts a notice over the page
    news = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "labconfig" / "page_config.json").write_text(json.dumps(news))
    token = secrets.token_hex()
    environment = {**os.environ, "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_DIR": str(config),
                   "JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTERLAB_SETTINGS_DIR": str(config),
                   "JUPYTERLAB_WORKSPACES_DIR": str(config / "workspaces"),
                   "IPYTHONDIR": str(config), "DULVOS_RESULTS": str(folder / "results"),
                   "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1",
               "--expose-app-in-browser"]
    if os.getuid() == 0:
        command.append("--allow-root")
    with open(log, "w") as stream:
        server = subprocess.Popen(command, cwd=folder / "notebooks", env=environment, stdout=stream,
                                  stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        url = _wait_for_server(server, runtime, token, log)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
            context = browser.new_context(viewport=SIZE)  # of all pages: they load the scripts once
            context.route(lambda address: urlsplit(address).hostname not in ("127.0.0.1", None),
                          lambda route: route.abort())
            yield Lab(folder, url, token, context)
            browser.close()
    finally:
        server.terminate()  # which ends its kernels, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def _wait_for_server(server: subprocess.Popen, runtime: Path, token: str, log: Path,
                     seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            # the server takes the first free port, and this file says which
            url = json.loads((runtime / f"jpserver-{server.pid}.json").read_text())["url"]
            _get(f"{url}api", token)
            return url
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not answer within {seconds:.0f} s:\n{log.read_text()[-2000:]}")


def _get(url: str, token: str):
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # without a proxy
    with direct.open(request, timeout=10) as answer:
        return json.load(answer)


@dataclass
class Lab:
    """A running JupyterLab: its folder (notebooks/, results/), address, token, and playwright's context."""

    folder: Path
    url: str
    token: str
    context: object

    @contextlib.contextmanager
    def open(self, source: Path | nbformat.NotebookNode, name: str,
             parameters: dict | None = None) -> Iterator[Notebook]:
        """A copy of a notebook, with parameters written into it as papermill does, in a page of its own."""
        path = self.folder / "notebooks" / f"{name}.ipynb"
        node = load_notebook_node(str(source)) if isinstance(source, Path) else source
        nbformat.write(parameterize_notebook(node, parameters) if parameters else node, path)
        page = self.context.new_page()
        notebook = Notebook(self, path, page)
        page.on("pageerror", lambda error: notebook.console.append(str(error)))
        page.on("console", lambda message: message.type == "error" and notebook.console.append(
            f"{message.text} ({message.location.get('url', '')})"))
        try:
            # "doc" is the single-document mode: no file browser beside the notebook
            page.goto(f"{self.url}doc/tree/{quote(path.name)}?token={self.token}", timeout=60_000)
            page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
            yield notebook
        finally:
            notebook.close()


@dataclass
class Notebook:
    """A notebook open in the browser.

    Arguments:
        lab: the server.
        path: of the copy that is open.
        page: playwright's page.
        console: errors in the browser's console and errors that no script caught; none is harmless.
    """

    lab: Lab
    path: Path
    page: object
    console: list[str] = field(default_factory=list)
    _client: BlockingKernelClient | None = None

    def run(self, seconds: float, start: str | None = None) -> None:
        """Run all cells, or those from the first that contains `start`; wait for the last one, and save.

        Raises:
            playwright.sync_api.TimeoutError: they take longer.
        """
        connected = f"{SESSION}?.session?.kernel?.connectionStatus === 'connected'"
        self.page.wait_for_function(connected, timeout=60_000)
        self.page.evaluate("""start => {
          window.ended = false;
          const notebook = window.jupyterapp.shell.currentWidget.content;
          const has = cell => cell.model.sharedModel.source.includes(start);
          if (start) notebook.activeCellIndex = notebook.widgets.findIndex(has);
          const command = start ? "notebook:run-all-below" : "notebook:run-all-cells";
          window.jupyterapp.commands.execute(command).then(() => { window.ended = true; });
        }""", start)
        self.page.wait_for_function("window.ended", timeout=seconds * 1000)
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")

    def red_cells(self) -> list[str]:
        """What failed, by the saved notebook: "Error: message" of each red cell, and cells that never ran."""
        found = []
        for cell in nbformat.read(self.path, as_version=4).cells:
            if cell.cell_type == "code":
                errors = [output for output in cell.outputs if output.output_type == "error"]
                found += [f"{error.ename}: {error.evalue}" for error in errors]
                if cell.source.strip() and cell.execution_count is None:
                    found.append(f"not run: {cell.source.splitlines()[0]}")
        return found

    def evaluate(self, expression: str, seconds: float = 60):
        """Value of an expression in the notebook's kernel, through JSON; arrays come as nested lists.

        Raises:
            RuntimeError: the expression raised.
            TimeoutError: the kernel is busy for longer.
        """
        if self._client is None:
            sessions = _get(f"{self.lab.url}api/sessions", self.lab.token)
            mine = next(session for session in sessions if session["path"].endswith(self.path.name))
            file = self.lab.folder / "runtime" / f"kernel-{mine['kernel']['id']}.json"
            self._client = BlockingKernelClient(connection_file=str(file))
            self._client.load_connection_file()
            self._client.start_channels()
        wrapped = f"__import__('json').dumps({expression}, default=lambda value: value.tolist())"
        message = self._client.execute("", silent=True, user_expressions={"value": wrapped})
        deadline = time.monotonic() + seconds
        reply = {"parent_header": {}}
        while reply["parent_header"].get("msg_id") != message:
            try:
                reply = self._client.get_shell_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"{expression}: the kernel did not answer within {seconds:g} s") from None
        value = reply["content"]["user_expressions"]["value"]
        if value["status"] != "ok":
            raise RuntimeError(f"{expression}: {value['ename']}: {value['evalue']}")
        return json.loads(ast.literal_eval(value["data"]["text/plain"]))

    def wait_for(self, expression: str, seconds: float = 30):
        """The expression's value in the kernel as soon as it is true, or its last value in that time."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)) and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)  # lets the page work, as time.sleep would not
        return value

    def close(self) -> None:
        """End the kernel, so that the next notebook has the memory, and close the page."""
        if self._client is not None:
            self._client.stop_channels()
        self.page.evaluate(f"{SESSION}?.shutdown()")
        self.page.close()
