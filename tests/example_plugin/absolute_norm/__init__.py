"""Normalization by the mean absolute value: an example of a plugin for normlib."""

import numpy as np
from scipy import LowLevelCallable

import normlib
from absolute_norm import rows

__all__ = ["AbsoluteNorm"]

# Made once, and outside the class's instances, which are copied and pickled.
FUNCTIONS = {
    name: LowLevelCallable.from_cython(rows, name)
    for name in ("forward_float", "forward_double", "backward_float", "backward_double")
}


class AbsoluteNorm(normlib.Normalizer):
    """y = gain * x / (mean(abs(x)) + eps) + bias"""

    per_sample = True

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        scale = 1 / (np.mean(np.abs(x), axis=-1, keepdims=True) + self.eps)
        return self.affine(x * scale), (x, scale)

    def backward(self, dy, cache):
        x, scale = cache
        dxhat, grads = self.affine_backward(dy, x * scale)
        along = scale * np.mean(dxhat * x, axis=-1, keepdims=True)
        return scale * (dxhat - np.sign(x) * along), grads

    def row_functions(self, *, training):
        number = "float" if self.dtype == np.float32 else "double"
        return normlib.RowFunctions(
            FUNCTIONS[f"forward_{number}"],
            FUNCTIONS[f"backward_{number}"],
            (self.parameters.get("gain"), self.parameters.get("bias")),
            ("gain", "bias"),
            cache_size=1,
        )
