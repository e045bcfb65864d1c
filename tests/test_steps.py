"""Steps: each notebook once, in the order of its needs, over Dask; a failure leaves nothing half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from distributed import LocalCluster

from dulvos.errors import InputError
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import ROOT, Study
from dulvos.study.steps import Step, execute, find_state, list_states, run_steps

TINY = {"iterations": 2, "batch": 2, "frames": 2, "gap": 1, "crop": 64, "scale_min": 64, "scale_max": 72,
        "grid": 4, "cross_grid": 2, "precision": "fp32"}
LOG = "open('{}', 'a').write(word + '\\n')"


@pytest.fixture
def made(tmp_path):
    """Makes a study whose notebooks are {name: source of their one cell}; each knows `study` and `word`."""
    def make(**sources: str) -> Study:
        study = Study("study", tmp_path / "results", tmp_path / "notebooks")
        study.notebooks.mkdir(exist_ok=True)
        for name, source in sources.items():
            head = nbformat.v4.new_code_cell('study: str = ""\nword: str = "x"  # a word\ncount: int = 1',
                                             metadata={"tags": ["parameters"]})
            notebook = nbformat.v4.new_notebook(cells=[head, nbformat.v4.new_code_cell(source)])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
            nbformat.write(notebook, study.notebooks / f"{name}.ipynb")
        return study
    return make


def words(steps: list[Step]) -> list[str]:
    return [find_state(step)[0] for step in steps]


def test_steps_run_once_in_the_order_of_their_needs(made, tmp_path):
    """What a step needed is followed by that step before any later one; the last waits for all."""
    log = tmp_path / "log"
    study = made(write=LOG.format(log), fail="raise ValueError('no ' + word)",
                 die="import os; os.kill(os.getpid(), 9)")
    steps = [Step(study, "write", "", {"word": "show"}, last=True), Step(study, "write", "a", {"word": "a"}),
             Step(study, "write", "a0", {"word": "a0"}, needs=("write-a",)),
             Step(study, "fail", "", {"word": "luck"}),
             Step(study, "write", "c", {"word": "c"}, needs=("fail",)),
             Step(study, "write", "b", {"word": "b"}), Step(study, "die")]
    assert run_steps(steps) == 1
    assert log.read_text().split() == ["a", "a0", "b", "show"]
    assert words(steps) == ["done", "done", "done", "failed", "missing", "done", "failed"]
    assert "no luck" in steps[3].failure.read_text() and not list(study.folder.rglob("*.running.ipynb"))
    made(fail=LOG.format(log), die="word")  # mended
    assert run_steps(steps) == 0 and log.read_text().split() == ["a", "a0", "b", "show", "luck", "c"]
    assert run_steps(steps) == 0 and len(log.read_text().split()) == 6
    assert not steps[3].failure.exists() and "7 done" in list_states(steps)


@pytest.mark.parametrize("change", ["notebook", "parameter", "row"])
def test_a_step_without_a_row_is_done_until_what_it_shows_changes(made, change):
    study = made(show="word")
    step = Step(study, "show", "", {"word": "a"})
    assert execute(step) == "" and find_state(step)[0] == "done"
    if change == "notebook":
        made(show="word + word")
    elif change == "row":
        study.write({"kind": "evaluate", "name": "n", "key": "k", "date": "2026", "version": 1})
    assert find_state(Step(study, "show", "", {"word": "ab"[change == "parameter"]}))[0] == "missing"


def test_several_workers_share_the_steps_and_the_last_waits_for_all(made, tmp_path):
    """Two steps wait until the other one has begun, then look for five seconds whether the last one has."""
    source = f"""
import os, pathlib, time
begun = {{name: pathlib.Path(r'{tmp_path}') / name for name in ('a', 'b', 'last')}}
begun[word].touch()
while not all(begun[name].exists() for name in 'ab'):
    time.sleep(0.05)
for _ in range(50 if word == 'b' else 0):
    time.sleep(0.1)
    assert not begun['last'].exists()
