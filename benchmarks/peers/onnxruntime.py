"""ONNX Runtime: graphs of one operator, inputs and outputs bound. It has no backward passes."""

from typing import Any

import onnxruntime
from onnx import helper

from benchmarks.cases import EPS, Array, Inputs
from benchmarks.peers.base import Peer, Run

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Peer):
    """Bound to ``out`` where it is given; otherwise ONNX Runtime makes the output."""

    def layer_norm(self, i: Inputs, out: Array | None = None) -> Run:
        inputs = {"x": i.x, "gain": i.gain, "bias": i.bias}
        return self._run("LayerNormalization", inputs, ["y"], out, axis=-1)

    call = layer_norm

    def layer_norm_out(self, i: Inputs) -> Run:
        return self.layer_norm(i, i.out)

    def batch_norm(self, i: Inputs, out: Array | None = None) -> Run:
        return self._run("BatchNormalization", _with_statistics(i), ["y"], out)

    def batch_norm_out(self, i: Inputs) -> Run:
        return self.batch_norm(i, i.out)

    def batch_norm_forward(self, i: Inputs, out: Array | None = None) -> Run:
        outputs = ["y", "new_mean", "new_var"]
        return self._run("BatchNormalization", _with_statistics(i), outputs, out, training_mode=1)

    def batch_norm_forward_out(self, i: Inputs) -> Run:
        return self.batch_norm_forward(i, i.out)

    def arrays(self, result: Any) -> list[Array]:
        y: Array = result.copy_outputs_to_cpu()[0]
        return [y]

    def _run(
        self,
        op: str,
        inputs: dict[str, Array],
        outputs: list[str],
        out: Array | None = None,
        **attributes: Any,
    ) -> Run:
        kind = helper.np_dtype_to_tensor_dtype(inputs["x"].dtype)
        graph = helper.make_graph(
            [helper.make_node(op, list(inputs), outputs, epsilon=EPS, **attributes)],
            "norm",
            [helper.make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        )
        # An opset and a format that all recent versions read.
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.n_threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name in outputs:
            if out is None or name != "y":
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(out))

        def run() -> object:
            session.run_with_iobinding(binding)
            return binding

        return run


def _with_statistics(i: Inputs) -> dict[str, Array]:
    return {"x": i.x, "gain": i.gain, "bias": i.bias, "mean": i.mean, "var": i.var}
