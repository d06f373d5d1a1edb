"""The contestants: one file a library, one class in it, one method an operation."""

from benchmarks.peers.base import Peer
from benchmarks.peers.table import PEERS, REFERENCE, RIVALS, SCRIPTED, absent, create, version

__all__ = ["PEERS", "REFERENCE", "RIVALS", "SCRIPTED", "Peer", "absent", "create", "version"]
