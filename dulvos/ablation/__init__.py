"""The ablation grid of Fig. 3: its points, their runs, and what comes out."""
