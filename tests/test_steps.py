"""Steps: each is done while its row or executed copy is of today's code, data and parameters."""

import json
import os
import sys
from dataclasses import replace

import pytest

from dulvos.errors import InputError
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import ROOT
from dulvos.study.runner import Workers, run_steps
from dulvos.study.steps import Step, execute, find_state, list_states

TINY = {"iterations": 2, "batch": 2, "frames": 2, "gap": 1, "crop": 64, "scale_min": 64, "scale_max": 72,
        "grid": 4, "cross_grid": 2, "precision": "fp32"}


def words(steps: list[Step]) -> list[str]:
    return [find_state(step)[0] for step in steps]


@pytest.mark.parametrize("change", ["notebook", "parameter", "row"])
def test_a_step_without_a_row_is_done_until_what_it_shows_changes(make_study, change):
    study = make_study(show="word")
    step = Step(study, "show", "", {"word": "a"})
    assert execute(step) == "" and find_state(step)[0] == "done"
    if change == "notebook":
        make_study(show="word + word")
    elif change == "row":
        study.write({"kind": "train", "name": "n", "key": "k", "date": "2026", "version": 1})
    assert find_state(Step(study, "show", "", {"word": "ab"[change == "parameter"]}))[0] == "missing"


def test_executed_copies_name_no_private_folder_and_one_state_of_a_bar(make_study, tmp_path, monkeypatch):
    monkeypatch.setenv("DULVOS_DAVIS", str(tmp_path / "davis"))
    source = f"""
import sys, time
print(r'{tmp_path}/davis/a.jpg {ROOT}/dulvos')
for percent in (10, 100):
    print(f'\\r{{percent}} %', end='', file=sys.stderr, flush=True)
    time.sleep(0.3)
"""
    step = Step(make_study(show=source), "show")
    assert execute(step) == ""
    text = json.dumps(json.loads(step.copy.read_text())["cells"])
    assert str(tmp_path) not in text and str(ROOT) not in text and "DAVIS/a.jpg ./dulvos" in text
    assert "100 %" in text and "10 %" not in text.replace("100 %", "")


def test_a_row_makes_its_step_done_while_its_data_settings_and_training_stand(tiny, study):
    """With real notebooks: a training, and the evaluation of its features."""
    train = train_step(study, "trained", str(tiny), TINY, 1, device="cpu")
    evaluate = evaluate_step(study, "trained", str(tiny), "trained", 1, device="cpu")
    assert words([train, evaluate]) == ["missing", "missing"]
    before = dict(os.environ)
    assert run_steps([train, evaluate], Workers(threads=1)) == 0 and os.environ == before
    row = study.find("train", {"name": "trained"})
    assert row["source"] == "notebooks/01_train.ipynb" and row["parameters.crop"] == 64
    assert words([train, evaluate]) == ["done", "done"] and "J&F" in list_states([evaluate])
    for other in (train_step(study, "trained", str(tiny), {**TINY, "lam": 0.5}, 1),
                  train_step(study, "other", str(tiny), TINY, 1),
                  train_step(study, "trained", "absent", TINY, 1),
                  evaluate_step(study, "trained", str(tiny), "trained", 1, topk=3),
                  evaluate_step(study, "trained", str(tiny), "trained@1", 1),
                  evaluate_step(study, "trained", str(tiny), "random", 1)):
        known = other.parameters["data"] != "absent"  # data that are not here cannot be compared
        assert (find_state(other)[0] == "missing") == known
    written = study.folder / "rows" / f"train-trained-{row['key']}.json"
    for change, states in (({"version": 0}, "missing missing"), ({"fingerprint": "other"}, "missing done"),
                           ({"key": "other"}, "done missing"), ({}, "done done")):
        written.write_text(json.dumps({**row, **change}))
        assert words([train, evaluate]) == states.split()
    weights = study.folder / row["encoder"]
    weights.write_bytes(weights.read_bytes()[:1000])
    assert words([train, evaluate]) == ["missing", "done"]
    changed = train_step(study, "trained", str(tiny), {**TINY, "iterations": 1}, 1, device="cpu")
    assert run_steps([changed, evaluate], Workers(threads=1)) == 0
    assert words([changed, evaluate]) == ["done", "done"], "evaluated again, with the new features"
    with pytest.raises(InputError, match="trained"):
        find_state(train)
    next(study.folder.glob(f"masks/*{find_state(evaluate)[1]['key']}/*.json")).unlink()
    assert words([evaluate]) == ["missing"], "stopped before the last video"


@pytest.mark.parametrize("key", ["t", "earlier"])
@pytest.mark.parametrize(("features", "select"), [("trained", 5), ("selected", 0)])
def test_a_selection_from_the_newest_training_is_done_whatever_its_layer(study, write_row, features, select,
                                                                         key):
    write_row("train", "trained", "t")
    write_row("evaluate", "trained-selected", "e", features=f"trained:{key}@9", trained_key=key,
              settings={"layer": "key"})
    step = evaluate_step(study, "trained-selected", "absent", features, 1, select=select)
    assert words([replace(step, files=False)]) == ["done" if key == "t" else "missing"]


def test_kernels_are_of_this_python(make_study, tmp_path, monkeypatch):
    """A user's Jupyter may know another Python as python3."""
    other = tmp_path / "kernels/python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["false"], "display_name": "", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert execute(Step(make_study(a=f"import sys\nassert sys.executable == {sys.executable!r}"), "a")) == ""
