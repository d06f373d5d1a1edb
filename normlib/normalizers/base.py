"""The contract that every normalizer fulfils.

Design
------
A normalizer owns its learned ``parameters`` and, if it has any, its ``buffers`` (running
statistics). The method is the mode; there is no training flag::

    y = norm(x)                      # inference: reads the state, changes nothing
    y, cache = norm.forward(x)       # training: may update the buffers
    dx, grads = norm.backward(dy, cache)   # pure

A subclass declares `Normalizer.per_sample`, writes `Normalizer.forward` and `Normalizer.backward`
(and ``__call__``, unless inference is just forward without the cache) and inherits everything else:
configuration, state and pickling (`state`), checks, gain and bias (`affine`).

What the RNN does with a normalizer at time step t, of whose batch ``valid`` rows are not padding::

    if valid < norm.min_rows:
        y, cache = norm.forward_frozen(x, step=t)
    else:
        y, cache = norm.forward(x, step=t, mask=mask)

`Normalizer.min_rows` is 0 unless a normalizer needs several rows to make its statistics, so one
that works per sample always takes the second branch. ``backward`` takes either cache.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from normlib.arrays import Array
from normlib.errors import PluginError
from normlib.normalizers.affine import Affine
from normlib.normalizers.rows import RowFunctions

__all__ = ["Normalizer"]

#: The methods that compute what `Normalizer.row_functions` computes.
ROW_METHODS = frozenset(
    ("__call__", "forward", "forward_frozen", "backward", "affine", "affine_backward")
)


#: The methods and attributes that compute what `Normalizer.batch_rule` stands for.
BATCH_METHODS = ROW_METHODS | {
    "check_input",
    "check_gradient",
    "check_cache",
    "min_rows",
    "per_sample",
    "running_mean",
    "running_var",
    "num_batches",
}


def _computes_its_own(cls: type, offer: str, methods: frozenset[str]) -> bool:
    """Whether a class overrides one of the methods after the last that made the offer."""
    for base in cls.__mro__:
        own = vars(base)
        if offer in own:
            return False
        if not methods.isdisjoint(own):
            return True
    return False


class BatchRule(NamedTuple):
    """Batch normalization as a loop over time without Python takes it: see `Normalizer.batch_rule`.

    Attributes
    ----------
    gain, bias : ndarray or None
        Shape (F,), of the normalizer's dtype.
    updated : callable
        ``updated(mean, var)`` returns the buffers after as many batches, by name, the first at time
        step 0; of these, mean and var (n, F) of float64 have the statistics. It changes nothing.
    """

    gain: Array | None
    bias: Array | None
    updated: Callable[[Array, Array], dict[str, Array]]


def as_pair(result: object, method: str, owner: str, parts: str) -> tuple[Any, Any]:
    """Return what a method of a normalizer returned; PluginError unless it is a tuple of two."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    got = type(result).__name__
    if isinstance(result, np.ndarray):
        got += f" of shape {result.shape}"
    elif isinstance(result, tuple | list):
        got += f" of {len(result)}"
    raise PluginError(
        f"{method} of {owner} must return a tuple of two, ({parts}); got {got}. "
        f"End it with: return {parts}"
    )


