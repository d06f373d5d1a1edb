"""What a network refuses: settings, caches, names, and what normalizers return."""

import copy
import pickle

import numpy as np
import pytest

import normlib
from normlib import _kernels, errors

T, N, I, H = 5, 4, 3, 4
X = np.ones((T, N, I), np.float32)

# ---- settings ------------------------------------------------------------------------------------


def without_bias(features, *, dtype):
    return normlib.LayerNorm(features, bias=False, dtype=dtype)


class Grouped(normlib.LayerNorm):
    def __init__(self, features, *, groups=1, **config):
        super().__init__(features, **config)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"cell": "mlp"}, errors.ParameterError, "cell must be one of 'rnn', 'gru', 'lstm'"),
        ({"cell": np.array(["rnn", "gru"])}, errors.ParameterError, "cell must be one of"),
        ({"cell": None}, errors.ParameterError, "cell must be one of"),
        ({"nonlinearity": "elu"}, errors.ParameterError, "must be 'tanh' or 'relu'; got 'elu'"),
        ({"nonlinearity": np.zeros(2)}, errors.ParameterError, "must be 'tanh' or 'relu'"),
        (
            {"nonlinearity": "relu"},
            errors.ParameterError,
            "nonlinearity belongs to the cell 'rnn'; got 'relu' with the cell 'lstm'",
        ),
        ({"nonlinearity": "relu", "cell": "gru"}, errors.ParameterError, "with the cell 'gru'"),
        (
            {"reset_after": False},
            errors.ParameterError,
            "reset_after belongs to the cell 'gru'; got False with the cell 'lstm'",
        ),
        ({"reset_after": False, "cell": "rnn"}, errors.ParameterError, "with the cell 'rnn'"),
        ({"norm": "lyer"}, errors.UnknownNormalizerError, "Did you mean 'layer'"),
        ({"norm": 3}, errors.DTypeError, "normalizer must be"),
        ({"norm": normlib.Normalizer}, errors.PluginError, "lacks backward, forward"),
        ({"num_layers": 0}, errors.ParameterError, "num_layers must be an integer of at least 1"),
        ({"num_layers": 2**70}, errors.ParameterError, "that memory can address"),
        ({"input_size": 0}, errors.ParameterError, "input_size"),
        ({"input_size": 2**70}, errors.ParameterError, "that memory can address"),
        ({"hidden_size": 2.5}, errors.ParameterError, "hidden_size"),
        ({"hidden_size": 2**70}, errors.ParameterError, "that memory can address; got 3, 118059"),
        ({"dtype": np.float16}, errors.DTypeError, "dtype must be float32 or float64"),
        ({"dtype": None}, errors.DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "no dtype"}, errors.DTypeError, "dtype must be float32 or float64"),
        ({"dtype": "(1,"}, errors.DTypeError, "dtype must be float32 or float64"),
        ({"norm_config": {"bias": True}}, errors.ParameterError, "must not contain 'bias'"),
        ({"norm_config": {"eps": -1}}, errors.ParameterError, "eps must be"),
        ({"norm_config": [("eps", 1)]}, errors.DTypeError, "norm_config must be a mapping"),
        ({"norm_config": 0}, errors.DTypeError, "norm_config must be a mapping"),
        ({"norm_config": {1: 2}}, errors.DTypeError, "norm_config must be a mapping"),
        (
            {"norm_config": {"step": 3}, "norm": "batch"},
            errors.ParameterError,
            "BatchNorm does not take 'step'. Did you mean 'steps'",
        ),
        (
            {"norm_config": {"group": 3}, "norm": Grouped},
            errors.ParameterError,
            "Grouped does not take 'group'. Did you mean 'groups'",
        ),
        (
            {"norm": without_bias},
            errors.ParameterError,
            "bias and dtype from the RNN: without_bias does not take 'bias'",
        ),
        ({"bidirectional": 2}, errors.ParameterError, "bidirectional must be True or False"),
        ({"reset_after": "no"}, errors.ParameterError, "reset_after must be True or False"),
        ({"rng": "x"}, errors.ParameterError, "rng must be an integer of at least 0.*got 'x'"),
        ({"rng": -1}, errors.ParameterError, "rng must be an integer of at least 0.*got -1"),
        ({"rng": 1.5}, errors.ParameterError, "rng must be an integer of at least 0.*got 1.5"),
    ],
)
def test_settings(config, error, message):
    with pytest.raises(error, match=message):
        normlib.RNN(**{"input_size": I, "hidden_size": H, **config})


