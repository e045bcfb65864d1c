"""Every number of a result in README.md comes from a row; committed tables are those that the committed rows give."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dulvos.study import results, steps as study, tables
from dulvos.study import ablation
from dulvos.study.ablation import SCALES
from dulvos.study.rows import Study
from dulvos.movies import write_mp4
from tests.oracles import texture

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BENCHMARKS = pd.read_csv(ROOT / "results" / "benchmarks.csv")
# what is no result of ours, or a result without a row, each said why
NO_ROWS = {
    r"CC BY(-NC)? 4\.0": "a licence", r"Apache-2\.0": "a licence", r"[Pp]ython 3\.\d+": "a version",
    r"8\*i\* \+ 3\.5": "the method", r"−[\d.]+ in the paper": "the paper's",
    r"4[,\d]* of the paper|λ ?= ?[\d.]+|τ ?= ?[\d.]+": "the method",
    r"[\d.]+ (min|h) \(estimated\)": "an estimate, and said to be one",
    r"300,000 videos": "Kinetics-400", r"(up to )?[\d.]+ GB": "sizes of downloads and memory",
    r"[\d.]+ of [\d.]+ ms a frame": "benchmarks.clips --profile prints it and leaves no row",
    r"[\d.]+ ms at \d+ frames": "benchmarks.explorer prints it and leaves no row",
    r"in a browser after [\d.]+ s and [\d.]+ s": "benchmarks.clicks prints it and leaves no row",
    r"takes [\d.]+ s a frame at `--shorter-side 480` and [\d.]+ s at 240": "the command prints it and leaves no row",
}
COUNTED = "sequences|frames|objects|iterations|minutes|min|runs|videos|J&F|MB"
TIME = re.compile(r" (?:(s\b)|(min\b|minutes\b)|(h\b|hours\b|CPU hours\b|core hours\b))")
UNITS = (1, 60, 3600)
NUMBER = re.compile(rf"(?<![\w.,²×/-])[+-]?(\d[\d,]*\.\d+|\d[\d,]*(?= (?:{COUNTED})\b)|(?<=J&F )\d+)(?![\d.]*\w)")


def sections() -> Iterator[tuple[str, str]]:
    """(title, text) of README's sections, without code, addresses and what `NO_ROWS` names."""
    for text in re.split(r"^(?=##? )", README, flags=re.M)[1:]:
        title = text.splitlines()[0].lstrip("# ")
        text = re.sub("|".join(NO_ROWS), "", re.sub(r"```.*?```", "", text, flags=re.S))
        yield title, re.sub(r"\]\([^)]*\)", "]", text)


def values_of(name: str) -> tuple[list[float], list[float]]:
    """What the rows of a study say: scores in percent and their differences, counts, settings; and times in seconds."""
    rows, values, times = results.read_rows(name), [], []
    grids = [grid for grid in SCALES.values() if grid.folder == name]
    if rows.empty:
        return [], []
    scores = [column for column in ("scores.J&F-Mean", "scores.J-Mean", "scores.F-Mean") if column in rows]
    for column in scores:
        percents = [round(100 * score, 1) for score in rows[column].dropna()]
        # in a grid every difference would be some pair's: there the effects count
        values += percents + [a - b for a in percents for b in percents if not grids]
    for column in ("sequences", "objects", "frames", "iterations", "videos", "training_iteration", "parameters.iterations",
                   "parameters.batch", "parameters.crop", "peak_memory_mb"):
        values += list(rows[column].dropna()) if column in rows else []
    for column in ("cpu_seconds", "training_cpu_seconds"):
        times += list(rows[column].dropna()) if column in rows else []
    times += [*rows.seconds.dropna(), rows.seconds.sum()]
    times += list(rows.seconds_per_frame.dropna()) if "seconds_per_frame" in rows else []
    values.append(len(rows))
    for grid in grids:
        found = ablation.effects(Study(name, ROOT / "results"), grid)
        base = 100 * rows.loc[rows["name"].str.startswith("baseline"), "scores.J&F-Mean"].dropna()
        values += [base.mean(), base.max() - base.min(), *found.ours.dropna().abs(), *found.visible.dropna()]
    return values + [setting for settings in _settings(name) for setting in settings], times


def _settings(name: str) -> Iterator[list[float]]:
    if name in ("demo", "davis"):
        for step in study.demo_steps() if name == "demo" else study.davis_steps("cpu"):
            yield [value for value in step.parameters.values() if isinstance(value, int | float)]


def values_for(text: str) -> tuple[list[float], list[float]]:
    """The values, and times in seconds, that a section may take its numbers from: those of the results that it names."""
    named = set(re.findall(r"results/([\w-]+)", text))
    named |= {name for name, words in {"demo": "run_all.sh`", "davis": "DAVIS-2016"}.items() if words in text}
    values: list[float] = []
    times: list[float] = []
    for name in sorted(named):
        if (ROOT / "results" / name / "rows").is_dir():
            found = values_of(name)
            values, times = values + found[0], times + found[1]
    if "benchmarks.csv" in text:
        measured = BENCHMARKS[["ours", "plain", "ratio", "ours_mb", "plain_mb"]]
        found = measured.stack().tolist()
        values, times = values + found + [value / 1000 for value in found] + [100.0, 1000.0], times + found
    return values, times


