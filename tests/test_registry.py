"""The registry: names, conflicts, and plugins that are found, broken or in each other's way."""

import functools
import re
import threading

import pytest

import normlib
from normlib.cli import listing
from normlib.errors import (
    DTypeError,
    DuplicateNormalizerError,
    ParameterError,
    PluginError,
    UnknownNormalizerError,
)
from normlib.registry import check_arguments, registered_name, resolve
from normlib.testing import CHECKS, check_normalizer

pytest_plugins = ["plugins"]

PLUGIN = """
    import normlib

    class Plugged(normlib.LayerNorm):
        pass
"""


class Custom(normlib.LayerNorm):
    pass


@pytest.fixture(autouse=True)
def isolated(installer):
    return installer


# ---- in this process ------------------------------------------------------------------------


def test_create_passes_the_configuration_on():
    norm = normlib.create("batch", 3, steps=2, momentum=None)
    assert type(norm) is normlib.BatchNorm
    assert (norm.features, norm.steps, norm.momentum) == (3, 2, None)


@pytest.mark.parametrize("name", ["layer", "batch", "noop", "rms", "instance"])
def test_built_ins_know_their_name(name):
    norm = normlib.create(name, 3)
    assert norm.name == name
    assert registered_name(type(norm)) == name
    assert name in normlib.available()


def test_register_returns_the_class_and_names_it():
    class Fresh(normlib.LayerNorm):
        pass

    assert normlib.register("fresh")(Fresh) is Fresh
    assert Fresh.name == "fresh"
    assert normlib.LayerNorm.name == "layer"
    assert type(normlib.create("fresh", 3)) is Fresh
    assert "fresh" in normlib.available()
    assert normlib.available() == sorted(normlib.available())


def test_a_taken_name_is_refused_and_both_sources_are_named():
    with pytest.raises(DuplicateNormalizerError) as caught:
        normlib.register("layer")(type("Other", (normlib.LayerNorm,), {"__module__": "elsewhere"}))
    assert "normlib.normalizers.layer:LayerNorm" in str(caught.value)
    assert "elsewhere:Other" in str(caught.value)
    assert type(normlib.create("layer", 3)) is normlib.LayerNorm


def test_a_refused_class_keeps_its_name():
    other = type("Other", (normlib.LayerNorm,), {"per_sample": True})
    with pytest.raises(DuplicateNormalizerError):
        normlib.register("batch")(other)
    assert "name" not in vars(other)


def test_replace_takes_the_name():
    other = type("Other", (normlib.LayerNorm,), {})
    normlib.register("layer", replace=True)(other)
    assert type(normlib.create("layer", 3)) is other
    with pytest.raises(UnknownNormalizerError, match="LayerNorm is not registered"):
        registered_name(normlib.LayerNorm)


@pytest.mark.parametrize(
    ("typed", "meant"), [("layr", "layer"), ("Batch", "batch"), ("no-op", "noop")]
)
def test_an_unknown_name_lists_the_known_and_the_closest(typed, meant):
    with pytest.raises(UnknownNormalizerError) as caught:
        normlib.create(typed, 3)
    assert isinstance(caught.value, KeyError)
    known = ", ".join(repr(name) for name in normlib.available())
    assert str(caught.value) == (
        f"unknown normalizer {typed!r}. Did you mean {meant!r}? Known: {known}"
    )


def test_a_name_like_no_other_gets_no_suggestion():
    with pytest.raises(UnknownNormalizerError, match=r"unknown normalizer 'qqq'\. Known: 'batch'"):
        normlib.create("qqq", 3)


@pytest.mark.parametrize("name", ["", " layer", "layer\n"])
def test_a_blank_name_is_refused(name):
    with pytest.raises(ParameterError, match="name must not be empty"):
        normlib.register(name)


@pytest.mark.parametrize("name", [None, 3, Custom])
def test_a_name_must_be_a_string(name):
    with pytest.raises(DTypeError, match="must be a string"):
        normlib.register(name)
    with pytest.raises(DTypeError, match="must be a string"):
        normlib.create(name, 3)


@pytest.mark.parametrize("thing", [object, len, normlib.LayerNorm(3), None])
def test_only_normalizer_classes_can_be_registered(thing):
    with pytest.raises(DTypeError, match=r"must be a class derived from normlib\.Normalizer"):
        normlib.register("thing")(thing)


def test_an_incomplete_class_is_refused():
    class Half(normlib.Normalizer):
        per_sample = True

        def forward(self, x, *, step=0, mask=None):
            raise NotImplementedError

    with pytest.raises(PluginError, match=r"Half lacks the method\(s\) backward"):
        normlib.register("half")(Half)


def test_a_class_must_declare_per_sample():
    class Silent(normlib.Normalizer):
        def forward(self, x, *, step=0, mask=None):
            raise NotImplementedError

        def backward(self, dy, cache):
            raise NotImplementedError

    with pytest.raises(PluginError, match="Silent must declare per_sample"):
        normlib.register("silent")(Silent)


