"""The numbers of the paper, Araslanov, Schaub-Meyer and Roth, NeurIPS 2021: what our results are set beside.

Scores are percentages; None stands where the paper gives no number. Data sets have the names that `Dataset.name` has here, and the
paper's own method is called "Ours", as in the paper.
"""

from __future__ import annotations

import pandas as pd

__all__ = ["DAVIS_2017_VAL", "FIG3", "FIG3_BASELINE", "OURS", "RANDOM", "RANDOM_JF", "SEED_DEVIATION", "TABLE1", "TABLE2", "TABLE3"]
__all__ += ["SELECTED_LAYERS", "SELECTED_ON", "YOUTUBE_VOS_VALID"]

OURS = "Ours"
RANDOM = "Random initialisation"
RANDOM_JF = 43.1  # J&F on DAVIS-2017 val, Table 1
SEED_DEVIATION = 0.42  # J&F on DAVIS-2017 val over 5 training runs, Sec. 4.3
YOUTUBE_VOS_VALID = 474  # videos of YouTube-VOS 2018 val, Sec. 4.2
SELECTED_ON = 5  # sequences of DAVIS-2017 val, at random and not named, on which snapshots were chosen, App. B
SELECTED_LAYERS = ("key", "res4")  # and layers, by the release
DAVIS_2017_VAL = {"sequences": 30, "objects": 61, "frames": 1999}  # the whole of what Table 1 is measured on

# dtype=object keeps None apart from a number, and integers integers
TABLE1 = pd.DataFrame([
    (RANDOM, False, None, None, None, None, None, None, None, RANDOM_JF),
    ("CorrFlow", False, "OxUvA", 366, 14, 48.4, 53.2, 52.2, 56.0, 50.3),
    ("MAST", True, "OxUvA", 366, 14, 61.2, 73.2, 66.3, 78.3, 63.7),
    (OURS, False, "OxUvA", 366, 14, 63.4, 76.1, 67.2, 79.7, 65.3),
    ("MAST", True, "YouTube-VOS", 4_500, 5, 63.3, 73.2, 67.6, 77.7, 65.5),
    (OURS, False, "YouTube-VOS", 4_500, 5, 67.1, 81.2, 71.6, 84.9, 69.3),
    ("ContrastCorr", False, "TrackingNet", 30_000, 140, 60.5, None, 65.5, None, 63.0),
    (OURS, False, "TrackingNet", 30_000, 140, 67.1, 80.9, 71.7, 84.8, 69.4),
    ("CRW", False, "Kinetics-400", 300_000, 833, 64.8, 76.1, 70.2, 82.1, 67.6),
    (OURS, False, "Kinetics-400", 300_000, 833, 66.7, 81.4, 70.7, 84.1, 68.7),
], columns=["method", "stride 4", "data", "videos", "hours", "J_m", "J_r", "F_m", "F_r", "J&F_m"], dtype=object)
"""Table 1: DAVIS-2017 val at 480p; "stride 4" is the paper's ×2, an output stride of 4 instead of 8."""

TABLE2 = pd.DataFrame([
    ("Colorize", "Kinetics-400", False, 43.1, 38.6, 36.6, 37.4, 38.9),
    ("CorrFlow", "OxUvA", False, 50.6, 46.6, 43.8, 45.6, 46.6),
    ("MAST", "YouTube-VOS", False, 63.9, 64.9, 60.3, 67.7, 64.2),
    ("CRW", "Kinetics-400", False, 68.7, 70.2, 65.4, 75.2, 69.9),
    (OURS, "YouTube-VOS", False, 69.6, 71.3, 65.0, 73.5, 69.9),
    (OURS, "Kinetics-400", False, 69.9, 71.3, 66.5, 74.8, 70.6),
    (OURS, "TrackingNet", False, 70.2, 71.9, 66.3, 74.5, 70.7),
    ("OSVOS", None, True, 59.8, 60.5, 54.2, 60.7, 58.8),
    ("PreMVOS", None, True, 71.4, 75.9, 56.5, 63.7, 66.9),
    ("STM", None, True, 79.7, 84.2, 72.8, 80.9, 79.4),
], columns=["method", "data", "supervised", "seen J_m", "seen F_m", "unseen J_m", "unseen F_m", "mean"], dtype=object)
"""Table 2: YouTube-VOS 2018 val, scored by its server."""

TABLE3 = pd.DataFrame([
    ("ContrastCorr", "TrackingNet", 400_000, "1 d", 44),
    (OURS, "TrackingNet", 200_000, "1 d", 12),
    ("CRW", "Kinetics-400", 2_000_000, "7 d", 22),
    (OURS, "Kinetics-400", 300_000, "2 d", 12),
    ("MAST", "YouTube-VOS", 2_000_000, None, 22),
    (OURS, "YouTube-VOS", 100_000, "6 h", 12),
], columns=["method", "data", "iterations", "time", "memory (GB)"], dtype=object)
"""Table 3: training, ours on one A100 (Sec. 4); the data of the others is that of the table's next line, our reading."""

FIG3_BASELINE = {"B": 16, "T": 5, "λ": 0.1, "N": 8, "M": 4}

FIG3 = pd.DataFrame([
    ("B, T", {"B": 80, "T": 1}, -9.3),
    ("B, T", {"B": 40, "T": 2}, None),
    ("B, T", {"B": 8, "T": 10}, None),
    ("λ", {"λ": 0.0}, -2.3),
    ("λ", {"λ": 1.0}, -0.8),
    ("N", {"N": 4}, -8.2),
    ("N", {"N": 16}, None),
    ("M", {"M": 2}, None),
    ("M", {"M": 8}, -1.5),  # the largest drop for M
    ("T", {"T": 10}, None),
    ("T", {"T": 15}, 0.0),  # "we match": no number is stated
], columns=["varied", "setting", "difference"], dtype=object)
"""Fig. 3 as far as Sec. 4.3 puts it into words: J&F points from `FIG3_BASELINE`, trained on YouTube-VOS, on DAVIS-2017 val."""
