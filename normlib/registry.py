"""Normalizers by name: those registered in this process and those of installed plugins.

A plugin is a distribution with an entry point in the group ``normlib.normalizers``::

    [project.entry-points."normlib.normalizers"]
    rms = "my_package:RMSNorm"

It is imported when its name is used, not before, so a plugin that is broken, or that collides with
another source, spoils that one name and nothing else. Everything here may be called from many
threads at once.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple, TypeAlias, TypeVar

from normlib import plugins
from normlib.errors import (
    DTypeError,
    DuplicateNormalizerError,
    ParameterError,
    PluginError,
    UnknownNormalizerError,
)
from normlib.normalizers import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoOp,
    Normalizer,
    RMSNorm,
)
from normlib.normalizers.arguments import check_arguments, did_you_mean

__all__ = [
    "NormalizerFactory",
    "NormalizerLike",
    "available",
    "check_arguments",
    "create",
    "register",
    "registered_name",
    "resolve",
    "sources",
]

NormalizerFactory: TypeAlias = Callable[..., Normalizer]
NormalizerLike: TypeAlias = str | type[Normalizer] | NormalizerFactory | None
NormalizerT = TypeVar("NormalizerT", bound=Normalizer)


class _Entry(NamedTuple):
    cls: type[Normalizer]
    chosen: bool  # registered with replace=True: entry points under that name do not count


_entries = {
    cls.name: _Entry(cls, chosen=False)
    for cls in (LayerNorm, BatchNorm, NoOp, RMSNorm, GroupNorm, InstanceNorm)
}
# Never held while a plugin is imported: its import may register, in this thread or in another one
# that waits for the same import.
_lock = threading.Lock()


def register(
    name: str, *, replace: bool = False
) -> Callable[[type[NormalizerT]], type[NormalizerT]]:
    """Make a decorator that registers a `Normalizer` class under `name`.

    The class's attribute ``name`` is set, unless the class sets it itself.

    Parameters
    ----------
    name : str
        What ``create`` and ``normlib.RNN(norm=...)`` will know it by.
    replace : bool, default False
        Whether it takes the place of what has that name already, registered or an entry point.

    Returns
    -------
    decorator : callable
        Returns the class it is given.

    Raises
    ------
    ParameterError
        If `name` is empty or has blanks around it.
    DTypeError
        If `name` is not a string, or what is decorated is not a class derived from `Normalizer`.
    PluginError
        If the class lacks something of the contract, or calls itself by another name.
    DuplicateNormalizerError
        If the name is taken and `replace` is False.

    Examples
    --------
    >>> import normlib
    >>> @normlib.register("sharp", replace=True)
    ... class SharpLayerNorm(normlib.LayerNorm):
    ...     rnn_gain = 2.0
    >>> normlib.create("sharp", 3)
    SharpLayerNorm(features=3, gain=True, bias=True, eps=1e-05, dtype='float32')
    """
    _check_name(name)
    if not name or name != name.strip():
        raise ParameterError(f"a name must not be empty or have blanks around it; got {name!r}")

    def decorator(cls: type[NormalizerT]) -> type[NormalizerT]:
        _check_class(cls, name)
        with _lock:
            if name in _entries and not replace:
                raise DuplicateNormalizerError(
                    f"cannot register {_qualified(cls)} as {name!r}: the name belongs to "
                    f"{_qualified(_entries[name].cls)}. Choose another name, or pass replace=True"
                )
            _entries[name] = _Entry(cls, chosen=replace)
            cls.name = name
        return cls

    return decorator


def create(name: str, features: int, **config: Any) -> Normalizer:
    """Make a normalizer by its registered name.

    Parameters
    ----------
    name : str
        One of ``available()``.
    features : int
        F, the size of the last axis of its input.
    **config
        Further arguments of the class.

    Returns
    -------
    norm : Normalizer

    Raises
    ------
    UnknownNormalizerError
        If there is no such name (a ``KeyError``); the message lists those there are.
    DuplicateNormalizerError
        If several sources offer it (a ``ValueError``).
    PluginError
        If the plugin that offers it cannot be loaded or is not a normalizer (a ``ValueError``).
    ParameterError
        If the class does not take an argument, or refuses its value (a ``ValueError``).

    Examples
    --------
    >>> import normlib
    >>> normlib.create("layer", 64, eps=1e-6)
    LayerNorm(features=64, gain=True, bias=True, eps=1e-06, dtype='float32')
    """
    cls = _find(name)
    check_arguments(cls, config)
    return cls(features, **config)


def available() -> list[str]:
    """List the names that ``create`` knows, sorted; plugins are listed without being imported.

    Examples
    --------
    >>> import normlib
    >>> [name for name in normlib.available() if name in ("layer", "batch", "noop")]
    ['batch', 'layer', 'noop']
    """
    plugins.forget()
    with _lock:
        names = set(_entries)
    return sorted(names.union(point.name for point in plugins.entry_points()))


def resolve(norm: NormalizerLike) -> NormalizerFactory:
    """Return a function ``f(features, **config)`` that makes the normalizer meant by `norm`.

    Parameters
    ----------
    norm : str, class, callable or None
        A registered name; a class derived from `Normalizer`; a factory ``f(features, **config)``;
        None means "noop".

    Returns
    -------
    factory : callable
        The class itself where a class or a name was given.

    Raises
    ------
    DTypeError
        If `norm` is none of these (a ``TypeError``). The factory returned raises it too, if a
        function given as `norm` makes something else than a `Normalizer`.
    UnknownNormalizerError, DuplicateNormalizerError, PluginError
        As ``create``.

    Examples
    --------
    >>> from normlib.registry import resolve
    >>> resolve(None)
    <class 'normlib.normalizers.noop.NoOp'>
    """
    if norm is None:
        return NoOp
    if isinstance(norm, str):
        return _find(norm)
    if isinstance(norm, type) and issubclass(norm, Normalizer):
        return norm
    if isinstance(norm, type | Normalizer) or not callable(norm):
        raise DTypeError(
            "a normalizer must be given as a registered name, a class derived from Normalizer, a "
            f"factory f(features, **config), or None; got {norm!r}"
        )
    # With the signature of norm, for check_arguments.
    return functools.update_wrapper(functools.partial(_call_factory, norm), norm)


def registered_name(cls: type[Normalizer]) -> str:
    """Return the name from which ``create`` makes instances of exactly `cls`.

    Raises
    ------
    UnknownNormalizerError
        If `cls` is not registered, or another class has taken its name (a ``KeyError``).

    Examples
    --------
    >>> import normlib
    >>> from normlib.registry import registered_name
    >>> registered_name(normlib.LayerNorm)
    'layer'
    """
    name = cls.name
    if not name or _find(name) is not cls:
        raise UnknownNormalizerError(
            f"{_qualified(cls)} is not registered under any name. "
            f"Put @normlib.register(...) above the class"
        )
    return name


def sources(name: str) -> list[str]:
    """List what offers a name, without importing plugins; several make it unusable.

    Examples
    --------
    >>> from normlib.registry import sources
    >>> sources("layer")
    ['normlib.normalizers.layer:LayerNorm']
    """
    _check_name(name)
    with _lock:
        entry = _entries.get(name)
    points = [] if entry is not None and entry.chosen else plugins.named(name)
    own = [] if entry is None else [_qualified(entry.cls)]
    return own + [plugins.origin(point) for point in points if point.value not in own]


def _find(name: str) -> type[Normalizer]:
    _check_name(name)
    with _lock:
        entry = _entries.get(name)
    if entry is not None and entry.chosen:
        return entry.cls
    points = plugins.named(name)
    if entry is None and not points:
        known = available()  # looks again: a plugin may have been installed a moment ago
        points = plugins.named(name)
        if not points:
            raise UnknownNormalizerError(_unknown(name, known))
    if entry is not None and not points:
        return entry.cls
    if entry is None and len(points) == 1:
        return _load(points[0])
    if entry is not None and len(points) == 1 and _offers(points[0], entry.cls):
        return entry.cls
    raise _conflict(name, entry, points)


def _unknown(name: str, known: list[str]) -> str:
    known_names = ", ".join(map(repr, known))
    return f"unknown normalizer {name!r}.{did_you_mean(name, known)} Known: {known_names}"


def _conflict(
    name: str, entry: _Entry | None, points: list[metadata.EntryPoint]
) -> DuplicateNormalizerError:
    sources = [] if entry is None else [_qualified(entry.cls)]
    sources += [plugins.origin(point) for point in points]
    return DuplicateNormalizerError(
        f"several sources offer a normalizer {name!r}: {' and '.join(sources)}. Uninstall one, or "
        f"choose one: normlib.register({name!r}, replace=True)(TheClass)"
    )


# ---- classes --------------------------------------------------------------------------------


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise DTypeError(f"the name of a normalizer must be a string; got {name!r}")


def _check_class(cls: object, name: str) -> None:
    if not isinstance(cls, type) or not issubclass(cls, Normalizer):
        raise DTypeError(f"{name!r} must be a class derived from normlib.Normalizer; got {cls!r}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise PluginError(f"{_qualified(cls)} lacks the method(s) {missing}")
    if not isinstance(getattr(cls, "per_sample", None), bool | property):
        raise PluginError(
            f"{_qualified(cls)} must declare per_sample = True (a row's result depends on that row "
            "alone) or per_sample = False, or have a property that tells"
        )
    own = vars(cls).get("name", name)
    if own != name:
        raise PluginError(
            f"{_qualified(cls)} has the name {own!r} and cannot be {name!r} as well. Remove the "
            "attribute name, or make a subclass for the second name"
        )


def _qualified(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _call_factory(factory: NormalizerFactory, features: int, **config: Any) -> Normalizer:
    norm = factory(features, **config)
    if not isinstance(norm, Normalizer):
        raise DTypeError(f"the factory {factory!r} must return a Normalizer; got {norm!r}")
    return norm


# ---- plugins --------------------------------------------------------------------------------


def _offers(point: metadata.EntryPoint, cls: type[Normalizer]) -> bool:
    """Tell whether a plugin registers, on import, the very class that its entry point names."""
    try:
        return _load(point) is cls
    except PluginError:
        return False


def _load(point: metadata.EntryPoint) -> type[Normalizer]:
    try:
        cls = point.load()
        _check_class(cls, point.name)
    except (Exception, SystemExit) as error:  # a script may end by sys.exit
        raise PluginError(
            f"cannot load the normalizer {point.name!r} from {plugins.origin(point)}: "
            f"{type(error).__name__}: {error}. Repair or uninstall that distribution"
        ) from error
    if "name" not in vars(cls):
        cls.name = point.name
    normalizer: type[Normalizer] = cls
    return normalizer
