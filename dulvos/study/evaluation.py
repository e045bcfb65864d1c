"""Evaluation: carry the first masks through every video, write and score the masks, leave a row."""

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import current_process, get_context
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from dask.system import CPU_COUNT
from torch import nn
from tqdm import tqdm

from dulvos import devices
from dulvos.checkpoints import load_encoder
from dulvos.datasets import Dataset, Sequence, read_predictions
from dulvos.errors import InputError
from dulvos.files import read_json, write_file
from dulvos.inference import MakeFeatures, SegmentSettings, colour_features, encode, segment
from dulvos.masks import write_mask
from dulvos.metrics import STATS_COLUMNS, SequenceScores, score_sequence, summarise
from dulvos.study import youtube_vos
from dulvos.study.rows import Study, flat, once, write_json
from dulvos.study.runs import data_fingerprint, find_features, open_data

__all__ = ["BASELINES", "evaluate", "evaluate_encoders", "evaluation_run", "object_table", "score_masks",
           "write_official"]

BASELINES = {"copy": None, "colour": colour_features}  # copy the first masks; compare raw colours
COSTS = ("seconds", "channels", "peak_memory_mb")  # of each sequence
SUBMISSION = "submission.zip"
DEFAULT = SegmentSettings()
UNSCORED = SequenceScores((), *np.zeros((2, 0, 0)))


def evaluate(dataset: Dataset, features: str | nn.Module | MakeFeatures, folder: Path,
             settings: SegmentSettings = DEFAULT, *, device: str = "cpu", seed: int = 0,
             processes: int = 1) -> tuple[list[SequenceScores], dict]:
    """Carry masks through every video of a dataset and score them, if there is truth.

    Writes `folder/<sequence>/<frame>.png` for each frame that is handed in, and `folder/<sequence>.json` when
    a sequence is finished. A later call with the same folder propagates only unfinished sequences.

    Arguments:
        dataset: every frame that is handed in has an annotation, except in YouTube-VOS' split "valid", which
            is not scored.
        features: "copy", "colour", what `load_encoder` takes ("random", "davis2016", ...), an encoder, or a
            function that makes features of frames, as `dulvos.inference.segment` takes it.
        folder: used for this run only; another checkpoint or setting needs another folder.
        device: for the encoder and the propagation, such as "cpu" or "cuda".
        seed: of random features.
        processes: how many share the sequences; each uses a GPU of its own, or its share of the cores. 0
            takes one for each GPU, or one without a GPU. The masks do not depend on it.

    Returns:
        scores in the dataset's order; and seconds, frames, saved (masks written), channels (of the features),
        peak_memory_mb, device.

    Raises:
        InputError: bad input, by name; frames and annotations are read before anything is propagated.
        ChildProcessError: a process was killed.
    """
    if processes < 0:
        raise InputError(f"processes must be >= 0, not {processes}")
    processes = processes or (torch.cuda.device_count() if torch.device(device).type == "cuda" else 1)
    folder, scored = Path(folder), dataset.split != "valid"
    title = Path(features).name if isinstance(features, str) else dataset.name
    source = BASELINES.get(features, features)
    if isinstance(source, str):
        source = load_encoder(source, seed=seed)
    todo = [sequence for sequence in dataset.sequences if not _cost_file(folder, sequence).exists()]
    for sequence in todo:
        _check(sequence, scored)
    carry = partial(_carry, source, folder, settings, device)
    with tqdm(total=sum(len(s.video) for s in todo), desc=title, unit="frame", mininterval=5.0) as bar:
        if (processes := min(processes, len(todo))) > 1:
            _share(todo, carry, processes, bar)
        else:
            for sequence in todo:
                bar.set_postfix_str(sequence.name, refresh=False)
                carry(sequence, bar.update)
    expected = f"{', '.join(COSTS)}; delete this file to evaluate the sequence again"
    costs = pd.DataFrame([read_json(_cost_file(folder, sequence), expected, itemgetter(*COSTS))
                          for sequence in dataset.sequences], columns=COSTS)
    scores = [score_masks(folder, sequence) if scored else UNSCORED for sequence in dataset.sequences]
    return scores, {"seconds": costs["seconds"].sum(), "frames": sum(len(s.video) for s in dataset.sequences),
                    "saved": sum(len(s.handed_in) for s in dataset.sequences), "device": device,
                    "channels": costs["channels"].max(), "peak_memory_mb": costs["peak_memory_mb"].max()}


def _cost_file(folder: Path, sequence: Sequence) -> Path:
    """The file with what a sequence cost. It is written last, so where it is, all masks are."""
    return folder / f"{sequence.name}.json"


