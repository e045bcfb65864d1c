"""run_all.sh with stand-ins for Python: what it says, which environment it takes, what it installs, runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import packaging
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
FOR_TESTS = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
SCRIPTS = [ROOT / "run_all.sh", ROOT / ".ci" / "run"]

# Does for a Python: its packages are those in $SITE, its pip and its dulvos only note that they were called.
STAND_IN = f"""#!/bin/sh
case "$*" in
  "-m venv --clear .venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip install"*) echo "pip $*" >>"$LOG"; exit "${{PIP_STATUS:-0}}" ;;
  "-m dulvos"* | "-m pytest"*)
    printf '%s|' "$0" "$@" "$PYTHONPATH" >>"$LOG"
    echo >>"$LOG"
    exit "${{RUN_STATUS:-0}}" ;;
  "-c import cv2") echo "${{CV2_ERROR:-}}" >&2; [ -z "${{CV2_ERROR:-}}" ] ;;
  "-c import pip") ;;
  *) PYTHONPATH="$SITE" exec {sys.executable} -S "$@" ;;
esac
"""


class Checkout:
    """A copy of what run_all.sh needs, with a stand-in for `python3` as the only Python on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.site, self.log = folder / "a checkout", folder / "site", folder / "log"
        self.venv = self.root / ".venv" / "bin" / "python"
        for made in (self.root, self.site, folder / "bin"):
            made.mkdir()
        for name in ("run_all.sh", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.root)
        self.python = folder / "bin" / "python3"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        for tool in ("bash", "sh", "cat", "cp", "rm", "mkdir", "dirname", "cksum"):
            (folder / "bin" / tool).symlink_to(str(shutil.which(tool)))
        (self.site / "packaging").symlink_to(Path(packaging.__file__).parent)
        for needed in NEEDED:
            self.put(needed.name)

    def _info(self, name: str) -> Path:
        return self.site / f"{name.replace('-', '_')}.dist-info"

    def drop(self, name: str) -> None:
        """Take a package from the stand-in; without packaging nothing can be told of the others."""
        if name == "packaging":
            (self.site / "packaging").unlink()
        else:
            shutil.rmtree(self._info(name))

    def put(self, name: str, version: str | None = None) -> None:
        """Give the stand-in a package: the version installed here unless one is named."""
        info = self._info(name)
        info.mkdir(exist_ok=True)
        version = version or metadata.version(name)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def run(
        self, *words: str, script: str = "run_all.sh", cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.python.parent), "SITE": str(self.site), "LOG": str(self.log)}
        return subprocess.run(["bash", str(self.root / script), *words], cwd=cwd or self.root,
                              env=environment | variables, capture_output=True, text=True, timeout=120)

    def calls(self) -> list[str]:
        """What was called: `pip ...`, or a Python's path, its arguments and PYTHONPATH, each closed by |."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_parse_and_are_executable(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["davis", "--help"]], ids=" ".join)
def test_help_needs_no_environment(words: list[str]) -> None:
    done = subprocess.run(["bash", str(ROOT / "run_all.sh"), *words], env={"PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for named in ("demo", "davis --davis DIR", "paper --data DIR", "grid", "--setting cpu|paper", "test", "DULVOS_PYTHON", "Ctrl-C"):
        assert named in done.stdout


@pytest.mark.parametrize("words, said", [
    (["train"], "'train'"),
    (["--davis", "DAVIS"], "'--davis'"),
    (["davis"], "--davis DIR"),
    (["davis", "--davis", "absent"], "absent: no such folder"),
    (["davis", "--davis=absent"], "absent: no such folder"),
    (["paper"], "--data DIR"),
    (["paper", "--data", "absent", "--dry-run"], "absent: no such folder"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_words_give_one_line_at_once(checkout: Checkout, words: list[str], said: str) -> None:
    done = checkout.run(*words)
    assert done.returncode != 0 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and said in done.stderr
    assert checkout.calls() == [] and not checkout.venv.exists()


def test_a_complete_environment_is_used_as_it_is(checkout: Checkout) -> None:
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    assert checkout.calls() == [f"{checkout.python}|-m|dulvos|study|demo|--grid|{checkout.root}|"]
    assert not checkout.venv.exists()


@pytest.mark.parametrize("name, version", [("pandas", None), ("numpy", "1.20.0"), ("torch", "99.0")])
def test_an_environment_that_lacks_something_is_left_alone(
    checkout: Checkout, name: str, version: str | None
) -> None:
    if version is None:
        checkout.drop(name)
    else:
        checkout.put(name, version)
    done = checkout.run("demo", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert f"lacks {name}" in done.stdout
    install, run = checkout.calls()
    assert install.startswith("pip ") and "-c constraints.txt" in install and "-e .[test]" in install
    assert run == f"{checkout.venv}|-m|dulvos|study|demo|--seed|3|{checkout.root}|"


def test_a_cpu_build_satisfies_the_range(checkout: Checkout) -> None:
    checkout.put("torch", metadata.version("torch").partition("+")[0] + "+cpu")
    checkout.run()
    assert not checkout.venv.exists()


def test_the_tests_need_their_extra(checkout: Checkout) -> None:
    assert f"lacks {FOR_TESTS[0].name}" in checkout.run("test").stdout
    checkout.log.unlink()
    for needed in FOR_TESTS:
        checkout.put(needed.name)
    assert checkout.run("test", "-k", "a word", RUN_STATUS="5").returncode == 5
    assert checkout.calls() == [f"{checkout.python}|-m|pytest|-q|-k|a word|{checkout.root}|"]


def test_an_installation_is_made_once_and_an_interrupted_one_again(checkout: Checkout) -> None:
    checkout.drop("packaging")
    assert checkout.run(PIP_STATUS="1").returncode != 0
    assert [call[:3] for call in checkout.calls()] == ["pip"]  # nothing runs in half an environment

    for _ in range(2):
        assert checkout.run().returncode == 0
    assert [call[:3] == "pip" for call in checkout.calls()] == [True, True, False, False]

    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("# another version\n")
    checkout.run()
    assert checkout.calls()[-2].startswith("pip ")


def test_a_dead_venv_is_made_anew(checkout: Checkout) -> None:
    checkout.drop("packaging")
    checkout.venv.parent.mkdir(parents=True)
    checkout.venv.symlink_to("removed")
    done = checkout.run()
    assert done.returncode == 0, done.stderr


def test_what_a_machine_lacks_is_said_in_one_line(checkout: Checkout) -> None:
    absent = "libGL.so.1: cannot open shared object file: No such file or directory"
    done = checkout.run(CV2_ERROR=f"Traceback\nImportError: {absent}")
    assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
    assert "libGL.so.1" in done.stderr and "apt-get install -y libgl1 libglib2.0-0" in done.stderr

    checkout.drop("packaging")
    old = 'case "$*" in --version) echo Python 3.9.2; exit ;; *) exit 1 ;; esac'
    bare = 'case "$*" in "-c import venv, ensurepip") exit 1 ;; esac'
    for first, said in ((old, "needs Python 3.11 to 3.14 and finds Python 3.9.2"),
                        (bare, "apt-get install python3-venv")):
        checkout.python.write_text(STAND_IN.replace("#!/bin/sh", f"#!/bin/sh\n{first}"))
        done = checkout.run()
        assert done.returncode != 0 and len(done.stderr.splitlines()) == 1
        assert said in done.stderr
    assert checkout.calls() == [] and not checkout.venv.exists()


def test_the_variable_names_the_python(checkout: Checkout) -> None:
    other = checkout.root.parent / "other"
    shutil.copy(checkout.python, other)
    checkout.python.write_text("#!/bin/sh\nexit 1\n")
    for name in (str(other), "../other"):
        assert checkout.run(DULVOS_PYTHON=name).returncode == 0
    assert [Path(call.split("|")[0]).resolve() for call in checkout.calls()] == [other, other]
    done = checkout.run(DULVOS_PYTHON="absent")
    assert done.returncode != 0 and "DULVOS_PYTHON is absent" in done.stderr


def test_a_folder_is_meant_from_where_the_caller_stands(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "my DAVIS").mkdir()
    for words in (["--davis", "my DAVIS"], ["--davis=my DAVIS"]):
        done = checkout.run("davis", *words, "--setting", "paper", cwd=tmp_path, RUN_STATUS="7")
        assert done.returncode == 7, done.stderr
        call = checkout.calls()[-1]
        assert f"|study|davis|--davis{'|='[len(words) == 1]}{tmp_path}/my DAVIS|--setting|paper|" in call


def test_a_folder_in_a_variable_too(checkout: Checkout, tmp_path: Path) -> None:
    checkout.python.write_text(STAND_IN.replace("#!/bin/sh", '#!/bin/sh\nprintf "%s|%s" "$DULVOS_DAVIS" "$DULVOS_RESULTS" >"$LOG.said"'))
    for words in (["davis"], ["grid", "--study", "davis"]):
        done = checkout.run(*words, cwd=tmp_path, DULVOS_DAVIS="my DAVIS", DULVOS_RESULTS="/elsewhere")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "log.said").read_text() == f"{tmp_path}/my DAVIS|/elsewhere"


def test_paper_and_grid_are_commands_of_their_own(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "all data").mkdir()
    for words in (["--data", "all data", "--dry-run"], ["--data=all data", "--dry-run"]):
        assert checkout.run("paper", *words, cwd=tmp_path, RUN_STATUS="1").returncode == 1
        call = checkout.calls()[-1]
        assert f"|-m|dulvos|paper|--data{'|='[len(words) == 2]}{tmp_path}/all data|--dry-run|" in call
    for words in (["grid", "--study", "demo"], ["paper", "--help"]):
        assert checkout.run(*words).returncode == 0
        assert f"|-m|dulvos|{'|'.join(words)}|" in checkout.calls()[-1]


@pytest.mark.parametrize("libraries, browser, packages", [
    ("libGL.so.1 libgthread-2.0.so.0", True, []),
    ("libGL.so.1", True, ["libgl1 libglib2.0-0"]),
    ("libGL.so.1 libgthread-2.0.so.0", False, ["chromium"]),
    ("", False, ["libgl1 libglib2.0-0", "chromium"]),
], ids=["all", "a library lacks", "the browser lacks", "none"])
def test_ci_adds_the_system_packages_that_lack(
    checkout: Checkout, libraries: str, browser: bool, packages: list[str]
) -> None:
    _stand_in_for_ci(checkout, {"ldconfig": f"echo {libraries}", "apt-get": f'echo "apt $*" >>"{checkout.log}"'})
    if browser:
        (checkout.python.parent / "chromium").symlink_to("/bin/true")
    assert checkout.run(script=".ci/run", RUN_STATUS="3").returncode == 3
    *apt, tests = checkout.calls()
    installed = [call.partition("--no-install-recommends ")[2] for call in apt if " install " in call]
    assert installed == packages and len(apt) == 2 * len(packages)
    assert "|-m|pytest|" in tests and "|-rs|" in tests


def test_ci_goes_on_without_a_browser_and_says_so(checkout: Checkout) -> None:
    _stand_in_for_ci(checkout, {"ldconfig": "echo libGL.so.1 libgthread-2.0.so.0", "apt-get": "exit 100"})
    done = checkout.run(script=".ci/run")
    assert done.returncode == 0 and "WARNING" in done.stderr and "|-m|pytest|" in checkout.calls()[-1]


def test_ci_stops_where_a_library_cannot_be_had(checkout: Checkout) -> None:
    _stand_in_for_ci(checkout, {"ldconfig": "", "apt-get": "exit 100"})
    assert checkout.run(script=".ci/run").returncode == 100 and not checkout.log.exists()


def _stand_in_for_ci(checkout: Checkout, tools: dict[str, str]) -> None:
    for needed in FOR_TESTS:
        checkout.put(needed.name)
    (checkout.root / ".ci").mkdir()
    shutil.copy(SCRIPTS[1], checkout.root / ".ci")
    for tool, does in tools.items():
        (checkout.python.parent / tool).write_text(f"#!/bin/sh\n{does}\n")
        (checkout.python.parent / tool).chmod(0o755)


def _pins() -> dict[str, list[Requirement]]:
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    return pins


@pytest.mark.parametrize("needed", NEEDED + FOR_TESTS, ids=lambda needed: needed.name)
def test_every_dependency_is_pinned_within_its_range(needed: Requirement) -> None:
    (pin,) = _pins()[canonicalize_name(needed.name)]
    (exact,) = pin.specifier
    assert exact.operator == "==" and needed.specifier.contains(exact.version)


def test_constraints_are_exact_and_leave_cuda_to_torch() -> None:
    for name, pins in _pins().items():
        assert not re.match(r"nvidia-|cuda-|triton$|dulvos$", name)
        assert all(re.fullmatch(r"==[^*+]+", str(pin.specifier)) and pin.url is None for pin in pins), name


def test_the_python_versions_agree() -> None:
    oldest = SpecifierSet(PROJECT["requires-python"])
    script = SCRIPTS[0].read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 14)" in script and "Python 3.11 to 3.14" in script
    assert "3.11" in oldest and "3.10" not in oldest
    assert "python=3.11" in (ROOT / "environment.yml").read_text()
