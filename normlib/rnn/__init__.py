"""Recurrent networks with a normalizer at every time step."""

from normlib.rnn.population import Population
from normlib.rnn.runtime import RNN

__all__ = ["RNN", "Population"]
