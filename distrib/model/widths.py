"""The widths of the lines of a padded batch, and keeping the padding at zero.

Every layer of a network keeps one invariant: the columns past a line's own width hold zero. With it a
convolution sees at a line's right edge what it would see were the line alone, so that a line's output
does not depend on the batch it is in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LineWidths:
    """The widths of a batch's lines in pixels (columns), where they are not all equal.

    The numbers stay on the CPU, where packed sequences want them; the masks made from them are on the
    device and reach it without waiting for it.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        """(N,) int64 on the CPU."""
        self.shortest = int(values.min())
        self._tails: dict[tuple[int, torch.device], Tensor] = {}

    def map(self, function: Callable[[Tensor], Tensor]) -> LineWidths:
        """The widths after a layer."""
        values = function(self.values)
        return self if torch.equal(values, self.values) else LineWidths(values)

    def on(self, device: torch.device) -> Tensor:
        """The widths on a device."""
        if device.type != "cuda":
            return self.values.to(device)
        return self.values.pin_memory().to(device, non_blocking=True)

    def tail(self, lines: Tensor) -> Tensor:
        """(N, 1, 1, W - shortest) bool: true in the padding columns from the shortest line's end on."""
        key = (lines.shape[-1], lines.device)
        if (mask := self._tails.get(key)) is None:
            columns = torch.arange(self.shortest, lines.shape[-1], device=lines.device)
            mask = (columns >= self.on(lines.device)[:, None])[:, None, None, :]
            self._tails[key] = mask
        return mask


def zero_padding(lines: Tensor, widths: LineWidths | None) -> Tensor:
    """A copy of ``lines`` (N, C, H, W) with zero in the padding; itself where there is none."""
    if widths is None or widths.shortest >= lines.shape[-1]:
        return lines
    head, tail = lines[..., : widths.shortest], lines[..., widths.shortest :]
    return torch.cat([head, tail.masked_fill(widths.tail(lines), 0)], dim=-1)


def zero_padding_(lines: Tensor, widths: LineWidths | None) -> Tensor:
    """The same in place; only for tensors that the operation before them has not kept for its gradient."""
    if widths is not None and widths.shortest < lines.shape[-1]:
        lines[..., widths.shortest :].masked_fill_(widths.tail(lines), 0)
    return lines
