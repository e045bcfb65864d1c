"""Times two ways of one computation in turn, and leaves a row in results/benchmarks.csv."""

from __future__ import annotations

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from dulvos.files import replacing
from dulvos.study.rows import Study, provenance

COLUMNS = (
    "benchmark",
    "case",
    "ours",
    "ours_low",
    "ours_high",
    "plain",
    "plain_low",
    "plain_high",
    "unit",
    "ratio",
    "ours_mb",
    "plain_mb",
    "difference",
    "runs",
    "threads",
    "torch",
    "commit",
    "dirty",
    "date",
    "command",
)


def compare(
    benchmark: str,
    case: str,
    ours: Callable,
    plain: Callable | None,
    *,
    runs: int = 5,
    difference: Callable | None = None,
    per: float = 1,
    unit: str = "s",
    ours_mb: float | None = None,
) -> dict:
    """Run both once, then `runs` times in turn; print and write medians, spread, ratio and peak memory.

    Memory is what the first call of each adds (`added_memory`).

    Arguments:
        ours, plain: without arguments; what they return goes to `difference` once.
        per: divides the seconds (frames, objects …), as `unit` says.
    """
    ways, memory, outcome = {"ours": ours, "plain": plain}, {}, {}
    ways = {name: way for name, way in ways.items() if way}
    for name, way in ways.items():
        outcome[name], memory[name] = added_memory(way)
    apart = difference(outcome["ours"], outcome["plain"]) if difference else None
    del outcome
    times = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - started) / per)
    return report(
        benchmark, case, times, memory | ({} if ours_mb is None else {"ours": ours_mb}), unit, apart
    )


def report(
    benchmark: str,
    case: str,
    times: dict[str, list[float]],
    memory: dict[str, float],
    unit: str = "s",
    difference: float | None = None,
) -> dict:
    """Print one comparison and replace its row in results/benchmarks.csv."""
    came = provenance("evaluate", {})
    row = {
        "benchmark": benchmark,
        "case": case,
        "unit": unit,
        "runs": len(times["ours"]),
        "threads": torch.get_num_threads(),
        "torch": came["versions"]["torch"],
        "commit": came["commit"][:10],
        "dirty": came["dirty"],
        "date": came["date"],
        "command": "python -m "
        + " ".join(
            [
                f"benchmarks.{Path(sys.argv[0]).stem}",
                *("DIR" if Path(word).is_dir() else word for word in sys.argv[1:]),
            ]
        ),
    }
    for name, values in times.items():
        row |= {
            name: f"{statistics.median(values):.4g}",
            f"{name}_low": f"{min(values):.4g}",
            f"{name}_high": f"{max(values):.4g}",
        }
        row[f"{name}_mb"] = f"{memory[name]:.0f}" if name in memory else ""
        print(
            f"{benchmark}, {case}: {name:5s} {row[name]} {unit} "
            f"({row[f'{name}_low']} to {row[f'{name}_high']})"
            + f", +{row[f'{name}_mb']} MB" * (name in memory),
            flush=True,
        )
    if "plain" in times:
        row["ratio"] = f"{statistics.median(times['plain']) / statistics.median(times['ours']):.3g}"
        print(f"{benchmark}, {case}: {row['ratio']} times faster", flush=True)
    if difference is not None:
        row["difference"] = f"{difference:.1e}"
        print(f"{benchmark}, {case}: greatest difference {difference:.1e}", flush=True)
    _replace(row)
    return row


def profile(call: Callable, rows: int = 14) -> None:
    """Print where one call's time goes, operator by operator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:rows]:
        print(
            f"{event.key:40s} {event.self_cpu_time_total / 1e6:8.3f} s "
            f"{100 * event.self_cpu_time_total / total:5.1f} % "
            f"{event.count:6d} calls"
        )


def added_memory(call: Callable) -> tuple[object, float]:
    """What a call returns, and how far the process's memory rises meanwhile, in MB (on Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is given back, and would not count otherwise
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = peak()
    outcome = call()
    return outcome, peak() - before


def peak() -> float:
    """Peak memory of this process, in MB, since it began or since `added_memory` was last called."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _replace(row: dict) -> None:
    path = Study("benchmarks").results / "benchmarks.csv"
    table = pd.DataFrame([row], columns=COLUMNS, dtype=str)
    if path.exists():
        old = pd.read_csv(path, dtype=str)
        same = (old["benchmark"] == row["benchmark"]) & (old["case"] == row["case"])
        table = pd.concat([old[~same], table])
    with replacing(path) as stream:
        stream.write(table.to_csv(index=False).encode())
