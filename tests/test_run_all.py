"""run_all.sh with stand-ins for Python: which environment it takes, what it installs, what it runs and where."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import packaging
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dulvos.study.rows import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
FOR_TESTS = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)

# A Python whose packages are those in $SITE; its pip, pytest and dulvos only note that they were called, and where.
STAND_IN = f"""#!/bin/sh
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp "$0" "$4/bin/pip" ;;
  "install "*) echo "pip $*" >>"$LOG"; exit "${{PIP_STATUS:-0}}" ;;
  "-m dulvos"* | "-m pytest"*) echo "$(basename "$(dirname "$0")") $* in $PWD" >>"$LOG"; exit "${{RUN_STATUS:-0}}" ;;
  *urlopen*) exit "${{INDEX_STATUS:-1}}" ;;
  *) PYTHONPATH="$SITE" exec {sys.executable} -S "$@" ;;
esac
"""


class Checkout:
    """A copy of what run_all.sh needs, with a stand-in as the only Python on the PATH; `here` is where the caller stands."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site, self.log, self.here = (folder / name for name in ("a checkout", "site", "log", "here"))
        for made in (self.root, self.site, self.here, folder / "bin"):
            made.mkdir()
        for name in ("run_all.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.python = folder / "bin" / "python3"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        for tool in ("bash", "sh", "cat", "cp", "mkdir", "dirname", "basename", "uname"):
            (folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
        (self.site / "packaging").symlink_to(Path(packaging.__file__).parent)
        for needed in NEEDED:
            self.put(needed.name)

    def put(self, name: str, version: str = "") -> None:
        """Give the stand-in a package, by default in the version of constraints.txt."""
        info = self.site / f"{name.replace('-', '_')}.dist-info"
        info.mkdir(exist_ok=True)
        version = version or CONSTRAINTS.get(name) or metadata.version(name)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def drop(self, name: str) -> None:
        """Take a package from the stand-in."""
        shutil.rmtree(self.site / f"{name.replace('-', '_')}.dist-info")

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the script from another folder."""
        environment = {"PATH": str(self.python.parent), "SITE": str(self.site), "LOG": str(self.log), **variables}
        return subprocess.run(["bash", str(self.root / "run_all.sh"), *words], cwd=self.here, env=environment, text=True,
                              capture_output=True, timeout=60)

    @property
    def calls(self) -> list[str]:
        """What was called since the last look."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


@pytest.mark.parametrize(("words", "call"), [
    ((), "-m dulvos demo --grid"), (("demo",), "-m dulvos demo"), (("davis", "--davis", "a b"), "-m dulvos davis --davis a b"),
    (("paper", "--help"), "-m dulvos paper --help"), (("segment", "v.mp4", "m.png", "out"), "-m dulvos segment v.mp4 m.png out")])
def test_a_complete_python_is_used_where_the_caller_stands(checkout, words, call):
    done = checkout.run(*words)
    assert done.returncode == 0, done.stderr
    assert checkout.calls == [f"bin {call} in {checkout.here}"] and not (checkout.root / ".venv").exists()


def test_tests_run_in_the_checkout_and_need_their_own_packages(checkout):
    assert checkout.run("test", "-k", "losses").returncode == 0
    assert checkout.calls[-1].endswith(f"-m pytest -q -k losses in {checkout.root}") and (checkout.root / ".venv").is_dir()
    for needed in FOR_TESTS:
        checkout.put(needed.name)
    assert checkout.run("test").returncode == 0 and checkout.calls == [f"bin -m pytest -q in {checkout.root}"]


@pytest.mark.parametrize("change", ["missing", "old"])
def test_a_python_that_lacks_something_gets_an_environment_once(checkout, change):
    checkout.drop("papermill")
    if change == "old":
        checkout.put("papermill", "1.0")
    assert checkout.run("demo").returncode == 0
    installs = [call for call in checkout.calls if call.startswith("pip")]
    assert "-c" in installs[0] and "torch torchvision" in installs[0] and installs[1].endswith(f"-e {checkout.root}[test]")
    checkout.put("papermill", CONSTRAINTS["papermill"])
    assert checkout.run("demo").returncode == 0 and not any(call.startswith("pip") for call in checkout.calls)


@pytest.mark.parametrize("status", ["0", "1"])
def test_the_small_build_of_pytorch_is_taken_if_its_index_can_be_reached(checkout, status):
    checkout.drop("torch")
    checkout.run("demo", INDEX_STATUS=status)
    nvidia = Path("/proc/driver/nvidia").exists()
    assert ("whl/cpu" in checkout.calls[0]) == (status == "0" and not nvidia)


def test_failures_are_the_scripts_own(checkout):
    assert checkout.run("demo", RUN_STATUS="3").returncode == 3
    checkout.drop("torch")
    assert checkout.calls
    assert checkout.run("demo", PIP_STATUS="1").returncode == 1 and not any("dulvos" in call for call in checkout.calls[1:])
    done = checkout.run("demo", DULVOS_PYTHON="absent")
    assert done.returncode == 1 and "DULVOS_PYTHON" in done.stderr


def test_help_needs_no_environment(checkout):
    for word in ("-h", "--help", "help"):
        done = checkout.run(word, PATH=os.pathsep.join([str(checkout.python.parent), "/bin", "/usr/bin"]))
        assert done.returncode == 0 and "usage: bash run_all.sh" in done.stdout
    assert not checkout.calls


def test_constraints_name_a_version_in_range_for_all_that_is_needed():
    pinned = {canonicalize_name(name): version for name, version in CONSTRAINTS.items()}
    for needed in NEEDED + FOR_TESTS:
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), needed.name
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in pinned)  # they come with a build of torch


def test_the_scripts_and_the_conda_file_hold_together():
    for script in (ROOT / "run_all.sh", ROOT / ".ci" / "run"):
        assert os.access(script, os.X_OK) or script.name == "run"
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "-e .[test]" in (ROOT / "environment.yml").read_text()
