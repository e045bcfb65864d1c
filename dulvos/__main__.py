"""`python -m dulvos`: the study, and a video of yours, from the command line."""

from __future__ import annotations

import argparse
import ast
import os
import sys
from pathlib import Path

from dulvos.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends it with one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m dulvos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="run what is not done of a study", description="Train, evaluate, make tables and figures: "
                                "each step once. Stopped in any way, the same command continues.")
    study.add_argument("name", choices=("demo", "davis"), nargs="?", default="demo",
                       help="demo: on videos that it renders (the default); davis: on DAVIS")
    study.add_argument("--davis", metavar="DIR", help="folder of DAVIS-2016 or -2017: JPEGImages, Annotations, ImageSets")
    study.add_argument("--setting", choices=("cpu", "paper"), default="cpu",
                       help="of davis: a training of hours on two cores (the default), or the paper's, for a GPU")
    study.add_argument("--grid", action="store_true", help="then what is missing of the ablation grid of that name (Fig. 3)")
    _add_train(commands)
    _add_segment(commands)
    _add_data(commands)
    _add_paper(commands)
    _add_grid(commands)
    options = parser.parse_args(arguments)
    try:
        run = {"train": _train, "segment": _segment, "index": _index, "download": _download, "paper": _paper,
               "grid": _grid}.get(options.command, _study)
        return run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ChildProcessError) as error:  # what ends a training, told by it
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of PyTorch, which is imported only where it is needed
            raise
        print(f"error: {str(error).splitlines()[0]} Give less: a smaller batch or crop, or a --shorter-side", file=sys.stderr)
        return 1
    except OSError as error:  # the system's words: a full disk, no permission, a name too long
        if not error.strerror:
            raise
        print(f"error: {InputError(f'{error.filename}: {error.strerror}' if error.filename else error.strerror)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "starts again at the first frame" if options.command == "segment" else "continues from here"
        print(f"\nstopped; the same command {goes_on}", file=sys.stderr)
        return 130


def _study(options: argparse.Namespace) -> int:
    from dulvos.study.steps import davis_steps, demo_steps, run_study

    if options.name == "demo" and (options.davis or options.setting != "cpu"):
        raise InputError("--davis and --setting belong to the study 'davis': python -m dulvos study davis")
    if options.name == "demo":
        status = run_study("demo", demo_steps(), "cutouts")
    else:
        _use_davis(options.davis, "the study 'davis'")
        steps = davis_steps(options.setting)
        status = run_study(steps[0].parameters["study"], steps, "davis")
    return max(status, _run_grid(options.name)) if options.grid else status


def _use_davis(folder: str | None, what: str) -> None:
    """Let DULVOS_DAVIS, where notebooks look, name the folder that --davis gives, or what it names already."""
    folder = folder or os.environ.get("DULVOS_DAVIS")
    if not folder:
        raise InputError(f"{what} needs --davis DIR, the folder that holds JPEGImages, Annotations and ImageSets")
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; --davis names the folder that holds JPEGImages, Annotations and ImageSets")
    os.environ["DULVOS_DAVIS"] = str(Path(folder).resolve())


def _add_train(commands) -> None:
    parser = commands.add_parser(
        "train", help="train one encoder, on one device or several", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train one encoder, as notebook 01_train does, and write its row. Stopped in any way, the same command continues.",
        epilog="""examples:
  python -m dulvos train cutouts --study mine --set iterations=200 batch=4 crop=128 scale_min=144 scale_max=208 lr=3e-4
  torchrun --nproc_per_node 4 -m dulvos train youtube-vos --study mine --name youtube-vos

A collection of the paper's has the paper's settings and schedule, other data those of YouTube-VOS but for iterations and lr_every;
NAME=VALUE changes one. Under torchrun the batch is shared by the processes, and anchors are gathered over all of them.

davis is the folder that DULVOS_DAVIS names; collections lie in the one that DULVOS_DATA_DIR names (python -m dulvos index).""")
    parser.add_argument("data", metavar="DATA", help="cutouts, davis, youtube-vos, ..., or a folder, as 01_train takes it")
    parser.add_argument("--study", required=True, help="folder under results/")
    parser.add_argument("--set", metavar="NAME=VALUE", nargs="+", default=(), help="settings of dulvos.training.TrainSettings")
    parser.add_argument("--name", default="trained", help="of the run (default: trained)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a CUDA GPU where there is one)")


def _train(options: argparse.Namespace) -> int:
    from dulvos import devices
    from dulvos.study import runs
    from dulvos.study import collections as sources
    from dulvos.training import TrainSettings

    changes = dict(_setting(text) for text in options.set)
    changes.setdefault("workers", devices.reading_processes(devices.find_device(options.device)))
    if options.data in sources.SOURCES and sources.SOURCES[options.data].schedule:
        frames = sources.paper_settings(options.data, 1, **changes).frames
        videos = [video for video in runs.open_training(options.data).videos if len(video) >= frames]
        settings = sources.paper_settings(options.data, len(videos), **changes)  # epochs are iterations of this batch
    else:
        settings = TrainSettings.from_dict(changes)
    row = runs.training_run(options.study, options.name, options.data, settings, device=options.device)
    print(f"{row['encoder']}: {row['iterations']} iterations in {row['seconds'] / 60:.1f} min, L = {row['loss']:.3f}")
    return 0


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} is no setting; expected NAME=VALUE, such as lr=3e-4")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value  # a word