def test_defaults_may_be_given_to_any_cell():
    for cell in ("rnn", "gru", "lstm"):
        normlib.RNN(I, H, cell=cell, nonlinearity="tanh", reset_after=True)


def test_a_configuration_is_checked():
    config = normlib.RNN(I, H).get_config()
    with pytest.raises(errors.StateError, match="RNN does not take 'layers'"):
        normlib.RNN.from_config({**config, "layers": 2})
    del config["hidden_size"]
    with pytest.raises(errors.StateError, match="RNN needs a value for 'hidden_size'"):
        normlib.RNN.from_config(config)
    with pytest.raises(errors.DTypeError, match="mapping"):
        normlib.RNN.from_config(None)


# ---- caches --------------------------------------------------------------------------------------

BASE = {"input_size": I, "hidden_size": H, "cell": "gru", "norm": "layer", "rng": 0}


class Twin(normlib.LayerNorm):
    """Of another class, whose caches may be anything."""


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"hidden_size": 2048}, "hidden_size is 4, this network's 2048"),
        ({"hidden_size": 1}, "hidden_size is 4, this network's 1"),
        ({"input_size": 2}, "input_size is 3, this network's 2"),
        ({"cell": "lstm"}, "cell is 'gru', this network's 'lstm'"),
        ({"cell": "rnn"}, "cell is 'gru', this network's 'rnn'"),
        ({"reset_after": False}, "reset_after is True, this network's False"),
        ({"num_layers": 2}, "num_layers is 1, this network's 2"),
        ({"bidirectional": True}, "bidirectional is False, this network's True"),
        ({"dtype": np.float64}, "dtype is dtype"),
        ({"norm": "batch"}, "norm_ih_l0 is .*LayerNorm.*this network's .*BatchNorm"),
        ({"norm": None}, "norm_ih_l0 is .*LayerNorm.*this network's .*NoOp"),
        ({"norm": Twin}, "norm_ih_l0 is .*LayerNorm.*this network's .*Twin"),
        ({"norm_config": {"gain": False}}, "norm_ih_l0 is .*'gain'"),
    ],
)
def test_a_cache_of_another_network(other, differs):
    one, two = normlib.RNN(**BASE), normlib.RNN(**{**BASE, **other})
    _, _, cache = one.forward(X)
    _, _, other_cache = two.forward(np.ones((T, N, two.input_size)))
    with pytest.raises(errors.ParameterError, match=f"cache must come from forward.* {differs}"):
        two.backward(np.ones((T, N, two.output_size)), cache)
    with pytest.raises(errors.ParameterError, match="Pass the cache that forward of this network"):
        one.backward(np.ones((T, N, H)), other_cache)


