"""Distributed-first training of text-line recognition models."""

from __future__ import annotations

__version__ = "0.1.0"
