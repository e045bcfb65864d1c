"""The ablation grid: its points from the CSV file, and effects and verdicts from invented rows."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from dulvos.errors import InputError
from dulvos.inference import SegmentSettings
from dulvos.study import ablation
from dulvos.study.ablation import EDGES, SCALES, Scale, claims, effects, points
from dulvos.study.rows import NOT_RUN, Study, flat, version

PAPER = SCALES["paper"]
TINY = dataclasses.replace(
    SCALES["davis"], name="tiny", inference={}, seeds=[3, 1, 1], words="eight iterations",
    training={"iterations": 8, "batch": 8, "frames": 5, "crop": 128, "scale_min": 128, "scale_max": 128})
SCORES = {"baseline": [49, 50, 51], "B40T1": [42], "B20T2": [48], "lam0": [44.5], "lam1": [46], "N4": [56],
          "T15": [49.5], "no-crop": [30], "no-jitter": [44], "ordered": [44], "layer-norm": [50.5],
          "tau0.1": [50.1], "random": [40]}
VERDICTS = {  # of SCORES
    "baseline": "-", "B20T2": "not stated", "M8": NOT_RUN, "ordered": "differs", "random": "-",
    "B40T1": "agrees",  # -8, the paper's -9.3
    "lam0": "agrees",  # -5.5, beyond 4.97
    "lam1": "too small to tell",  # -4: three deviations, but of three seeds
    "N4": "opposite",  # +6, the paper's -8.2
    "T15": "no effect seen",  # neither the paper nor we see a difference
    "no-jitter": "agrees"}
CSV = Path(ablation.__file__).with_suffix(".csv")
DEVIATION = math.sqrt(1 + 1 / 3)  # of one seed minus the mean of three, if a seed deviates by 1
VISIBLE = 4.303 * DEVIATION  # Student's t at 97.5 % with two degrees of freedom: 4.97


def write_scores(study: Study, scores: dict[str, list[float]], *, old: tuple = (), old_kind: str = "evaluate",
                 **fields) -> None:
    """The rows of a training and an evaluation for each score (J&F in percent) of each point."""
    for point in points(TINY):
        for seed, score in enumerate(scores.get(point.name, ())):
            name, key = f"{point.name}-{seed}", f"t-{point.trained}-{seed}" if point.trained else ""
            row = {"study": study.name, "name": name, "seed": seed, "data": "tiny", "fingerprint": "f",
                   "features": f"trained:{point.trained}-{seed}" if key else point.features,
                   "trained_key": key, "date": "2026-01-01", "scores": {"J&F-Mean": score / 100}, **fields}
            runs = [("evaluate", f"e-{name}", SegmentSettings(**point.inference))]
            runs += [("train", key, dataclasses.replace(point.settings, seed=seed))] if key else []
            for kind, made, settings in runs:
                row |= {"kind": kind, "key": made, "parameters": dataclasses.asdict(settings)}
                stale = kind == old_kind and name in old
                study.write({**row, "version": -1 if stale else version(kind, flat(row))})


def line(study: Study, name: str, scale: Scale = TINY) -> pd.Series:
    return effects(study, scale).set_index("name").loc[name]


def test_the_papers_grid_is_the_papers() -> None:
    """(B, T) at B·T = 80, λ, N, M and T at B = 16; every difference that the text states, and no other."""
    grid = {point.name: point for point in points(PAPER)}
    base = grid["baseline"]
    assert base.label == "B=16 T=5 λ=0.1 N=8 M=4" and base.seeds == 5
    pairs = [(p.settings.batch, p.settings.frames) for p in grid.values() if p.varied == "B, T"]
    assert pairs == [(80, 1), (40, 2), (8, 10)]
    for edge, values in {"λ": [0, 1], "N": [4, 16], "M": [2, 8], "T": [10, 15]}.items():
        assert [getattr(p.settings, EDGES[edge]) for p in grid.values() if p.varied == edge] == values
    stated = {name: p.line["paper"] for name, p in grid.items() if p.line["paper"] is not None}
    assert stated == {"B80T1": -9.3, "lam0": -2.3, "lam1": -0.8, "N4": -8.2, "M8": -1.5, "T15": 0}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_every_point_is_one_change(scale: Scale) -> None:
    base, *others = points(scale)
    for point in others:
        settings = dataclasses.asdict(point.settings)
        changed = {name for name, value in settings.items() if value != getattr(base.settings, name)}
        lengths = {"iterations", "lr_every"} if scale.lengths == "epochs" else set()
        allowed = {"B, T": {"batch", "frames", *lengths}}
        setting = EDGES.get(point.varied)
        assert changed <= allowed.get(point.varied, {setting}) if setting else len(changed) <= 2, point.name
        assert bool(changed) + (point.inference != base.inference) + (point.features == "random") == 1
        expected = {"random": "", "res3": "baseline", "key": "baseline"}
        assert point.trained == expected.get(point.name, point.name)


def test_epochs_stay_where_lengths_are_epochs() -> None:
    """80 clips a batch see each video as often as 16 do in a fifth of the iterations; small scales differ."""
    for point in points(PAPER):
        settings = point.settings
        for length, epochs in ((settings.iterations, 500), (settings.lr_every, 100)):
            assert abs(length * settings.batch - epochs * 3471) <= 80, f"{point.name}: but for a batch"
    assert {point.settings.iterations for point in points(SCALES["davis"])} == {400}


def test_a_scale_may_plan_some_points_only() -> None:
    scale = SCALES["davis-long"]
    assert {point.name for point in points(scale) if point.seeds} == {*scale.only}


@pytest.mark.parametrize(("added", "message"), [
    ("a,claim,a,lamb=1", "lamb"), ("a,claim,a,lam=-1", "lam"), ("a,claim,a,layer=res9", "layer"),
    ("a,Q,a,lam=1", "varied"), ("a,baseline,a,lam=1", "baseline"), ("a,claim,a,lam=1,,−2.3", "−2.3"),
    ("a,claim,a,lam", "name=value"), ("M2,M,M=2,cross_grid=2", "M2"), ("a{b},claim,a,lam=1", "b"),
    ("a,claim,a,lam=1,,,c,w,s,higher", "expected"), ("a,\"B, T\",a,grid=4", "frames"),
    ("T0,\"B, T\",a,frames=0", "frames"), ("a,\"B, T\",a,frames=3", "frames"),
    ("a,claim,,lam=1", "label"), (",claim,a,lam=1", "name"),
    ("a,claim,{lam.a},lam=1", "'a'"), ("a,claim,a,lam=1,random", "leave out lam"),
    ("a,claim,a,precision=fp32", "precision"), ("a,claim,a,seed=1", "seed")])
def test_a_wrong_line_of_the_csv_is_named(tmp_path: Path, added: str, message: str) -> None:
    path = tmp_path / "ablation.csv"
    path.write_text(CSV.read_text() + added + "\n")
    lines = len(CSV.read_text().splitlines())
    with pytest.raises(InputError, match=rf"ablation\.csv, line {lines + 1}: .*{message}"):
        points(TINY, path)


def test_a_csv_without_points_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ablation.csv"
    path.write_text(CSV.read_text().partition("\n")[0])
    with pytest.raises(InputError, match="ablation.csv"):
        points(TINY, path)


def test_effects_are_differences_of_means_over_seeds(study: Study) -> None:
    numbers = ["score", "ours", "deviation", "visible"]
    write_scores(study, SCORES)
    assert line(study, "lam0")[numbers].tolist() == pytest.approx([44.5, -5.5, DEVIATION, VISIBLE], rel=1e-3)
    write_scores(study, {"N4": [56, 57, 58], "M2": [47, 49]})
    table = effects(study, TINY).set_index("name")
    assert table.loc["baseline", ["seeds", "state"]].tolist() == [3, "3 of 3 seeds"]
    # a seed's variance, from 2 + 2 + 1 degrees of freedom: (2·1 + 2·1 + 1·2) / 5; t = 2.571
    seed = math.sqrt(6 / 5)
    assert table.loc["baseline", numbers].dropna().tolist() == pytest.approx([50, seed])
    for name, own in {"lam0": [44.5, -5.5, 1], "M2": [48, -2, 2], "N4": [57, 7, 3]}.items():
        deviation = seed * math.sqrt(1 / own.pop() + 1 / 3)
        own += [deviation, 2.571 * deviation]
        assert table.loc[name, numbers].tolist() == pytest.approx(own, rel=1e-3)
    assert table.loc["N16", ["score", "ours", "deviation", "state"]].tolist() == [None, None, None, NOT_RUN]
    assert table.loc["N4", "state"] == "3 of 3 seeds"
    write_scores(study, {"res3": [51]})  # the baseline's own network
    assert line(study, "res3")[["ours", "deviation", "visible"]].tolist() == [1, None, None]
    planned = dataclasses.replace(TINY, seeds=(3, 3, 1))
    assert line(study, "M2", planned).state == "2 of 3 seeds"


def test_verdicts(study: Study) -> None:
    write_scores(study, SCORES)
    found = effects(study, TINY).set_index("name")["verdict"]
    assert found[[*VERDICTS]].to_dict() == VERDICTS
    meaningless = effects(study, dataclasses.replace(TINY, name="demo"))
    assert set(meaningless["verdict"]) == {"-", "means nothing", NOT_RUN}


def test_a_claim_has_the_verdicts_of_all_its_points_that_were_run(study: Study) -> None:
    write_scores(study, SCORES)
    table = claims(effects(study, TINY)).set_index("where")
    assert table.loc["Sec. 3.5", "verdict"].tolist() == ["agrees", "agrees", "differs"]
    assert "-20.0 ± 1.2" in table.loc["Sec. 3.5", "we see (J&F)"].iloc[0]
    assert table.loc["Sec. 4", "verdict"] == "no effect seen"
    assert "80 % of the baseline" in table.loc["App. D, Table 1", "we see (J&F)"]
    write_scores(study, {"tau0.025": [40], "no-branch": [54]})
    table = claims(effects(study, TINY)).set_index("where")
    assert table.loc["Sec. 4", "verdict"] == "differs, no effect seen"
    assert table.loc["Sec. 3.5", "verdict"].iloc[0] == "too small to tell, agrees"
    found = effects(study, TINY)
    unclaimed = found.assign(claim=found["claim"].mask(found["name"] == "tau0.1", None))
    assert claims(unclaimed).set_index("claim").loc["τ=0.1 in training", "verdict"] == "no effect seen"


def test_rows_of_earlier_code_are_marked_and_count_only_without_others(study: Study) -> None:
    write_scores(study, SCORES, old=("baseline-0", "lam0-0"))
    table = effects(study, TINY).set_index("name")
    assert table.loc["baseline", ["score", "state"]].tolist() == [50.5, "2 of 3 seeds"]
    assert table.loc["lam0", "state"].startswith("†") and table.loc["lam1", "state"] == "run"
    write_scores(study, SCORES, old=("baseline-0", "baseline-1", "baseline-2"))
    table = effects(study, TINY)
    assert table["score"].iloc[0] == 50 and table.loc[table["seeds"] > 0, "state"].str.startswith("†").all()
    assert "†" in claims(table)["we see (J&F)"].iloc[0]
    write_scores(study, SCORES, old=("lam0-0",), old_kind="train")
    assert line(study, "lam0").state.startswith("†") and line(study, "lam1").state == "run"


def test_a_row_counts_for_its_own_settings_and_data_only(study: Study) -> None:
    write_scores(study, {"baseline": [50, 51], "lam0": [48]})
    assert line(study, "lam0").ours == pytest.approx(-2.5) and line(study, "N4").seeds == 0
    longer = dataclasses.replace(TINY, training={**TINY.training, "iterations": 9})
    assert not effects(study, longer)["seeds"].sum()
    write_scores(study, {"N4": [48]}, snapshot=4)
    assert line(study, "N4").seeds == 0
    write_scores(study, {"M2": [60]}, features="trained")
    (study.folder / "rows/train-M2-0-t-M2-0.json").unlink()
    assert [line(study, name).seeds for name in ("M2", "N4", "baseline")] == [0, 0, 2]
    write_scores(study, {"lam1": [40]}, fingerprint="of other data", date="2026-02-02")
    assert [line(study, name).seeds for name in ("baseline", "lam0", "lam1")] == [0, 0, 1]


def test_a_row_from_before_a_setting_had_its_default_and_one_seed_has_no_deviation(study: Study) -> None:
    write_scores(study, {"baseline": [50], "lam0": [48]})
    for path in (study.folder / "rows").glob("train-*.json"):
        path.write_text("\n".join(part for part in path.read_text().splitlines() if "view_flip" not in part))
    found = line(study, "lam0")
    assert found.ours == pytest.approx(-2) and found.deviation is None
    assert found.verdict == "deviation unknown"


def test_tables_are_written_with_rows_and_without(study: Study, tmp_path: Path) -> None:
    made = ablation.write_tables(study, TINY, tmp_path / "out")
    assert set(made["claims"]["verdict"]) == set(made["fig3"]["state"]) == {NOT_RUN}
    write_scores(study, {**SCORES, "M2": [49.98]})
    ablation.write_tables(study, TINY, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "fig3.csv").set_index("setting")
    assert table["J&F"].iloc[0] == 50 and table["state"]["M=8"] == NOT_RUN
    assert table["paper"][["M=2", "T=10"]].tolist() == ["lower", "not stated"]
    assert "| M | M=2 | 50.0 | +0.0 |" in (tmp_path / "out" / "fig3.md").read_text()  # without a minus sign
    assert "eight iterations" in (tmp_path / "out" / "claims.md").read_text()