def _add_grid(commands) -> None:
    parser = commands.add_parser(
        "grid", help="the ablation grid of Fig. 3: list it, run what is missing",
        description="Say what of the ablation grid is done, running, missing and failed, and the time left; --run runs what is "
        "missing, then notebook 03_ablation, which draws Fig. 3. Stopped in any way, the same command continues.")
    parser.add_argument("--study", choices=("demo", "davis", "paper"), default="demo", help="scale of the grid (default demo)")
    parser.add_argument("--run", action="store_true", help="run what is missing")
    parser.add_argument("--davis", metavar="DIR", help="folder of DAVIS-2016 or -2017: JPEGImages, Annotations, ImageSets")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time (default: one a GPU, else as many as cores and "
                        "memory allow)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker's computations (default 1)")
    parser.add_argument("--scheduler", default="", metavar="ADDRESS", help="of a running Dask scheduler: its workers run")
    parser.add_argument("--only", nargs="+", default=(), metavar="RUN", help="these runs alone, by the names in the list")


def _grid(options: argparse.Namespace) -> int:
    from dulvos.study import ablation as grid, ablation_states as states

    if options.davis and options.study == "demo":
        raise InputError("the grid 'demo' has its own videos; --davis belongs to --study davis or paper")
    if options.davis or options.run and options.study != "demo":
        _use_davis(options.davis, f"the grid {options.study!r}")
    if options.workers < 0 or options.threads < 1:
        raise InputError(f"--workers must be >= 0 and --threads >= 1, not {options.workers} and {options.threads}")
    found = grid.find_study(options.study)
    if not options.run:
        every = states.grid_runs(found)
        states.check_names(found, every, options.only)
        print(states.listing(found, [run for run in every if not options.only or run.name in options.only]))
        return 0
    return _run_grid(options.study, workers=options.workers, threads=options.threads, scheduler=options.scheduler,
                     only=tuple(options.only))


def _run_grid(name: str, **options) -> int:
    from dulvos.study import work
    from dulvos.study.ablation import find_study

    status = work.run_grid(find_study(name), **options)
    return max(status, work.draw(name))  # what is not run says so in the figure


