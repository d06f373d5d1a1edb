"""Checks of the configuration from which a normalizer is made."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from normlib.errors import DTypeError, NormlibError, ParameterError

__all__ = ["check_arguments", "check_config", "did_you_mean"]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_arguments(factory: Callable[..., Any], config: object) -> None:
    """Refuse `config` unless ``factory(features, **config)`` has the names it needs.

    A class that takes ``**config`` is held to hand it on to the next ``__init__`` of its bases; a
    function that takes ``**config`` may be given any name. Values are for the factory to check.

    Parameters
    ----------
    factory : class or callable
        What ``resolve`` returns.
    config : mapping of str to object
        Arguments beside `features`.

    Raises
    ------
    DTypeError
        If `config` is not a mapping, or a key is not a string (a ``TypeError``).
    ParameterError
        If a name is unknown or a required one is missing (a ``ValueError``); the message lists
        those there are.

    Examples
    --------
    >>> import normlib
    >>> from normlib.registry import check_arguments
    >>> check_arguments(normlib.LayerNorm, {"eps": 1e-6})
    >>> check_arguments(normlib.LayerNorm, {"epsilon": 1e-6})
    Traceback (most recent call last):
        ...
    normlib.errors.ParameterError: LayerNorm does not take 'epsilon'. Did you mean 'eps'? ...
    """
    check_config(factory, config, error=ParameterError, features_apart=True)


def check_config(
    factory: Callable[..., Any],
    config: object,
    *,
    error: type[NormlibError],
    features_apart: bool,
) -> Mapping[str, Any]:
    """Return `config` if its names fit, with features in it or `features_apart`."""
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise DTypeError(
            f"a configuration must be a mapping of argument names to values; got {config!r}"
        )
    accepted, required = _names(factory, features_apart)
    label = getattr(factory, "__name__", None) or repr(factory)
    for key in config:
        if features_apart and key == "features":
            raise error(f"{label} is given 'features' apart from the configuration; leave it out")
        if accepted is not None and key not in accepted:
            raise error(
                f"{label} does not take {key!r}.{did_you_mean(key, accepted)} It takes "
                f"{', '.join(map(repr, accepted)) or 'no arguments'}"
            )
    missing = [name for name in required if name not in config]
    if missing:
        raise error(f"{label} needs a value for {', '.join(map(repr, missing))}; it has none")
    return config


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the known name that is closest, after a space; empty if none is close."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _names(factory: Callable[..., Any], features_apart: bool) -> tuple[list[str] | None, list[str]]:
    """The names that may be given (None: any) and those that must be."""
    steps: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        steps = [vars(base)["__init__"] for base in factory.__mro__ if "__init__" in vars(base)]
    accepted: dict[str, None] = {}
    required: list[str] = []
    for step in steps:
        try:
            parameters = list(inspect.signature(step).parameters.values())
        except (TypeError, ValueError):  # compiled without a signature
            return None, []
        first = int(isinstance(factory, type)) + int(features_apart)  # self and features
        while first and parameters and parameters[0].kind <= parameters[0].POSITIONAL_OR_KEYWORD:
            del parameters[0]
            first -= 1
        named = [parameter for parameter in parameters if parameter.kind in _BY_NAME]
        accepted |= dict.fromkeys(parameter.name for parameter in named)
        if step is steps[0]:
            required = [
                parameter.name for parameter in named if parameter.default is parameter.empty
            ]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return list(accepted), required
    return None, required
