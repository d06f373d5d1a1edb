"""C signatures of row functions: every way to write the right one is accepted, and no other."""

import ctypes
import re

import numpy as np
import pytest
from scipy import LowLevelCallable

from normlib.normalizers.signatures import refusal, signature_of

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
POINTER = "long long" if ctypes.sizeof(ctypes.c_long) < ctypes.sizeof(ctypes.c_void_p) else "long"


def named(signature):
    """Some function that claims the signature; nobody calls it."""
    return LowLevelCallable(ctypes.CFUNCTYPE(None)(lambda: None), signature=signature)


FORWARD = [
    "void (const float *x, float *y, intptr_t features, const float **parameters, double eps, "
    "double *cache)",
    "void (float *, float *, Py_ssize_t, float **, double, double *)",
    "void(float const*,float*,ssize_t,float const**,double,double*)",
    "void  (const float * const x, float *y, npy_intp n, const float *const *p, double, double * )",
    f"void (float *, float *, {POINTER}, float **, double, double *)",
    f"void (float *, float *, signed {POINTER} int, float * *, const double, double *)",
    "void (void *, void *, ptrdiff_t, void **, double, void *)",
    "void (void *, void *, int64_t, void *, double, double *)",
    "void (void *, void *, longlong, void_p *, double, double *)",
    "void (void_p, void_p, intptr_t, float **, double, double *)",
]


@pytest.mark.parametrize("signature", FORWARD)
def test_a_forward_may_be_written_in_many_ways(signature):
    assert refusal(named(signature), "forward", SINGLE) is None


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("method", ["forward", "backward"])
def test_the_right_signature_is_right(method, dtype):
    assert refusal(named(signature_of(method, dtype)), method, dtype) is None


def test_a_backward_may_be_written_in_other_ways():
    for signature in (
        "void (double *, double *, double *, intptr_t, double **, double, double *, double **)",
        "void (void *, void *, void *, intptr_t, void **, double, void *, void **)",
    ):
        assert refusal(named(signature), "backward", DOUBLE) is None


@pytest.mark.parametrize(
    ("signature", "difference"),
    {
        "void (double *, float *, intptr_t, float **, double, double *)": (
            r"whose argument 1 is double \* instead of float \*"
        ),
        "void (float *, float *, int, float **, double, double *)": (
            "whose argument 3 is int32_t instead of intptr_t"
        ),
        "void (float *, float *, size_t, float **, double, double *)": (
            "whose argument 3 is size_t instead of intptr_t"
        ),
        "void (float *, float *, unsigned long, float **, double, double *)": (
            "whose argument 3 is unsigned long instead of intptr_t"
        ),
        "void (float *, float *, intptr_t, float *, double, double *)": (
            r"whose argument 4 is float \* instead of float \*\*"
        ),
        "void (float *, float *, intptr_t, void ***, double, double *)": (
            r"whose argument 4 is void \*\*\* instead of float \*\*"
        ),
        "void (void **, float *, intptr_t, float **, double, double *)": (
            r"whose argument 1 is void \*\* instead of float \*"
        ),
        "void (float *, float *, intptr_t, float **, float, double *)": (
            "whose argument 5 is float instead of double"
        ),
        "void (float *, float *, intptr_t, float **, void *, double *)": (
            r"whose argument 5 is void \* instead of double"
        ),
        "void (float *, float *, intptr_t, float **, double, float *)": (
            r"whose argument 6 is float \* instead of double \*"
        ),
        "int (float *, float *, intptr_t, float **, double, double *)": (
            "whose result is int32_t instead of void"
        ),
        "void * (float *, float *, intptr_t, float **, double, double *)": (
            r"whose result is void \* instead of void"
        ),
        "void (float *, float *, intptr_t, float **, double)": "has 5 arguments instead of 6",
        "void (float *, float *, intptr_t, float **, double, double *, void *)": (
            "has 7 arguments instead of 6"
        ),
        "void ()": "has 0 arguments instead of 6",
        "void (void)": "has 0 arguments instead of 6",
        "void (struct row *, float *, intptr_t, float **, double, double *)": (
            r"whose argument 1 is struct row \* instead of float \*"
        ),
        "void *": r"got 'void \*'$",
        "": "got ''$",
        "void (void (*)(int), float *, intptr_t, float **, double, double *)": r"got 'void \(void",
    }.items(),
)
def test_another_forward_is_refused(signature, difference):
    message = refusal(named(signature), "forward", SINGLE)
    expected = (
        f"must be a scipy.LowLevelCallable of the signature '{signature_of('forward', SINGLE)}'"
    )
    assert message.startswith(f"{expected}; got '{signature}'")
    assert re.search(difference, message)


def test_a_function_for_another_type_is_refused():
    for method in ("forward", "backward"):
        for dtype, other in ((SINGLE, DOUBLE), (DOUBLE, SINGLE)):
            function = named(signature_of(method, dtype))
            assert "whose argument 1 is" in refusal(function, method, other)


@pytest.mark.parametrize("function", [1, len, ctypes.CFUNCTYPE(None)(lambda: None), (1, 2, 3)])
def test_what_is_no_low_level_callable_is_refused(function):
    assert refusal(function, "forward", SINGLE).endswith(f"; got {type(function).__name__}")


def test_user_data_is_refused():
    function = named(signature_of("forward", SINGLE)).function
    function = LowLevelCallable(function, ctypes.c_void_p(1), signature_of("forward", SINGLE))
    message = refusal(function, "forward", SINGLE)
    assert message.endswith("with user_data, which is not passed on; offer settings as parameters")