def _add_segment(commands) -> None:
    parser = commands.add_parser(
        "segment", help="carry the objects of one frame through a video", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Carry the objects that MASK marks in one frame through the rest of a video, by features alone.",
        epilog="""examples:
  python -m dulvos segment clip.mp4 first.png masks
  python -m dulvos segment clip.mp4 first.png 40=corrected.png masks --shorter-side 240

Ids are kept (1 to 254, gaps allowed; a mask of 0 and 255 is object 1). OUT gets a palette PNG for each frame, as they come,
and at the end overlay.mp4. Propagation is sequential and remembers more than the PNGs hold: stopped in the middle, the same
command starts again at the first frame, and what an earlier run wrote is replaced. --shorter-side is what makes it faster.""")
    parser.add_argument("video", metavar="VIDEO", help="folder of frames (jpg, png, ...) or a video file (mp4, mkv, ...)")
    parser.add_argument("masks", metavar="MASK", nargs="+", help="PNG of the first frame's objects; FRAME=PNG for objects that "
                        "are new or corrected in a later frame (numbered from 0); or a folder of PNGs called as the frames are")
    parser.add_argument("out", metavar="OUT", help="folder for the results, made if it is not there")
    parser.add_argument("--checkpoint", default="davis2016", help="davis2016 (the default: trained weights that come with "
                        "this package), random, imagenet, a .safetensors file, or one that the authors released (.pth)")
    parser.add_argument("--layer", default="res4", help="features compared: res3, res4 (default), key")
    parser.add_argument("--context", type=int, default=20, help="recent frames to copy from, beside the given one (default 20)")
    parser.add_argument("--radius", type=float, default=12.0, help="how far to look there, in cells of 8 pixels (default 12)")
    parser.add_argument("--topk", type=int, default=10, help="cells that a label is copied from (default 10)")
    parser.add_argument("--tau", type=float, default=0.05, help="temperature of their weights (default 0.05)")
    parser.add_argument("--shorter-side", type=int, default=0, metavar="PIXELS", help="features are made of frames reduced to "
                        "this shorter side; masks keep the frames' size (default 0: not reduced)")
    parser.add_argument("--precision", default="bf16", help="of the network: bf16 (default), fp32")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a CUDA GPU where there is one)")
    parser.add_argument("--fps", type=float, help="of overlay.mp4 (default: the video's; 24 for a folder)")
    parser.add_argument("--no-mp4", action="store_true", help="write no overlay.mp4")


def _segment(options: argparse.Namespace) -> int:
    from collections import deque
    from functools import partial

    import torch
    from tqdm import tqdm

    from dulvos import inference, masks, movies, videos
    from dulvos.checkpoints import load_encoder
    from dulvos.devices import find_device
    
    names = ("layer", "context", "radius", "topk", "tau", "shorter_side", "precision")
    settings = inference.SegmentSettings(**{name: getattr(options, name) for name in names})
    if Path(options.video).is_file():
        print(f"{options.video}: counting its frames", flush=True)  # by decoding them, which takes minutes for a long one
    video = videos.open_video(options.video)
    given = masks.given_masks(video, options.masks)
    video.verify()
    device = find_device(options.device)
    encoder = load_encoder(options.checkpoint).to(device, memory_format=torch.channels_last)
    fps = movies.frame_rate(video) if options.fps is None else options.fps
    if not 0.1 <= fps <= 1000:
        raise InputError(f"--fps must lie in 0.1..1000, not {fps}")
    inference.check_memory(video, len(given), settings, device)
    out = masks.check_folder(options.out, video, options.masks)
    for frame, ids in given.items():
        print(f"frame {frame}: objects {', '.join(map(str, sorted({*ids.ravel().tolist()} - {0})))}")
    found = inference.segment(video.frames(), given, partial(inference.encode, encoder), settings)
    saved = masks.save_masks(enumerate(found), video, out)
    with tqdm(saved, desc=video.name, total=len(video), unit="frame") as bar:
        if options.no_mp4:
            deque(bar, maxlen=0)
        else:
            pictures = (masks.overlay(frame, ids) for frame, (_, ids) in zip(video.frames(), bar))
            movies.write_mp4(out / masks.MOVIE, pictures, fps)
    seconds = bar.format_dict["elapsed"]
    print(f"{len(video)} frames in {seconds:.0f} s ({seconds / len(video):.2f} s each): {out}/<frame>.png"
          + ("" if options.no_mp4 else f" and {out / masks.MOVIE}"))
    return 0


def _add_data(commands) -> None:
    index = commands.add_parser("index", help="look at the paper's training collections, or list what is expected of them")
    index.add_argument("names", metavar="NAME", nargs="*", help="youtube-vos, oxuva, trackingnet, kinetics-400, davis-2017, or "
                       "any folder of videos; without a name, the table of what is expected and where it comes from")
    index.add_argument("--data", metavar="DIR", help="folder that holds youtube-vos, oxuva, ... (or DULVOS_DATA_DIR)")
    index.add_argument("--decode", action="store_true", help="count the frames of video files by decoding them all (hours for "
                       "Kinetics-400), which also leaves out those that do not decode")
    download = commands.add_parser("download", help="fetch DAVIS from its site (CC BY-NC 4.0), check and unpack it")
    download.add_argument("name", choices=("davis2017", "davis2016"), help="which: davis2017 has the paper's benchmark")
    download.add_argument("--to", metavar="DIR", required=True, help="folder in which davis-2017 or davis-2016 will lie")


