"""The run itself: device and precision, checkpoints, run directory, events."""
