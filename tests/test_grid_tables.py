"""Effects and claims of the grid, from rows out of thin air; and the figures that are drawn from them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from dulvos.study import results
from dulvos.study.ablation_figures import claims_figure, small_multiples, star
from dulvos.study.ablation import EDGES, GridStudy
from dulvos.study.ablation_states import STALE, Run, grid_runs
from dulvos.study.ablation_tables import (CLAIMS, baseline_is_stale, baseline_scores, baseline_values, claims_table, effects, effects_table)
from dulvos.study.ablation_tables import findings, write_tables
from tests import fake_grid

SCORES = {"baseline-0": 49.0, "baseline-1": 50.0, "baseline-2": 51.0, "B40T1-0": 42.0, "B20T2-0": 48.0, "lam0-0": 44.5,
          "lam1-0": 46.0, "N4-0": 56.0, "T15-0": 49.5, "no-jitter-0": 44.0, "ordered-0": 44.0, "layer-norm-0": 50.5,
          "random-0": 40.0}
DEVIATION = math.sqrt(1 + 1 / 3)  # of a difference: the seeds' own is 1
VISIBLE = 4.303 * DEVIATION  # Student's t with two degrees of freedom at 97.5 %: 4.97


def with_scores(grid: GridStudy, folder: Path, scores: dict[str, float]) -> list[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "RESULTS", folder)
        for run in grid_runs(grid):
            if run.name in scores:
                fake_grid.write_rows(grid, run, scores[run.name])
        return grid_runs(grid)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> GridStudy:
    return fake_grid.tiny_grid(fake_grid.write_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def every(grid: GridStudy, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return with_scores(grid, tmp_path_factory.mktemp("results"), SCORES)


@pytest.fixture(scope="module")
def nothing(grid: GridStudy, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    return with_scores(grid, tmp_path_factory.mktemp("nothing"), {})


def test_effects_are_differences_from_the_mean_over_seeds(grid: GridStudy, every: list[Run]) -> None:
    table = effects(grid, every).set_index("name")
    assert baseline_scores(every).tolist() == pytest.approx([49, 50, 51])
    assert table.ours["lam0"] == pytest.approx(-5.5) and table.paper["lam0"] == -2.3
    assert table.deviation["lam0"] == pytest.approx(DEVIATION) and table.visible["lam0"] == pytest.approx(VISIBLE, rel=1e-3)
    assert table.ours["N16"] is None and table.deviation["N16"] is None and table.score["N16"] is None


@pytest.mark.parametrize(("name", "sign"), [
    ("B40T1", "agrees"),  # -8, the paper's -9.3
    ("B20T2", "not stated"),
    ("lam0", "agrees"),  # -5.5, beyond 4.97
    ("lam1", "within the deviation"),  # -4: three deviations, but of three seeds
    ("N4", "opposite"),  # +6, the paper's -8.2
    ("M8", "not run"),
    ("T15", "agrees"),  # the paper sees no difference, and we none that shows
])
def test_signs(grid: GridStudy, every: list[Run], name: str, sign: str) -> None:
    assert effects(grid, every).set_index("name").sign[name] == sign


@pytest.mark.parametrize(("claim", "verdict"), [("jitter", "agrees"), ("order", "differs"), ("LayerNorm", "agrees"),
                                                ("regularising", "not run"), ("Random", "-")])
def test_verdicts(grid: GridStudy, every: list[Run], claim: str, verdict: str) -> None:
    table = claims_table(grid, every)
    line = table[table.claim.str.contains(claim)].iloc[0]
    assert line.verdict == verdict and line.scale == f"tiny, {grid.scale}"


def test_a_claim_is_decided_by_the_point_that_is_the_claim(grid: GridStudy, tmp_path: Path) -> None:
    """"View 2 is only flipped" says something beside, not that the branch was left out."""
    made = with_scores(grid, tmp_path, {**SCORES, "no-crop-0": 30.0})
    lines = claims_table(grid, made).set_index("claim")
    line = next(line for claim, line in lines.iterrows() if "regularising" in claim)
    assert "-20.0 ± 1.2" in line["we see (J&F)"] and line.verdict == "not run"


def test_findings_say_each_point_and_claim_once_under_its_verdict(grid: GridStudy, every: list[Run], nothing: list[Run]) -> None:
    lines = {line.split(":**")[0].removeprefix("- **"): line for line in findings(grid, every).splitlines()}
    assert "λ=0 -5.5 (the paper -2.3)" in lines["As in the paper"] and "“LayerNorm" in lines["As in the paper"]
    assert "N=4 +6.0 (the paper -8.2)" in lines["The other way round than in the paper"]
    assert "λ=1 -4.0" in lines["Too small to tell from another seed"] and "M=8" in lines["Not run"]
    assert "“The order of frames does not matter”" in lines["An effect where the paper sees none"]
    points = sum(run.point.varied in EDGES for run in every)
    items = sum(line.count("; ") + 1 for line in lines.values() if line.startswith("- "))
    assert items == points + len(CLAIMS)
    assert findings(grid, nothing).startswith("0 of ") and "As in" not in findings(grid, nothing)
    assert "mean nothing" in findings(dataclasses.replace(grid, meaningless=True), every)
    old = [dataclasses.replace(run, state=STALE) if run.name in ("lam0-0", "layer-norm-0") else run for run in every]
    said = findings(grid, old)
    assert "(the paper -2.3) †" in said and "“LayerNorm in the head changes little” †" in said and said.count("†") == 2


def test_a_baseline_of_earlier_code_marks_every_difference_and_counts_only_without_another(grid: GridStudy, every: list[Run]) -> None:
    def made_before(*names: str) -> list[Run]:
        return [dataclasses.replace(run, state=STALE) if run.name in names else run for run in every]

    one = made_before("baseline-0")
    assert baseline_scores(one).tolist() == pytest.approx([50, 51]) and not set(effects(grid, one).state) & {STALE}
    old = made_before("baseline-0", "baseline-1", "baseline-2")
    found = effects(grid, old)
    assert baseline_scores(old).tolist() == pytest.approx([49, 50, 51])
    assert set(found.state[found.ours.notna()]) == {STALE} and "done" in set(effects(grid, every).state)
    assert effects_table(grid, old).state.iloc[0] == "3 of 3 seeds †" and "†" not in effects_table(grid, every).state.iloc[0]
    shown = texts(star(found, "", baseline_scores(old), stale=baseline_is_stale(old)))
    assert "50.0 ± 1.0 †" in shown and "\N{MINUS SIGN}5.5†" in shown
    assert texts(small_multiples(found, baseline_values(grid), baseline_scores(old))).count("†") == sum(
        found.ours.notna() & found.varied.isin(EDGES))
    assert {tick.get_text()[-1] for tick in claims_figure(found[found.ours.notna()]).axes[0].get_yticklabels()} == {"†"}


def test_no_difference_has_no_sign(grid: GridStudy, tmp_path: Path) -> None:
    made = with_scores(grid, tmp_path, {"baseline-0": 50.0, "baseline-1": 50.0, "M2-0": 49.98})
    assert "| M | M=2 | 50.0 | +0.0 |" in _markdown(grid, made, tmp_path)
    assert "+0.0" in texts(star(effects(grid, made), "", baseline_scores(made)))


def _markdown(grid: GridStudy, made: list[Run], folder: Path) -> str:
    write_tables(grid, made, folder)
    return (folder / "fig3.md").read_text()


def test_one_seed_has_no_deviation(grid: GridStudy, tmp_path: Path) -> None:
    table = effects(grid, with_scores(grid, tmp_path, {"baseline-0": 50.0, "lam0-0": 48.0})).set_index("name")
    assert table.deviation["lam0"] is None and table.sign["lam0"] == "agrees, deviation unknown"


def test_demo_numbers_mean_nothing(grid: GridStudy, every: list[Run], tmp_path: Path) -> None:
    demo = dataclasses.replace(grid, meaningless=True)
    assert set(effects(demo, every).sign) == {"means nothing", "not run"}
    assert set(claims_table(demo, every).verdict) == {"means nothing", "not run"}
    write_tables(demo, every, tmp_path)
    assert "These numbers mean nothing" in (tmp_path / "fig3.md").read_text()


def test_tables_are_written_whole(grid: GridStudy, every: list[Run], nothing: list[Run], tmp_path: Path) -> None:
    write_tables(grid, every, tmp_path)
    table = pd.read_csv(tmp_path / "fig3.csv").set_index("setting")
    assert table["J&F"].iloc[0] == pytest.approx(50) and table.deviation.iloc[0] == pytest.approx(1)
    assert table.state.iloc[0] == "3 of 3 seeds" and table.state["M=8"] == "not run" and table.paper["M=2"] == "not stated"
    assert "| λ | λ=0 | 44.5 | -5.5 | 1.2 | -2.3 | agrees | run |" in (tmp_path / "fig3.md").read_text()
    assert len(pd.read_csv(tmp_path / "claims.csv")) == len(CLAIMS)
    assert effects_table(grid, nothing)["J&F"].isna().all() and set(claims_table(grid, nothing).verdict) == {"not run"}


def test_every_claim_has_points_and_every_such_point_a_claim(grid: GridStudy, every: list[Run]) -> None:
    points = [name for claim in CLAIMS for name in claim.points]
    assert sorted(points) == sorted({run.point.name for run in every if run.point.varied == "claim"})


# figures

def texts(figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_the_star_shows_each_point_once_and_says_what_was_not_run(grid: GridStudy, every: list[Run]) -> None:
    shown = texts(star(effects(grid, every), every[0].point.label, baseline_scores(every)))
    assert shown.count("λ=0") == 1 and "\N{MINUS SIGN}5.5" in shown and "paper\n\N{MINUS SIGN}2.3" in shown
    assert "50.0 ± 1.0" in shown and "+6.0" in shown
    points = effects(grid, every)
    assert shown.count("not run") == points[points.varied != "claim"].ours.isna().sum()


def test_panels_place_ours_beside_the_paper_s(grid: GridStudy, every: list[Run]) -> None:
    figure = small_multiples(effects(grid, every), baseline_values(grid), baseline_scores(every))
    axes = dict(zip(EDGES, figure.axes))
    assert [tick.get_text() for tick in axes["λ"].get_xticklabels()] == ["0", "0.1", "1"]
    heights = [container.lines[0].get_ydata().tolist() for container in axes["λ"].containers]
    assert heights == [[0.0], pytest.approx([-5.5, -4.0]), [-2.3, -0.8, 0.0]]
    assert texts(figure).count("not run") == 5  # B=4 T=10, N=16, M=2, M=8, T=10


def test_figures_of_nothing_say_so(grid: GridStudy, nothing: list[Run]) -> None:
    found, scores = effects(grid, nothing), baseline_scores(nothing)
    figures = [star(found, "", scores), small_multiples(found, baseline_values(grid), scores), claims_figure(found, "careful")]
    counts = [sum(text.startswith("not run") for text in texts(figure)) for figure in figures]
    assert counts == [12, 11, len(found) - 11]
    assert figures[2].get_suptitle() == "careful"


