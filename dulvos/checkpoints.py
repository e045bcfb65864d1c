"""Encoders on disk: weights as safetensors, with a JSON sidecar that says how to build the network."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
import torchvision

from dulvos.encoder import ARCHITECTURE, Encoder
from dulvos.errors import InputError
from dulvos.files import replacing
from dulvos.released import RELEASES, load_weights, locate, read_released, read_weights

if TYPE_CHECKING:
    from dulvos.timm_encoders import TimmEncoder

__all__ = ["TrainingState", "encoder_file", "is_whole", "load_encoder", "save_encoder"]

WEIGHTS = Path(__file__).parent / "weights"


def save_encoder(encoder: Encoder, path: str | os.PathLike, *, dtype: torch.dtype = torch.float32,
                 **notes: Any) -> Path:
    """Write an encoder's weights as safetensors, with a JSON sidecar of the same stem.

    Arguments:
        path: the file, with suffix .safetensors.
        dtype: of the floating-point weights in the file; float16 halves it.
        notes: JSON values for the sidecar, such as where the weights come from and their licence.

    Raises:
        InputError: another suffix, or the files cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: encoders are saved as .safetensors")
    weights = {name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
               for name, value in encoder.state_dict().items()}
    sidecar = json.dumps({**encoder.config, **notes}, indent=1) + "\n"
    with replacing(path.with_suffix(".json")) as stream:
        stream.write(sidecar.encode())
    with replacing(path) as stream:  # last: where the weights are, the sidecar is
        stream.write(safetensors.torch.save(weights))
    return path


def is_whole(path: Path) -> bool:
    """Whether a .safetensors file has its sidecar and the length that its header states; reads no weights."""
    try:
        with safetensors.safe_open(path, "pt"):
            return path.with_suffix(".json").is_file()
    except (safetensors.SafetensorError, OSError):
        return False


def encoder_file(name: str) -> Path:
    """The file that a name of `load_encoder` stands for; a name without a file comes back as it is.

    Raises:
        InputError: released weights are not there.
    """
    if name.startswith("timm:"):
        name = name.partition("=")[2] or name
    return WEIGHTS / f"{name}.safetensors" if name == "davis2016" else Path(locate(name))


def load_encoder(path_or_name: str | os.PathLike, *, seed: int = 0) -> Encoder | TimmEncoder:
    """Load an encoder in evaluation mode, on the CPU, in float32.

    Arguments:
        path_or_name: one of
            "random": initialised from `seed`;
            "davis2016": this study's weights, trained on CC BY-NC videos;
            "imagenet": torchvision's ResNet-18, downloaded on first use, with a random head;
            a .safetensors file with its JSON sidecar;
            a released torch file (see `dulvos.released.read_released`), or the name of one (`RELEASES`);
            "timm:MODEL": a network of timm (see `dulvos.timm_encoders.TimmEncoder`).
        seed: of the random weights, 0 to 2^63 - 1.

    Raises:
        InputError: the name or seed is wrong, or the file is missing, damaged or of another network.
    """
    name = os.fspath(path_or_name)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number in 0..2^63, not {seed!r}")
    if name.startswith("timm:"):
        from dulvos.timm_encoders import TimmEncoder  # importing timm takes seconds
        return TimmEncoder(name, seed)
    if name in ("random", "imagenet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder()
        if name == "imagenet":
            try:
                weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
            except OSError as error:
                raise InputError(f"'imagenet' cannot be downloaded ({error}); give 'davis2016'") from None
            load_weights(encoder.backbone, weights, Path(name))
        return encoder.eval()
    path = encoder_file(name)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; give a .safetensors file, 'random', 'davis2016', "
                         f"'imagenet' or a released file (.pth, or {', '.join(RELEASES)})")
    if path.suffix in (".pth", ".pt", ".tar"):
        return read_released(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: not an encoder; give a .safetensors file (beside its .json) or a released .pth")
    encoder = _build(path.with_suffix(".json"))
    load_weights(encoder, read_weights(path), path, strict=True)
    return encoder.eval()


def _build(sidecar: Path) -> Encoder:
    """The network that a sidecar describes."""
    try:
        config = json.loads(sidecar.read_text())
        architecture, dim, norm = config["architecture"], config["dim"], config["norm"]
    except FileNotFoundError:
        raise InputError(f"{sidecar}: the sidecar of the checkpoint is missing; copy both files") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{sidecar}: not a sidecar with 'architecture', 'dim' and 'norm'; save the encoder "
                         "again") from None
    if architecture != ARCHITECTURE:
        raise InputError(f"{sidecar}: architecture {architecture!r}; this package builds {ARCHITECTURE!r}")
    if type(dim) is not int or not 1 <= dim <= 2**16 or norm not in ("batch", "layer"):
        raise InputError(f"{sidecar}: dim must be a whole number in 1..65536 and norm 'batch' or 'layer', "
                         f"not {dim!r} and {norm!r}")
    return Encoder(dim, norm)


