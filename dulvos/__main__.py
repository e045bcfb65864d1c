"""`python -m dulvos`: the study from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dulvos.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends it with one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m dulvos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="run what is not done of a study")
    study.add_argument("name", choices=("demo", "davis"), nargs="?", default="demo")
    study.add_argument("--davis", metavar="DIR", help="folder of DAVIS-2016 or -2017: JPEGImages, Annotations, ImageSets")
    study.add_argument("--setting", choices=("cpu", "paper"), default="cpu")
    options = parser.parse_args(arguments)
    try:
        return _study(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here", file=sys.stderr)
        return 130


def _study(options: argparse.Namespace) -> int:
    from dulvos.study import davis_steps, demo_steps, run_study

    if options.name == "demo":
        return run_study("demo", demo_steps(), "cutouts")
    folder = options.davis or os.environ.get("DULVOS_DAVIS")
    if not folder:
        raise InputError("the study 'davis' needs --davis DIR, the folder that holds JPEGImages, Annotations and ImageSets")
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; --davis names the folder that holds JPEGImages, Annotations and ImageSets")
    os.environ["DULVOS_DAVIS"] = str(Path(folder).resolve())
    steps = davis_steps(options.setting)
    return run_study(steps[0].parameters["study"], steps, "davis")


if __name__ == "__main__":
    sys.exit(main())
