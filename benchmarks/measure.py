"""Times two ways of one computation in turn, and writes a row to results/benchmarks.csv."""

import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dulvos.files import replacing
from dulvos.study.rows import Study, provenance

COLUMNS = ["benchmark", "case", "ours", "ours_low", "ours_high", "plain", "plain_low", "plain_high", "unit",
           "ratio", "ours_mb", "plain_mb", "difference", "runs", "threads", "torch", "commit", "dirty",
           "date", "command"]


def compare(benchmark: str, case: str, ours: Callable, plain: Callable, difference: Callable, *,
            runs: int, ours_mb: float | None = None) -> None:
    """Call both ways once, then `runs` times in turn, and `report` the times.

    Arguments:
        ours, plain: called without arguments.
        difference: a number that tells how far apart their first results are.
        ours_mb: memory of our way; None takes what its first call adds, as for the plain way.
    """
    first, our_mb = added_memory(ours)
    other, plain_mb = added_memory(plain)
    apart = difference(first, other)
    del first, other
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(runs):
        for name, way in (("ours", ours), ("plain", plain)):
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    memory = {"ours": our_mb if ours_mb is None else ours_mb, "plain": plain_mb}
    report(benchmark, case, times, memory=memory, difference=apart)


def report(benchmark: str, case: str, times: dict[str, list[float]], unit: str = "s", *,
           memory: dict[str, float] | None = None, difference: float | None = None) -> None:
    """Print one comparison and replace its row in results/benchmarks.csv.

    Arguments:
        times: of "ours" and, if there is something to compare with, "plain"; their medians are compared.
        memory: in MB, of either way.
    """
    came, title = provenance("evaluate", {}), f"{benchmark}, {case}:"
    arguments = ("DIR" if Path(word).is_dir() else word for word in sys.argv[1:])
    row = {"benchmark": benchmark, "case": case, "unit": unit, "runs": len(times["ours"]),
           "threads": came["threads"], "torch": came["versions"]["torch"], "commit": came["commit"][:10],
           "dirty": came["dirty"], "date": came["date"],
           "command": " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *arguments])}
    for name, values in times.items():
        middle, low, high = (f"{f(values):.4g}" for f in (statistics.median, min, max))
        row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        print(title, f"{name:5s} {middle} {unit} ({low} to {high})")
    for name, megabytes in (memory or {}).items():
        row[f"{name}_mb"] = f"{megabytes:.0f}"
        print(title, f"{name:5s} {megabytes:.0f} MB")
    if "plain" in times:
        row["ratio"] = f"{statistics.median(times['plain']) / statistics.median(times['ours']):.3g}"
        print(title, f"plain / ours = {row['ratio']}")
    if difference is not None:
        row["difference"] = f"{difference:.1e}"
        print(title, f"greatest difference {difference:.1e}")
    path = Study("benchmarks").results / "benchmarks.csv"
    table = pd.DataFrame([row], columns=COLUMNS, dtype=str)
    if path.exists():
        old = pd.read_csv(path, dtype=str)
        same = (old["benchmark"] == benchmark) & (old["case"] == case)
        table = pd.concat([old[~same], table])
    with replacing(path) as stream:
        stream.write(table.to_csv(index=False).encode())


def profile(call: Callable) -> None:
    """Print where one call's time goes, operator by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


def added_memory(call: Callable) -> tuple[Any, float]:
    """What a call returns, and how far the process's memory rises meanwhile, in MB (on Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back, which would not count otherwise
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak()
    outcome = call()
    return outcome, peak() - before


def peak() -> float:
    """Peak memory of this process, in MB, since it began or since `added_memory` was last called."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def own_process(script: str, *arguments: object) -> Any:
    """What `python -m benchmarks.SCRIPT ARGUMENTS` prints as JSON: a new process has a peak of its own."""
    command = [sys.executable, "-m", f"benchmarks.{script}", *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def thread_clock(page: Any) -> Callable[[], float]:
    """A clock that tells the processor time of a browser page's thread, in ms."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def now() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(1e3 * metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    return now