class TrainingState:
    """What a training must remember to go on exactly: weights, optimiser, schedule, count; no generator has a state to keep.

    Arguments:
        path: of `checkpoint.pt`; `history.csv` is written beside it.
        settings: those that must not change when the run is taken up again.
        data: fingerprint of the videos.
        last: number of iterations that the run is to have; a finished run can be prolonged.
        parts: the network, the optimiser and the scheduler, by name; `resume` loads them in place.

    Fields:
        iteration: iterations done. seconds, cpu_seconds: wall and processor time they took. peak: peak memory in MB.
        history: a tuple an iteration, in the order of `COLUMNS`.
    """

    PLAIN = ("settings", "data", "iteration", "seconds", "cpu_seconds", "peak")
    COLUMNS = ("iteration", "loss", "loss_st", "loss_cv", "lr", "seconds")

    def __init__(self, path: Path, settings: dict, data: str, last: int, parts: dict):
        self.path, self.settings, self.data, self.last, self.parts = path, settings, data, last, parts
        self.iteration, self.seconds, self.cpu_seconds, self.peak = 0, 0.0, 0.0, 0.0
        self.history: list[tuple[float, ...]] = []

    def add(self, *values: float) -> None:
        """An iteration's row of the history."""
        if len(values) != len(self.COLUMNS):
            raise ValueError(f"{len(values)} values for the columns {', '.join(self.COLUMNS)} (TrainingState.COLUMNS): what "
                             "training_step returns goes between iteration and seconds")
        self.history.append(values)

    def table(self) -> pd.DataFrame:
        """The history, a row an iteration."""
        return pd.DataFrame(self.history, columns=self.COLUMNS)

    def save(self) -> None:
        """Replace the checkpoint, then the history."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {name: getattr(self, name) for name in self.PLAIN}
        state |= {"history": torch.tensor(self.history, dtype=torch.float64)}
        with replacing(self.path) as stream:
            torch.save(state, stream)
        with replacing(self.path.with_name("history.csv")) as stream:
            self.table().to_csv(stream, index=False, float_format="%.7g")

    def resume(self) -> None:
        """Take up the checkpoint if there is one.

        Raises:
            InputError: the checkpoint is damaged, of another run, or past `last`.
        """
        for orphan in self.path.parent.glob(".*.tmp"):  # of a call that was killed while it wrote
            orphan.unlink(missing_ok=True)
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            saved = {name: state[name] for name in (*self.PLAIN, "history", *self.parts)}
        except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, KeyError, IndexError, TypeError,
                ValueError) as error:
            raise InputError(f"{self.path}: truncated or not a checkpoint of this program; delete it to start anew "
                             f"({type(error).__name__})") from None
        one = {"processes": 1}  # what several of them computed, a single one would not go on with
        for name, ours in (("settings", one | self.settings), ("data", self.data)):
            theirs = saved[name] if name == "data" else {k: (one | saved[name]).get(k) for k in ours}
            if theirs != ours:
                if name == "settings":
                    theirs = {k: v for k, v in theirs.items() if v != ours[k]}
                raise InputError(f"{self.path}: of a run with other {name} ({theirs}); give another folder or delete it")
        if saved["iteration"] > self.last:
            raise InputError(f"{self.path}: has {saved['iteration']} iterations already, more than iterations={self.last}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.path}: weights of another architecture; delete it to start anew "
                             f"({str(error).splitlines()[0]})") from None
        for name in ("iteration", "seconds", "cpu_seconds", "peak"):
            setattr(self, name, saved[name])
        self.history = [tuple(row) for row in saved["history"].tolist()]
