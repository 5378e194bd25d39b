"""Copies of a state in host memory, taken fast enough that training need not wait for the disk."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from distrib.runtime.state import Piece


class HostCopies:
    """Buffers that are filled anew for each checkpoint.

    Fresh memory costs more than copying into it, as the system hands it over page by page, and more again
    where it is pinned for a GPU. So the buffers stay, and a copy is good until the next is taken.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
        """The values of all pieces by key, each (n,) on the CPU, as they are now."""
        copies = {key: self._buffer(key, piece.values) for key, piece in pieces.items()}
        devices = set()
        with torch.no_grad():
            for key, piece in pieces.items():
                copies[key].copy_(piece.values.detach().reshape(-1), non_blocking=True)
                devices.add(piece.values.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        self._buffers = copies
        return copies

    def _buffer(self, key: str, values: Tensor) -> Tensor:
        found = self._buffers.get(key)
        if found is not None and found.numel() == values.numel() and found.dtype == values.dtype:
            return found
        if values.device.type == "cuda":
            try:
                return torch.empty(values.numel(), dtype=values.dtype, pin_memory=True)
            except RuntimeError:
                pass  # the system grants no more pinned memory; other memory is slower, and does
        return torch.empty(values.numel(), dtype=values.dtype)
