"""The demo grid with two workers of one thread beside one such worker: `python -m benchmarks.grid`.

Each way fills an empty results folder of its own. A run is a training and an evaluation by their notebooks.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import report

RUNS = ("lam0-0", "lam1-0", "M2-0", "M8-0", "no-jitter-0", "jitter-each-0", "ordered-0", "aligned-0")


def seconds_per_run(workers: int, runs: list[str]) -> float:
    command = [sys.executable, "-m", "dulvos", "grid", "--study", "demo", "--run", "--workers", str(workers),
               "--threads", "1", "--only", *runs]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DULVOS_RESULTS": folder, "OMP_NUM_THREADS": "1"}
        started = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        return (time.perf_counter() - started) / len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=RUNS, help="these runs")
    runs = parser.parse_args().only
    times = {"ours": [seconds_per_run(2, runs)], "plain": [seconds_per_run(1, runs)]}
    report("grid, two workers (ours) beside one (plain)", f"{len(runs)} runs of the demo grid", times,
           "s a run")


if __name__ == "__main__":
    main()
