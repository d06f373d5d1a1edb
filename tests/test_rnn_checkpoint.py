"""Networks in files: round trips, and files and paths that are refused."""

import errno
import functools
import json
import os
import struct

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import normlib
from normlib import errors, registry

T, N, I, H = 5, 4, 3, 4
CELLS = [
    {"cell": "rnn"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru"},
    {"cell": "gru", "reset_after": False},
    {"cell": "lstm"},
]
NORMS = [
    {"norm": None},
    {"norm": "layer", "norm_config": {"eps": 1e-3}},
    {"norm": "batch", "norm_config": {"eps": 1e-3, "steps": 3, "momentum": None}},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def name():
    """A name under which a test may register; nothing is left of it."""
    yield "a name of this test"
    registry._entries.pop("a name of this test", None)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(cell, norm, dtype, path):
    rnn = normlib.RNN(I, H, **cell, **norm, dtype=dtype, num_layers=2, bidirectional=True, rng=0)
    rng = np.random.default_rng(0)
    rnn.load_state_dict(
        {
            key: rng.uniform(0.5, 1, array.shape) if array.dtype.kind == "f" else array + 1
            for key, array in rnn.state_dict().items()
        }
    )
    rnn.save(path)
    loaded = normlib.RNN.load(path)
    assert loaded.get_config() == rnn.get_config()
    assert repr(loaded) == repr(rnn)
    x = np.random.default_rng(0).standard_normal((T, N, I))
    np.testing.assert_array_equal(rnn(x)[0], loaded(x)[0])
    arrays = load_file(path)
    assert arrays.keys() == rnn.state_dict().keys()
    for key, array in rnn.state_dict().items():
        np.testing.assert_array_equal(arrays[key], array)


# ---- saving --------------------------------------------------------------------------------------


def test_save_needs_a_registered_name(path):
    class Mine(normlib.LayerNorm):
        pass

    x = np.ones((T, N, I), np.float32)
    for norm in (Mine, lambda features, **config: normlib.LayerNorm(features, **config)):
        rnn = normlib.RNN(I, H, norm=norm)
        assert np.isfinite(rnn(x)[0]).all()
        assert rnn.get_config()["norm"] is norm
        with pytest.raises(errors.StateError, match=r"must have a registered name; got .*register"):
            rnn.save(path)
    assert not path.exists()
    rnn = normlib.RNN(I, H, norm=normlib.BatchNorm)
    rnn.save(path)
    assert normlib.RNN.load(path).get_config()["norm"] == "batch"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_name_that_means_another_class_is_not_saved(name, by_name, path):
    class First(normlib.LayerNorm):
        pass

    class Second(normlib.LayerNorm):
        pass

    normlib.register(name)(First)
    rnn = normlib.RNN(I, H, norm=name if by_name else First)
    assert rnn.get_config()["norm"] == name
    rnn.save(path)
    path.unlink()
    normlib.register(name, replace=True)(Second)
    # The configuration still makes an equal network: it has the class.
    assert rnn.get_config()["norm"] is First
    assert "First" in repr(rnn)
    with pytest.raises(errors.StateError, match=r"First'>, which has none or has lost it"):
        rnn.save(path)
    assert not path.exists()


@pytest.mark.parametrize("value", [object(), {(1,): 2}, np.nan, np.complex64(1), 1j, "deep"])
def test_save_needs_a_configuration_in_json(value, path):
    if value == "deep":
        value = functools.reduce(lambda inner, _: [inner], range(5000), [])
    rnn = normlib.RNN(I, H)
    rnn.norm_config["eps"] = value
    with pytest.raises(errors.StateError, match=r"must consist of numbers.*norm_config"):
        rnn.save(path)
    assert not path.exists()


def test_numbers_of_numpy_are_saved_as_those_of_python(path):
    config = {
        "eps": np.float32(1e-3),
        "momentum": np.float64(0.5),
        "steps": np.int64(2),
        "gain": np.bool_(True),
    }
    rnn = normlib.RNN(np.int32(I), H, norm="batch", norm_config=config)
    rnn.save(path)
    loaded = normlib.RNN.load(path)
    assert loaded.norm_config == config
    assert [type(value) for value in loaded.norm_config.values()] == [float, float, int, bool]


def test_a_disk_that_is_full_leaves_the_files_that_were(path, monkeypatch):
    def full(*arguments, **options):
        raise safetensors.SafetensorError("no space left")

    rnn = normlib.RNN(I, H)
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", full)
        with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: no space left"):
            rnn.save(path)
    assert not path.exists()
    rnn.save(path)
    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        rnn.save(path)
    assert normlib.RNN.load(path).parameters == rnn.parameters


def test_a_buffer_that_the_format_lacks(name, path):
    @normlib.register(name)
    class Odd(normlib.NoOp):
        def __init__(self, features, **config):
            super().__init__(features, **config)
            self.buffers["odd"] = np.array(1 + 2j)

    with pytest.raises(errors.StateError, match=r"a file can hold bool.*norm_ih_l0.odd is complex"):
        normlib.RNN(I, H, norm=name).save(path)
    assert not path.exists()


def test_a_buffer_without_axes(name, path):
    @normlib.register(name)
    class Counting(normlib.NoOp):
        def __init__(self, features, **config):
            super().__init__(features, **config)
            self.buffers["count"] = np.array(7)

    normlib.RNN(I, H, norm=name).save(path)
    assert normlib.RNN.load(path).state_dict()["norm_c_l0.count"].shape == ()


# ---- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, os.fsencode, os.fspath, lambda path: path])
def test_paths_of_any_kind(kind, path):
    rnn = normlib.RNN(I, H)
    rnn.save(kind(path))
    rnn.save(kind(path))  # an existing file is replaced
    assert normlib.RNN.load(kind(path)).get_config() == rnn.get_config()


@pytest.mark.parametrize("wrong", [None, 3, ["model"]])
def test_other_paths(wrong):
    with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike"):
        normlib.RNN(I, H).save(wrong)
    with pytest.raises(TypeError, match=r"expected str, bytes or os\.PathLike"):
        normlib.RNN.load(wrong)


def test_what_is_no_file(tmp_path):
    for call in (normlib.RNN.load, normlib.RNN(I, H).save):
        with pytest.raises(FileNotFoundError) as caught:
            call(tmp_path / "nothing" / "model")
        assert caught.value.errno == errno.ENOENT
        with pytest.raises(IsADirectoryError):
            call(tmp_path)
    with pytest.raises(FileNotFoundError):
        normlib.RNN.load(tmp_path / "nothing")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_is_an_os_error(path, monkeypatch):
    from safetensors import SafetensorError

    def fail(*_, **__):
        raise SafetensorError("no space")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match=r"cannot write .*no space"):
        normlib.RNN(I, H).save(path)


# ---- loading -------------------------------------------------------------------------------------


def write(path, *, change=(), state=None, **config):
    """A file that save might have written, with another configuration or state."""
    rnn = normlib.RNN(I, H)
    config = {**rnn.get_config(), **config}
    arrays = {**rnn.state_dict(), **dict(change)} if state is None else state
    save_file(arrays, path, metadata={"normlib.rnn": json.dumps(config)})


def write_raw(path, tensors, metadata):
    """A file of types that NumPy does not have: tensors gives type, shape and size by name."""
    header = {"__metadata__": metadata}
    place = 0
    for name, (dtype, shape, itemsize) in tensors.items():
        end = place + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(place))


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(100)])
def test_files_of_another_format(content, path):
    path.write_bytes(content)
    with pytest.raises(errors.StateError, match="not a safetensors file"):
        normlib.RNN.load(path)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "[" * 100_000])
