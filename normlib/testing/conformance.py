"""Runs the checks, and reports all failures together."""

from collections.abc import Callable, Collection

from normlib.registry import NormalizerLike, resolve
from normlib.testing import compiled, gradients, interface, recurrent, refusals, rows, state
from normlib.testing.subject import RuleError, Subject, describe

__all__ = ["CHECKS", "ConformanceError", "check_normalizer"]

#: Every check by name, in the order in which they run.
CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        interface.check_interface,
        interface.check_shapes_and_dtypes,
        interface.check_input_untouched,
        interface.check_memory_layout,
        interface.check_empty_batch,
        rows.check_inference,
        rows.check_declared_traits,
        rows.check_mask,
        rows.check_few_rows,
        gradients.check_gradients,
        gradients.check_gradient_names,
        gradients.check_pure_backward,
        state.check_config_round_trip,
        state.check_state_round_trip,
        state.check_copies,
        refusals.check_refusals,
        refusals.check_state_after_error,
        compiled.check_row_functions,
        recurrent.check_in_rnn,
        recurrent.check_in_gru,
        recurrent.check_in_lstm,
    )
}


class ConformanceError(AssertionError):
    """A normalizer does not keep the contract.

    Attributes
    ----------
    failures : dict of str to str
        For every failed check its name and what was wrong.
    """

    def __init__(self, message: str, failures: dict[str, str]) -> None:
        super().__init__(message)
        self.failures = failures


def check_normalizer(
    factory: NormalizerLike, *, features: int = 8, skip: Collection[str] = ()
) -> list[str]:
    """Check that a normalizer keeps the contract of `normlib.Normalizer`.

    Parameters
    ----------
    factory : str, class or callable
        A registered name, a class derived from `Normalizer`, or a factory
        ``f(features, **config)``. It is called with the keywords ``gain``, ``bias``, ``eps`` and
        ``dtype``.
    features : int, default 8
        F, the size of the last axis. Take another if the normalizer cannot have 8 features; in the
        recurrent cells it gets up to four times as many.
    skip : collection of str, default ()
        Names of checks to leave out. They are not in the list returned.

    Returns
    -------
    passed : list of str
        The names of the checks that passed, which is all that were not skipped.

    Raises
    ------
    ConformanceError
        If any check fails (an ``AssertionError``). Its message names every failed check, with what
        was expected, what came instead and what to do; ``failures`` has the same as a dictionary.
    ValueError
        If `skip` names a check that does not exist.

    Notes
    -----
    The checks, in the order in which they run: interface, shapes_and_dtypes, input_untouched,
    memory_layout, empty_batch, inference, declared_traits, mask, few_rows, gradients,
    gradient_names, pure_backward, config_round_trip, state_round_trip, copies, refusals,
    state_after_error, row_functions, in_rnn, in_gru, in_lstm. If the first fails, the others cannot
    run.

    Compiled row functions (`Normalizer.row_functions`) are called beside the Python methods, for
    several numbers of features, between marks that they must not overwrite. One that writes far
    outside its arrays may crash the process all the same.

    Gradients are compared with central differences in float64, so ``forward`` must be smooth at
    random points.

    Examples
    --------
    >>> import normlib
    >>> from normlib.testing import check_normalizer
    >>> len(check_normalizer("layer"))
    21
    >>> class Doubled(normlib.LayerNorm):
    ...     def backward(self, dy, cache):
    ...         dx, grads = super().backward(dy, cache)
    ...         return 2 * dx, grads
    >>> rest = [name for name in normlib.testing.CHECKS if name not in ("interface", "gradients")]
    >>> check_normalizer(Doubled, skip=rest)
    Traceback (most recent call last):
        ...
    normlib.testing.conformance.ConformanceError: Doubled fails 1 of 2 checks
    - gradients: ...
    """
    unknown = sorted(set(skip) - CHECKS.keys())
    if unknown:
        raise ValueError(f"skip names unknown checks {unknown}; there are {list(CHECKS)}")
    subject = Subject(resolve(factory), features)
    chosen = {name: check for name, check in CHECKS.items() if name not in skip}
    failures: dict[str, str] = {}
    for name, check in chosen.items():
        try:
            check(subject)
        except RuleError as error:
            failures[name] = str(error)
        except (Exception, SystemExit) as error:
            failures[name] = describe(error)
        if "interface" in failures:
            break
    if failures:
        label = getattr(factory, "__name__", None) or repr(factory)
        lines = [f"{label} fails {len(failures)} of {len(chosen)} checks"]
        lines += [f"- {name}: {message}" for name, message in failures.items()]
        if "interface" in failures:
            lines.append("The other checks cannot run before interface passes.")
        raise ConformanceError("\n".join(lines), failures)
    return list(chosen)
