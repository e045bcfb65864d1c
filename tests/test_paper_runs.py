"""The paper's rows on miniature copies of each layout: all that is missing is named, and what is there runs to its row."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from dulvos.study import results, runs
from dulvos.__main__ import main
from dulvos.checkpoints import load_encoder
from dulvos.masks import write_mask
from dulvos.errors import InputError
from tests.miniature import draw_video, write_youtube_vos
from dulvos.released import RELEASES
from dulvos.inference import SegmentSettings
from dulvos.study import machine as machines
from dulvos.study import paper_runs
from dulvos.study.machine import MINIATURE_SEGMENT, Machine
from dulvos.study.paper_rows import COLLECTIONS, ROWS
from dulvos.study.paper_runs import prepare, row_steps, run_paper
from dulvos.study.steps import check_parameters
from tests.oracles import texture
from tests.test_released import snapshot, walk


def write_frames(folder: Path, seed: int, suffix: str = "jpg", frames: int = 6) -> None:
    folder.mkdir(parents=True)
    picture = texture(seed, 72, 120)
    for t in range(frames):
        cv2.imwrite(str(folder / f"{t:05d}.{suffix}"), picture[:, 2 * t: 2 * t + 96])


def write_clip(path: Path, seed: int, frames: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 72))
    picture = texture(seed, 72, 200)
    for t in range(frames):
        writer.write(picture[:, 2 * t: 2 * t + 96].copy())
    writer.release()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Miniature copies of every layout and file of weights that the rows need."""
    root = tmp_path_factory.mktemp("data")
    write_youtube_vos(root / "youtube-vos")
    for seed, name in enumerate(("v1", "v2")):
        frames, masks = draw_video([(24, 28, 0, 1, 0), (40, 66, 0, -1, 0)], frames=5, seed=seed)
        (root / "davis-2017/JPEGImages/480p" / name).mkdir(parents=True)
        for t in range(5):  # two objects from the first frame on
            cv2.imwrite(str(root / f"davis-2017/JPEGImages/480p/{name}/{t:05d}.jpg"), frames[t][..., ::-1])
            write_mask(root / f"davis-2017/Annotations/480p/{name}/{t:05d}.png", masks[t])
    (root / "davis-2017/ImageSets/2017").mkdir(parents=True)
    (root / "davis-2017/ImageSets/2017/val.txt").write_text("v1\nv2\n")
    for seed in range(3):
        write_frames(root / f"oxuva/images/dev/vid{seed}", seed, "jpeg")
        write_frames(root / f"trackingnet/TRAIN_{seed}/frames/video{seed}", seed)
        write_clip(root / f"kinetics-400/train/archery/clip{seed}.mp4", seed)
    write_frames(root / "kinetics-400/train/bowling/frames", 9)
    (root / "weights").mkdir()
    encoder = load_encoder("random", seed=5)
    for name, release in RELEASES.items():
        torch.save(walk(encoder, layer4=False) if name == "crw" else snapshot(encoder), root / "weights" / release.file)
    return root


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Results and indexes of its own, and an environment that the machine may change."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("DULVOS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(runs, "INDEXES", tmp_path / "indexes")
    for name in ("DULVOS_DATA_DIR", "DULVOS_DAVIS", "DULVOS_WEIGHTS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def machine(whole) -> Machine:
    return Machine(whole, "cpu", miniature=True)


def test_everything_there_makes_every_row_ready(machine, capsys, monkeypatch, tmp_path):
    """A dry run trains two iterations on each layout: frame folders of three kinds, and video files."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert run_paper(list(ROWS.values()), machine, dry=True) == 0
    printed = capsys.readouterr().out
    for name in ROWS:
        assert any(line.startswith(f"{name} ") and line.endswith("ready") for line in printed.splitlines()), name
    assert "imagenet: torchvision's resnet18-f37072fd.pth" in printed
    assert "kinetics-400: a video file that does not decode ends a training" in printed and printed.count("--decode") == 1
    assert "18 of 18 rows" in printed and "nothing was run" in printed and "expected 61" in printed
    probes = results.RESULTS / "miniature/probes"
    assert sorted(path.stem for path in probes.iterdir()) == ["kinetics-400", "oxuva", "trackingnet", "youtube-vos"]
    probe = json.loads((probes / "trackingnet.json").read_text())
    assert probe["seconds"] == pytest.approx(probe["iterations"] * probe["seconds_per_iteration"])
    assert probe["probed"] == 2 and probe["peak_memory_mb"] > 100 and probe["data"] == "TrackingNet"
    assert not list((results.RESULTS).glob("*/rows"))


def test_settings_are_the_papers_and_lengths_count_the_videos_that_are_here(whole):
    machine = Machine(whole, "cpu", incomplete=True)
    settings = {name: machine.settings(name) for name in COLLECTIONS}
    assert settings["oxuva"].iterations == -(-500 * 3 // 16) and settings["kinetics-400"].lr_every == -(-20 * 4 // 16)
    large = settings["trackingnet"]
    assert large.centre and large.optimiser == "sgd" and large.lr_decay == 0.9
    machine.released = True
    assert machine.settings("oxuva").iterations == -(-430 * 3 // 16)
    assert machine.study("oxuva") == "paper-oxuva-released" and machine.study("") == "paper"


@pytest.mark.parametrize(("row", "gone", "message"), [
    ("random", "davis-2017", "davis-2017: no such folder; python -m dulvos download davis2017"),
    ("random", "davis-2017/ImageSets/2017/val.txt", "no split 'val' of DAVIS.*expected ImageSets/2017/val.txt"),
    ("random", "davis-2017/Annotations/480p/v1/00000.png", r"v1/00000\.png: no such annotation"),
    ("crw", "weights/pretrained.pth", r"pretrained\.pth: no such file; it is released at github.com/ajabri/videowalk"),
    ("araslanov-kinetics", "weights/kinetics_e026_res4.pth", r"kinetics_e026_res4\.pth: no such file"),
    ("oxuva", "oxuva", "oxuva: no such folder; OxUvA is expected as .*images/dev"),
    ("trackingnet", "trackingnet/TRAIN_*", "TrackingNet is expected as .*30,132 videos"),
    ("table2-crw", "youtube-vos/valid", "valid/JPEGImages: no such folder"),
    ("table2-crw", "youtube-vos/valid_all_frames", "valid_all_frames/JPEGImages: no such folder; masks are carried through"),
], ids=lambda value: str(value)[:24])
def test_the_missing_thing_is_named_and_the_status_says_so(whole, tmp_path, capsys, row, gone, message):
    copy = tmp_path / "data"
    shutil.copytree(whole, copy, copy_function=os.link)
    for path in copy.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_paper([ROWS[row]], Machine(copy, "cpu", miniature=True), dry=True) == 1
    line, = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"missing for {row}: ")]
    assert re.search(message, line)


@pytest.mark.parametrize(("row", "message"), [
    ("random", "DAVIS-2017 val: 2 sequences, expected 30; 4 objects, expected 61; 10 frames, expected 1,999"),
    ("table2-crw", "YouTube-VOS 2018 val: 2 sequences, expected 474"),
    ("trackingnet", "TrackingNet: 3 videos found, 30,132 expected"),
])
def test_incomplete_data_is_no_row_of_the_papers(whole, row, message):
    ready, missing, _ = prepare([ROWS[row]], Machine(whole, "cpu"))
    assert not ready and any(message in line for line in missing[row])


def test_all_that_a_row_lacks_is_said_at_once_and_each_thing_once(tmp_path, capsys):
    rows = [ROWS[name] for name in ("crw", "youtube-vos", "table2-crw")]
    assert run_paper(rows, Machine(tmp_path, "cpu"), dry=True) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missing for ")]
    assert [re.match("missing for ([^:]*): .*?([^/]*): no such", line).groups() for line in lines] == [
        ("crw, table2-crw", "pretrained.pth"), ("crw, youtube-vos", "davis-2017"), ("youtube-vos", "youtube-vos"),
        ("table2-crw", "youtube-vos")]


def test_table2_needs_no_davis_unless_a_snapshot_is_selected(whole, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(whole, copy, copy_function=os.link, ignore=shutil.ignore_patterns("davis-2017"))
    rows = [ROWS["table2-crw"], ROWS["table2-trackingnet"]]
    ready, missing, _ = prepare(rows, Machine(copy, "cpu", miniature=True))
    assert list(ready) == ["table2-crw", "table2-trackingnet"] and not missing
    ready, missing, _ = prepare(rows, Machine(copy, "cpu", miniature=True, selected=True))
    assert list(ready) == ["table2-crw"] and "davis-2017: no such folder" in missing["table2-trackingnet"][0]


def test_incomplete_collections_are_trained_on_if_asked(whole):
    machine = Machine(whole, "cpu", incomplete=True)
    assert machine.collection("trackingnet").miscounted and machine.remarks[0].startswith("TrackingNet: 3 videos found")
    with pytest.raises(InputError, match="30,132 expected.*; --incomplete trains on what is there"):
        Machine(whole, "cpu").collection("trackingnet")


def test_a_probe_of_the_released_length_is_no_estimate_of_the_whole(whole, monkeypatch):
    monkeypatch.setattr(machines, "training_probe", lambda *_: {"seconds": 1.0})
    Machine(whole, "cpu", miniature=True, released=True).probe("oxuva")
    assert not (results.RESULTS / "miniature/probes").exists()


def test_a_full_disk_and_a_small_device_are_named(machine, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(machines, "train", full)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"total_memory": 6 * 2**30}))
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(paper_runs.shutil, "disk_usage", lambda _: usage)
    ready, missing, _ = prepare([ROWS["oxuva"], ROWS["random"]], machine)
    assert list(ready) == ["random"]
    assert "its 6 GB do not hold a batch of B=2, T=3 at 64x64" in missing["oxuva"][0]
    assert "0.0 GB are free on this disk" in missing["space"][0]


def test_what_is_written_already_needs_no_more_space(machine, monkeypatch):
    monkeypatch.setattr(paper_runs.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    ready, missing, _ = prepare([ROWS["random"]], machine)
    assert "space" in missing
    masks = results.study_folder(ready["random"][0].parameters["study"]) / "masks" / "random-key"
    masks.mkdir(parents=True)
    (masks / "00000.png").write_bytes(bytes(2**20))
    assert "space" not in prepare([ROWS["random"]], machine)[1]


def test_results_on_a_disk_of_their_own_need_its_space(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "not/made/yet")
    asked = []
    monkeypatch.setattr(paper_runs.shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=2**40))
    prepare([ROWS["random"]], machine)
    assert asked == [tmp_path]


def test_released_weights_give_a_row_without_training(whole, machine):
    settings = SegmentSettings(layer="res3", **MINIATURE_SEGMENT)
    row = runs.evaluation_run("paper", "crw", "davis", "crw", settings, device="cpu")
    assert row["features"] == "crw" and row["data"] == "DAVIS-2017" and row["objects"] == 4 and len(row["weights"]) == 12
    assert str(whole) not in json.dumps(row)


def test_a_row_runs_from_its_data_to_the_tables(machine, capsys):
    """Training, evaluation of the last and of the selected snapshot through the notebooks, then nothing a second time."""
    machine.selected = True
    assert run_paper([ROWS["trackingnet"]], machine) == 0, capsys.readouterr().out
    found = results.read_rows("miniature-trackingnet")
    assert sorted(found.kind) == ["evaluate"] * 2 + ["select"] * 4 + ["train"]
    trained = found[found.kind == "train"].iloc[0]
    assert trained["data"] == "TrackingNet" and trained["parameters.centre"] and trained["iterations"] == 2
    assert "the copy is incomplete" in trained["miscounted"][0]
    others = found[found.kind != "train"]
    assert set(others["trained_key"]) == {trained["key"]} and set(others["data"]) == {"DAVIS-2017"}
    evaluated = others[others.kind == "evaluate"].set_index("name")
    assert evaluated.loc["trained", "selected"] == "" and evaluated.loc["trained", "parameters.layer"] == "res4"
    assert evaluated.loc["trained-selected", "selected"].startswith("selected on 2 sequences of DAVIS-2017 val (iteration ")
    assert (results.study_folder("miniature") / "tables/table1.md").is_file()
    capsys.readouterr()
    assert run_paper([ROWS["trackingnet"]], machine) == 0 and capsys.readouterr().out.count("done already") == 3


def test_the_steps_of_a_row_follow_from_its_table_and_from_what_is_selected(machine):
    def steps(name):
        return [(step.name, step.parameters.get("features"), step.needs) for step in row_steps(ROWS[name], machine)]

    train, davis, youtube = "01_train", "02_evaluate_davis-trained", "02_evaluate_youtube_vos-trained"
    assert steps("table2-crw") == [("02_evaluate_youtube_vos-crw", "crw", ())]
    assert steps("table2-trackingnet") == [(train, None, ()), (youtube, "trained", (train,))]
    machine.selected = True
    assert steps("crw") == [("02_evaluate_davis-crw", "crw", ())]
    assert steps("table2-trackingnet") == [
        (train, None, ()), (youtube, "trained", (train,)), (f"{davis}-selected", "trained", (train,)),
        (f"{youtube}-selected", "selected", (train, f"{davis}-selected"))]
    for step in row_steps(ROWS["table2-trackingnet"], machine):
        check_parameters(step.notebook, step.parameters)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dry-run"], "--data DIR is missing"),
    (["--data", "nowhere", "--dry-run"], "nowhere: no such folder; --data names the folder"),
    (["--data", ".", "--rows", "table3"], "--rows table3: no such row; the rows are random, imagenet"),
    (["--data", ".", "--probe", "0"], "--probe must be >= 1"),
])
def test_the_command_line_ends_with_one_line(capsys, arguments, message):
    assert main(["paper", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_dry_run_from_the_command_line_has_the_status_of_what_it_found(whole, capsys):
    arguments = ["paper", "--data", str(whole), "--rows", "random", "--device", "cpu", "--dry-run"]
    assert main([*arguments, "--miniature"]) == 0
    assert main(arguments) == 1
    assert "missing for random: DAVIS-2017 val: 2 sequences, expected 30" in capsys.readouterr().out
