"""Arrays of other libraries: taken without a copy, or refused with the reason."""

import numpy as np
import pytest

import normlib
from normlib.arrays import as_float
from normlib.errors import DTypeError


class Interface:
    """An array by ``__array_interface__`` alone."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Capsule:
    """An array by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Broken(Capsule):
    def __dlpack__(self, **options):
        raise BufferError("it is elsewhere")


@pytest.mark.parametrize("wrapper", [Interface, Capsule])
def test_a_protocol_is_enough_and_nothing_is_copied(wrapper, rng):
    x = rng.standard_normal((6, 8)).astype(np.float32)
    assert np.shares_memory(as_float(wrapper(x), "x"), x)
    assert np.shares_memory(as_float(wrapper(x[:, ::2]), "x"), x)
    gain = np.linspace(1, 2, 8, dtype=np.float32)
    expected = normlib.layer_norm(x, gain)
    np.testing.assert_array_equal(normlib.layer_norm(wrapper(x), wrapper(gain)), expected)
    norm = normlib.LayerNorm(8)
    np.testing.assert_array_equal(norm(wrapper(x)), norm(x))
    with pytest.raises(DTypeError, match="x must be float32, float64, float16 or bfloat16; got"):
        normlib.layer_norm(wrapper(np.ones((2, 2), int)))


def test_what_numpy_cannot_see_is_refused():
    with pytest.raises(DTypeError, match=r"x must be an array that NumPy can see.*it is elsewhere"):
        normlib.rms_norm(Broken(np.ones(3)))


def test_torch_tensors(rng):
    torch = pytest.importorskip("torch", reason="takes PyTorch's tensors")
    x = rng.standard_normal((6, 8)).astype(np.float32)
    tensor = torch.from_numpy(x)
    assert np.shares_memory(as_float(tensor, "x"), x)
    assert np.shares_memory(as_float(tensor.T, "x"), x)
    y = normlib.rms_norm(tensor, torch.ones(8))
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, normlib.rms_norm(x))
    half = tensor.half()
    np.testing.assert_array_equal(normlib.rms_norm(half), normlib.rms_norm(half.numpy()))
    tensor.requires_grad_()
    with pytest.raises(DTypeError, match=r"x must not require gradients.* Pass x\.detach\(\)"):
        normlib.layer_norm(tensor)
    with pytest.raises(DTypeError, match=r"gain must not require gradients"):
        normlib.layer_norm(x, torch.ones(8, requires_grad=True))
    with pytest.raises(DTypeError, match="x must be an array that NumPy can see"):
        normlib.layer_norm(torch.ones(3, 3, device="meta"))
    with pytest.raises(DTypeError, match="out must be a NumPy array; got Tensor"):
        normlib.layer_norm(x, out=torch.empty(6, 8))


def test_torch_bfloat16(rng):
    torch = pytest.importorskip("torch", reason="takes PyTorch's tensors")
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="has the type bfloat16")
    tensor = torch.from_numpy(rng.standard_normal((6, 8)).astype(np.float32)).bfloat16()
    seen = as_float(tensor, "x", half=True)
    assert seen.dtype == ml_dtypes.bfloat16
    assert seen.__array_interface__["data"][0] == tensor.data_ptr()
    y = normlib.layer_norm(tensor)
    expected = torch.nn.functional.layer_norm(tensor.float(), (8,)).bfloat16().float().numpy()
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=1e-2)


def test_jax_arrays(rng):
    jnp = pytest.importorskip("jax.numpy", reason="takes JAX's arrays")
    x = jnp.asarray(rng.standard_normal((6, 8)).astype(np.float32))
    assert np.shares_memory(as_float(x, "x"), np.asarray(x))
    np.testing.assert_array_equal(normlib.layer_norm(x), normlib.layer_norm(np.asarray(x)))
    brain = x.astype(jnp.bfloat16)
    assert normlib.layer_norm(brain).dtype == np.asarray(brain).dtype
