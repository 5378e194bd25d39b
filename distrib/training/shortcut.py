"""A second CTC loss straight on the feature map, which helps the layers before the recurrent ones to learn.

Its head is used in training alone (Retsinas et al. 2022, "Best Practices for a Handwritten Text Recognition
System").
"""

from __future__ import annotations

from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model.taps import FeatureTap

SHORTCUT = "shortcut"
"""The head's name among the auxiliary modules."""


class ShortcutHead(nn.Module):
    """Scores of the labels from each column of a feature map and its two neighbours, linearly."""

    def __init__(self, features: int, labels: int) -> None:
        super().__init__()
        self.co = nn.Conv1d(features, labels, kernel_size=3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Raw scores (N, L, 1, W') of a feature map (N, C, H', W') that is zero past the end of each line."""
        scores: Tensor = self.co(features.flatten(1, 2))
        return scores[:, :, None]


def shortcut_head(tap: FeatureTap, labels: int) -> ShortcutHead:
    """The head for a network. Raises InputError where its feature map has no fixed height."""
    refuse_varying_height(tap)
    return ShortcutHead(tap.channels * tap.height, labels)


def refuse_varying_height(tap: FeatureTap) -> None:
    """Raise InputError for a feature map of which no head can have a column."""
    if not tap.height:
        raise InputError(
            "--shortcut: the height of the network's feature map varies with the lines; give --spec an input "
            "of fixed height, or leave the option out."
        )
