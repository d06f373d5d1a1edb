"""Recurrent networks with a normalizer at every time step."""

from normlib.rnn.runtime import RNN

__all__ = ["RNN"]
