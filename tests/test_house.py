"""The house stays in order: lint and types are clean, imports go down the shelves only and form no circle."""

import ast
import subprocess
import sys

import pytest

from dulvos.study.rows import ROOT

TENSORS = ("encoder", "views", "losses", "baselines", "propagation", "tiled", "metrics", "correspondence")
READING = ("videos", "masks", "datasets", "clips")
FREE = ("errors", "files", "devices")  # every shelf may import these
FOREIGN = {"pathlib", "os", "io", "json", "shutil", "tempfile", "cv2", "PIL", "av", "matplotlib", "pandas",
           "IPython", "papermill", "psutil"}


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, by their names below dulvos."""
    found = {}
    for path in sorted((ROOT / "dulvos").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "dulvos").with_suffix("").parts)
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dulvos":
                parent = node.module.partition(".")[2]
                inner = {f"{parent}.{alias.name}".lstrip(".") for alias in node.names}
                known = {n for n in inner if (ROOT / "dulvos" / f"{n.replace('.', '/')}.py").exists()}
                found[name] |= known or {parent}
            elif isinstance(node, ast.Import):
                found[name] |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("dulvos.")}
    return found


def shelf(name: str) -> int:
    if name in FREE:
        return 0
    if name in TENSORS:
        return 1
    if name in READING:
        return 2
    return {"study": 4, "widgets": 5}.get(name.partition(".")[0], 3)


def test_imports_go_down_only_and_form_no_circle():
    graph = {name: used - {""} for name, used in imports().items() if name not in ("__init__", "__main__")}
    up = [(name, used) for name, all_used in graph.items() for used in all_used if shelf(used) > shelf(name)]
    assert not up
    while graph:
        leaves = {name for name, used in graph.items() if not used & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in leaves}


@pytest.mark.parametrize("name", TENSORS)
def test_the_tensors_know_no_files_devices_or_plots(name):
    nodes = list(ast.walk(ast.parse((ROOT / "dulvos" / f"{name}.py").read_text())))
    named = {node.module.partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    named |= {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import)
              for alias in node.names}
    allowed = {"cv2"} if name == "metrics" else set()  # it takes numpy arrays
    assert not named & FOREIGN - allowed


# rules against data that become code, and text that becomes a command; in notebooks' cells, too
RUNS = "S102,S202,S301,S302,S307,S506,S602,S604,S605"


@pytest.mark.parametrize("command", ["ruff check .", "mypy",
                                     f"ruff check --isolated --select {RUNS} dulvos benchmarks notebooks"])
def test_lint_types_and_safety_are_clean(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
