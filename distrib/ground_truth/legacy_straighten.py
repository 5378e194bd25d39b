"""Line images as kraken made them before version 5."""

from __future__ import annotations

from PIL import Image

from distrib.ground_truth.straighten import Points, straighten


def straighten_legacy(page: Image.Image, baseline: Points, boundary: Points) -> Image.Image:
    """As straighten."""
    return straighten(page, baseline, boundary)