def _index(options: argparse.Namespace) -> int:
    from dulvos.study import runs
    from dulvos.study import collections as sources
    from dulvos.training import TrainSettings

    if options.data:
        os.environ["DULVOS_DATA_DIR"] = str(Path(options.data).resolve())
    if not options.names and options.data:
        raise InputError(f"--data {options.data}: which of its collections? Give NAME: {', '.join(sources.SOURCES)}")
    if not options.names:
        print(sources.sources_table())
    miscounted = False
    for name in options.names:
        collection = runs.open_training(name, decode=options.decode)
        lengths = [len(video) for video in collection.videos]
        print(f"{collection.name}: {len(lengths):,} videos, {sum(lengths):,} frames, fingerprint {collection.fingerprint}")
        if name in sources.SOURCES and sources.SOURCES[name].schedule:
            settings = sources.paper_settings(name, sum(length >= TrainSettings.frames for length in lengths))
            print(f"  the paper's schedule: {settings.iterations:,} iterations of B = {settings.batch}, T = {settings.frames}")
        for line in collection.notes:
            print(f"  {line}")
        miscounted |= bool(collection.miscounted)
    return 1 if miscounted else 0


def _download(options: argparse.Namespace) -> int:
    from dulvos.study.download import download

    download(options.name, options.to)
    return 0


def _add_paper(commands) -> None:
    parser = commands.add_parser(
        "paper", help="the rows of the paper's Tables 1 and 2", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run the rows of the paper's Tables 1 and 2 that can be run. Checks first data, weights, disk and memory, "
        "prints the plan with estimated hours, and runs nothing (exit status 1) if something is missing.",
        epilog="""examples:
  python -m dulvos paper                                       # every row: what it needs, its state, what stands in
  python -m dulvos paper --data DIR --dry-run                  # what is missing, and how long it would take
  python -m dulvos paper --data DIR --rows random crw          # no training
  python -m dulvos paper --data DIR --rows youtube-vos         # train on YouTube-VOS, evaluate on DAVIS-2017 val
  python -m dulvos paper --data DIR --dry-run --probe 50       # 50 iterations a collection: Table 3's estimates

DIR holds davis-2017, youtube-vos, oxuva, trackingnet and kinetics-400 (python -m dulvos index lists their layouts), and
weights: the files that the paper's authors and CRW released.""")
    parser.add_argument("--data", metavar="DIR", help="folder that holds davis-2017, youtube-vos, ...; without it, the list "
                        "of rows, in Markdown")
    parser.add_argument("--rows", metavar="ROW", nargs="+", help="which (default: all); table2-* are for YouTube-VOS' server")
    parser.add_argument("--dry-run", action="store_true", help="check and plan only")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a CUDA GPU where there is one)")
    parser.add_argument("--probe", type=int, default=2, metavar="N", help="iterations that probe time and memory (default 2)")
    parser.add_argument("--released", action="store_true", help="train as long as the authors' snapshots, not to the end")
    parser.add_argument("--selected", action="store_true", help="besides the last checkpoint, evaluate the snapshot and layer "
                        "that are best on 5 sequences of DAVIS-2017 val, as the paper did; on lines of their own")
    parser.add_argument("--incomplete", action="store_true", help="train on collections of which videos or frames are missing; "
                        "their rows stand on lines of their own")
    parser.add_argument("--miniature", action="store_true", help="tiny settings and incomplete data: tries the whole path; "
                        "its numbers mean nothing and belong to studies called miniature-*")


def _paper(options: argparse.Namespace) -> int:
    from dulvos.study.machine import Machine
    from dulvos.study.paper_rows import ROWS, rows_table
    from dulvos.study.paper_runs import run_paper

    if not options.data:
        if options.dry_run or options.rows or options.released or options.selected or options.incomplete or options.miniature:
            raise InputError("--data DIR is missing: the folder that holds davis-2017, youtube-vos, ...")
        print(rows_table())
        return 0
    unknown = sorted(set(options.rows or []) - set(ROWS))
    if unknown:
        raise InputError(f"--rows {unknown[0]}: no such row; the rows are {', '.join(ROWS)}")
    if options.probe < 1:
        raise InputError(f"--probe must be >= 1, not {options.probe}")
    machine = Machine(Path(options.data), options.device, options.probe, released=options.released, selected=options.selected,
                      incomplete=options.incomplete, miniature=options.miniature)
    return run_paper([ROWS[name] for name in options.rows or ROWS], machine, dry=options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
