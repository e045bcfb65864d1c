"""run_all.sh with a fake Python: which Python it takes, what it installs, what it runs and where."""

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
PINS = (ROOT / "constraints.txt").read_text().splitlines()
CONSTRAINTS = dict(line.split("==") for line in PINS if "==" in line)

# A Python whose packages are those in $SITE; its pip, pytest and dulvos only note how they were called
STAND_IN = f"""#!/bin/sh
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp "$0" "$4/bin/pip" ;;
  "install "*) echo "pip $*" >>"$LOG"; exit "${{PIP_STATUS:-0}}" ;;
  "-m dulvos"* | "-m pytest"*)
    {{ printf '%s %s ' "$(basename "$(dirname "$0")")" "$PWD"; printf '[%s]' "$@"; echo; }} >>"$LOG"
    exit "${{RUN_STATUS:-0}}" ;;
  *urlopen*) exit "${{INDEX_STATUS:-1}}" ;;
  *) PYTHONPATH="$SITE" exec {sys.executable} -S "$@" ;;
esac
"""


class Checkout:
    """A copy of what run_all.sh needs, with a stand-in as the only Python; the caller stands in `here`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site, self.here = (folder / name for name in ("a checkout", "site", "here"))
        self.log, self.python = folder / "log", folder / "bin" / "python3"
        for made in (self.root, self.site, self.here, self.python.parent):
            made.mkdir()
        for name in ("run_all.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
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

    def run(self, *words: str, **variables: str) -> tuple[int, list[str], str]:
        """Run the script from another folder: exit status, what it called, what it said."""
        environment = {"PATH": str(self.python.parent), "SITE": str(self.site), "LOG": str(self.log)}
        self.log.write_text("")
        done = subprocess.run(["bash", str(self.root / "run_all.sh"), *words], cwd=self.here, text=True,
                              env=environment | variables, capture_output=True, timeout=60)
        return done.returncode, self.log.read_text().splitlines(), done.stdout + done.stderr


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


HARMFUL = ["$(touch made)", "; touch made", "`touch made`", "a b'c\"d", "--davis", "-rf"]


@pytest.mark.parametrize("words", [(), ("demo",), ("paper", "--help"), ("segment", "v.mp4", "m.png", "out"),
                                   *(("davis", "--davis", name) for name in HARMFUL)])
def test_a_complete_python_is_used_where_the_caller_stands(checkout, words, record_property):
    """Each word arrives as one word, whatever is in it."""
    status, calls, said = checkout.run(*words)
    assert status == 0, said
    call = "".join(f"[{word}]" for word in ("-m", "dulvos", *(words or ["demo"])))
    assert calls == [f"bin {checkout.here} {call}"]
    assert not (checkout.root / ".venv").exists() and not [*checkout.root.parent.rglob("made")]
    if words[-1:] and words[-1] in HARMFUL:
        record_property("fault", "malicious: name of a folder")


def test_tests_run_in_the_checkout_and_need_their_own_packages(checkout):
    status, calls, _ = checkout.run("test", "-k", "losses")
    assert status == 0 and (checkout.root / ".venv").is_dir()
    assert f"{checkout.root} [-m][pytest][-q]" in calls[-1] and calls[-1].endswith("[-k][losses]")
    for needed in FOR_TESTS:
        checkout.put(needed.name)
    status, (call,), _ = checkout.run("test")
    assert status == 0 and call.startswith(f"bin {checkout.root} [-m][pytest][-q]")


@pytest.mark.parametrize("version", ["", "1.0"])
def test_a_python_that_lacks_something_gets_an_environment_once(checkout, version):
    checkout.drop("papermill")
    if version:
        checkout.put("papermill", version)
    status, (first, second, _), _ = checkout.run("demo")
    assert status == 0 and first.startswith("pip install") and "-c" in first and "torch torchvision" in first
    assert second.endswith(f"-e {checkout.root}[test]")
    checkout.put("papermill")
    status, (call,), _ = checkout.run("demo")
    assert status == 0 and "[-m][dulvos]" in call


@pytest.mark.parametrize("status", ["0", "1"])
def test_the_small_build_of_pytorch_is_taken_if_its_index_can_be_reached(checkout, status):
    checkout.drop("torch")
    _, calls, _ = checkout.run("demo", INDEX_STATUS=status)
    nvidia = Path("/proc/driver/nvidia").exists()
    assert ("whl/cpu" in calls[0]) == (status == "0" and not nvidia)


def test_failures_are_the_scripts_own(checkout):
    assert checkout.run("demo", RUN_STATUS="3")[0] == 3
    checkout.drop("torch")
    status, calls, _ = checkout.run("demo", PIP_STATUS="1")
    assert status == 1 and not any("dulvos" in call for call in calls)
    status, _, said = checkout.run("demo", DULVOS_PYTHON="absent")
    assert status == 1 and "DULVOS_PYTHON" in said


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help_needs_no_environment(checkout, word):
    status, calls, said = checkout.run(word, DULVOS_PYTHON="absent")
    assert status == 0 and "usage: bash run_all.sh" in said and not calls


def test_constraints_name_a_version_in_range_for_all_that_is_needed():
    pinned = {canonicalize_name(name): version for name, version in CONSTRAINTS.items()}
    for needed in NEEDED + FOR_TESTS:
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), needed.name
    # these come with a build of torch
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in pinned)


def test_the_scripts_and_the_conda_file_hold_together():
    assert os.access(ROOT / "run_all.sh", os.X_OK)
    for script in ("run_all.sh", ".ci/run"):
        assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0
    assert "-e .[test]" in (ROOT / "environment.yml").read_text()
