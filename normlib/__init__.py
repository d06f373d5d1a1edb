"""Normalization for NumPy arrays on the CPU, and an RNN runtime with a normalizer at every step."""

from normlib import errors
from normlib.functional import (
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from normlib.info import __version__, show_config
from normlib.moments import Moments, moments
from normlib.normalizers import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoOp,
    Normalizer,
    RMSNorm,
)
from normlib.registry import available, create, register
from normlib.rnn import RNN
from normlib.threads import get_num_threads, set_num_threads

__all__ = [
    "RNN",
    "BatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Moments",
    "NoOp",
    "Normalizer",
    "RMSNorm",
    "__version__",
    "available",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "create",
    "errors",
    "get_num_threads",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "moments",
    "register",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "set_num_threads",
    "show_config",
]
