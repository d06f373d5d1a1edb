"""ONNX Runtime: graphs of one operator, inputs and outputs bound. It has no backward passes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.norms import Inputs
from benchmarks.operation import EPS, Array
from benchmarks.peers.base import Peer, Run
from benchmarks.recurrent import RecurrentInputs

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

    def rms_norm(self, i: Inputs, out: Array | None = None) -> Run:
        inputs = {"x": i.x, "gain": i.gain}
        return self._run("SimplifiedLayerNormalization", inputs, ["y"], out, axis=-1)

    def rms_norm_out(self, i: Inputs) -> Run:
        return self.rms_norm(i, i.out)

    def add_layer_norm(self, i: Inputs) -> Run:
        inputs = {"x": i.x, "residual": i.dy, "gain": i.gain, "bias": i.bias}
        outputs = ["y", "", "", "total"]
        return self._run("SkipLayerNormalization", inputs, outputs, domain="com.microsoft")

    def add_rms_norm(self, i: Inputs) -> Run:
        inputs = {"x": i.x, "residual": i.dy, "gain": i.gain}
        outputs = ["y", "", "", "total"]
        name = "SkipSimplifiedLayerNormalization"
        return self._run(name, inputs, outputs, domain="com.microsoft")

    def group_norm(self, i: Inputs, out: Array | None = None) -> Run | None:
        if i.x.ndim < 3:
            return None
        inputs = {"x": i.x, "gain": i.gain, "bias": i.bias}
        return self._run("GroupNormalization", inputs, ["y"], out, opset=21, num_groups=i.groups)

    def group_norm_out(self, i: Inputs) -> Run | None:
        return self.group_norm(i, i.out)

    def instance_norm(self, i: Inputs) -> Run:
        inputs = {"x": i.x, "gain": i.gain, "bias": i.bias}
        return self._run("InstanceNormalization", inputs, ["y"])

    def recurrent(self, i: RecurrentInputs) -> Run | None:
        if i.norm != "noop" or i.mode != "infer":
            return None
        w, r, *biases = (
            _gates(i.parameters[f"{name}_l0"], ORDERS[i.cell])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        # Weights that do not change are packed once, when the session is made.
        constants = {"w": w[None], "r": r[None], "b": np.concatenate(biases)[None]}
        outputs = ["y", "h", "c"] if i.cell == "lstm" else ["y", "h"]
        attributes: dict[str, Any] = {"linear_before_reset": 1} if i.cell == "gru" else {}
        return self._run(
            i.cell.upper(),
            {"x": i.x},
            outputs,
            constants=constants,
            epsilon=None,
            rest=True,
            hidden_size=i.sizes[1],
            **attributes,
        )

    def arrays(self, result: Any) -> list[Array]:
        arrays: list[Array] = result.copy_outputs_to_cpu()
        # Not the statistics, (C,), that batch norm has to return in training.
        return [array for array in arrays if array.ndim > 1]

    def _run(
        self,
        op: str,
        inputs: dict[str, Array],
        outputs: list[str],
        out: Array | None = None,
        *,
        constants: Mapping[str, Array] | None = None,
        domain: str = "",
        epsilon: float | None = EPS,
        rest: bool = False,  # threads stop to spin after a run, which matters only to the next one
        opset: int = 17,  # that all recent versions read, as they do the format below
        **attributes: Any,
    ) -> Run:
        constants = constants or {}
        names = [*inputs, *constants]
        kind = helper.np_dtype_to_tensor_dtype(inputs["x"].dtype)
        graph = helper.make_graph(
            [helper.make_node(op, names, outputs, domain=domain, epsilon=epsilon, **attributes)],
            "graph",
            [helper.make_tensor_value_info(name, kind, a.shape) for name, a in inputs.items()],
            [helper.make_tensor_value_info(name, kind, None) for name in outputs if name],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", opset)]
        if domain:
            opsets.append(helper.make_opsetid(domain, 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.n_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.force_spinning_stop", str(int(rest)))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name in filter(None, outputs):
            if out is None or name != "y":
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(out))

        def run() -> object:
            session.run_with_iobinding(binding)
            return binding

        return run


# Gates of normlib and PyTorch in the order of ONNX: i f g o, r z n; there i o f c, z r h.
ORDERS = {"rnn": [0], "gru": [1, 0, 2], "lstm": [0, 3, 1, 2]}


def _gates(array: Array, order: Sequence[int]) -> Array:
    return np.concatenate([np.split(array, len(order))[gate] for gate in order])


def _with_statistics(i: Inputs) -> dict[str, Array]:
    return {"x": i.x, "gain": i.gain, "bias": i.bias, "mean": i.mean, "var": i.var}