def test_metadata_of_another_origin(text, path):
    metadata = {"format": "pt"} if text is None else {"normlib.rnn": text}
    save_file({"a": np.zeros(1)}, path, metadata=metadata)
    with pytest.raises(errors.StateError, match=r"written by RNN\.save"):
        normlib.RNN.load(path)
    # Before any tensor is looked at, those of types that cannot be read among them.
    write_raw(path, {"a": ("BF16", (2,), 2)}, metadata)
    with pytest.raises(errors.StateError, match=r"written by RNN\.save"):
        normlib.RNN.load(path)


@pytest.mark.parametrize(
    "config",
    [
        {"colour": "red"},
        {"input_size": None},
        {"hidden_size": 2.5},
        {"hidden_size": 2**70},
        {"num_layers": 0},
        {"cell": "mlp"},
        {"cell": ["lstm"]},
        {"nonlinearity": "relu"},
        {"bidirectional": 1},
        {"dtype": "float16"},
        {"dtype": {"names": 3}},
        {"dtype": "(1,"},
        {"norm": 3},
        {"norm_config": 3},
        {"norm_config": {"epsilon": 1}},
        {"norm_config": {"eps": -1}},
    ],
)
def test_configurations_out_of_range(config, path):
    write(path, **config)
    with pytest.raises(errors.StateError, match=r"model\.safetensors holds"):
        normlib.RNN.load(path)


