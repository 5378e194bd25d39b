"""An LSTM over sequences of different lengths in one padded tensor."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class SequenceLSTM(nn.LSTM):
    """One layer of ``nn.LSTM``, with its parameters, that takes lengths instead of a packed sequence."""

    def __init__(self, features: int, cells: int, *, bidirectional: bool, bias: bool) -> None:
        super().__init__(features, cells, batch_first=True, bidirectional=bidirectional, bias=bias)

    def forward(self, rows: Tensor, lengths: Tensor | None) -> Tensor:  # type: ignore[override]
        """(R, W, C) to (R, W, D); with lengths (R,) on the CPU the output is zero past each row's end."""
        if lengths is None:
            return super().forward(rows)[0]
        return self._padded(rows, lengths) if rows.device.type == "cpu" else self._packed(rows, lengths)

    def _packed(self, rows: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(
            super().forward(packed)[0], batch_first=True, total_length=rows.shape[1]
        )
        return output

    def _padded(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The same without packing, which is two to five times as fast on a CPU.

        Forwards a row's outputs do not see what follows it; backwards they do not if each row is
        turned around at its own end.
        """
        steps = torch.arange(rows.shape[1], device=rows.device)
        inside = steps < lengths[:, None]
        outputs = [self._direction(rows, "_l0")]
        if self.bidirectional:
            mirrored = torch.where(inside, lengths[:, None] - 1 - steps, steps)[:, :, None]
            turned = rows.gather(1, mirrored.expand_as(rows))
            output = self._direction(turned, "_l0_reverse")
            outputs.append(output.gather(1, mirrored.expand_as(output)))
        return torch.cat(outputs, dim=2).masked_fill(~inside[:, :, None], 0)

    def _direction(self, rows: Tensor, suffix: str) -> Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        weights = [cast(Tensor, getattr(self, name + suffix)) for name in names]
        start = rows.new_zeros(1, len(rows), self.hidden_size)
        # Arguments: biases, layers, dropout, training, both directions, batch first.
        output: Tensor = torch.lstm(
            rows, (start, start), weights, self.bias, 1, 0.0, self.training, False, True
        )[0]
        return output
