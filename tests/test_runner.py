"""The runner: steps in the order of their needs, several at a time, and the time left."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from distributed import LocalCluster

from dulvos.errors import InputError
from dulvos.study.plans import evaluate_step, train_step
from dulvos.study.rows import ROOT
from dulvos.study.runner import Workers, minutes_left, run_steps
from dulvos.study.steps import Step, list_states
from tests.test_steps import words

LOG = "open('{}', 'a').write(word + '\\n')"


def test_steps_run_once_in_the_order_of_their_needs(make_study, tmp_path):
    """A step follows right after what it needs, before any later one; the last waits for all."""
    log = tmp_path / "log"
    study = make_study(write=LOG.format(log), fail="raise ValueError('no ' + word)",
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
    make_study(fail=LOG.format(log), die="word")  # mended
    done = ["a", "a0", "b", "show", "luck", "c", "show"]  # again, because it shows what the others made
    assert run_steps(steps) == 0 and log.read_text().split() == done
    assert run_steps(steps) == 0 and log.read_text().split() == done
    steps[1] = replace(steps[1], parameters={"word": "A"})
    assert run_steps(steps) == 0 and log.read_text().split() == [*done, "A", "a0", "show"]
    assert not steps[3].failure.exists() and "7 done" in list_states(steps)


def test_the_step_of_a_worker_that_dies_is_taken_by_another(make_study, tmp_path):
    mark = tmp_path / "mark"
    study = make_study(die=f"import os\nif not os.path.exists(r'{mark}'):\n    os.mkdir(r'{mark}')\n"
                           "    os.kill(os.getppid(), 9)")
    step = Step(study, "die")
    assert run_steps([step], Workers(2, 1)) == 0 and words([step]) == ["done"]


def test_several_workers_share_the_steps_and_the_last_waits_for_all(make_study, tmp_path, monkeypatch):
    """Two steps wait until both have begun; then one checks for five seconds that the last one has not."""
    source = f"""
import os, pathlib, time
begun = {{name: pathlib.Path(r'{tmp_path}') / name for name in ('a', 'b', 'last')}}
begun[word].touch()
for _ in range(1200):
    if all(begun[name].exists() for name in 'ab'):
        break
    time.sleep(0.05)
for _ in range(50 if word == 'b' else 0):
    time.sleep(0.1)
    assert not begun['last'].exists()
assert os.environ['OMP_NUM_THREADS'] == '1' and word != 'a'
assert os.path.isabs(os.environ['DULVOS_WEIGHTS'])
"""
    study = make_study(meet=source)
    steps = [Step(study, "meet", name, {"word": name}, last=name == "last") for name in ("a", "b", "last")]
    monkeypatch.setenv("DULVOS_WEIGHTS", "weights")  # a folder here, while notebooks run elsewhere
    before = dict(os.environ)
    assert run_steps(steps, Workers(2, 1)) == 1 and os.environ == before
    assert words(steps) == ["failed", "done", "done"]
    assert all((study.folder / "logs" / f"{step.full_name}.log").is_file() for step in steps)


def test_nothing_runs_while_data_of_a_step_are_missing(tiny, study):
    steps = [evaluate_step(study, "copy", str(tiny), "copy", 1), train_step(study, "a", "absent", {}, 1)]
    with pytest.raises(InputError, match="absent"):
        run_steps(steps)
    assert not (study.folder / "notebooks").exists()


def test_a_running_scheduler_runs_the_steps_on_workers_of_one_thread(make_study, tmp_path):
    step = Step(make_study(write=LOG.format(tmp_path / "log")), "write")
    one, two = (LocalCluster(n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None)
                for threads in (1, 2))
    with one, two:
        for address, workers in ((two.scheduler_address, 0), (one.scheduler_address, 1), ("nonsense://", 0),
                                 ("tcp://127.0.0.1:1", 0)):
            with pytest.raises(InputError, match=address):
                run_steps([step], Workers(workers, scheduler=address))
        assert not (tmp_path / "log").exists()
        assert run_steps([step], Workers(scheduler=one.scheduler_address)) == 0
    assert (tmp_path / "log").exists()


def test_a_step_that_cannot_begin_says_why(make_study, capsys):
    step = Step(make_study(show="1"), "show")
    step.study.folder.mkdir(parents=True)
    step.log.parent.write_text("a file, where a folder should be")
    assert run_steps([step]) == 1 and f"{step.log.parent}: " in capsys.readouterr().out


def test_wrong_parameters_end_before_anything_runs(make_study):
    """`tests.corpus_settings` tries wrong types."""
    study = make_study(show="1")
    with pytest.raises(InputError, match="wrod.*study, word, count"):
        run_steps([Step(study, "show"), Step(study, "show", "b", {"wrod": "a"})])
    assert not study.folder.exists()


def test_one_command_at_a_time_in_a_study(make_study, tmp_path):
    """A second one is refused, but not after the first was killed."""
    wait = f"open(r'{tmp_path / 'begun'}', 'w').close(); import time; time.sleep(60)"
    study = make_study(wait=wait, show="1")
    (tmp_path / "first.py").write_text(f"""
from pathlib import Path
from dulvos.study.rows import Study
from dulvos.study.runner import run_steps
from dulvos.study.steps import Step
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


@pytest.mark.parametrize(("bar", "left", "slow"), [
    ("training:  25%|##5  | 10/40 [03:00<09:00, 18.00s/it]", 9 + 1.5 * 13 / 3, 13 / 3),  # 12 minutes for 2
    ("training:  25%|##5  | 10/40 [03:00<1:09:00]", 69 + 1.5 * 73 / 3, 73 / 3),
    ("training:   2%|     | 1/40 [03:00<09:00]", 1.5, 1.0)])  # one iteration tells nothing
def test_minutes_left_follow_what_is_measured(make_study, bar, left, slow):
    """A step of two planned minutes has run for three, and one of 1.5 minutes waits."""
    study = make_study()
    step, other = Step(study, "show", "a", minutes=2), Step(study, "show", "b", minutes=1.5)
    step.log.parent.mkdir(parents=True)
    step.log.write_text(f"begun\r{bar}\r{bar}")
    begun = {step: time.monotonic() - 180}
    assert minutes_left([other], begun, {}, 1) == (pytest.approx(left, abs=0.1), pytest.approx(slow, abs=0.1))
    step.log.unlink()
    assert minutes_left([other], {}, {step: 0.1}, 1) == (1.5, 1.0), "it was resumed"
    assert minutes_left([other], {}, {step: 3.0}, 2) == pytest.approx((1.5 * 4 / 3 / 2, 4 / 3))
