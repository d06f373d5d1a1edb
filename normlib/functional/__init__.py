"""Stateless normalization.

Statistics (mean, var, rstd) come back in float64, whatever the type of x; gains, biases and
gradients have x's type.
"""

from normlib.functional.add import (
    add_layer_norm,
    add_layer_norm_backward,
    add_layer_norm_forward,
    add_rms_norm,
    add_rms_norm_backward,
    add_rms_norm_forward,
)
from normlib.functional.batch import batch_norm, batch_norm_backward, batch_norm_forward
from normlib.functional.group import group_norm, group_norm_backward, group_norm_forward
from normlib.functional.instance import (
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from normlib.functional.layer import layer_norm, layer_norm_backward, layer_norm_forward
from normlib.functional.rms import rms_norm, rms_norm_backward, rms_norm_forward

__all__ = [
    "add_layer_norm",
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
]
