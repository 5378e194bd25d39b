"""What goes wrong while ground truth is read: a typed reason and a sentence, raised as one error."""

from __future__ import annotations

from distrib.ground_truth.records import SkipReason


class GroundTruthProblem(Exception):
    """A file that cannot be used; ``reason`` is counted, ``detail`` is the sentence that is printed."""

    def __init__(self, reason: SkipReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class SourceProblem(GroundTruthProblem):
    """A source file (ALTO, PAGE, line image or text file) that holds no usable ground truth."""


class ImageProblem(GroundTruthProblem):
    """A page or line image that is missing, too large or cannot be decoded."""
