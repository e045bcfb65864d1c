"""Notebooks in order, each once, failures named; with notebooks of two cells instead of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest

from dulvos.study import results, steps as study
from dulvos.errors import InputError
from dulvos.study.steps import Step, run_study


@pytest.fixture
def bench(tmp_path, monkeypatch, dataset):  # noqa: F811
    """Folders of its own: results, and notebooks `good` (appends to a file), `bad` (fails)."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(study, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(study.runs, "open_data", lambda data, split: dataset)
    for name, source in (("good", f"open({str(tmp_path / 'ran')!r}, 'a').write(word)"), ("bad", "raise RuntimeError('no luck')")):
        cells = [nbformat.v4.new_code_cell("word: str = 'x'", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(source)]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / f"{name}.ipynb")
    return tmp_path


def test_each_step_runs_once_until_something_changes(bench, capsys):
    steps = [Step("good", "first", {"word": "a"}), Step("good", "second", {"word": "b"}, needs=("first",))]
    assert run_study("s", steps, "x") == 0
    assert run_study("s", steps, "x") == 0
    assert (bench / "ran").read_text() == "ab"
    assert "done already" in capsys.readouterr().out
    # what a step needs determines it too
    assert run_study("s", [Step("good", "first", {"word": "c"}), steps[1]], "x") == 0
    assert (bench / "ran").read_text() == "abcb"


def test_a_failure_is_named_and_stops_only_what_needs_it(bench, capsys):
    steps = [Step("bad", "broken"), Step("good", "after", {"word": "a"}, needs=("broken",)), Step("good", "other", {"word": "b"})]
    assert run_study("s", steps, "x") == 1
    printed = capsys.readouterr().out
    assert "RuntimeError: no luck" in printed and "broken.failed.ipynb" in printed and "after" in printed.splitlines()[-1]
    assert (bench / "ran").read_text() == "b"
    assert (results.study_folder("s") / "notebooks/broken.failed.ipynb").is_file()


def test_an_unknown_parameter_ends_it_before_anything_runs(bench):
    with pytest.raises(InputError, match=r"good.ipynb: unknown parameter wrod; its parameters are word"):
        run_study("s", [Step("good", "first"), Step("good", "second", {"wrod": "a"})], "x")
    assert not (bench / "ran").exists()


def test_two_at_once_on_one_folder_the_second_says_who_holds_it(bench):
    folder = results.study_folder("s")
    code = f"import sys, pathlib; from dulvos.study.steps import lock\nwith lock(pathlib.Path({str(folder)!r})): print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              cwd=results.ROOT)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid}"):
            run_study("s", [], "x")
        holder.kill()  # as a power cut would: nothing to clean up
        holder.wait()
        assert run_study("s", [], "x") == 0
    finally:
        holder.kill()


def test_executed_copies_name_no_path_of_this_machine_and_keep_one_line_a_bar(bench, monkeypatch):
    monkeypatch.setenv("DULVOS_DATA_DIR", "/disk/of/mine")
    monkeypatch.setenv("DULVOS_DAVIS", "/disk/of/mine/davis-2017")
    notebook = nbformat.read(bench / "good.ipynb", as_version=4)
    notebook.cells[1].source = (f"print({str(results.ROOT)!r}, '/disk/of/mine/davis-2017/a /disk/of/mine/b')\nimport sys\n"
                                "import time\nfor i in range(3): print(f'\\rbar {i}', end='', file=sys.stderr, flush=True), time.sleep(0.5)")
    nbformat.write(notebook, bench / "good.ipynb")
    assert run_study("s", [Step("good", "first")], "x") == 0
    text = (results.study_folder("s") / "notebooks/first.ipynb").read_text()
    assert str(results.ROOT) not in text and "bar 2" in text and "bar 1" not in text and text.count('"stderr"') == 1
    assert "DAVIS/a DATA_DIR/b" in text


@pytest.mark.parametrize("home", ["/", "/home/ann"])
def test_executed_copies_keep_their_pictures(bench, monkeypatch, home):
    """Base64 has slashes; and a user without a home has "/" for one."""
    picture = "iVBOR/home/ann/AAAA"
    cells = [nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("display_data", data={
        "image/png": picture, "text/plain": "/home/ann/mine 3/4 /home/anned my/home/ann /home/ann-2 \x1b[32m/home/ann/x"})])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), bench / "ran.ipynb")
    monkeypatch.setenv("HOME", home)
    study._tidy(bench / "ran.ipynb", bench / "tidy.ipynb")
    made = nbformat.read(bench / "tidy.ipynb", as_version=4).cells[0].outputs[0].data
    assert made["image/png"].strip() == picture
    root = "/home/ann" if home == "/" else "."
    assert made["text/plain"] == f"{root}/mine 3/4 /home/anned my/home/ann /home/ann-2 \x1b[32m{root}/x"


def test_a_kernel_that_does_not_start_stops_only_what_needs_it(bench, capsys, monkeypatch):
    def silent(*_, **__):
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    monkeypatch.setattr(study.papermill, "execute_notebook", silent)
    assert run_study("s", [Step("good", "first"), Step("good", "second", {"word": "b"})], "x") == 1
    assert capsys.readouterr().out.count("FAILED: Kernel didn't respond in 60 seconds") == 2


def test_the_real_studies_give_their_notebooks_only_what_they_know():
    for step in [*study.demo_steps(), *study.davis_steps("cpu"), *study.davis_steps("paper")]:
        study.check_parameters(step.notebook, step.parameters)
    with pytest.raises(InputError, match="--setting"):
        study.davis_steps("huge")


@pytest.mark.parametrize(("arguments", "message"), [
    (["study", "davis"], "--davis DIR"),
    (["study", "davis", "--davis", "nowhere"], "nowhere: no such folder"),
])
def test_the_command_line_ends_with_one_line(arguments, message):
    environment = {k: v for k, v in os.environ.items() if k != "DULVOS_DAVIS"}
    done = subprocess.run([sys.executable, "-m", "dulvos", *arguments], capture_output=True, text=True, cwd=results.ROOT,
                          env=environment)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
