"""Normalizers: objects with parameters and state, over the functions of `normlib.functional`."""

from normlib.normalizers.base import Normalizer
from normlib.normalizers.batch import BatchNorm
from normlib.normalizers.group import GroupNorm
from normlib.normalizers.instance import InstanceNorm
from normlib.normalizers.layer import LayerNorm
from normlib.normalizers.noop import NoOp
from normlib.normalizers.rms import RMSNorm
from normlib.normalizers.rows import RowFunctions

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "NoOp",
    "Normalizer",
    "RMSNorm",
    "RowFunctions",
]