def test_a_configuration_that_lacks_a_name(path):
    config = normlib.RNN(I, H).get_config()
    del config["cell"]
    save_file({"a": np.zeros(1)}, path, metadata={"normlib.rnn": json.dumps(config)})
    with pytest.raises(errors.StateError, match="configuration without 'cell'"):
        normlib.RNN.load(path)


def test_a_normalizer_that_is_not_there(path):
    write(path, norm="nobody's")
    with pytest.raises(errors.UnknownNormalizerError, match="nobody's"):
        normlib.RNN.load(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 10**7}, r"weight_ih_l0 of shape \(40000000, 3\).*got \(16, 3\) in F32"),
        ({"input_size": 10**12}, r"weight_ih_l0 of shape \(16, 1000000000000\)"),
        ({"num_layers": 10**9}, r"weight_ih_l1, by its configuration; it is missing"),
        ({"bidirectional": True}, "weight_ih_l0_reverse, by its configuration; it is missing"),
        ({"cell": "gru"}, r"weight_ih_l0 of shape \(12, 3\)"),
        (
            {"norm": "batch", "norm_config": {"steps": 10**12}},
            "running_mean of 1000000000000 time steps, as steps of its norm_config says; got none",
        ),
    ],
)
def test_a_configuration_of_other_sizes_than_the_arrays(config, message, path, monkeypatch):
    write(path, **config)
    # Nothing is built before the sizes are known to be true.
    monkeypatch.setattr(normlib.RNN, "from_config", None)
    with pytest.raises(errors.StateError, match=message):
        normlib.RNN.load(path)


@pytest.mark.parametrize(
    ("dtype", "itemsize"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F16", 2), ("I32", 4)]
)
@pytest.mark.parametrize("name", ["weight_hh_l0", "norm_ih_l0.gain"])
def test_arrays_of_other_types(dtype, itemsize, name, path):
    rnn = normlib.RNN(I, H)
    tensors = {key: ("F32", array.shape, 4) for key, array in rnn.state_dict().items()}
    metadata = {"normlib.rnn": json.dumps(rnn.get_config())}
    write_raw(path, tensors, metadata)
    assert not normlib.RNN.load(path).parameters[name].any()
    tensors[name] = (dtype, tensors[name][1], itemsize)
    write_raw(path, tensors, metadata)
    with pytest.raises(errors.StateError, match=name):
        normlib.RNN.load(path)


def test_arrays_that_do_not_fit(path):
    for change, message in [
        ({"norm_c_l0.gain": np.zeros(3, np.float32)}, "norm_c_l0.gain must have shape"),
        ({"extra": np.zeros(3)}, "extra is unexpected"),
    ]:
        write(path, change=change)
        with pytest.raises(errors.StateError, match=message):
            normlib.RNN.load(path)
    state = normlib.RNN(I, H).state_dict()
    del state["norm_c_l0.bias"]
    write(path, state=state)
    with pytest.raises(errors.StateError, match=r"norm_c_l0\.bias is missing"):
        normlib.RNN.load(path)


def test_arrays_of_the_other_precision_are_cast(path):
    state = {key: array.astype(np.float64) for key, array in normlib.RNN(I, H).state_dict().items()}
    write(path, state=state)
    loaded = normlib.RNN.load(path)
    for key, array in loaded.state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, state[key].astype(np.float32))
