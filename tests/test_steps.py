"""Steps: each notebook once, in the order of its needs, over Dask; what fails is told and leaves nothing half done."""

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
from dulvos.study.steps import STALE, Step, check_parameters, execute, find_state, list_states, run_steps

TINY = {"iterations": 2, "batch": 2, "frames": 2, "gap": 1, "crop": 64, "scale_min": 64, "scale_max": 72, "grid": 4,
        "cross_grid": 2, "precision": "fp32"}


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


LOG = "open('{}', 'a').write(word + '\\n')"


def test_steps_run_once_in_the_order_of_their_needs(made, tmp_path):
    log = tmp_path / "log"
    study = made(write=LOG.format(log), fail="raise ValueError('no ' + word)")
    steps = [Step(study, "write", "a", {"word": "a"}), Step(study, "write", "b", {"word": "b"}, needs=("write-a",)),
             Step(study, "fail", "", {"word": "luck"}), Step(study, "write", "c", {"word": "c"}, needs=("fail",))]
    assert run_steps(steps) == 1
    assert log.read_text().split() == ["a", "b"]
    assert [find_state(step).word for step in steps] == ["done", "done", "failed", "missing"]
    assert "no luck" in steps[2].failure.read_text() and not list(study.folder.rglob("*.running.ipynb"))
    made(fail=LOG.format(log))  # mended
    assert run_steps(steps) == 0 and log.read_text().split() == ["a", "b", "luck", "c"]
    assert run_steps(steps) == 0 and len(log.read_text().split()) == 4
    assert not steps[2].failure.exists() and "4 done" in list_states(steps)


@pytest.mark.parametrize("change", ["notebook", "parameter", "row"])
def test_a_step_without_a_row_is_done_until_what_it_shows_changes(made, change):
    study = made(show="word")
    step = Step(study, "show", "", {"word": "a"})
    assert execute(step) == "" and find_state(step).word == "done"
    if change == "notebook":
        made(show="word + word")
    elif change == "row":
        study.write({"kind": "evaluate", "name": "n", "key": "k", "date": "2026", "version": 1})
    assert find_state(Step(study, "show", "", {"word": "ab"[change == "parameter"]})).word == "missing"


def test_several_workers_share_the_steps_and_write_logs(made, tmp_path):
    """Each of the two steps waits until the other one has begun."""
    source = """
import pathlib, time
mine, other = (pathlib.Path(r'{0}') / name for name in (word, 'b' if word == 'a' else 'a'))
mine.touch()
while not other.exists():
    time.sleep(0.05)
import os
print(os.environ['OMP_NUM_THREADS'])
"""
    study = made(meet=source.format(tmp_path))
    steps = [Step(study, "meet", name, {"word": name}) for name in "ab"]
    assert run_steps(steps, workers=2, threads=1) == 0
    assert all((study.folder / "logs" / f"meet-{name}.log").is_file() for name in "ab")
    assert '"1\\n"' in steps[0].copy.read_text()


def test_a_last_step_waits_for_all_others_even_those_that_fail(made, tmp_path):
    """The slow step looks for ten seconds whether the last one has begun."""
    shown = tmp_path / "shown"
    slow = (f"import pathlib, time\nfor _ in range(100):\n    time.sleep(0.1)\n"
            f"    assert not pathlib.Path(r'{shown}').exists(), 'the last step came first'")
    study = made(slow=slow, fail="1 / 0", show=f"open(r'{shown}', 'w').close()")
    steps = [Step(study, "slow"), Step(study, "fail"), Step(study, "show", last=True)]
    assert run_steps(steps, workers=2, threads=1) == 1
    assert [find_state(step).word for step in steps] == ["done", "failed", "done"]


