"""Dense unsupervised learning for video segmentation: run the study, or segment your own videos."""

import dataclasses
import io
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from dask.system import CPU_COUNT
from tqdm import tqdm
from tyro.conf import DisallowNone, OmitArgPrefixes, Positional, arg

from dulvos import __version__, masks, movies, videos
from dulvos.checkpoints import load_encoder
from dulvos.clips import usable_videos
from dulvos.devices import find_device, reading_processes
from dulvos.errors import InputError
from dulvos.files import expand
from dulvos.inference import SegmentSettings, check_memory, encode, segment
from dulvos.study import collections, comparison, paper_plan, plans, runs
from dulvos.study.download import download
from dulvos.study.evaluation import evaluate_encoders
from dulvos.study.rows import Study, all_rows
from dulvos.study.runner import Workers, run_steps
from dulvos.study.site import write_site
from dulvos.study.steps import Step, list_states
from dulvos.study.tables import summary, to_text
from dulvos.training import TrainSettings

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends it with one line and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that cannot show τ
    # a container may have fewer cores than PyTorch sees
    torch.set_num_threads(min(torch.get_num_threads(), CPU_COUNT))
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"dulvos {__version__}")
        return 0
    # some commands take the arguments too: they tell which settings the user has chosen
    commands = {"demo": demo_command, "davis": davis_command, "grid": grid_command, "paper": paper_command,
                "train": partial(train_command, arguments), "evaluate": partial(evaluate_command, arguments),
                "segment": partial(segment_command, arguments), "index": index_command,
                "download": download_command}
    warnings.showwarning = lambda message, *_: print(f"note: {InputError(message)}", file=sys.stderr)
    try:
        return tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog="dulvos", description=__doc__,
            config=(DisallowNone, OmitArgPrefixes))
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from here (segment starts again)", file=sys.stderr)
        return 130
    except InputError as error:
        status, told = 2, str(error)
    except (FloatingPointError, ChildProcessError) as error:  # a training that cannot go on
        status, told = 1, str(error)
    except torch.OutOfMemoryError as error:
        status, told = 1, f"{str(error).splitlines()[0]} Use a smaller batch, crop or --shorter-side"
    except OSError as error:  # a full disk, a missing permission, a name that is too long
        status, told = 2, str(InputError(f"{error.filename or 'the system'}: {error.strerror or error}"))
    print(f"error: {told}", file=sys.stderr)
    return status


class _Train(TrainSettings):
    """Settings of the training; with DATA such as youtube-vos, the paper's values replace these defaults."""

    def __post_init__(self) -> None:
        """Check nothing: the command checks, and says in one line what is wrong."""


class _Segment(SegmentSettings):
    """Settings of inference; the defaults are the release's for DAVIS-2017."""

    __post_init__ = _Train.__post_init__


def demo_command(*, run: Workers = Workers()) -> int:
    """Run the whole study on small rendered videos that come with dulvos: a few minutes on two cores."""
    return _study(plans.demo_steps(), run)


def davis_command(*, davis: Path | None = None, setting: Literal["cpu", "paper"] = "cpu", grid: bool = False,
                  compare: bool = False, run: Workers = Workers()) -> int:
    """Run the study on DAVIS: train on its training videos without masks, and evaluate on its val videos.

    Args:
        davis: folder that holds JPEGImages, Annotations and ImageSets (or set DULVOS_DAVIS).
        setting: cpu trains for about two hours on two cores; paper is the paper's setting, for a GPU.
        grid: afterwards, run what is missing of the ablation grid on DAVIS: three hours on two cores.
        compare: only compare the method with its rivals at CPU scale: ten hours on two cores.
    """
    if compare and (grid or setting != "cpu"):
        raise InputError("--compare runs nothing else; leave out --grid and --setting")
    _use_davis(davis)
    if compare:
        return run_steps(comparison.comparison_steps(), run)
    return _study(plans.study_steps("davis-paper" if setting == "paper" else "davis"), run, grid)


