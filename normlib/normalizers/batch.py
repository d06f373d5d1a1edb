"""Batch normalization, with running statistics per time step."""

import copy
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from normlib._kernels import batch_norm as kernel
from normlib._kernels.changes import same_bits
from normlib.arrays import MAX_SIZE, Array, as_dtype, as_integer, is_real
from normlib.errors import ParameterError
from normlib.functional import batch_norm, batch_norm_backward, batch_norm_forward
from normlib.normalizers.base import Normalizer
from normlib.normalizers.rows import RowFunctions, low_level

__all__ = ["BatchNorm"]


class _Cache(NamedTuple):
    x: Array
    mean: Array
    var: Array
    mask: npt.NDArray[np.bool_] | None
    frozen: bool  # mean and var are constants, not functions of x


class _Kept:
    """The row functions of the last call, and what they were made of; copies start without."""

    def __init__(self) -> None:
        self.last: tuple[tuple[Array | None, ...], float, RowFunctions] | None = None

    def __reduce__(self) -> tuple[type["_Kept"], tuple[()]]:
        return _Kept, ()


class BatchNorm(Normalizer):
    r"""Normalize every feature by its mean and variance over the batch.

    .. math::
        y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}}
            \odot \mathrm{gain} + \mathrm{bias}.

    In ``forward`` the mean and the biased variance are those of the rows that the mask lets count;
    in inference they are the running ones, which ``forward`` updates:

    .. math::
        \mathrm{running} \leftarrow (1 - m)\,\mathrm{running} + m\,\mathrm{new}.

    In a recurrent network the statistics of early time steps differ from later ones. With `steps`
    above 1 there is one row of running statistics for each of the first `steps` time steps; later
    time steps use, and in training update, the last row. A row that training never reached keeps
    its starting values: choose `steps` no larger than the longest training sequence.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    gain, bias : bool, default True
        Whether there is a learned gain, a learned bias, each of shape (F,).
    eps : float, default 1e-5
        Added to the variance, inside the square root. 0 is allowed.
    dtype : {"float32", "float64"}, default "float32"
        Dtype of the parameters and of every result. Statistics are float64 in either case.
    momentum : float in [0, 1] or None, default 0.1
        The weight m of the *new* value. None takes the plain average over all batches seen:
        m = 1 / (batches seen at that time step, this one included). After the training of a
        recurrent network, `normlib.RNN.population` takes the average with its final weights.
    steps : int, default 1
        How many time steps have running statistics of their own.

    Attributes
    ----------
    running_mean, running_var : ndarray of float64, shape (steps, F)
        0 and 1 at the start.
    num_batches : ndarray of int64, shape (steps,)
        How many batches have updated each row. Where you set the running statistics of a row
        yourself, set this too: if other rows were trained, 0 says that the row holds nothing.

    Raises
    ------
    ParameterError
        If an argument is outside its range (a ``ValueError``).
    DTypeError
        If `dtype` is neither float32 nor float64 (a ``TypeError``).

    See Also
    --------
    normlib.batch_norm : The function, with channels at any axis.
    LayerNorm : Normalize every row on its own.

    Notes
    -----
    The running variance is the biased one, by which ``forward`` normalizes too. PyTorch stores the
    unbiased one (as Ioffe and Szegedy wrote it), which is n / (n - 1) times as large for n rows.

    ``forward`` needs at least two rows that count and raises ``ValueError`` for fewer; the running
    statistics change only when it succeeds. An RNN meets such steps in its longest sequences, and
    takes ``forward_frozen`` there.

    Inference only reads the state, so one instance may infer in many threads at once; ``forward``
    changes it, and is for one thread at a time.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization", arXiv:1502.03167. T. Cooijmans et al., "Recurrent
    Batch Normalization", arXiv:1603.09025, for statistics per time step and the starting gain 0.1.

    Examples
    --------
    >>> import numpy as np
    >>> from normlib.normalizers import BatchNorm
    >>> norm = BatchNorm(2, momentum=None, eps=0)
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0]], dtype=np.float32)
    >>> y, cache = norm.forward(x)
    >>> y
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> norm.running_mean, norm.running_var
    (array([[ 2., 20.]]), array([[  1., 100.]]))
    >>> norm(np.array([2.0, 40.0]))
    array([0., 2.], dtype=float32)
    """

    name = "batch"
    per_sample = False
    rnn_gain = 0.1
    min_rows = 2

    def __init__(
        self,
        features: int,
        *,
        gain: bool = True,
        bias: bool = True,
        eps: float = 1e-5,
        dtype: npt.DTypeLike = np.float32,
        momentum: float | None = 0.1,
        steps: int = 1,
    ) -> None:
        super().__init__(features, gain=gain, bias=bias, eps=eps, dtype=dtype)
        if momentum is not None:
            if not (is_real(momentum) and 0 <= momentum <= 1):
                raise ParameterError(
                    "momentum must be in [0, 1], or None for the plain average over all batches; "
                    f"got {momentum!r}"
                )
            momentum = float(momentum)
        self.momentum = momentum
        self.steps = as_integer("steps", steps, minimum=1, maximum=MAX_SIZE // self.features)
        try:
            self.buffers = {
                "running_mean": np.zeros((self.steps, self.features)),
                "running_var": np.ones((self.steps, self.features)),
                "num_batches": np.zeros(self.steps, np.int64),
            }
        except MemoryError as error:
            error.add_note(
                "steps must be so few that their running statistics fit in memory; got "
                f"{self.steps} for {self.features} features. Use no more than the longest training "
                "sequence has: later time steps share the last row"
            )
            raise
        self._kept = _Kept()

    @property
    def running_mean(self) -> npt.NDArray[np.float64]:
        return self.buffers["running_mean"]

    @property
    def running_var(self) -> npt.NDArray[np.float64]:
        return self.buffers["running_var"]

    @property
    def num_batches(self) -> npt.NDArray[np.int64]:
        return self.buffers["num_batches"]

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        x = self.check_input(x, step=step)
        row = min(step, self.steps - 1)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        mean, var = self.running_mean[row], self.running_var[row]
        return batch_norm(x, mean, var, gain, bias, eps=self.eps, out=out)

    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step, mask=mask)
        gain, bias = self.parameters.get("gain"), self.parameters.get("bias")
        y, mean, var = batch_norm_forward(x, gain, bias, eps=self.eps, mask=mask)
        n_rows = x.size // self.features if mask is None else int(np.count_nonzero(mask))
        self._update(min(step, self.steps - 1), mean, var, n_rows)
        return y, _Cache(x, mean, var, mask, frozen=False)

    def forward_frozen(self, x: npt.ArrayLike, *, step: int = 0) -> tuple[Array, _Cache]:
        x = self.check_input(x, step=step)
        y = self(x, step=step)
        row = min(step, self.steps - 1)
        # Copies, because later batches change the running statistics in place.
        mean, var = self.running_mean[row].copy(), self.running_var[row].copy()
        return y, _Cache(x, mean, var, mask=None, frozen=True)

    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, mean, var, mask, frozen = self.check_cache(cache, _Cache)
        dy = self.check_gradient(dy, x.shape)
        if frozen:
            with np.errstate(all="ignore"):  # eps = 0 and a variance of 0
                rstd = 1 / np.sqrt(var + self.eps)
                dxhat, grads = self.affine_backward(dy, (x - mean) * rstd)
                return as_dtype(dxhat * rstd, self.dtype), grads
        gain = self.parameters.get("gain")
        dx, dgain, dbias = batch_norm_backward(dy, x, mean, var, gain, eps=self.eps, mask=mask)
        return dx, self._gradients(dgain, dbias)

    def population_twin(self) -> Self:
        """Return a twin whose ``forward`` takes the plain average over all rows.

        Each batch counts in proportion to its rows: if all have as many, it is the plain average
        over the batches. Statistics of time steps that no batch reaches stay as they are.
        """
        twin = copy.deepcopy(self)
        twin.buffers["num_rows"] = np.zeros(self.steps, np.int64)
        return twin

    def row_functions(self, *, training: bool) -> RowFunctions | None:
        if training:
            return None
        made_of = (
            self.running_mean,
            self.running_var,
            self.parameters.get("gain"),
            self.parameters.get("bias"),
        )
        last = self._kept.last
        if last is not None and last[1] == self.eps and same_bits(made_of, last[0]):
            return last[2]
        # Copies first: another thread may change the values meanwhile, and then these do not fit.
        mean, var = self.running_mean.copy(), self.running_var.copy()
        gain, bias = (
            None if array is None else array.copy()
            for array in (self._parameter("gain"), self._parameter("bias"))
        )
        rows = self._infer_rows(mean, var, gain, bias)
        self._kept.last = None if rows is None else ((mean, var, gain, bias), self.eps, rows)
        return rows

    def _infer_rows(
        self,
        running_mean: Array,
        running_var: Array,
        gain: Array | None,
        bias: Array | None,
    ) -> RowFunctions | None:
        # The factors of every step, as batch_norm makes them.
        with np.errstate(all="ignore"):
            rstd = 1 / np.sqrt(running_var + self.eps)
            scale = rstd if gain is None else rstd * gain
            size = np.abs(scale)
            if not np.all((rstd > 1e-30) & (rstd < 1e30) & (size > 1e-30) & (size < 1e30)):
                return None  # batch_norm computes such channels in double
            mean = as_dtype(running_mean, self.dtype)
            offset = (0 if bias is None else bias) - (running_mean - mean) * scale
        factors = mean, as_dtype(scale, self.dtype), as_dtype(offset, self.dtype)
        return RowFunctions(
            low_level(kernel.row_function, self.dtype), None, factors, (None, None, None)
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum, "steps": self.steps}

    def _update(self, row: int, mean: Array, var: Array, n_rows: int) -> None:
        count = int(self.num_batches[row]) + 1
        weight = 1 / count if self.momentum is None else self.momentum
        seen = self.buffers.get("num_rows")  # of a population twin
        if seen is not None:
            count = count if seen[row] else 1
            seen[row] += n_rows
            weight = n_rows / int(seen[row])
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            # A NaN or Inf of weight 0 must not enter, nor stay: 0 times it is NaN.
            if weight == 1:
                running[row] = new
            elif weight > 0:
                with np.errstate(all="ignore"):
                    mixed = (1 - weight) * running[row]
                    mixed += weight * new
                    running[row] = mixed
        self.num_batches[row] = count