def test_a_running_scheduler_may_carry_the_steps(made, tmp_path):
    study = made(write=LOG.format(tmp_path / "log"))
    step = Step(study, "write")
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(InputError, match="workers"):
            run_steps([step], workers=1, scheduler=cluster.scheduler_address)
        assert run_steps([step], scheduler=cluster.scheduler_address) == 0
    assert (tmp_path / "log").read_text() == "x\n"
    with (LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
          pytest.raises(InputError, match="one thread")):
        run_steps([Step(study, "write", "b")], scheduler=cluster.scheduler_address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://"])
def test_a_scheduler_that_does_not_answer_is_named(made, address, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    with pytest.raises(InputError, match=address):
        run_steps([Step(made(show="1"), "show")], scheduler=address)


@pytest.mark.parametrize(("parameters", "match"), [
    ({"wrod": "a"}, "wrod.*study, word, count"), ({"word": 5}, "word"), ({"count": 1.5}, "count"), ({"count": True}, "count")])
def test_wrong_parameters_end_before_anything_runs(made, parameters, match):
    study = made(show="1")
    with pytest.raises(InputError, match=match):
        run_steps([Step(study, "show"), Step(study, "show", "b", parameters)])
    assert not study.folder.exists()
    with pytest.raises(InputError, match="absent"):
        check_parameters(study.notebooks / "absent.ipynb", {})


def test_one_command_at_a_time_in_a_study(made, tmp_path):
    """The second one is refused; the lock of a killed one is free."""
    study = made(wait=f"open(r'{tmp_path / 'begun'}', 'w').close(); import time; time.sleep(60)")
    code = f"""
from pathlib import Path
from dulvos.study.rows import Study
from dulvos.study.steps import Step, run_steps
if __name__ == "__main__":
    run_steps([Step(Study("study", r"{study.results}", Path(r"{study.notebooks}")), "wait")])
"""
    (tmp_path / "first.py").write_text(code)
    first = subprocess.Popen([sys.executable, str(tmp_path / "first.py")], start_new_session=True, stdout=subprocess.DEVNULL,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.1)
        step = Step(study, "wait")
        assert find_state(step).word == "running"
        with pytest.raises(InputError, match="in use"):
            run_steps([Step(study, "wait", "b")])
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    deadline = time.monotonic() + 20
    while find_state(step).word == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert find_state(step).word == "missing"


def test_executed_copies_name_no_private_folder_and_one_state_of_a_bar(made, tmp_path, monkeypatch):
    monkeypatch.setenv("DULVOS_DAVIS", str(tmp_path / "davis"))
    source = f"""
import sys
print(r'{tmp_path}/davis/a.jpg {ROOT}/dulvos')
for percent in (10, 100):
    print(f'\\r{{percent}} %', end='', file=sys.stderr, flush=True)
    import time; time.sleep(0.3)
"""
    step = Step(made(show=source), "show")
    assert execute(step) == ""
    text = step.copy.read_text()
    assert str(tmp_path) not in text and str(ROOT) not in text and "DAVIS/a.jpg ./dulvos" in text
    assert "100 %" in text and "10 %" not in text.replace("100 %", "")
    assert json.loads(text)["metadata"]["dulvos"]["key"]


def test_a_kernel_that_dies_is_told(made):
    step = Step(made(die="import os; os.kill(os.getpid(), 9)"), "die")
    assert "killed" in execute(step) and find_state(step).word == "failed"


def test_a_row_makes_its_step_done_while_its_data_settings_and_training_stand(tiny, study):
    """Real notebooks: a training and the evaluation of its features."""
    train = train_step(study, "trained", str(tiny), TINY, 1, device="cpu")
    evaluate = evaluate_step(study, "trained", str(tiny), "trained", 1, (train.full_name,), device="cpu")
    assert [find_state(step).word for step in (train, evaluate)] == ["missing", "missing"]
    assert run_steps([train, evaluate], threads=1) == 0
    row = study.find("train", {"name": "trained"})
    assert row["source"] == "notebooks/01_train.ipynb" and row["parameters.crop"] == 64
    assert [find_state(step).word for step in (train, evaluate)] == ["done", "done"]
    assert "J&F" in list_states([evaluate])
    for other in (train_step(study, "trained", str(tiny), {**TINY, "lam": 0.5}, 1),
                  train_step(study, "other", str(tiny), TINY, 1), train_step(study, "trained", "absent", TINY, 1),
                  evaluate_step(study, "trained", str(tiny), "trained", 1, topk=3),
                  evaluate_step(study, "trained", str(tiny), "random", 1)):
        known = other.parameters["data"] != "absent"  # data that are not here cannot be compared
        assert (find_state(other).word == "missing") == known
    written = study.folder / "rows" / f"train-trained-{row['key']}.json"
    written.write_text(json.dumps({**row, "version": 0}))
    assert [find_state(step).word for step in (train, evaluate)] == [STALE, STALE]
    written.write_text(json.dumps(row))
    (study.folder / row["encoder"]).unlink()
    assert find_state(train).word == "missing" and find_state(evaluate).word == "done"
    # a grid counts a training by its row alone
    assert find_state(train_step(study, "trained", str(tiny), TINY, 1)).row["key"] == row["key"]
