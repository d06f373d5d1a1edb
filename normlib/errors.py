"""The exceptions that normlib raises.

Each derives from `NormlibError` and from the built-in exception that a caller would expect, so that
both ``except normlib.errors.NormlibError`` and a plain ``except ValueError`` work.
"""

__all__ = [
    "DTypeError",
    "DuplicateNormalizerError",
    "NormlibError",
    "ParameterError",
    "PluginError",
    "ShapeError",
    "SignatureError",
    "StateError",
    "UnknownNormalizerError",
    "UnknownParameterError",
]


class NormlibError(Exception):
    """Base of every exception that normlib raises on purpose."""


class ShapeError(NormlibError, ValueError):
    """The shape of an array does not fit the other arguments."""


class DTypeError(NormlibError, TypeError):
    """An array has a dtype, or an argument a type, that is not supported."""


class ParameterError(NormlibError, ValueError):
    """A setting such as ``eps``, ``momentum`` or ``step`` is outside its range."""


class StateError(NormlibError, ValueError):
    """A state dictionary or configuration lacks entries, or has some that do not belong to it."""


class SignatureError(NormlibError, TypeError):
    """A compiled row function is declared otherwise than it will be called."""


class PluginError(NormlibError, ValueError):
    """A normalizer class is incomplete, or an installed plugin cannot be loaded."""


class DuplicateNormalizerError(NormlibError, ValueError):
    """Two sources offer a normalizer under the same name."""


class _UnknownNameError(NormlibError, KeyError):
    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would put the message in quotes.
        return str(self.args[0]) if self.args else ""


class UnknownNormalizerError(_UnknownNameError):
    """No normalizer is known under this name."""


class UnknownParameterError(_UnknownNameError):
    """A network has no parameter of this name."""
