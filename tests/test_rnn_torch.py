"""Without a normalizer the cells are PyTorch's, and with layer norm what autograd makes of it."""

import itertools

import numpy as np
import pytest

import normlib

torch = pytest.importorskip("torch", reason="compares with PyTorch")

T, N, I, H = 7, 5, 6, 9
LENGTHS = [4, 7, 1, 7, 3]
KINDS = {
    "tanh": ({"cell": "rnn", "nonlinearity": "tanh"}, "RNN"),
    "relu": ({"cell": "rnn", "nonlinearity": "relu"}, "RNN"),
    "gru": ({"cell": "gru"}, "GRU"),
    "lstm": ({"cell": "lstm"}, "LSTM"),
}
TOLERANCE = {np.float64: {"rtol": 1e-10, "atol": 1e-12}, np.float32: {"rtol": 2e-4, "atol": 2e-5}}


def make_pair(kind, dtype, num_layers, bidirectional):
    config, name = KINDS[kind]
    rnn = normlib.RNN(
        I, H, **config, norm=None, num_layers=num_layers, bidirectional=bidirectional, rng=0,
        dtype=dtype,
    )  # fmt: skip
    rng = np.random.default_rng(1)
    for array in rnn.parameters.values():
        array[...] = rng.uniform(-0.4, 0.4, array.shape)
    options = {"nonlinearity": config["nonlinearity"]} if name == "RNN" else {}
    peer = getattr(torch.nn, name)(
        I, H, num_layers, bidirectional=bidirectional, dtype=getattr(torch, np.dtype(dtype).name),
        **options,
    )  # fmt: skip
    peer.load_state_dict({key: torch.from_numpy(a.copy()) for key, a in rnn.parameters.items()})
    return rnn, peer


def as_list(state):
    return list(state) if isinstance(state, tuple) else [state]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize(
    ("num_layers", "bidirectional"), [(1, False), (1, True), (2, True), (3, False)]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients_are_pytorchs(kind, dtype, num_layers, bidirectional, lengths):
    rnn, peer = make_pair(kind, dtype, num_layers, bidirectional)
    rng = np.random.default_rng(2)

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def join(arrays):
        return tuple(arrays) if states == 2 else arrays[0]

    states = 2 if kind == "lstm" else 1
    shape = (num_layers * (1 + bidirectional), N, H)
    x = draw(T, N, I)
    initial = [draw(*shape) for _ in range(states)]
    dy = draw(T, N, H * (1 + bidirectional))
    dfinal = [draw(*shape) for _ in range(states)]

    tx = torch.from_numpy(x).requires_grad_()
    tinitial = [torch.from_numpy(array).requires_grad_() for array in initial]
    packed = tx
    if lengths is not None:
        packed = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths, enforce_sorted=False)
    ty, tfinal = peer(packed, join(tinitial))
    if lengths is not None:
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, total_length=T)
    loss = (ty * torch.from_numpy(dy)).sum()
    for one, weight in zip(as_list(tfinal), dfinal, strict=True):
        loss = loss + (one * torch.from_numpy(weight)).sum()
    loss.backward()

    y, final, cache = rnn.forward(x, join(initial), lengths)
    dx, dinitial, grads = rnn.backward(dy, cache, join(dfinal))
    y_inference, final_inference = rnn(x, join(initial), lengths)

    def check(actual, expected):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected.detach().numpy(), **TOLERANCE[dtype])

    for ours in (y, y_inference):
        check(ours, ty)
    for ours in (final, final_inference):
        for one, other in zip(as_list(ours), as_list(tfinal), strict=True):
            check(one, other)
    check(dx, tx.grad)
    for one, other in zip(as_list(dinitial), tinitial, strict=True):
        check(one, other.grad)
    assert grads.keys() == dict(peer.named_parameters()).keys()
    for name, parameter in peer.named_parameters():
        check(grads[name], parameter.grad)


def test_names_and_shapes_of_parameters_are_pytorchs():
    for kind, (num_layers, bidirectional) in itertools.product(KINDS, [(1, False), (2, True)]):
        rnn, peer = make_pair(kind, np.float32, num_layers, bidirectional)
        ours = {name: array.shape for name, array in rnn.parameters.items()}
        assert ours == {name: tuple(array.shape) for name, array in peer.named_parameters()}


def torch_layer_norm_lstm(p, x):
    """The layer-normalized LSTM, written with PyTorch's functions."""

    def norm(a, site):
        gain, bias = p[f"norm_{site}_l0.gain"], p.get(f"norm_{site}_l0.bias")
        return torch.nn.functional.layer_norm(a, a.shape[-1:], gain, bias)

    h = c = torch.zeros(x.shape[1], H, dtype=x.dtype)
    outputs = []
    for step in x:
        a = norm(step @ p["weight_ih_l0"].T, "ih") + p["bias_ih_l0"]
        a = a + norm(h @ p["weight_hh_l0"].T, "hh") + p["bias_hh_l0"]
        i, f, g, o = a.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, "c").tanh()
        outputs.append(h)
    return torch.stack(outputs)


def test_layer_normalized_lstm_agrees_with_autograd():
    rng = np.random.default_rng(3)
    rnn = normlib.RNN(I, H, cell="lstm", norm="layer", rng=4, dtype=np.float64)
    for array in rnn.parameters.values():
        array += rng.normal(0, 0.3, array.shape)
    x, dy = rng.standard_normal((T, N, I)), rng.standard_normal((T, N, H))
    parameters = {
        name: torch.tensor(array, requires_grad=True) for name, array in rnn.parameters.items()
    }
    ty = torch_layer_norm_lstm(parameters, torch.from_numpy(x))
    (ty * torch.from_numpy(dy)).sum().backward()
    y, _, cache = rnn.forward(x)
    _, _, grads = rnn.backward(dy, cache)
    np.testing.assert_allclose(y, ty.detach().numpy(), rtol=1e-10, atol=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, parameters[name].grad.numpy(), rtol=1e-9, atol=1e-11)
