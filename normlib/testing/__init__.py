"""The conformance kit: does a normalizer keep the contract of `normlib.Normalizer`?

Put one line into the tests of a package that defines a normalizer::

    normlib.testing.check_normalizer(MyNorm)

Design
------
Every check is one function ``check_<name>(subject)`` whose docstring is the rule. It raises
`RuleError`, or whatever the normalizer raised, and knows nothing of the other checks. Each file has
the checks of one subject; `conformance` runs them all and reports all failures together.
"""

from normlib.testing.conformance import CHECKS, ConformanceError, check_normalizer
from normlib.testing.subject import RuleError

__all__ = ["CHECKS", "ConformanceError", "RuleError", "check_normalizer"]
