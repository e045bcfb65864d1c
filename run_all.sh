#!/usr/bin/env bash
# The whole study from one command: finds or makes an environment, then runs `python -m dulvos study` in it.
set -euo pipefail
unset CDPATH

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'EOF'
usage: bash run_all.sh [COMMAND] [OPTIONS]

Commands
  (none)   demo, then the ablation grid of Fig. 3 at the same scale: about twenty minutes on two CPU cores
  demo     trains on small videos rendered from the photographs in scikit-image's wheel, carries masks
           through the validation videos, scores them, and writes tables, figures and notebooks: about
           twelve minutes on two CPU cores; needs no data
  davis --davis DIR [--setting cpu|paper] [--grid]
           the same on DAVIS: trains on the frames of the train split without their labels, evaluates on the
           validation split. DIR holds JPEGImages/, Annotations/ and ImageSets/. cpu, the default, is
           sized for a CPU; paper is the paper's setting and wants a GPU. With --grid, then the ablation
           grid on DAVIS: about four more hours on two CPU cores
  paper --data DIR [--dry-run] [--rows ROW ...]
           the rows of the paper's Tables 1 and 2: training on YouTube-VOS, OxUvA, TrackingNet and Kinetics-400,
           released weights, DAVIS-2017 val, YouTube-VOS 2018 val; wants a GPU. Checks data, weights, disk and
           memory first and names what is missing; --dry-run stops there, with the plan and its estimated hours
  grid     the ablation study of Fig. 3, from the command `python -m dulvos grid`
  test     the tests; what follows goes to pytest: bash run_all.sh test -k losses
  help     this text, as do -h and --help
Other options are passed on to `python -m dulvos`, whose commands say first what they will run, on what data, and
about how long it takes; `bash run_all.sh paper --help` lists those of paper.

Where results go
  results/<study>/  rows, tables, figures and executed notebooks; below it, in runs/, masks/ and logs/,
                    what is made on the way, checkpoints among it
Nothing finished runs twice. Ctrl-C is safe at any moment: the same command continues where it was stopped.
The exit status is 0 only if everything worked.

Environment
  If the active python (or python3; a virtual or conda environment, or none) has every package that
  pyproject.toml asks for, it is used. Otherwise .venv is made here, once, with the versions in
  constraints.txt. With conda: conda env create -f environment.yml && conda activate dulvos
  Nothing else is fetched. On Linux, pip's build of PyTorch brings CUDA: about 3 GB to download, 6.5 GB on
  disk. For the much smaller CPU build, put it in place first:
    python3 -m venv .venv
    .venv/bin/pip install -c constraints.txt torch torchvision \
      --index-url https://download.pytorch.org/whl/cpu

Variables
  DULVOS_PYTHON    the Python to use, or to make .venv with; default: python, then python3, on the PATH
  DULVOS_DAVIS     folder of DAVIS, where no --davis names one; DULVOS_DATA_DIR: of the training collections;
                   DULVOS_WEIGHTS: of released weights
  DULVOS_GOLDEN, DULVOS_DATA    folders of reference values and of real videos for the tests; what needs them
                                is skipped where they are absent
EOF
}

die() {
  printf 'run_all.sh: %s\n' "$*" >&2
  exit 1
}