assert os.environ['OMP_NUM_THREADS'] == '1' and word != 'a'
"""
    study = made(meet=source)
    steps = [Step(study, "meet", name, {"word": name}, last=name == "last") for name in ("a", "b", "last")]
    before = dict(os.environ)
    assert run_steps(steps, workers=2, threads=1) == 1 and os.environ == before
    assert words(steps) == ["failed", "done", "done"]
    assert all((study.folder / "logs" / f"{step.full_name}.log").is_file() for step in steps)


def test_a_running_scheduler_may_carry_the_steps_on_workers_of_one_thread(made, tmp_path):
    step = Step(made(write=LOG.format(tmp_path / "log")), "write")
    one, two = (LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None)
                for threads in (1, 2))
    with one, two:
        for address, workers in ((two.scheduler_address, 0), (one.scheduler_address, 1), ("nonsense://", 0),
                                 ("tcp://127.0.0.1:1", 0)):
            with pytest.raises(InputError, match=address):
                run_steps([step], workers=workers, scheduler=address)
        assert not (tmp_path / "log").exists() and run_steps([step], scheduler=one.scheduler_address) == 0
    assert (tmp_path / "log").exists()


def test_wrong_parameters_end_before_anything_runs(made):
    """Their types are tried in `tests.corpus_settings`."""
    study = made(show="1")
    with pytest.raises(InputError, match="wrod.*study, word, count"):
        run_steps([Step(study, "show"), Step(study, "show", "b", {"wrod": "a"})])
    assert not study.folder.exists()


def test_one_command_at_a_time_in_a_study(made, tmp_path):
    """The second one is refused; after a kill it is not."""
    study = made(wait=f"open(r'{tmp_path / 'begun'}', 'w').close(); import time; time.sleep(60)", show="1")
    (tmp_path / "first.py").write_text(f"""
from pathlib import Path
from dulvos.study.rows import Study
from dulvos.study.steps import Step, run_steps
if __name__ == "__main__":
    run_steps([Step(Study("study", r"{study.results}", Path(r"{study.notebooks}")), "wait")])
""")
    first = subprocess.Popen([sys.executable, str(tmp_path / "first.py")], start_new_session=True,
                             stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while not (tmp_path / "begun").exists():
            assert first.poll() is None
            time.sleep(0.1)
        with pytest.raises(InputError, match="in use"):
            run_steps([Step(study, "show")])
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert run_steps([Step(study, "show")]) == 0 and words([Step(study, "wait")]) == ["missing"]


def test_executed_copies_name_no_private_folder_and_one_state_of_a_bar(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DULVOS_DAVIS", str(tmp_path / "davis"))
    source = f"""
import sys, time
print(r'{tmp_path}/davis/a.jpg {ROOT}/dulvos')
for percent in (10, 100):
    print(f'\\r{{percent}} %', end='', file=sys.stderr, flush=True)
    time.sleep(0.3)
"""
    step = Step(made(show=source), "show")
    assert execute(step) == ""
    text = json.dumps(json.loads(step.copy.read_text())["cells"])
    assert str(tmp_path) not in text and str(ROOT) not in text and "DAVIS/a.jpg ./dulvos" in text
    assert "100 %" in text and "10 %" not in text.replace("100 %", "")


def test_a_row_makes_its_step_done_while_its_data_settings_and_training_stand(tiny, study):
    """Real notebooks: a training and the evaluation of its features."""
    train = train_step(study, "trained", str(tiny), TINY, 1, device="cpu")
    evaluate = evaluate_step(study, "trained", str(tiny), "trained", 1, (train.full_name,), device="cpu")
    assert words([train, evaluate]) == ["missing", "missing"]
    before = dict(os.environ)
    assert run_steps([train, evaluate], threads=1) == 0 and os.environ == before
    row = study.find("train", {"name": "trained"})
    assert row["source"] == "notebooks/01_train.ipynb" and row["parameters.crop"] == 64
    assert words([train, evaluate]) == ["done", "done"] and "J&F" in list_states([evaluate])
    for other in (train_step(study, "trained", str(tiny), {**TINY, "lam": 0.5}, 1),
                  train_step(study, "other", str(tiny), TINY, 1),
                  train_step(study, "trained", "absent", TINY, 1),
                  evaluate_step(study, "trained", str(tiny), "trained", 1, topk=3),
                  evaluate_step(study, "trained", str(tiny), "random", 1)):
        known = other.parameters["data"] != "absent"  # data that are not here cannot be compared
        assert (find_state(other)[0] == "missing") == known
    written = study.folder / "rows" / f"train-trained-{row['key']}.json"
    for change, states in (({"version": 0}, "missing missing"), ({"fingerprint": "other"}, "missing done"),
                           ({"key": "other"}, "done missing"), ({}, "done done")):
        written.write_text(json.dumps({**row, **change}))
        assert words([train, evaluate]) == states.split()
    (study.folder / row["encoder"]).unlink()
    assert words([train, evaluate]) == ["missing", "done"]


def test_kernels_are_of_this_python(made, tmp_path, monkeypatch):
    """A user's Jupyter may know another Python as python3."""
    other = tmp_path / "kernels/python3"
    other.mkdir(parents=True)
    kernel = {"argv": ["false"], "display_name": "", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    assert execute(Step(made(a=f"import sys\nassert sys.executable == {sys.executable!r}"), "a")) == ""
