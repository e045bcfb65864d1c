#!/usr/bin/env bash
# The whole study from one command: finds or makes a Python environment, then runs `python -m dulvos` in it.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
cpu_index=https://download.pytorch.org/whl/cpu

usage() {
  cat <<'EOF'
usage: bash run_all.sh [COMMAND] [OPTIONS]

  (none)             the study at demo scale, on videos that come with it
  davis --davis DIR  the study on DAVIS; DIR holds JPEGImages, Annotations and ImageSets
  test               the tests; options go to pytest, as in: bash run_all.sh test -k losses
  COMMAND --help     the options of demo, davis, grid, paper, train, evaluate, segment, index or download

Results go to results/<study>/. After Ctrl-C, the same command continues (segment and test start again).

If the active Python has every package that pyproject.toml asks for, it is used. Otherwise .venv is made
beside this script, once, with the versions in constraints.txt. Set DULVOS_PYTHON to use another Python, or to
make .venv from it. With conda: conda env create -f environment.yml && conda activate dulvos
EOF
}

# Succeeds if PYTHON has every package that COMMAND needs; "test" needs more than the others.
complete() { # PYTHON COMMAND
  "$1" - "$root/pyproject.toml" "$2" >/dev/null 2>&1 <<'EOF'
import sys, tomllib
from importlib.metadata import version
from packaging.requirements import Requirement

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for line in project["dependencies"] + project["optional-dependencies"].get(sys.argv[2], []):
    need = Requirement(line)
    assert need.specifier.contains(version(need.name), prereleases=True)
EOF
}

# Makes .venv, or completes one that an interrupted call left.
make_venv() {
  local base=${DULVOS_PYTHON:-python3} cpu=()
  "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null ||
    { echo "run_all.sh: $base is not Python 3.11 to 3.14; set DULVOS_PYTHON=/path/to/python" >&2; exit 1; }
  [[ -x $venv/bin/pip ]] || "$base" -m venv --clear "$venv" ||
    { echo "run_all.sh: no venv module; install python3-venv, or use conda (see --help)" >&2; exit 1; }
  # Without an NVIDIA driver, PyTorch's CPU build will do: 200 MB instead of 3 GB, if it can be reached.
  if [[ $(uname -s) == Linux && ! -e /proc/driver/nvidia ]] && "$venv/bin/python" -c \
    "import urllib.request; urllib.request.urlopen('$cpu_index/torch/', timeout=5)" 2>/dev/null; then
    cpu=(--index-url "$cpu_index")
  fi
  echo "Installing into $venv, once: 2 to 20 minutes"
  local pip=("$venv/bin/pip" install -q --disable-pip-version-check -c "$root/constraints.txt")
  "${pip[@]}" torch torchvision ${cpu[@]+"${cpu[@]}"}
  "${pip[@]}" -e "$root[test]"
}

command=${1:-}
case $command in -h | --help | help) usage; exit ;; esac
python=""
for candidate in "${DULVOS_PYTHON:-python}" "${DULVOS_PYTHON:-python3}" "$venv/bin/python"; do
  if complete "$candidate" "$command"; then python=$candidate; break; fi
done
if [[ -z $python ]]; then make_venv; python=$venv/bin/python; fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
if [[ $command == test ]]; then # up to four processes share the test files, one thread each
  cd "$root"
  OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n auto --maxprocesses 4 --dist loadfile "${@:2}"
fi
exec "$python" -m dulvos "${@:-demo}"
