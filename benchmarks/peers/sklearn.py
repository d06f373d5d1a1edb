"""scikit-learn's ``StandardScaler``, then gain and bias. One thread; it has no eps."""

import numpy as np
from sklearn.preprocessing import StandardScaler

from benchmarks.norms import Inputs
from benchmarks.peers.base import Peer, Run

__all__ = ["ScikitLearn"]


class ScikitLearn(Peer):
    """Batch norm of features. In float64, the missing eps would show."""

    dtypes = ("float32",)
    images = False

    def batch_norm_forward(self, i: Inputs) -> Run:
        return lambda: StandardScaler().fit_transform(i.x) * i.gain + i.bias

    batch_norm_forward_out = batch_norm_forward

    def batch_norm(self, i: Inputs) -> Run:
        scaler = StandardScaler().fit(i.x[:2])
        scaler.mean_, scaler.var_, scaler.scale_ = i.mean, i.var, np.sqrt(i.var)
        return lambda: scaler.transform(i.x) * i.gain + i.bias

    batch_norm_out = batch_norm
