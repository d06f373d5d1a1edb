"""``scipy.stats.zscore``, then gain and bias. One thread; it has no eps."""

from scipy import stats

from benchmarks.norms import Inputs
from benchmarks.peers.base import Peer, Run

__all__ = ["SciPy"]


class SciPy(Peer):
    """In float64, the missing eps would show."""

    dtypes = ("float32",)
    images = False

    def layer_norm(self, i: Inputs) -> Run:
        return lambda: stats.zscore(i.x, axis=1) * i.gain + i.bias

    layer_norm_out = layer_norm
    call = layer_norm

    def batch_norm_forward(self, i: Inputs) -> Run:
        return lambda: stats.zscore(i.x, axis=0) * i.gain + i.bias

    batch_norm_forward_out = batch_norm_forward