def _share(todo: list[Sequence], carry: Callable, processes: int, bar: tqdm) -> None:
    """Carry the sequences in several processes of this machine, the longest first."""
    spawn = get_context("spawn")
    with (spawn.Manager() as manager,
          ProcessPoolExecutor(processes, spawn, _begin, (max(1, CPU_COUNT // processes),)) as pool):
        frames = manager.Queue()  # gets an item for each frame that is done
        todo = sorted(todo, key=lambda sequence: -len(sequence.video))
        pending = {pool.submit(carry, sequence, partial(frames.put, None)) for sequence in todo}
        try:
            while pending:
                done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                bar.update(frames.qsize() - bar.n)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise ChildProcessError("a process that carries masks was killed (out of memory?); use fewer "
                                    "processes; the same call continues after the finished videos") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(threads: int) -> None:
    """Set up a process of `_share`: its threads and, if there are GPUs, its own as the device "cuda"."""
    torch.set_num_threads(threads)
    if count := torch.cuda.device_count():
        torch.cuda.set_device(int(current_process().name.rpartition("-")[2]) % count)


def _check(sequence: Sequence, scored: bool) -> None:
    """Raise an InputError if a frame or an annotation is missing or wrong, or if nothing can be scored."""
    sequence.video.verify()
    given = sequence.first_masks()
    if scored and (len(sequence.handed_in) < 3 or not any(ids.any() for ids in given.values())):
        raise InputError(f"{sequence.video.path}: {len(sequence.handed_in)} frame(s); to be scored, a video "
                         "needs 3 or more, and an object in its first annotation")
    if scored:
        sequence.truth()


def _carry(source: object, folder: Path, settings: SegmentSettings, device: str, sequence: Sequence,
           tell: Callable[[], object]) -> None:
    """Write the masks of one sequence, then what they cost; `tell` is called after each frame."""
    started, given, channels = time.monotonic(), sequence.first_masks(), 0
    if isinstance(source, nn.Module):
        source = partial(encode, source.to(device, memory_format=torch.channels_last))

    def features(frames: Iterable[np.ndarray], settings: SegmentSettings) -> Iterator[torch.Tensor]:
        nonlocal channels
        for maps in source(frames, settings):
            channels = len(maps)
            yield maps

    def copies() -> Iterator[np.ndarray]:
        """The first mask of each object, in that frame and in all later ones."""
        ids = np.zeros(sequence.video.size, np.uint8)
        for t in range(len(sequence.video)):
            if t in given:
                ids = np.where(given[t] > 0, given[t], ids)
            yield ids

    masks = copies() if source is None else segment(sequence.video.frames(), given, features, settings)
    for t, ids in enumerate(masks):
        if t in sequence.handed_in:
            write_mask(folder / sequence.name / f"{sequence.video.frame_name(t)}.png", ids)
        tell()
    memory = devices.peak_memory(torch.device(device))
    write_json(_cost_file(folder, sequence), dict(zip(COSTS, (time.monotonic() - started, channels, memory))))


def score_masks(folder: Path, sequence: Sequence) -> SequenceScores:
    """Scores of the masks that `evaluate` wrote, without objects that enter in the last two frames."""
    entry = None  # the first frame shows all objects
    if sequence.objects is not None:
        places = {t: place for place, t in enumerate(sequence.handed_in[:-2])}
        entry = {i: places[t] for t, mask in sequence.first_masks().items() if t in places
                 for i in np.setdiff1d(mask, 0).tolist()}
        if not entry:
            return UNSCORED
    return score_sequence(sequence.truth(), read_predictions(folder, sequence), first_frame=entry)


def object_table(dataset: Dataset, scores: list[SequenceScores]) -> pd.DataFrame:
    """A line for each object: sequence, object (its id) and `STATS_COLUMNS`, in [0, 1]."""
    lines = [(sequence.name, i, *stats) for sequence, score in zip(dataset.sequences, scores, strict=True)
             for i, stats in zip(score.ids, score.stats, strict=True)]
    return pd.DataFrame(lines, columns=["sequence", "object", *STATS_COLUMNS])


def write_official(dataset: Dataset, scores: list[SequenceScores], folder: Path) -> None:
    """Write the two csv files of DAVIS-2017's own tool, for other tools that read them.

    `global_results-<split>.csv` has one line: J&F-Mean, J-Mean, J-Recall, J-Decay, F-Mean, F-Recall, F-Decay.
    `per-sequence_results-<split>.csv` has a line for each object: Sequence, J-Mean, F-Mean. There, an object
    is called `<sequence>_<number>`, numbered from 1 in each sequence. Three decimals, in [0, 1].
    """
    table = object_table(dataset, scores)
    number = table.groupby("sequence").cumcount() + 1
    table = pd.DataFrame({"Sequence": table["sequence"] + "_" + number.astype(str), "J-Mean": table["J mean"],
                          "F-Mean": table["F mean"]})
    for name, lines in (("global", pd.DataFrame([summarise(scores)])), ("per-sequence", table)):
        text = lines.to_csv(index=False, float_format="%.3f")
        write_file(folder / f"{name}_results-{dataset.split}.csv", text)


def evaluation_run(study: Study, name: str, data: str | Dataset, features: str,
                   settings: SegmentSettings = DEFAULT, *, split: str = "val", device: str | None = None,
                   seed: int | None = 0, processes: int = 1, kind: str = "evaluate",
                   selected: str = "") -> dict:
    """Evaluate features on a split and write the row; the row of a finished run is returned as it is.

    The study's `masks/<name>-<key>` gets the masks and the official csv files, `scores/<name>-<key>.csv` the
    scores of each object. YouTube-VOS' split "valid" has no truth, so the masks get a `submission.zip`.

    Arguments:
        data, split: as `open_data` takes them, or an open dataset.
        features: as `find_features` takes them.
        device: None chooses a CUDA GPU if there is one.
        seed: of random features.
        processes: as `evaluate` takes it.
        kind: of the row: "select" is a candidate of notebook 02_evaluate's selection, and keeps no masks.
        selected: how the checkpoint was chosen; "" for the last of a training.

    Raises:
        InputError: bad input, by name, before anything is propagated.
    """
    dataset = open_data(data, split) if isinstance(data, str) else data
    if dataset.split in youtube_vos.SPLITS:
        kind = "youtube-vos"
    baseline = features in BASELINES  # needs no network
    place = devices.find_device("cpu" if baseline else device)
    source, said = find_features(study, features)
    if features.startswith("timm:"):
        settings = dataclasses.replace(settings, layer="")  # the model's name says which
    wanted = flat({"parameters": dataclasses.asdict(settings), "weights": said["weights"],
                   "seed": None if baseline else seed, "selected": selected, "split": dataset.split,
                   "data": dataset.name,  # which tells whether objects are merged
                   "fingerprint": data_fingerprint(dataset, masks=True)})

    def whole(row: dict) -> bool:
        masks, scored = study.path(row, "masks"), study.path(row, "scores", ".csv")
        product = masks / SUBMISSION if dataset.split == "valid" else scored
        return kind == "select" or product.exists() and all(_cost_file(masks, s).exists()
                                                            for s in dataset.sequences)

    def compute(row: dict) -> dict:
        masks, scored = study.path(row, "masks"), study.path(row, "scores", ".csv")
        scores, outcome = evaluate(dataset, source, masks, settings, device=str(place), seed=seed or 0,
                                   processes=processes)
        table, precision = object_table(dataset, scores), devices.computed_in(place.type, settings.precision)
        made = {**said, **outcome, "data": dataset.name, "sequences": len(scores), "objects": len(table),
                "seconds_per_frame": outcome["seconds"] / outcome["frames"],
                "computed_in": "fp32" if baseline else precision}
        if kind == "select":
            shutil.rmtree(masks)  # nobody looks at those of a hundred candidates
            return made | {"drawn": [s.name for s in dataset.sequences], "scores": summarise(scores)}
        if kind == "youtube-vos":
            made["every_frame"] = all(sequence.saved is not None for sequence in dataset.sequences)
        if dataset.split == "valid":
            youtube_vos.write_submission(dataset, masks, masks / SUBMISSION)
            return made | {"submission": str((masks / SUBMISSION).relative_to(study.folder))}
        write_file(scored, table.to_csv(index=False, float_format="%.6f"))
        if kind == "youtube-vos":
            made["unseen_classes"] = list(youtube_vos.local_split(dataset.root).unseen)
            return made | {"scores": youtube_vos.class_scores(table, dataset.root)}
        write_official(dataset, scores, masks)
        return made | {"scores": summarise(scores)}

    return once(study, kind, name, wanted, compute, whole=whole)


def evaluate_encoders(study: Study, encoders: tuple[str, ...], data: str,
                      settings: SegmentSettings = DEFAULT, *, split: str = "val", device: str | None = None,
                      processes: int = 0) -> pd.DataFrame:
    """Evaluate encoders on the same videos by the same protocol, as a table with the best encoder first.

    Each leaves its masks, official csv files and row in the study. A later call skips what is finished.

    Arguments:
        encoders: as `load_encoder` takes them; also "copy" and "colour".
        data, split: as `open_data` takes them.
        device: None chooses a CUDA GPU if there is one. processes: as `evaluate` takes it.

    Returns:
        a line for each encoder: encoder, channels, its scores in percent, and seconds a frame.

    Raises:
        InputError: an unknown or damaged encoder, before anything is propagated; bad data; an encoder that
            does not fit the frames (names it; the rows of those before it are kept).
    """
    lines = []
    for encoder in set(encoders) - set(BASELINES):
        load_encoder(find_features(study, encoder)[0])
    for encoder in encoders:
        name = re.sub(r"[^\w.=@-]+", "-", encoder).strip("-")[-100:]
        try:
            row = evaluation_run(study, name, data, encoder, settings, split=split, device=device,
                                 processes=processes)
        except InputError as error:
            raise InputError(f"{encoder}: {error}") from None
        scores = {key.removeprefix("scores."): 100 * row[key] for key in row if key.startswith("scores.")}
        lines.append({"encoder": encoder, "channels": row["channels"],
                      **(scores or {"submission": row["submission"]}),
                      "seconds a frame": row["seconds_per_frame"]})
    table = pd.DataFrame(lines)
    best = [column for column in ("J&F-Mean", "mean") if column in table]  # a submission has no score
    return table.sort_values(best, ascending=False, ignore_index=True, kind="stable")