def _study(steps: list[Step], run: Workers, grid: bool = False) -> int:
    study, status = steps[0].study, run_steps(steps, run)
    if grid:
        status = max(status, run_steps(plans.grid_steps("davis"), run))
    print(f"\n{summary(study)}\n\nopen {os.path.relpath(write_site(study))} in a browser")
    return status


def grid_command(*, study: Literal["demo", "davis", "davis-long", "paper"] = "demo",
                 run: bool = False, davis: Path | None = None, only: tuple[str, ...] = (),
                 workers: Workers = Workers()) -> int:
    """List what is done of the ablation grid of Fig. 3; with --run, run what is missing.

    Args:
        study: scale of the grid; davis-long trains a few points four times as long; paper
            also needs DULVOS_DATA_DIR, which holds youtube-vos.
        run: run what is missing, then draw Fig. 3.
        davis: folder that holds JPEGImages, Annotations and ImageSets (or set DULVOS_DAVIS).
        only: names of evaluations in the list, such as N4-0; all by default.
    """
    if davis and study == "demo":
        raise InputError("the grid 'demo' has its own videos; leave out --davis")
    if davis or run and study != "demo":
        _use_davis(davis)
    steps = plans.grid_steps(study, only)
    if run:
        return run_steps(steps, workers)
    print(list_states(steps))
    return 0


def paper_command(*, data: Path | None = None, rows: tuple[str, ...] = (), dry_run: bool = False,
                  device: str | None = None, released: bool = False, selected: bool = False,
                  incomplete: bool = False, run: Workers = Workers()) -> int:
    """Run the rows of the paper's Tables 1 and 2 on a GPU, after checking data, weights and memory.

    Without --data, print what each row needs, and its state.

    Args:
        data: folder that holds davis-2017, youtube-vos, oxuva, trackingnet, kinetics-400 and weights.
        rows: names of rows; all by default. A table2-* row ends with a zip for the server of YouTube-VOS.
        dry_run: only check and plan; two iterations measure the time and memory of each training.
        device: cpu, cuda, ...; a CUDA GPU by default, if there is one.
        released: train only as long as the authors did for the weights that they released.
        selected: also evaluate the snapshot and layer that are best on 5 val sequences, as the paper did.
        incomplete: accept data that lack videos or frames; tables keep such rows apart.
    """
    if data is None:
        if rows or dry_run or released or selected or incomplete:
            raise InputError("--data is missing: the folder that holds davis-2017, youtube-vos, ...")
        print(paper_plan.rows_table(all_rows()))
        return 0
    here = paper_plan.Here(data, device, released, selected, incomplete)
    return paper_plan.run_paper(rows, here, run, dry=dry_run)


def _chosen(arguments: list[str], settings: TrainSettings | SegmentSettings) -> dict:
    """The settings that the user chose; the collection or the protocol decides the others."""
    flags = {re.sub("^--(no-)?", "--", word.partition("=")[0]).replace("_", "-") for word in arguments}
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)
            if "--" + field.name.replace("_", "-") in flags}


def train_command(arguments: list[str], data: Annotated[Positional[str], arg(metavar="DATA")], /, *,
                  study: str, name: str = "trained", device: str | None = None,
                  settings: _Train = _Train()) -> int:
    """Train one encoder and write its row, as notebook 01_train does. After a stop, repeat the command.

    The defaults are for a GPU; on a CPU, choose fewer --iterations and a smaller --batch and --crop.

    On several GPUs: torchrun --nproc_per_node 4 -m dulvos train DATA --study NAME. The processes share each
    batch, and each process sees the anchors of all.

    Args:
        data: one of
            cutouts: the rendered videos that come with dulvos;
            davis: the training videos in the folder DULVOS_DAVIS;
            youtube-vos, oxuva, ...: a collection in DULVOS_DATA_DIR, by default with the paper's settings;
            or a folder of videos.
        study: name of the folder in results/ that gets the row.
        name: name of the run.
        device: cpu, cuda, ...; a CUDA GPU by default, if there is one.
    """
    chosen = _chosen(arguments, settings)
    chosen.setdefault("workers", reading_processes(find_device(device)))
    if data in collections.SOURCES:
        usable, _ = usable_videos(runs.open_training(data).videos, settings.frames)
        settings = collections.paper_settings(data, len(usable), **chosen)
    else:
        settings = TrainSettings.from_dict(chosen)
    row = runs.training_run(Study(study), name, data, settings, device=device)
    if not int(os.environ.get("RANK", 0)):
        print(f"{Study(study).folder / row['encoder']}: {row['iterations']} iterations in "
              f"{row['seconds'] / 60:.1f} min, L = {row['loss']:.3f}")
    return 0


