"""Dense unsupervised learning for video segmentation (Araslanov, Schaub-Meyer, Roth; NeurIPS 2021)."""

from dulvos.checkpoints import load_encoder
from dulvos.encoder import Encoder
from dulvos.errors import InputError
from dulvos.inference import SegmentSettings, encode, segment
from dulvos.losses import dense_loss, sample_grid
from dulvos.masks import read_mask
from dulvos.metrics import score_sequence
from dulvos.propagation import propagate
from dulvos.videos import open_video

__all__ = ["Encoder", "InputError", "SegmentSettings", "dense_loss", "encode", "load_encoder", "open_video",
           "propagate", "read_mask", "sample_grid", "score_sequence", "segment"]
__version__ = "0.1.0"
