"""What happens inside a recurrent network over time: its hidden state, and its gradients.

Everything here works on what `normlib.RNN` takes and returns, for any cell and any normalizer.
`normlib.diagnostics.plots` draws it (extra: ``normlib[plots]``).
"""

from normlib.diagnostics.gradients import GradientNorms, gradient_norms
from normlib.diagnostics.hidden import HiddenState, hidden_state

__all__ = ["GradientNorms", "HiddenState", "gradient_norms", "hidden_state"]