def evaluate_command(arguments: list[str], /, *, encoder: tuple[str, ...], davis: Path | None = None,
                     youtube_vos: Path | None = None, split: Literal["valid", "local"] | None = None,
                     study: str = "encoders", processes: int = 0, device: str | None = None,
                     settings: _Segment = _Segment()) -> int:
    """Compare encoders by label propagation: dulvos evaluate --encoder davis2016 timm:MODEL --davis DIR.

    Prints one table, the best encoder first. results/STUDY gets a row, the masks and DAVIS's official csv
    files of each encoder. After a stop, repeat the command.

    Args:
        encoder: one or more of
            timm:MODEL, timm:MODEL@LAYER, or timm:MODEL=FILE with your own weights;
            davis2016, random, imagenet, a .safetensors file, or a .pth file that the authors released;
            copy (the first mask) or colour (raw colours), which need no network.
        davis: folder of DAVIS-2016 or -2017, or of your own data in its layout.
        youtube_vos: folder of YouTube-VOS 2018, instead of DAVIS.
        split: of YouTube-VOS: valid (the default) packs a submission for its server, local scores a part of
            train.
        study: name of the folder in results/ that gets the results.
        processes: number of processes that share the videos; 0: one for each GPU; without a GPU, one.
        device: cpu, cuda, ...; a CUDA GPU by default, if there is one.
    """
    if not encoder or (davis is None) == (youtube_vos is None):
        raise InputError("give at least one --encoder, and either --davis DIR or --youtube-vos DIR")
    chosen = SegmentSettings.of(**_chosen(arguments, settings))
    if davis and split:
        raise InputError("--split chooses a part of YouTube-VOS; leave it out with --davis")
    folder = str(expand(davis or youtube_vos).absolute())  # "davis" alone would mean DULVOS_DAVIS
    table = evaluate_encoders(Study(study), encoder, folder, chosen, device=device,
                              split="val" if davis else split or "valid", processes=processes)
    print(f"protocol {chosen.protocol}; percent, means over objects")
    print(to_text(table).to_string(index=False))
    return 0


