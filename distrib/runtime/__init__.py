"""The run itself: processes and devices, strategies, checkpoints, run directory."""