class Normalizer(Affine, abc.ABC):
    """Base class of all normalizers over the last axis.

    Parameters
    ----------
    features : int
        F, the size of the last axis of every input.
    gain, bias : bool, default True
        Whether there is a learned gain, a learned bias, each of shape (F,). Gains start at 1,
        biases at 0.
    eps : float, default 1e-5
        Added to the variance, inside the square root. 0 is allowed.
    dtype : {"float32", "float64"}, default "float32"
        Dtype of the parameters and of every result. Input may be of any floats, and is cast to it.

    Attributes
    ----------
    features : int
    eps : float
    dtype : numpy.dtype
    parameters : dict of str to ndarray
        What is learned, under the names "gain" and "bias". Change values in place
        (``norm.parameters["gain"][...] = 0.1``): others may hold the same array.
    buffers : dict of str to ndarray
        What is not learned but belongs to the state; empty here.

    Raises
    ------
    ParameterError
        If `features`, `gain`, `bias` or `eps` is outside its range (a ``ValueError``).
    DTypeError
        If `dtype` is neither float32 nor float64 (a ``TypeError``).

    Notes
    -----
    Inference only reads, so one instance may infer in many threads at once. ``forward`` may update
    the buffers, and is for one thread at a time unless a subclass promises more.

    Examples
    --------
    A normalizer of one's own. `affine` and `affine_backward` apply gain and bias, if there are any.

    >>> import numpy as np
    >>> from normlib.normalizers import Normalizer
    >>> class RMSNorm(Normalizer):
    ...     per_sample = True
    ...
    ...     def forward(self, x, *, step=0, mask=None):
    ...         x = self.check_input(x, step=step, mask=mask)
    ...         rstd = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
    ...         xhat = x * rstd
    ...         return self.affine(xhat), (xhat, rstd)
    ...
    ...     def backward(self, dy, cache):
    ...         xhat, rstd = cache
    ...         dxhat, grads = self.affine_backward(dy, xhat)
    ...         along = np.mean(dxhat * xhat, axis=-1, keepdims=True)
    ...         return rstd * (dxhat - xhat * along), grads
    >>> norm = RMSNorm(2, bias=False, eps=0)
    >>> norm
    RMSNorm(features=2, gain=True, bias=False, eps=0.0, dtype='float32')
    >>> norm(np.array([[1.0, 7.0]]))
    array([[0.2, 1.4]], dtype=float32)
    """

    #: The name under which the class is registered; empty until then. ``register`` sets it.
    name: ClassVar[str] = ""
    #: Whether a row's result depends on that row alone, in ``forward`` too. Every class says; by a
    #: property, where it depends on an instance's settings.
    per_sample: ClassVar[bool]
    #: The value at which gains start inside an RNN. The RNN sets it after creation.
    rnn_gain: ClassVar[float] = 1.0
    #: The fewest rows, not counting masked ones, that ``forward`` needs.
    min_rows: ClassVar[int] = 0

    def __call__(self, x: npt.ArrayLike, *, step: int = 0, out: Array | None = None) -> Array:
        """Normalize `x` for inference.

        Here it is ``forward`` without the cache, which is right for a normalizer that works per
        sample and keeps no running statistics. Others override it.

        Parameters
        ----------
        x : array_like, shape (..., F)
            Values in float32, float64 or a half type, which are cast to the own dtype.
        step : int, default 0
            The time step, for normalizers that keep statistics for each.
        out : ndarray, optional
            Where to write the result: the shape of `x`, this normalizer's dtype. It may be `x`.

        Returns
        -------
        y : ndarray, shape (..., F)
            `out`, if it was given.

        Raises
        ------
        ShapeError
            If the last axis of `x` is not F, or `out` has another shape than `x`.
        DTypeError
            If `x` is not of floats, or `out` has another dtype than the normalizer.
        ParameterError
            If `step` is not an integer of at least 0.
        PluginError
            If ``forward`` does not return a pair (a ``ValueError``).
        """
        if not self.per_sample:
            raise NotImplementedError(
                f"{type(self).__name__} has per_sample = False and must define __call__, "
                "because forward would normalize by the batch and change its statistics"
            )
        y, _ = as_pair(self.forward(x, step=step), "forward", type(self).__name__, "y, cache")
        return self.write_out(y, out)

    @abc.abstractmethod
    def forward(
        self, x: npt.ArrayLike, *, step: int = 0, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Array, Any]:
        """Normalize `x` for training.

        Parameters
        ----------
        x : array_like, shape (..., F)
            Values in float32, float64 or a half type, which are cast to the own dtype.
        step : int, default 0
            The time step, for normalizers that keep statistics for each.
        mask : ndarray of bool, shape (...), optional
            The rows that count: False rows do not enter the statistics, and are normalized by them
            all the same. A normalizer that works per sample ignores it, save for checking.

        Returns
        -------
        y : ndarray, shape (..., F)
            Its own memory: neither `x` nor anything in `cache`, so it may be changed in place.
        cache : object
            For ``backward``. It may refer to `x`, `mask` and the parameters, so do not change them
            before ``backward``.

        Raises
        ------
        ShapeError, DTypeError, ParameterError
            As ``__call__``, and for a mask of another shape or dtype. After an error the state is
            what it was.
        ValueError
            If fewer than `min_rows` rows count.
        """

    @abc.abstractmethod
    def backward(self, dy: npt.ArrayLike, cache: Any) -> tuple[Array, dict[str, Array]]:
        """Differentiate what ``forward`` or ``forward_frozen`` computed.

        Pure: it changes neither the state nor `cache`, and may be called again.

        Parameters
        ----------
        dy : array_like, shape (..., F)
            The gradient of a loss with respect to y.
        cache : object
            As returned beside y.

        Returns
        -------
        dx : ndarray, shape (..., F)
            The gradient with respect to x.
        grads : dict of str to ndarray
            The gradients with respect to the parameters, with the same keys and shapes.

        Raises
        ------
        ShapeError
            If `dy` does not have the shape of y.
        DTypeError
            If `dy` is not of floats.
        ParameterError
            If `cache` is not of this normalizer (a ``ValueError``); the classes of normlib check
            its class, dtype and features.
        """

    def forward_frozen(self, x: npt.ArrayLike, *, step: int = 0) -> tuple[Array, Any]:
        """Normalize for training as inference does, the statistics being constants.

        The RNN calls this at a step where fewer than `min_rows` rows are valid. A normalizer with
        ``min_rows > 0`` overrides it; for the others it is ``forward``.

        Parameters
        ----------
        x : array_like, shape (..., F)
            Values in float32, float64 or a half type, which are cast to the own dtype.
        step : int, default 0
            The time step.

        Returns
        -------
        y, cache
            As ``forward``. The state does not change.
        """
        return self.forward(x, step=step)

    def row_functions(self, *, training: bool) -> RowFunctions | None:
        """Return compiled functions for one row, with which an RNN needs no Python per time step.

        Here it is None: there are none. Where there are, they must compute what ``__call__``, and
        in training ``forward`` and ``backward``, compute. A subclass that overrides one of these
        methods must override this one too, or has none.

        Called often, and on copies with parameters of their own: make the functions once, outside
        the instance, and offer what ``self.parameters`` has now.

        Parameters
        ----------
        training : bool
            Whether they are for ``forward`` and ``backward``, or for ``__call__`` alone.

        Returns
        -------
        RowFunctions or None
            None also where a row's result depends on other rows.
        """
        return None

    def batch_rule(self) -> BatchRule | None:
        """Return what an RNN needs to train this normalizer with no Python per time step, or None.

        Only normlib's own `BatchNorm` has it, whose formulas are compiled into that loop. A class
        that overrides one of the methods which compute them has none, as with `row_functions`.
        """
        return None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # What was inherited computes another function than a class that overrides these methods:
        # mypy has no way to say of a method that a subclass is without it.
        if _computes_its_own(cls, "row_functions", ROW_METHODS):
            cls.row_functions = Normalizer.row_functions  # type: ignore[method-assign]
        if _computes_its_own(cls, "batch_rule", BATCH_METHODS):
            cls.batch_rule = Normalizer.batch_rule  # type: ignore[method-assign]