def test_a_class_may_tell_per_sample_by_a_property():
    @normlib.register("told")
    class Told(normlib.LayerNorm):
        @property
        def per_sample(self):
            return True

    assert normlib.create("told", 3).per_sample is True
    assert check_normalizer("told", skip=set(CHECKS) - {"interface", "in_rnn", "declared_traits"})
    assert [row.per_sample for row in listing.rows() if row.name == "told"] == [None]


def test_a_class_has_one_name():
    with pytest.raises(PluginError, match="has the name 'layer' and cannot be 'second'"):
        normlib.register("second")(normlib.LayerNorm)


def test_threads_register_one_class_under_a_name():
    classes = [type(f"Class{i}", (normlib.LayerNorm,), {}) for i in range(16)]
    barrier = threading.Barrier(len(classes))
    refused = []

    def run(cls):
        barrier.wait()
        try:
            normlib.register("contested")(cls)
        except DuplicateNormalizerError:
            refused.append(cls)

    threads = [threading.Thread(target=run, args=(cls,)) for cls in classes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(classes) - 1
    assert type(normlib.create("contested", 3)) not in refused


# ---- resolve --------------------------------------------------------------------------------


def test_resolve_accepts_none_names_classes_and_factories():
    assert resolve(None) is normlib.NoOp
    assert resolve("layer") is normlib.LayerNorm
    assert resolve(Custom) is Custom
    norm = resolve(lambda features, **config: Custom(features, eps=0.5, **config))(3, bias=False)
    assert type(norm) is Custom
    assert (norm.eps, list(norm.parameters)) == (0.5, ["gain"])


@pytest.mark.parametrize("norm", [3, dict, object(), normlib.LayerNorm(3), ["layer"]])
def test_resolve_refuses_the_rest(norm):
    with pytest.raises(DTypeError, match="a factory f"):
        resolve(norm)


def test_a_factory_must_make_normalizers():
    with pytest.raises(DTypeError, match="must return a Normalizer; got 3"):
        resolve(lambda features, **config: features)(3)


def test_an_unregistered_class_has_no_registered_name():
    with pytest.raises(UnknownNormalizerError, match="Custom is not registered"):
        registered_name(Custom)


# ---- arguments ------------------------------------------------------------------------------


class Grouped(normlib.LayerNorm):
    def __init__(self, features, *, groups, **config):
        super().__init__(features, **config)
        self.groups = groups


class Forwarding(Grouped):
    def __init__(self, *args, **config):
        super().__init__(*args, **config)


def test_create_names_the_class_the_key_and_what_there_is():
    message = (
        "BatchNorm does not take 'moment'. Did you mean 'momentum'? "
        "It takes 'gain', 'bias', 'eps', 'dtype', 'momentum', 'steps'"
    )
    with pytest.raises(ParameterError, match=re.escape(message)):
        normlib.create("batch", 3, moment=0.5)
    with pytest.raises(ParameterError, match=r"LayerNorm does not take 'qqq'\. It takes 'gain'"):
        normlib.create("layer", 3, qqq=1)


@pytest.mark.parametrize("cls", [Grouped, Forwarding])
def test_names_are_looked_up_through_the_bases(cls):
    check_arguments(cls, {"groups": 2, "eps": 0.5})
    with pytest.raises(ParameterError, match=f"{cls.__name__} does not take 'group'. Did you mean"):
        check_arguments(cls, {"groups": 2, "group": 2})


def test_a_required_argument_is_asked_for():
    with pytest.raises(ParameterError, match="Grouped needs a value for 'groups'; it has none"):
        check_arguments(Grouped, {})


def test_features_are_no_part_of_the_configuration():
    for cls in (normlib.LayerNorm, Forwarding):
        with pytest.raises(ParameterError, match="is given 'features' apart from"):
            check_arguments(cls, {"features": 3})


@pytest.mark.parametrize("through", [lambda factory: factory, resolve])
def test_factories_are_held_to_their_signature(through):
    def small(n, *, eps=1e-5):
        return normlib.LayerNorm(n, eps=eps)

    def anything(features, **config):
        return normlib.LayerNorm(features, **config)

    check_arguments(through(small), {"eps": 0.5})
    check_arguments(through(anything), {"no such": 1})
    check_arguments(through(functools.partial(small, eps=2)), {"eps": 0.5})
    for key in ("gain", "n"):
        with pytest.raises(ParameterError, match=rf"does not take '{key}'\. It takes 'eps'"):
            check_arguments(through(small), {key: 1})


def test_what_has_no_signature_may_be_given_anything():
    check_arguments({}.update, {"no such": 1})


@pytest.mark.parametrize("config", [None, 3, "eps", [("eps", 1)], {1: 2}])
def test_a_configuration_is_a_mapping_of_names(config):
    with pytest.raises(DTypeError, match="a configuration must be a mapping of argument names"):
        check_arguments(normlib.LayerNorm, config)
    with pytest.raises(DTypeError, match="a configuration must be a mapping of argument names"):
        normlib.LayerNorm.from_config(config)


# ---- plugins --------------------------------------------------------------------------------


def test_a_plugin_is_listed_without_and_found_with_an_import(installer):
    before = normlib.available()
    installer.install("plug-one", "plugged = plug_one:Plugged", plug_one=PLUGIN)
    assert set(normlib.available()) - set(before) == {"plugged"}
    assert installer.imported == set()
    norm = normlib.create("plugged", 3)
    assert type(norm).__module__ == "plug_one"
    assert norm.name == "plugged"
    assert registered_name(type(norm)) == "plugged"


def test_a_plugin_installed_after_the_first_look_is_found(installer):
    with pytest.raises(UnknownNormalizerError):
        normlib.create("plugged", 3)
    installer.install("plug-late", "plugged = plug_late:Plugged", plug_late=PLUGIN)
    assert type(normlib.create("plugged", 3)).__module__ == "plug_late"


def test_a_plugin_may_register_itself_too(installer):
    source = PLUGIN.replace("    class", '    @normlib.register("plugged")\n    class')
    installer.install("plug-self", "plugged = plug_self:Plugged", plug_self=source)
    first = normlib.create("plugged", 3)
    assert type(normlib.create("plugged", 3)) is type(first)
    assert normlib.available().count("plugged") == 1


@pytest.mark.parametrize(
    ("target", "source", "cause"),
    [
        ("missing_module:Plugged", "", "ModuleNotFoundError: No module named 'missing_module'"),
        ("plug_broken:Plugged", "", "AttributeError: module 'plug_broken' has no attribute"),
        ("plug_broken:Plugged", "1 / 0", "ZeroDivisionError: division by zero"),
        ("plug_broken:Plugged", "Plugged = 3", "DTypeError: 'broken' must be a class"),
        ("plug_broken:Plugged", "class Plugged: pass", "DTypeError: 'broken' must be a class"),
        (
            "plug_broken:Plugged",
            "from normlib import LayerNorm as Plugged",
            "PluginError: normlib.normalizers.layer:LayerNorm has the name 'layer'",
        ),
        ("not an object reference", "", "cannot load the normalizer 'broken'"),
    ],
)
def test_a_broken_plugin_breaks_only_itself(installer, target, source, cause):
    installer.install("plug-broken", f"broken = {target}", plug_broken=source)
    installer.install("plug-whole", "plugged = plug_whole:Plugged", plug_whole=PLUGIN)
    assert {"batch", "broken", "layer", "noop", "plugged"} <= set(normlib.available())
    with pytest.raises(PluginError) as caught:
        normlib.create("broken", 3)
    assert cause in str(caught.value)
    assert "(distribution plug-broken)" in str(caught.value)
    assert caught.value.__cause__ is not None
    for name in ("layer", "batch", "noop", "plugged"):
        assert normlib.create(name, 3).name == name


def test_unreadable_metadata_breaks_nothing_else(installer):
    installer.install("plug-garbage", "no equals sign in this line")
    installer.install("plug-whole", "plugged = plug_whole:Plugged", plug_whole=PLUGIN)
    assert normlib.create("plugged", 3).name == "plugged"
    assert normlib.create("layer", 3).name == "layer"


def test_two_distributions_with_one_name_conflict_when_it_is_used(installer):
    installer.install("plug-one", "plugged = plug_one:Plugged", plug_one=PLUGIN)
    installer.install("plug-two", "plugged = plug_two:Plugged", plug_two=PLUGIN)
    assert normlib.create("layer", 3).name == "layer"
    assert normlib.available().count("plugged") == 1
    with pytest.raises(DuplicateNormalizerError) as caught:
        normlib.create("plugged", 3)
    assert "plug_one:Plugged (distribution plug-one)" in str(caught.value)
    assert "plug_two:Plugged (distribution plug-two)" in str(caught.value)


@pytest.mark.parametrize("source", [PLUGIN, "1 / 0"])
def test_a_plugin_with_the_name_of_a_built_in_conflicts_when_it_is_used(installer, source):
    installer.install("plug-rival", "layer = plug_rival:Plugged", plug_rival=source)
    assert normlib.create("batch", 3).name == "batch"
    with pytest.raises(DuplicateNormalizerError) as caught:
        normlib.create("layer", 3)
    assert "normlib.normalizers.layer:LayerNorm" in str(caught.value)
    assert "plug_rival:Plugged (distribution plug-rival)" in str(caught.value)


def test_replace_settles_a_conflict_between_distributions(installer):
    installer.install("plug-one", "plugged = plug_one:Plugged", plug_one=PLUGIN)
    installer.install("plug-two", "plugged = plug_two:Plugged", plug_two=PLUGIN)
    chosen = type("Chosen", (normlib.LayerNorm,), {})
    normlib.register("plugged", replace=True)(chosen)
    assert type(normlib.create("plugged", 3)) is chosen


def test_of_one_distribution_found_twice_the_first_counts(installer):
    installer.install("plug-one", "plugged = no_such_module:Plugged", plug_one=PLUGIN)
    first = installer.folder
    installer.folder = first / "again"
    installer.folder.mkdir()
    installer.install("plug-one", "plugged = plug_one:Plugged")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(installer.folder)
        assert normlib.create("plugged", 3).name == "plugged"