def test_a_cache_of_another_nonlinearity():
    one, two = (normlib.RNN(I, H, cell="rnn", nonlinearity=each) for each in ("tanh", "relu"))
    y, _, cache = one.forward(X)
    with pytest.raises(errors.ParameterError, match="nonlinearity is 'tanh', this network's 'relu"):
        two.backward(y, cache)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_copies_share_caches(cell, norm):
    rnn = normlib.RNN(I, H, cell=cell, norm=norm, num_layers=2, bidirectional=True)
    y, _, cache = rnn.forward(X, None, [5, 0, 2, 3])
    dx, _, grads = rnn.backward(y, cache)
    for twin in (rnn, copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        for same in (cache, copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            twin_dx, _, twin_grads = twin.backward(y, same)
            np.testing.assert_array_equal(twin_dx, dx)
            for name, gradient in grads.items():
                np.testing.assert_array_equal(twin_grads[name], gradient)


def test_what_is_no_cache():
    rnn = normlib.RNN(I, H)
    y, state, cache = rnn.forward(X)
    for wrong in (None, (y, state, cache), cache.directions[0], "cache"):
        with pytest.raises(errors.DTypeError, match="cache must be what forward returned as the t"):
            rnn.backward(y, wrong)


@pytest.mark.parametrize("level", _kernels.available_levels())
def test_kernels_look_at_their_arrays(level):
    cells = _kernels.load("cells", level)
    x, out = np.ones((N, H)), np.zeros((N, H))
    for wrong in (
        np.zeros((N, H - 1)),
        np.zeros((N - 1, H)),
        np.zeros(H + 1),
        np.zeros((N, H), np.float32),
        np.zeros((N, H), np.int64),
        np.zeros((N, H), np.dtype(np.float64).newbyteorder()),
        np.zeros((1, N, H)),
        np.zeros((N, 2 * H))[:, ::2],
        np.zeros((H, N)).T[:, : N - 1],
        None,
    ):
        with pytest.raises(ValueError, match="a kernel needs"):
            cells.tanh(x, wrong, 1)
        with pytest.raises(ValueError, match="a kernel needs"):
            cells.vanilla_forward(x, np.zeros(H), wrong, False, 2)
    for wrong in (np.ones(H), np.ones((2, 3, 4)), None, np.ones((N, H), complex)):
        with pytest.raises(ValueError, match="a kernel needs"):
            cells.tanh(wrong, out, 1)
    for wrong in (np.zeros(H - 1), np.zeros(H, np.float32), np.zeros((1, H)), None):
        with pytest.raises(ValueError, match="a kernel needs"):
            cells.add_column_sums(x, wrong, 1)
    with pytest.raises(ValueError, match=r"shape \(4, 16\) or \(16,\).*got shape \(4, 12\)"):
        cells.lstm_output_forward(np.ones((N, 3 * H)), x, out, np.zeros((N, H)), 1)
    assert not out.any()
    cells.tanh(x, out, 1)
    assert out.all()


# ---- parameters and state ------------------------------------------------------------------------


def test_unknown_parameters():
    rnn = normlib.RNN(I, H, cell="rnn", norm=None)
    with pytest.raises(KeyError) as caught:
        rnn.parameters["wieght_ih_l0"]
    assert str(caught.value) == (
        "unknown parameter 'wieght_ih_l0'. Did you mean 'weight_ih_l0'? "
        "Known: 'weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0'"
    )
    assert isinstance(caught.value, errors.NormlibError)
    with pytest.raises(KeyError, match="unknown parameter 3"):
        rnn.parameters[3]
    with pytest.raises(KeyError, match="unknown parameter 'nope'"):
        rnn.parameters["nope"] = np.zeros(4)
    assert "nope" not in rnn.parameters
    assert 3 not in rnn.parameters
    assert rnn.parameters.get("nope") is None


def test_parameters_are_compared_by_value():
    one, same = normlib.RNN(I, H, rng=0), normlib.RNN(I, H, rng=0)
    assert one.parameters == one.parameters
    assert one.parameters == same.parameters
    assert one.parameters == one.state_dict()
    assert one.parameters != normlib.RNN(I, H, rng=1).parameters
    assert one.parameters != normlib.RNN(I, H, cell="gru", rng=0).parameters
    assert one.parameters != normlib.RNN(I, H + 1, rng=0).parameters
    assert one.parameters != 3
    same.parameters["norm_c_l0.gain"][0] = 3
    assert one.parameters != same.parameters


@pytest.mark.parametrize("state", [None, 3, [("bias_ih_l0", np.zeros(H))], "state"])
def test_a_state_is_a_mapping(state):
    with pytest.raises(errors.StateError, match="a state must be a mapping of names to arrays"):
        normlib.RNN(I, H).load_state_dict(state)


def test_names_in_a_state_are_strings():
    rnn = normlib.RNN(I, H)
    with pytest.raises(errors.StateError, match="3 is unexpected; None is unexpected"):
        rnn.load_state_dict({**rnn.state_dict(), 3: np.zeros(1), None: 1})


def test_buffers_keep_their_type():
    rnn = normlib.RNN(I, H, norm="batch")
    state = rnn.state_dict()
    name = "norm_ih_l0.num_batches"
    rnn.load_state_dict({**state, name: np.array([7], np.int32)})
    assert rnn.state_dict()[name].tolist() == [7]
    for wrong in (np.array([7.0]), np.array([True]), np.array(["7"])):
        with pytest.raises(errors.DTypeError, match="num_batches must be int64; got"):
            rnn.load_state_dict({**state, name: wrong})
    assert rnn.state_dict()[name].tolist() == [7]


# ---- normalizers that return something else ------------------------------------------------------


def returning(method, result):
    """A normalizer one of whose methods returns that, given what it should have returned."""

    class Odd(normlib.LayerNorm):
        def changed(self, name, *args, **options):
            right = getattr(normlib.LayerNorm, name)(self, *args, **options)
            return result(right) if name == method else right

        def __call__(self, x, *, step=0, out=None):
            return self.changed("__call__", x, step=step, out=out)

        def forward(self, x, *, step=0, mask=None):
            return self.changed("forward", x, step=step, mask=mask)

        def backward(self, dy, cache):
            return self.changed("backward", dy, cache)

    return Odd


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        (
            "__call__",
            lambda y: None,
            r"an array of shape \(4, 16\) and dtype float32, .*got None",
        ),
        ("__call__", lambda y: y.tolist(), "an array of shape .*got a list of 4"),
        ("__call__", lambda y: y[:, :-1], r"an array of shape .*got an array of shape \(4, 15\)"),
        ("__call__", lambda y: y.astype(np.float64), "an array of shape .*dtype float64"),
        ("forward", lambda pair: None, r"a tuple \(y, cache\); got None"),
        ("forward", lambda pair: pair[0], r"a tuple \(y, cache\); got an array of shape \(4, 16\)"),
        ("forward", lambda pair: (*pair, 1), r"a tuple \(y, cache\); got a tuple of 3"),
        ("forward", lambda pair: (None, pair[1]), r"an array of shape \(4, 16\).*got None"),
    ],
)
def test_running_names_the_site_and_the_step(method, result, message):
    rnn = normlib.RNN(I, H, norm=returning(method, result))
    run = rnn if method == "__call__" else rnn.forward
    message = f"^{method} of the normalizer at norm_ih_l0 must return {message}"
    with pytest.raises(errors.PluginError, match=message) as caught:
        run(X)
    assert caught.value.__notes__ == ["at time step 0 of layer 0"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda dx, grads: None, r"a tuple \(dx, grads\); got None"),
        (lambda dx, grads: dx, r"a tuple \(dx, grads\); got an array"),
        (lambda dx, grads: (None, grads), r"an array of shape \(4, 4\) .*got None"),
        (lambda dx, grads: (dx, None), r"gradients in a dict.*\['gain', 'bias'\]; got None"),
        (lambda dx, grads: (dx, [1]), "gradients in a dict.*; got a list of 1"),
        (lambda dx, grads: (dx, {"bias": grads["bias"]}), r"gradients in a dict.*got \['bias'\]"),
        (lambda dx, grads: (dx, {**grads, "x": 1}), r"gradients.*got \['gain', 'bias', 'x'\]"),
        (lambda dx, grads: (dx, {**grads, "gain": 3.0}), r"a gradient of gain of .*got 3\.0"),
        (lambda dx, grads: (dx, {**grads, "gain": None}), "a gradient of gain of .*got None"),
        (lambda dx, grads: (dx, {**grads, "gain": np.ones(1)}), r"a gradient of gain .*\(1,\)"),
        (lambda dx, grads: (dx, {**grads, "bias": np.ones(4, int)}), "a gradient of bias .*int64"),
        (lambda dx, grads: (dx, {**grads, "bias": np.ones(4, "U1")}), "a gradient of bias .*<U1"),
    ],
)
def test_backward_names_the_site_and_the_step(result, message):
    rnn = normlib.RNN(I, H, norm=returning("backward", lambda pair: result(*pair)))
    y, _, cache = rnn.forward(X)
    message = f"^backward of the normalizer at norm_c_l0 must return {message}"
    with pytest.raises(errors.PluginError, match=message) as caught:
        rnn.backward(y, cache)
    assert caught.value.__notes__ == ["in backward, at time step 4 of layer 0"]


