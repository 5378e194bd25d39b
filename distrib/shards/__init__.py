"""The binary data sets: written once from ground truth, mapped for training."""
