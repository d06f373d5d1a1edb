"""Handwritten digits, read by a recurrent network with each normalizer in turn."""

from normlib.demo.experiment import Settings, run

__all__ = ["Settings", "run"]