# Prints what PYTHON lacks of pyproject.toml with EXTRA ("" for none), and nothing where it lacks nothing.
# Asks for versions instead of importing: importing torch takes seconds, and every call comes through here.
lacks() { # PYTHON EXTRA
  "$1" - "$2" 2>/dev/null <<'EOF' || echo "Python 3.11 or newer"
import sys
import tomllib
from importlib import metadata

try:
    from packaging.requirements import Requirement
except ImportError:  # half of the packages need it, so it is never the only one
    sys.exit(print("packaging and what needs it"))
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
missing = []
for line in project["dependencies"] + project["optional-dependencies"].get(sys.argv[1], []):
    wanted = Requirement(line)
    if wanted.marker and not wanted.marker.evaluate():
        continue
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        missing.append(wanted.name)
    else:
        if not wanted.specifier.contains(version, prereleases=True):
            missing.append(f"{wanted.name}{wanted.specifier} (has {version})")
print(", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""))
EOF
}

# Whether the versions in constraints.txt have wheels for PYTHON.
fits() { # PYTHON
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

# Makes .venv or completes it: what was interrupted is done again, and nothing where the stamp fits.
fill_venv() {
  local wanted stamp=.venv/dulvos-installed base="" found candidate
  wanted=$(cksum pyproject.toml constraints.txt)
  if [[ -f $stamp && $(cat "$stamp") == "$wanted" ]] && fits .venv/bin/python; then return; fi

  if ! .venv/bin/python -c '' 2>/dev/null; then
    for candidate in "${DULVOS_PYTHON:-python3}" python python3.14 python3.13 python3.12 python3.11; do
      if fits "$candidate"; then base=$candidate && break; fi
    done
    found=$("${DULVOS_PYTHON:-python3}" --version 2>&1) || found=none
    [[ -n $base ]] || die "needs Python 3.11 to 3.14 and finds $found:" \
      "install one of these; DULVOS_PYTHON=/path/to/python names it if it is not on the PATH"
    "$base" -c 'import venv, ensurepip' 2>/dev/null || die "$base lacks the venv module:" \
      "run 'apt-get install python3-venv' as root (Debian, Ubuntu), or use conda (see --help)"
    "$base" -m venv --clear .venv || die ".venv could not be made (the lines above say why)"
  fi
  found=$(.venv/bin/python --version 2>&1)
  fits .venv/bin/python || die ".venv holds $found, and Python 3.11 to 3.14 is needed:" \
    "remove .venv, and the same command makes it anew"
  .venv/bin/python -c 'import pip' 2>/dev/null || .venv/bin/python -m ensurepip >/dev/null 2>&1 ||
    die ".venv has no pip and cannot get it: remove .venv, and the same command makes it anew"

  echo "Installing into .venv what pyproject.toml asks for, once: up to 3 GB to download, 6.5 GB on disk," \
    "2 to 20 minutes (the smaller CPU build: see --help)"
  .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]' ||
    die "the installation did not finish (the lines above say why): the same command takes it up again"
  printf '%s\n' "$wanted" >"$stamp"
}

# Sets PY to the Python that runs everything: the active one if it lacks nothing, else that of .venv.
choose_python() { # EXTRA
  local extra=$1 candidate lacking first=""
  if [[ -n ${DULVOS_PYTHON:-} ]]; then
    if [[ $DULVOS_PYTHON == */* ]]; then DULVOS_PYTHON=$(absolute "$DULVOS_PYTHON"); fi
    command -v "$DULVOS_PYTHON" >/dev/null || die "DULVOS_PYTHON is $DULVOS_PYTHON, which is no program"
    set -- "$DULVOS_PYTHON"
  else
    set -- python python3
  fi
  for candidate; do
    if ! command -v "$candidate" >/dev/null; then continue; fi
    lacking=$(lacks "$candidate" "$extra")
    if [[ -z $lacking ]]; then
      PY=$candidate
      echo "environment: $(command -v "$PY")"
      return
    fi
    first=${first:-$candidate lacks $lacking}
  done
  PY=$PWD/.venv/bin/python
  echo "environment: .venv (${first:-no python on the PATH})"
  fill_venv
}

# OpenCV's wheel leaves two system libraries out, which servers and containers may not have.
check_opencv() {
  local error
  if error=$("$PY" -c 'import cv2' 2>&1); then return; fi
  error=${error##*$'\n'}
  if [[ $error == *.so*"cannot open shared object file"* ]]; then
    die "OpenCV does not start ($error): run 'apt-get install -y libgl1 libglib2.0-0'" \
      "as root (Debian, Ubuntu)"
  fi
  die "OpenCV does not start in $PY: $error"
}

# A path as the caller means it, although everything runs in this folder.
absolute() { # PATH
  case $1 in
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$caller/$1" ;;
  esac
}

main() {
  if (($# == 0)); then set -- demo --grid; fi
  local command=$1 left word before="" davis="" data="" help=""
  shift
  for word in DAVIS DATA DATA_DIR GOLDEN RESULTS WEIGHTS; do
    word=DULVOS_$word
    if [[ -n ${!word:-} ]]; then export "$word=$(absolute "${!word}")"; fi
  done
  case $command in
    help | -h | --help)
      usage
      return
      ;;
    demo | davis | test | paper | grid) ;;
    *) die "no command '$command': give demo, davis, paper, grid or test, then options (--help tells all)" ;;
  esac

  # All that can be said without an environment is said before the minutes that making one takes.
  if [[ $command != test ]]; then
    for ((left = $#; left > 0; left--)); do
      word=$1
      shift
      if [[ $word == -h || $word == --help ]] && [[ $command == demo || $command == davis ]]; then
        usage
        return
      elif [[ $word == -h || $word == --help ]]; then
        help=1
      elif [[ $before == --davis ]]; then
        word=$(absolute "$word")
        davis=$word
      elif [[ $word == --davis=* ]]; then
        davis=$(absolute "${word#--davis=}")
        word=--davis=$davis
      elif [[ $before == --data ]]; then
        word=$(absolute "$word")
        data=$word
      elif [[ $word == --data=* ]]; then
        data=$(absolute "${word#--data=}")
        word=--data=$data
      fi
      before=$word
      set -- "$@" "$word"
    done
    if [[ $command == davis && -z $davis && -z ${DULVOS_DAVIS:-} ]]; then
      die "davis needs --davis DIR, the folder that holds JPEGImages/ and Annotations/"
    fi
    if [[ $command == paper && -z $data && -z $help ]]; then
      die "paper needs --data DIR, the folder that holds davis-2017/, youtube-vos/ and the other data sets"
    fi
    if [[ -n $davis && ! -d $davis ]]; then die "--davis $davis: no such folder"; fi
    if [[ $command == paper && -n $data && ! -d $data ]]; then die "--data $data: no such folder"; fi
  fi

  if [[ $command == test ]]; then choose_python test; else choose_python ""; fi
  check_opencv
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
  if [[ $command == test ]]; then exec "$PY" -m pytest -q "$@"; fi
  if [[ $command == paper || $command == grid ]]; then exec "$PY" -m dulvos "$command" "$@"; fi
  exec "$PY" -m dulvos study "$command" "$@"
}

# Sourced, it only defines its functions: the tests try them one by one.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