class Subclass(np.ndarray):
    """As arrays of other packages are."""


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda y: y.view(Subclass),
        lambda y: np.frombuffer(b"0" + y.tobytes(), np.uint8)[1:].view(y.dtype).reshape(y.shape),
        lambda y: np.repeat(y, 2, axis=1)[:, ::2],
    ],
)
def test_arrays_of_any_layout_are_taken(layout):
    plain = normlib.RNN(I, H, rng=0)
    y, _, cache = plain.forward(X)
    dx, _, _ = plain.backward(y, cache)
    for method in ("__call__", "forward", "backward"):
        change = layout if method == "__call__" else lambda pair: (layout(pair[0]), pair[1])
        rnn = normlib.RNN(I, H, norm=returning(method, change), rng=0)
        np.testing.assert_array_equal(rnn(X)[0], y)
        odd_y, _, odd_cache = rnn.forward(X)
        np.testing.assert_array_equal(odd_y, y)
        np.testing.assert_array_equal(rnn.backward(y, odd_cache)[0], dx)


def test_a_normalizer_that_was_never_set_up():
    class Bare(normlib.LayerNorm):
        def __init__(self, features, **config):
            pass

    with pytest.raises(errors.PluginError, match="got a Bare of None features and dtype None"):
        normlib.RNN(I, H, norm=Bare)