def matches(number: str, values: list[float]) -> bool:
    """Whether a number is one of the values, rounded as it is."""
    digits = len(number.partition(".")[2])
    return any(abs(float(number.replace(",", "")) - value) <= 0.5 * 10**-digits + 1e-9 for value in values)


@pytest.mark.parametrize("title", [title for title, _ in sections()])
def test_every_number_comes_from_a_row(title: str) -> None:
    text = dict(sections())[title]
    values, times = values_for(text)
    prose = re.sub(r"`[^`]*`", "", text)
    strange = []
    for number in NUMBER.finditer(prose):
        unit = TIME.match(prose, number.end())
        found = [time / UNITS[unit.lastindex - 1] for time in times] if unit else values
        strange += [] if matches(number[1], found) else [number[0]]
    assert not strange, f"{title}: from no row of the results that this section names: {', '.join(strange)}"


def test_a_wrong_digit_would_be_noticed() -> None:
    values = [round(100 * score, 1) for score in results.read_rows("davis")["scores.J&F-Mean"].dropna()]
    assert all(matches(f"{value:.1f}", values) and not matches(f"{value + 0.1:.2f}", values) for value in values)
    assert NUMBER.findall("| **67.0** | 1,376 frames, J&F 50 at 480p, DAVIS-2016, 256² from 1.5 to 2.25 s") == \
        ["67.0", "1,376", "50", "1.5", "2.25"]


def test_the_first_table_is_that_of_the_newest_rows() -> None:
    """Method for method, cell for cell."""
    lines = [line.strip("| ").split("|") for line in README.split("\n## ")[0].splitlines() if line.startswith("|")]
    header, shown = [cell.strip() for cell in lines[0]], [[cell.strip(" *") for cell in line] for line in lines[2:]]
    ours = tables.to_text(tables.study_table(results.read_rows("davis"))).set_index("method")
    names = {"first mask copied": "first mask copied", "raw colours": "raw colours", "random": "random features",
             "trained": "trained features"}
    assert len(shown) >= 4
    for line in shown:
        method = next(names[start] for start in names if line[0].startswith(start))
        for column, cell in zip(header[1:], line[1:]):
            assert cell == ours.loc[method, column], f"{line[0]}, {column}"
        assert ("†" in line[0]) == ours.loc[method, "state"].startswith("†"), f"{line[0]}: {ours.loc[method, 'state']}"


def test_the_benchmarks_table_is_that_of_the_rows() -> None:
    """By the command that its last cell gives: our time, the plain way's, the ratio."""
    section = next(part for part in README.split("\n## ") if "benchmarks.csv" in part)
    lines = [line.strip("| ").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(lines) >= 5
    for line in lines:
        rows = BENCHMARKS[BENCHMARKS.command == line[-1].strip(" `")]
        numbers = [re.search(r"[\d.]+", cell)[0] for cell in line[1:4]]
        assert any(all(matches(number, [row[column]]) for number, column in zip(numbers, ("ours", "plain", "ratio")))
                   for _, row in rows.iterrows()), f"no row of benchmarks.csv says so: {'|'.join(line)}"


@pytest.mark.parametrize("name", ["demo", "davis"])
def test_committed_tables_are_those_of_the_committed_rows(name: str, tmp_path: Path) -> None:
    """Marks of earlier code too: a change of code makes them stale. `write_tables` brings them up to date."""
    tables.write_tables(Study(name, ROOT / "results"), tmp_path)
    remedy = f"python -c \"from dulvos.study.tables import Study, write_tables; write_tables(Study('{name}'))\""
    _same(tmp_path, results.study_folder(name) / "tables", remedy)


@pytest.mark.parametrize("name", ["demo", "davis"])
def test_the_grid_s_committed_tables_are_those_of_the_committed_rows(name: str, tmp_path: Path) -> None:
    scale = SCALES[name]
    ablation.write_tables(Study(scale.folder, ROOT / "results"), scale, tmp_path)
    _same(tmp_path, ROOT / "results" / scale.folder / "tables", "notebooks/03_ablation.ipynb")


def _same(made: Path, committed: Path, remedy: str) -> None:
    different = [path.name for path in sorted(made.iterdir())
                 if not (committed / path.name).is_file() or (committed / path.name).read_text() != path.read_text()]
    assert not different, f"{committed}: {', '.join(different)} are not what the rows give; make them anew: {remedy}"


def test_the_api_as_printed_carries_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the commonest mask, of 0 and 255."""
    code, = (block for block in re.findall(r"```python\n(.*?)```", README, flags=re.S))
    frames = [texture(t, 48, 64) for t in range(3)]
    write_mp4(tmp_path / "clip.mp4", frames, 24)
    mask = np.zeros((48, 64), np.uint8)
    mask[8:30, 10:40] = 255
    cv2.imwrite(str(tmp_path / "first.png"), mask)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert len(names["masks"]) == 3 and np.array_equal(names["masks"][0], mask > 0)