def segment_command(arguments: list[str], video: Annotated[Positional[Path], arg(metavar="VIDEO")],
                    given: Annotated[Positional[tuple[str, ...]], arg(metavar="MASK [MASK ...] OUT")], /, *,
                    checkpoint: str = "davis2016", device: str | None = None, threshold: int = 0,
                    overwrite: bool = False, mp4: bool = True,
                    settings: _Segment = _Segment()) -> int:
    """Carry the objects of a mask through a video: dulvos segment clip.mp4 first.png masks.

    OUT gets a palette PNG for each frame and overlay.mp4. Object ids are kept (1 to 254); a mask of 0 and 255
    is object 1. --shorter-side makes it faster. After a stop, the command starts again at the first frame.

    Args:
        video: folder of frames (jpg, png, ...) or a video file (mp4, mkv, ...).
        given: MASK is a PNG with the objects of the first frame,
            FRAME=PNG with objects that are new or corrected in a later frame (the first is 0),
            or a folder of PNGs that are named like their frames. OUT is the folder for the results.
        checkpoint: davis2016 (comes with dulvos), random, imagenet, timm:MODEL,
            a .safetensors file, or a .pth file that the authors released.
        device: cpu, cuda, ...; a CUDA GPU by default, if there is one.
        threshold: for masks with soft edges: pixels of at least this grey (1 to 255) are object 1.
        overwrite: replace files in OUT that segment did not write.
        mp4: write overlay.mp4 at the video's rate, or at 24 frames a second for a folder.
    """
    if len(given) < 2 or videos.given_file(given[-1])[1].is_file():
        raise InputError(f"{' '.join([str(video), *given])}: give VIDEO MASK [MASK ...] OUT; OUT is a folder")
    *named, out = given
    chosen = SegmentSettings.of(**_chosen(arguments, settings))
    for item in named:
        if not videos.given_file(item)[1].exists():
            raise InputError(f"{item}: no such mask; give a PNG, FRAME=PNG or a folder")
    encoder = load_encoder(checkpoint).to(find_device(device), memory_format=torch.channels_last)
    if expand(video).is_file():
        print(f"{video}: counting its frames", flush=True)  # by decoding, which may take minutes
    opened = videos.open_video(video, named)
    first, ended = masks.given_masks(opened, named, threshold), masks.read_ended(opened, named)
    if 1 < len(first) == len(opened):
        raise InputError(f"{named[0]}: masks are given for all {len(first)} frames, so there is nothing to "
                         "find; give only the first mask, or leave some out")
    opened.verify()
    check_memory(opened, first, chosen, encoder)
    folder = masks.check_folder(out, opened, overwrite, named)
    for frame, ids in first.items():
        print(f"frame {frame}: objects {', '.join(map(str, np.setdiff1d(ids, 0)))}")
    found = segment(opened.frames(), first, partial(encode, encoder), chosen, ended=ended)
    saved = masks.save_masks(enumerate(found), opened, folder)
    with tqdm(saved, opened.name, len(opened), unit="frame") as bar:
        if mp4:
            pictures = (masks.overlay(frame, ids) for frame, (_, ids) in zip(opened.frames(), bar))
            movies.write_mp4(folder / masks.MOVIE, pictures, opened.rate, opened.aspect)
        else:
            for _ in bar:
                pass
    print(f"{len(opened)} frames: {folder}/<frame>.png" + f" and {folder / masks.MOVIE}" * mp4)
    return 0


def index_command(names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = (), /, *,
                  data: Path | None = None) -> int:
    """Count the videos of training collections; without names, list the collections and where to get them.

    Args:
        names: youtube-vos, oxuva, trackingnet, kinetics-400, davis-2017, or any folder of videos.
        data: folder that holds the collections (or set DULVOS_DATA_DIR).
    """
    if data and not names:
        raise InputError(f"--data {data}: name a collection: {', '.join(collections.SOURCES)}")
    if not names:
        for name, source in collections.SOURCES.items():
            print(f"{name}: {source}")
    if data:
        os.environ["DULVOS_DATA_DIR"] = str(data)
    opened = [runs.open_training(name) for name in names]
    for found in opened:
        print(f"{found.name}: {len(found.videos):,} videos, {sum(map(len, found.videos)):,} frames, "
              f"fingerprint {found.fingerprint}", *found.notes, sep="\n  ")
    return int(any(found.miscounted for found in opened))


def download_command(name: Positional[Literal["davis2017", "davis2016"]], /, *, to: Path) -> int:
    """Download DAVIS from its site (CC BY-NC 4.0), check it and unpack it.

    Args:
        name: davis2017 is the paper's benchmark.
        to: folder in which davis-2017 or davis-2016 will lie.
    """
    download(name, to)
    return 0


def _use_davis(folder: Path | None) -> None:
    """Open DAVIS, to find what is wrong with it now, and let DULVOS_DAVIS tell the notebooks where it is."""
    if folder:
        os.environ["DULVOS_DAVIS"] = str(folder)
    os.environ["DULVOS_DAVIS"] = str(runs.open_data("davis", "val").root.resolve())


if __name__ == "__main__":
    sys.exit(main())
