"""Which contestants there are, and which are installed."""

import importlib
import importlib.metadata
import importlib.util
from typing import NamedTuple

from benchmarks.peers.base import Peer

__all__ = ["PEERS", "REFERENCE", "RIVALS", "SCRIPTED", "absent", "create", "version"]


class Entry(NamedTuple):
    """Where a contestant is, and the packages that it needs, as they are imported."""

    module: str
    cls: str
    needs: tuple[str, ...]


REFERENCE = "normlib"
SCRIPTED = ("TorchScript", "TorchScript at once")  # recurrent networks that PyTorch itself lacks
RIVALS = ("PyTorch", *SCRIPTED, "ONNX Runtime")  # what ratios and goals are about
PEERS = {
    "normlib": Entry("normlib", "Normlib", ("normlib",)),
    "PyTorch": Entry("torch", "Torch", ("torch",)),
    "TorchScript": Entry("torch", "TorchScript", ("torch",)),
    "TorchScript at once": Entry("torch", "TorchScriptAtOnce", ("torch",)),
    "ONNX Runtime": Entry("onnxruntime", "OnnxRuntime", ("onnxruntime", "onnx")),
    "JAX": Entry("jax", "Jax", ("jax",)),
    "numba": Entry("numba", "Numba", ("numba",)),
    "NumPy": Entry("numpy", "NumPy", ("numpy",)),
    "bottleneck": Entry("bottleneck", "Bottleneck", ("bottleneck",)),
    "SciPy": Entry("scipy", "SciPy", ("scipy",)),
    "scikit-learn": Entry("sklearn", "ScikitLearn", ("sklearn",)),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def absent(name: str) -> list[str]:
    """The packages that a contestant lacks."""
    return [package for package in PEERS[name].needs if importlib.util.find_spec(package) is None]


def version(name: str) -> str:
    """The version of the library."""
    package = PEERS[name].needs[0]
    return importlib.metadata.version(DISTRIBUTIONS.get(package, package))


def create(name: str, n_threads: int) -> Peer:
    """Import the library and set its threads."""
    entry = PEERS[name]
    cls = getattr(importlib.import_module(f"benchmarks.peers.{entry.module}"), entry.cls)
    peer: Peer = cls(n_threads)
    return peer
