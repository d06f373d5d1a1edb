"""The C signatures of row functions: what they are, and whether a function has one.

A signature is compared type by type, as what declares a function (numba, ctypes, cffi, Cython, C)
has its own way to write it. ``const``, white space and names of arguments do not count; integers
count by their size; and ``void *`` stands for any pointer, ``void **`` for any pointer to pointers.
"""

import ctypes
import functools
import re
from typing import Any, NamedTuple

import numpy as np
from scipy import LowLevelCallable

__all__ = ["refusal", "signature_of"]

# T is float or double, as the normalizer's dtype.
SIGNATURES = {
    "forward": (
        "void (const T *x, T *y, intptr_t features, const T **parameters, double eps, "
        "double *cache)"
    ),
    "backward": (
        "void (const T *dy, const T *x, T *dx, intptr_t features, const T **parameters, "
        "double eps, const double *cache, double **gradients)"
    ),
}


class _Type(NamedTuple):
    base: str
    pointers: int

    def __str__(self) -> str:
        return f"{self.base} {'*' * self.pointers}".strip()


def _integer(size: int) -> _Type:
    pointer = size == ctypes.sizeof(ctypes.c_void_p)
    return _Type("intptr_t" if pointer else f"int{8 * size}_t", 0)


#: Types by their names in C and, as scipy.LowLevelCallable forms them, in ctypes.
TYPES = {
    "void": _Type("void", 0),
    "void_p": _Type("void", 1),
    "float": _Type("float", 0),
    "double": _Type("double", 0),
    "int": _integer(ctypes.sizeof(ctypes.c_int)),
    "int32_t": _integer(4),
    "int64_t": _integer(8),
    **dict.fromkeys(("long", "long int"), _integer(ctypes.sizeof(ctypes.c_long))),
    **dict.fromkeys(("longlong", "long long", "long long int"), _integer(8)),
    **dict.fromkeys(
        ("intptr_t", "ptrdiff_t", "ssize_t", "Py_ssize_t", "npy_intp"),
        _integer(ctypes.sizeof(ctypes.c_void_p)),
    ),
}


def signature_of(method: str, dtype: np.dtype[Any]) -> str:
    """Return the C signature that "forward" or "backward" must have."""
    return SIGNATURES[method].replace("T *", "float *" if dtype == np.float32 else "double *")


def refusal(function: object, method: str, dtype: np.dtype[Any]) -> str | None:
    """Say why a row function cannot be called.

    Parameters
    ----------
    function : object
        What was offered.
    method : {"forward", "backward"}
        What it is for.
    dtype : numpy.dtype
        Of the rows, float32 or float64.

    Returns
    -------
    str or None
        None if it is a `scipy.LowLevelCallable` of the right signature, without user data; else
        what it must be, and what it is.
    """
    if not isinstance(function, LowLevelCallable):
        wrong: str | None = f"got {type(function).__name__}"
    else:
        capsule, _, user_data = function
        if user_data is None:
            wrong = _difference(capsule, method, dtype)
        else:
            wrong = "got one with user_data, which is not passed on; offer settings as parameters"
    if wrong is None:
        return None
    expected = signature_of(method, dtype)
    return f"must be a scipy.LowLevelCallable of the signature '{expected}'; {wrong}"


# A network asks at each call. The capsule has a hash, which functions of ctypes have not, and does
# not keep them alive.
@functools.lru_cache(maxsize=64)
def _difference(capsule: object, method: str, dtype: np.dtype[Any]) -> str | None:
    """Say in what a function's signature differs from the right one; None if in nothing."""
    signature, expected = LowLevelCallable(capsule).signature, signature_of(method, dtype)
    got = f"got '{signature}'"
    types, wanted = _parse(signature), _parse(expected)
    assert wanted is not None
    if types is None:
        return got
    if len(types) != len(wanted):
        return f"{got}, which has {len(types) - 1} arguments instead of {len(wanted) - 1}"
    for place, (one, other) in enumerate(zip(types, wanted, strict=True)):
        any_pointer = one.base == "void" and 1 <= one.pointers <= other.pointers
        if one != other and not any_pointer:
            role = f"argument {place}" if place else "result"
            return f"{got}, whose {role} is {one} instead of {other}"
    return None


def _parse(signature: str) -> list[_Type] | None:
    """Return the types of the result and of all arguments; None if it is no signature."""
    match = re.fullmatch(r"([\w\s*]+)\(([\w\s*,]*)\)\s*", signature)
    if match is None:
        return None
    result, arguments = match.groups()
    if arguments.strip() in ("", "void"):
        return [_type(result)]
    return [_type(text) for text in (result, *arguments.split(","))]


def _type(text: str) -> _Type:
    words = [word for word in re.findall(r"\w+", text) if word not in ("const", "signed")]
    name = " ".join(words)
    if name not in TYPES and " ".join(words[:-1]) in TYPES:  # what is left is the argument's name
        name = " ".join(words[:-1])
    base = TYPES.get(name, _Type(name, 0))
    return base._replace(pointers=base.pointers + text.count("*"))
