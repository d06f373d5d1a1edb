"""A normalizer as somebody else would write it, in Python alone; also a plugin's whole module."""

import numpy as np

import normlib


class RMSNorm(normlib.Normalizer):
    """y = gain * x / sqrt(mean(x**2) + eps) + bias"""

    per_sample = True

    def forward(self, x, *, step=0, mask=None):
        x = self.check_input(x, step=step, mask=mask)
        rstd = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        xhat = x * rstd
        return self.affine(xhat), (xhat, rstd)

    def backward(self, dy, cache):
        xhat, rstd = cache
        dxhat, grads = self.affine_backward(dy, xhat)
        along = np.mean(dxhat * xhat, axis=-1, keepdims=True)
        return rstd * (dxhat - xhat * along), grads
