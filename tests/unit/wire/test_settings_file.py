"""The settings file: units, bounds, and refusals that name the place and the nearest right name."""

import pytest

from baseload.domain.errors import SettingsError
from baseload.domain.units import NS_PER_S
from baseload.wire.settings import Settings, Value, build, model_from_assignments, read_toml


def parse(text: str) -> Settings:
    written = read_toml(text, name="baseload.toml")
    return build([written.values], models=written.models)


def refusal(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse(text)
    return str(caught.value)


def test_an_empty_file_gives_the_defaults() -> None:
    assert parse("") == Settings()


def test_seconds_become_nanoseconds_and_models_inherit_the_defaults() -> None:
    settings = parse(
        """
        port = 9000
        drain_s = 1.5
        [gateway]
        max_body_bytes = 2048
        [defaults.scaling]
        idle_s = 60
        max_replicas = 3
        [[models]]
        name = "a"
        source = "/models/a"
        scaling.idle_s = 0.25
        [[models]]
        name = "b"
        source = "http://10.0.0.7:8000"
        [models.price]
        usd_per_hour = 2
        """
    )
    assert settings.port == 9000
    assert settings.drain_ns == 3 * NS_PER_S // 2
    assert settings.gateway.max_body_bytes == 2048
    first, second = settings.models
    assert (first.scaling.idle_ns, first.scaling.max_replicas) == (NS_PER_S // 4, 3)
    assert (second.scaling.idle_ns, second.price.usd_per_hour, second.is_remote) == (60 * NS_PER_S, 2.0, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot = 1", "baseload.toml:1: there is no setting prot. Did you mean port?"),
        ("\n[defaults.scaling]\nidel_s = 3", "baseload.toml:3: there is no setting defaults.scaling.idel_s."),
        ("\n[defaults.scaling]\nidel_s = 3", "Did you mean defaults.scaling.idle_s?"),
        ("idle_s = 3", "Did you mean defaults.scaling.idle_s?"),
        ("[scaling]\nmin_replicas = 1", "Did you mean defaults.scaling.min_replicas?"),
        (
            '[[models]]\nname="a"\nsource="s"\n[[models]]\nname="b"\nsorce="s"',
            "baseload.toml:6: there is no setting sorce",
        ),
        (
            '[[models]]\nname="a"\nsource="s"\n[models.price]\nusd = 1',
            "baseload.toml:5: there is no setting price.usd.",
        ),
        ("quux = 1", "docs/settings.md lists every option."),
    ],
)
def test_unknown_names_are_refused_with_place_and_nearest_name(text: str, expected: str) -> None:
    assert expected in refusal(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("port = true", "port must be a whole number, not True"),
        ("port = 70000", "port must be at most 65535, not 70000"),
        ("port = -1", "port must be at least 0, not -1"),
        ('port = "80"', "port must be a whole number, not '80'"),
        ("guide = 1", "guide must be true or false, not 1"),
        ("drain_s = nan", "drain_s must be at least 0, not nan"),
        ('log_level = "loud"', "must be one of debug, info, warning, error, not 'loud'"),
        ("gateway = 3", "there is no setting gateway"),
        ("models = 3", "models must be written as [[models]] tables"),
        ("port = ", "baseload.toml is not valid TOML"),
        ('[[models]]\nsource="s"', "needs a name"),
        ('[[models]]\nname="a"', "needs a source"),
        ('[[models]]\nname="a b"\nsource="s"', "'a b' cannot be a model's name"),
        ('[[models]]\nname="a"\nsource="s"\n[[models]]\nname="a"\nsource="t"', "the model a is written twice"),
        ("[defaults.scaling]\nmin_replicas = 2", "more than max_replicas 1"),
    ],
)
def test_wrong_values_are_refused_in_words(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_later_layers_outweigh_earlier_ones() -> None:
    layers = [{"port": Value(1, "file:1")}, {"port": Value("2", "ENV", True)}, {"port": Value("3", "--port", True)}]
    assert [build(layers[:n]).port for n in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("off", False), ("1", True), ("No", False)])
def test_texts_are_read_as_booleans(text: str, value: bool) -> None:
    assert build([{"guide": Value(text, "BASELOAD_GUIDE", is_text=True)}]).guide is value


def test_a_text_that_is_no_number_is_refused_where_it_stands() -> None:
    with pytest.raises(SettingsError, match="BASELOAD_PORT: port must be a whole number, not 'x'"):
        build([{"port": Value("x", "BASELOAD_PORT", is_text=True)}])


def test_a_model_from_the_command_line() -> None:
    spec = model_from_assignments(
        "llama", "/m", ["scaling.min_replicas=1", "engine.deterministic=yes"], Settings().defaults
    )
    assert (spec.scaling.min_replicas, spec.engine.deterministic) == (1, True)
    for wrong, words in (("scaling.min=1", "scaling.min_replicas"), ("scaling.min_replicas", "option=value")):
        with pytest.raises(SettingsError, match=words):
            model_from_assignments("llama", "/m", [wrong], Settings().defaults)
