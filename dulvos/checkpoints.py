"""What is kept of networks: encoders as safetensors with a sidecar, and the state from which a training goes on."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pandas as pd
import safetensors
import safetensors.torch
import torch
import torchvision

from dulvos.encoder import ARCHITECTURE, Encoder
from dulvos.errors import InputError
from dulvos.released import RELEASES, check_numbers, locate, read_released
from dulvos.files import replacing

__all__ = ["TrainingState", "is_whole", "load_encoder", "save_encoder"]

WEIGHTS = Path(__file__).parent / "weights"


def save_encoder(encoder: Encoder, path: str | os.PathLike, *, dtype: torch.dtype = torch.float32, **notes) -> Path:
    """Write an encoder's weights as safetensors with a JSON sidecar of the same stem.

    Both are written under temporary names, synced and renamed, the weights last.

    Arguments:
        path: the file, with suffix .safetensors.
        dtype: of the floating-point weights in the file; float16 halves it.
        notes: JSON values kept in the sidecar (where the weights come from, their licence).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: encoders are saved as .safetensors")
    weights = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in encoder.state_dict().items()
    }
    sidecar = json.dumps({**encoder.config, **notes}, indent=1) + "\n"
    data = safetensors.torch.save(weights)
    for file, content in ((path.with_suffix(".json"), sidecar.encode()), (path, data)):
        with replacing(file) as stream:
            stream.write(content)
    return path


def is_whole(path: Path) -> bool:
    """Whether a .safetensors file is there with its sidecar and all the bytes that its header announces; reads no weights."""
    try:
        with safetensors.safe_open(path, "pt"):
            return path.with_suffix(".json").is_file()
    except (safetensors.SafetensorError, OSError):
        return False


def encoder_file(name: str) -> Path:
    """The file of this study's weights ("davis2016") or of released ones, by their names; any other name is the file's own.

    Raises:
        InputError: released weights that are not there.
    """
    return WEIGHTS / f"{name}.safetensors" if name == "davis2016" else Path(locate(name))


def load_encoder(path_or_name: str | os.PathLike, *, seed: int = 0) -> Encoder:
    """Load an encoder in evaluation mode, on the CPU, in float32.

    Arguments:
        path_or_name: a .safetensors file with its JSON sidecar; a released torch file (`dulvos.released.read_released`) or
            the name of one (`RELEASES`); or "random" (initialised from `seed`), "davis2016" (this study's weights, from CC BY-NC
            videos), "imagenet" (torchvision's ResNet-18, fetched on first use).
        seed: of the random initialisation ("random", and the head of "imagenet").

    Raises:
        InputError: no such name or file, a truncated file, another architecture, weights that are no numbers, a wrong seed.
    """
    name = os.fspath(path_or_name)
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number in 0..2^63, not {seed!r}")
    if name in ("random", "imagenet"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = Encoder()
        if name == "imagenet":
            try:
                weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
            except OSError as error:
                raise InputError(f"'imagenet' cannot be fetched ({error}); give 'davis2016' or a .safetensors file") from None
            encoder.backbone.load_state_dict({k: v for k, v in weights.items() if not k.startswith("fc.")})
        return encoder.eval()
    path = encoder_file(name)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such checkpoint; give a .safetensors file, 'random', 'davis2016', 'imagenet' or a released "
                         f"file (.pth, or {', '.join(RELEASES)})")
    if path.suffix in (".pth", ".pt", ".tar"):
        return read_released(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: an encoder is a .safetensors file with a .json sidecar beside it, or a released .pth file")
    sidecar = path.with_suffix(".json")
    try:
        config = json.loads(sidecar.read_text())
        architecture, dim, norm = config["architecture"], config["dim"], config["norm"]
    except FileNotFoundError:
        raise InputError(f"{sidecar}: the checkpoint's sidecar is missing; it lies beside {path.name}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{sidecar}: not a sidecar with 'architecture', 'dim' and 'norm'; save the encoder again") from None
    if architecture != ARCHITECTURE:
        raise InputError(f"{sidecar}: architecture {architecture!r}, but this package builds {ARCHITECTURE!r}")
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= 2**16 or norm not in ("batch", "layer"):
        raise InputError(f"{sidecar}: dim must be a whole number in 1..65536 and norm 'batch' or 'layer', not {dim!r} and {norm!r}")
    encoder = Encoder(dim, norm)
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error}); copy or train it again") from None
    expected = encoder.state_dict()
    wrong = sorted(k for k in expected.keys() | state.keys()
                   if k not in state or k not in expected or state[k].shape != expected[k].shape)
    if wrong:
        raise InputError(f"{path}: weights of another architecture than {ARCHITECTURE} with dim={dim}, norm={norm!r}: "
                         f"{wrong[0]} and {len(wrong) - 1} more differ")
    check_numbers(path, state)
    encoder.load_state_dict(state)
    return encoder.eval()


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
