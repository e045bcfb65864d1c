"""`python -m tests.soak`: whether a long training stays as it began: memory, open files and speed flat.

    python -m tests.soak --minutes 60                        trains on small videos with workers for an hour, and watches
    python -m tests.soak --pid PID --history RUN/history.csv watches a training that runs already, until it ends

Every few seconds a row of the CSV is written: what the process and all its descendants hold. At the end a line through each
column says what changed from the first sample to the last; the exit status is 1 where something grew or slowed down.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

__all__ = ["COLUMNS", "main", "sample", "verdict", "watch"]

COLUMNS = ("seconds", "memory_mb", "handles", "threads", "processes", "cpu_seconds", "read_mb", "busy_seconds")
# What may change over the whole watch, as a share of the median and in units; more is growth, not noise.
ALLOWED = {"memory_mb": (0.03, 16.0), "handles": (0.0, 1.0), "threads": (0.0, 1.0), "processes": (0.0, 0.5)}
SLOWER = 0.10  # share by which the last third may be slower than the first
SHARED = 0.05  # of its processors that other programs may take in addition, before its speed says nothing


def sample(process: psutil.Process) -> dict[str, float]:
    """What a process and its descendants hold: memory in MB (shared pages divided among their holders), open handles, threads,
    processes, CPU seconds and MB read so far, and the seconds that its processors were busy with whatever. A descendant that
    ends meanwhile counts as absent."""
    total = dict.fromkeys(COLUMNS, 0.0) | {"seconds": time.monotonic()}
    cores = process.cpu_affinity()
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        total["busy_seconds"] += sum(times) - times.idle - times.iowait if core in cores else 0.0
    for member in [process, *process.children(recursive=True)]:
        try:
            with member.oneshot():
                times = member.cpu_times()
                held = (member.memory_full_info().pss / 2**20, member.num_fds(), member.num_threads(), 1,
                        times.user + times.system, member.io_counters().read_chars / 2**20)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        for name, value in zip(COLUMNS[1:], held):
            total[name] += value
    return total


def watch(pid: int, path: Path, *, seconds: float, every: float = 5.0) -> pd.DataFrame:
    """Sample a process until `seconds` have passed or it has ended; each row is in the file at once.

    Returns:
        `COLUMNS`, a row a sample; seconds count from the first.
    """
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise SystemExit(f"--pid {pid}: no such process") from None
    rows, start = [], time.monotonic()
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        while time.monotonic() - start < seconds:
            try:
                row = sample(process)
                alive = process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                break
            if not alive or row["processes"] == 0:
                break
            rows.append(row | {"seconds": row["seconds"] - start})
            writer.writerow({name: round(value, 2) for name, value in rows[-1].items()})
            stream.flush()
            time.sleep(every)
    return pd.DataFrame(rows, columns=COLUMNS)


def verdict(samples: pd.DataFrame, history: pd.DataFrame | None = None, *, warm: float = 60.0) -> tuple[list[str], list[str]]:
    """Lines that say what changed, and those of them that say that something is not flat.

    The first `warm` seconds (a third of a short watch) are left out: processes start, caches fill. The line through a column is
    Theil and Sen's (the median of the slopes between samples), which a checkpoint's moment does not move.

    Arguments:
        samples: as `watch` gives them.
        history: of the iterations done meanwhile (`history.csv`: iteration, seconds); without it the speed is that of reading.

    Returns:
        All lines, and those of what grew by more than `ALLOWED` or slowed down by more than `SLOWER`.
    """
    warm = min(warm, samples.seconds.max() / 3)
    samples = samples[samples.seconds >= warm]
    if len(samples) < 10:
        return ["too few samples to say anything"], ["too few samples"]
    # the last descendants end before the process does
    ended = samples.processes < samples.processes.median()
    samples = samples[~(ended & (samples.seconds > samples.seconds[~ended].max()))]
    duration = np.ptp(samples.seconds)
    lines, wrong = [f"{len(samples)} samples in {duration / 60:.1f} minutes, after the first {warm:.0f} seconds"], []
    for name, (share, units) in ALLOWED.items():
        change = _slope(samples.seconds, samples[name]) * duration
        typical = samples[name].median()
        line = (f"{name}: median {typical:.1f}, smallest {samples[name].min():.1f}, largest {samples[name].max():.1f}, "
                f"trend {change:+.2f} over the watch ({change / typical:+.2%})")
        lines.append(line)
        if change > share * typical + units:
            wrong.append(line)
    first, last = samples[: len(samples) // 3], samples[-(len(samples) // 3):]
    work = [np.ptp(part.cpu_seconds) / max(np.ptp(part.read_mb), 1e-6) for part in (first, last)]
    others = [(np.ptp(part.busy_seconds) - np.ptp(part.cpu_seconds)) / np.ptp(part.seconds) for part in (first, last)]
    lines.append(f"processors taken by other programs: {others[0]:.2f} in the first third, {others[1]:.2f} in the last")
    speeds = {"its processor seconds a MB read": work}
    if history is not None and len(history) >= 30:
        steps = np.diff(history.seconds)
        third = len(steps) // 3
        speeds[f"seconds an iteration ({len(steps)})"] = [steps[:third].mean(), steps[-third:].mean()]
    else:
        speeds["seconds a MB read"] = [np.ptp(part.seconds) / max(np.ptp(part.read_mb), 1e-6) for part in (first, last)]
    for name, (before, after) in speeds.items():
        line = f"{name}: {before:.4g} in the first third, {after:.4g} in the last ({after / before - 1:+.1%})"
        judged = others[1] - others[0] <= SHARED
        lines.append(line if judged else f"{line}, NOT JUDGED: other programs took more of the processors")
        if judged and after > (1 + SLOWER) * before:
            wrong.append(line)
    return lines, wrong


def _slope(x: pd.Series, y: pd.Series, most: int = 500) -> float:
    keep = np.linspace(0, len(x) - 1, min(len(x), most)).astype(int)
    x, y = x.to_numpy()[keep], y.to_numpy()[keep]
    low, high = np.triu_indices(len(x), 1)
    return float(np.median((y[high] - y[low]) / (x[high] - x[low])))


def _train(folder: Path, workers: int) -> None:
    from PIL import Image

    from dulvos.trainer import train
    from dulvos.training import TrainSettings
    from dulvos.videos import find_videos

    generator = np.random.default_rng(0)
    for video in range(8):
        (folder / "videos" / f"{video}").mkdir(parents=True)
        for frame in range(20):
            picture = Image.fromarray(generator.integers(0, 256, (60, 80, 3), np.uint8)).resize((320, 240))
            picture.save(folder / "videos" / f"{video}" / f"{frame:02d}.jpg")
    settings = TrainSettings(iterations=10_000_000, batch=4, frames=3, crop=64, scale_min=64, scale_max=96, grid=4,
                             cross_grid=2, workers=workers, checkpoint_minutes=1.0, lr=1e-5)
    train(settings, find_videos(folder / "videos"), folder / "run", device="cpu")


def main(arguments: list[str] | None = None) -> int:
    """Watch, print the lines, and return 1 where something is not flat."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="at most (default 60)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples (default 5)")
    parser.add_argument("--pid", type=int, help="watch this process and its descendants; without it, a training is started")
    parser.add_argument("--history", type=Path, help="history.csv of the watched training, for its speed")
    parser.add_argument("--workers", type=int, default=2, help="of the training that is started (default 2)")
    parser.add_argument("--out", type=Path, help="the CSV (default: a file in the system's folder for temporary ones)")
    options = parser.parse_args(arguments)
    out = options.out or Path(tempfile.gettempdir()) / f"soak-{options.pid or os.getpid()}.csv"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = None
        if options.pid is None:
            started = multiprocessing.get_context("spawn").Process(target=_train, args=(Path(folder), options.workers))
            started.start()
            options.pid, options.history = started.pid, Path(folder) / "run" / "history.csv"
        known = len(_history(options.history))
        print(f"watching process {options.pid} every {options.every:g} s for at most {options.minutes:g} minutes; rows in "
              f"{out}", flush=True)
        try:
            samples = watch(options.pid, out, seconds=60 * options.minutes, every=options.every)
        except KeyboardInterrupt:
            samples = pd.read_csv(out)
        ended = not psutil.pid_exists(options.pid) or (started is not None and not started.is_alive())
        if started is not None:
            for child in psutil.Process(started.pid).children(recursive=True) if not ended else ():
                child.terminate()
            started.terminate()
            started.join()
        history = _history(options.history)[known:]
    lines, wrong = verdict(samples, history)
    print("\n".join(lines))
    if started is not None and ended:
        wrong.append(f"the training ended by itself, status {started.exitcode}")
    print("FLAT" if not wrong else "\n".join(f"NOT FLAT: {line}" for line in wrong))
    return 1 if wrong else 0


def _history(path: Path | None) -> pd.DataFrame:
    return pd.read_csv(path) if path and path.is_file() else pd.DataFrame(columns=["iteration", "seconds"])


if __name__ == "__main__":
    sys.exit(main())
