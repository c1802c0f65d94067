"""The settings file: every option with its unit, bounds and meaning, and the way from text to one frozen tree.

In the file times are seconds and names end in `_s`; inside, they are integer nanoseconds. Whoever adds a field to
the structs of `SECTIONS` adds its line to `MODEL_DOCS`, docs/settings.md and the frozen list.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct

from baseload.domain.errors import SettingsError
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Remote, Scaling
from baseload.domain.units import NS_PER_S
from baseload.wire.model_docs import MODEL_DOCS

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}")
SECRET_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
SECTIONS: Mapping[str, type[Struct]] = {
    "scaling": Scaling,
    "admission": Admission,
    "engine": EngineSpec,
    "price": Price,
    "remote": Remote,
}


class GatewaySettings(Struct, frozen=True):
    """Bounds of the HTTP side."""

    max_body_bytes: int = 16 * 1024 * 1024


class JournalSettings(Struct, frozen=True):
    """How much history is kept. Usage is summed and stays for ever."""

    max_events: int = 5_000_000
    max_age_days: int = 90


class LimitsSettings(Struct, frozen=True):
    """What the limits model knows beside what is built in."""

    catalogue: str = ""


class ModelDefaults(Struct, frozen=True):
    """What a model gets where its own table says nothing."""

    scaling: Scaling = Scaling()
    admission: Admission = Admission()
    engine: EngineSpec = EngineSpec()
    price: Price = Price()
    remote: Remote = Remote()


class Settings(Struct, frozen=True):
    """The whole tree, parsed once at the edge; each part of the system receives only its own."""

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: str = "baseload-data"
    cache_dir: str = ""
    log_level: str = "info"
    guide: bool = True
    drain_ns: int = 30 * NS_PER_S
    spares: int = 1
    gateway: GatewaySettings = GatewaySettings()
    journal: JournalSettings = JournalSettings()
    limits: LimitsSettings = LimitsSettings()
    defaults: ModelDefaults = ModelDefaults()
    models: tuple[ModelSpec, ...] = ()


class Option(Struct, frozen=True):
    """One option: `path` as in the file, its Python type, and what it means."""

    path: str
    kind: type
    default: object  # in the file's unit
    doc: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


class Value(Struct, frozen=True):
    """A value as written, and where it was written ("baseload.toml:12", "BASELOAD_PORT", "--port")."""

    raw: object
    where: str
    is_text: bool = False  # from the environment or a flag: still to be parsed


class Written(Struct, frozen=True):
    """A settings file, flattened: option path → value; and one such mapping for each [[models]] table."""

    values: dict[str, Value]
    models: tuple[dict[str, Value], ...] = ()


# -- the options -------------------------------------------------------------------------------------------------

GLOBAL_OPTIONS: tuple[Option, ...] = (
    Option(
        "host",
        str,
        "127.0.0.1",
        "Address to listen on. 0.0.0.0 lets other machines in: every call needs a key, /metrics an admin key.",
    ),
    Option("port", int, 8080, "Port of the API and the dashboard; 0 takes a free one.", 0, 65535),
    Option("data_dir", str, "baseload-data", "Where the journal, keys and logs live. Back this folder up."),
    Option(
        "cache_dir", str, "", "Compiled programs, safe to delete. Empty: the user's cache folder, for all data_dirs."
    ),
    Option("log_level", str, "info", "How much is logged.", choices=("debug", "info", "warning", "error")),
    Option(
        "guide", bool, True, "Add the shipped model `guide`, which answers questions about Baseload, at first start."
    ),
    Option("drain_s", float, 30.0, "Longest that running requests are waited for when Baseload stops.", 0, 3600),
    Option(
        "spares",
        int,
        1,
        "Processes kept ready to become any sleeping model, of about 170 MB each. 0: models wake more slowly.",
        0,
        16,
    ),
    Option(
        "gateway.max_body_bytes",
        int,
        16 * 1024 * 1024,
        "Largest request body; a larger one is refused with 413.",
        1024,
        1024**3,
    ),
    Option("journal.max_events", int, 5_000_000, "Events kept; of more, the older go.", 1000),
    Option("journal.max_age_days", int, 90, "Days that events are kept. Usage by day stays for ever.", 1, 36_500),
    Option("limits.catalogue", str, "", "Your own accelerators, nodes, sites and prices: a TOML file."),
)


LONGEST_S = 366 * 86_400.0
DEAREST = 1e6  # dollars an hour, watts
MOST = 1e15  # of anything else: sums of what is within these bounds fit 64 bits, and so the journal


def _model_options() -> tuple[Option, ...]:
    options = []
    for section, struct in SECTIONS.items():
        for field in msgspec.structs.fields(struct):
            path = f"{section}.{_file_name(field.name)}"
            doc, low, high, choices = MODEL_DOCS.get(path, ("", None, None, ()))
            is_time = field.name.endswith("_ns")
            default = field.default / NS_PER_S if is_time else field.default
            if high is None and field.type in (int, float):
                high = LONGEST_S if is_time else DEAREST if section == "price" else MOST
            options.append(Option(path, float if is_time else field.type, default, doc, low, high, choices))
    return tuple(options)


def _file_name(field: str) -> str:
    return f"{field.removesuffix('_ns')}_s" if field.endswith("_ns") else field


MODEL_OPTIONS = _model_options()
OPTIONS: Mapping[str, Option] = {
    **{option.path: option for option in GLOBAL_OPTIONS},
    **{
        f"defaults.{option.path}": msgspec.structs.replace(option, path=f"defaults.{option.path}")
        for option in MODEL_OPTIONS
    },
}
MODEL_TABLE: Mapping[str, Option] = {
    "name": Option("name", str, "", "The name clients use."),
    "source": Option(
        "source", str, "", "A Hugging Face folder or .gguf file (relative to this file), or a worker's http:// URL."
    ),
    **{option.path: option for option in MODEL_OPTIONS},
}


# -- text → values -----------------------------------------------------------------------------------------------


def read_toml(text: str, *, name: str) -> Written:
    """Flatten a settings file. Unknown options are refused with their line and the nearest known name."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{name} is not valid TOML: {error}.") from error
    tables = tree.pop("models", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"{name}: models must be written as [[models]] tables.")
    values = _flatten(tree, OPTIONS, text=text, name=name, table="")
    models = tuple(
        _flatten(table, MODEL_TABLE, text=text, name=name, table=f"models[{index}]")
        for index, table in enumerate(tables)
    )
    return Written(values, models)


def _flatten(
    tree: Mapping[str, object], known: Mapping[str, Option], *, text: str, name: str, table: str
) -> dict[str, Value]:
    flat: dict[str, Value] = {}
    pending = list(tree.items())
    while pending:
        path, raw = pending.pop(0)
        where = _where(text, f"{table}.{path}".lstrip("."), name)
        if path in known:
            flat[path] = Value(raw, where)
        elif isinstance(raw, Mapping) and any(option.startswith(f"{path}.") for option in known):
            pending += [(f"{path}.{key}", value) for key, value in raw.items()]
        elif isinstance(raw, Mapping) and raw:  # an unknown table: its first entry says more than its name
            pending.insert(0, next((f"{path}.{key}", value) for key, value in raw.items()))
        else:
            raise unknown_option(path, known, where=where)
    return flat


def unknown_option(path: str, known: Iterable[str], *, where: str) -> SettingsError:
    """The error for a name that is no option, with the nearest one that is."""
    names = sorted(known)
    last = path.rpartition(".")[2]
    ends = {name.rpartition(".")[2]: name for name in names}
    begins = [name for name in names if name.startswith(path)]
    nearest = [ends[last]] if last in ends else begins[:1] or difflib.get_close_matches(path, names, n=1, cutoff=0.6)
    if not nearest:  # Perhaps a name misspelt in the wrong table: compare the last parts.
        nearest = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
    hint = f"Did you mean {nearest[0]}?" if nearest else "docs/settings.md lists every option."
    return SettingsError(f"{where}: there is no setting {path}.", hint=hint)


def _where(text: str, path: str, name: str) -> str:
    """ "file:line" of an option, found by reading headers and keys; only "file" for unusual spellings."""
    table, index = "", -1
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[\[\s*models\s*\]\]", line):
            index += 1
            table = f"models[{index}]"
        elif match := re.match(r"\s*\[\s*([\w.\s-]+?)\s*\]", line):
            table = re.sub(r"^models(?=\.)", f"models[{index}]", match[1].replace(" ", ""))
            if table == path:
                return f"{name}:{number}"
        elif match := re.match(r"\s*([\w.-]+)\s*=", line):
            written = f"{table}.{match[1]}".lstrip(".")
            if written == path or path.startswith(f"{written}."):
                return f"{name}:{number}"
    return name


# -- values → the tree --------------------------------------------------------------------------------------------


def build(layers: Sequence[Mapping[str, Value]], *, models: Sequence[Mapping[str, Value]] = ()) -> Settings:
    """The tree from layers of values, lightest first, and the [[models]] tables of the file."""
    merged: dict[str, Value] = {}
    for layer in layers:
        merged.update(layer)
    checked = {path: check(OPTIONS[path], value) for path, value in merged.items()}
    defaults = _sections(checked, ModelDefaults(), prefix="defaults.")
    specs = tuple(_model(table, defaults) for table in models)
    names = [spec.name for spec in specs]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise SettingsError(f"{models[index]['name'].where}: the model {name} is written twice.")
    own = {path: value for path, value in checked.items() if "." not in path}
    if "drain_s" in own:
        own["drain_ns"] = _ns(own.pop("drain_s"))
    tables = {
        table: {path.removeprefix(f"{table}."): v for path, v in checked.items() if path.startswith(f"{table}.")}
        for table in ("gateway", "journal", "limits")
    }
    return msgspec.convert({**own, **tables, "defaults": defaults, "models": specs}, Settings, from_attributes=True)


def check(option: Option, value: Value) -> object:
    """The value in the option's type and bounds, or a SettingsError that says where and what is right."""
    raw = _parse_text(option, value) if value.is_text else value.raw
    if option.kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        raw = float(raw)
    if not isinstance(raw, option.kind) or (isinstance(raw, bool) and option.kind is not bool):
        raise SettingsError(f"{value.where}: {option.path} must be {_kind_name(option)}, not {raw!r}.")
    if option.choices and raw not in option.choices:
        raise SettingsError(f"{value.where}: {option.path} must be one of {', '.join(option.choices)}, not {raw!r}.")
    if isinstance(raw, str) and option.low and not raw:
        raise SettingsError(f"{value.where}: {option.path} must not be empty.")
    if isinstance(raw, int | float):
        if option.low is not None and not raw >= option.low:
            raise SettingsError(f"{value.where}: {option.path} must be at least {option.low:g}, not {raw!r}.")
        if option.high is not None and not raw <= option.high:
            raise SettingsError(f"{value.where}: {option.path} must be at most {option.high:g}, not {raw!r}.")
    return raw


def _parse_text(option: Option, value: Value) -> object:
    text = str(value.raw).strip()
    if option.kind is bool:
        words = {
            "true": True,
            "yes": True,
            "1": True,
            "on": True,
            "false": False,
            "no": False,
            "0": False,
            "off": False,
        }
        return words.get(text.lower(), text)
    if option.kind in (int, float):
        try:
            return option.kind(text.replace("_", ""))
        except ValueError:
            return text
    return text


def _kind_name(option: Option) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names[option.kind]


def _model(table: Mapping[str, Value], defaults: ModelDefaults) -> ModelSpec:
    checked = {path: check(MODEL_TABLE[path], value) for path, value in table.items()}
    where = next((value.where for value in table.values()), "[[models]]")
    for needed in ("name", "source"):
        if not checked.get(needed):
            raise SettingsError(f"{where}: a [[models]] table needs a {needed}.")
    name = str(checked["name"])
    check_model_name(name, where=table["name"].where)
    own = _sections(checked, defaults)
    if own.remote.secret and not SECRET_NAME.fullmatch(own.remote.secret):
        raise SettingsError(
            f"{where}: remote.secret must be the name of a secret: letters, digits and _, beginning with a letter.",
            hint="The secret itself goes into the environment or the data folder: see docs/settings.md.",
        )
    return ModelSpec(
        name=name,
        source=str(checked["source"]),
        scaling=own.scaling,
        admission=own.admission,
        engine=own.engine,
        price=own.price,
        remote=own.remote,
    )


def wrong_field(spec: ModelSpec) -> tuple[str, str] | None:
    """The first field of a spec that no settings file could hold, and what it must be; None where all is well."""
    if not MODEL_NAME.fullmatch(spec.name):
        return "name", "1 to 128 of A-Z a-z 0-9 . _ - : / @, beginning with a letter or digit"
    if not spec.source:
        return "source", "a model directory, or the URL of a worker"
    if spec.remote.secret and not SECRET_NAME.fullmatch(spec.remote.secret):
        return "remote.secret", "the name of a secret: 1 to 64 letters, digits and _, beginning with a letter"
    for section, struct in SECTIONS.items():
        for field in msgspec.structs.fields(struct):
            path, is_time = f"{section}.{field.name}", field.name.endswith("_ns")
            raw = getattr(getattr(spec, section), field.name)
            try:
                check(
                    MODEL_TABLE[f"{section}.{_file_name(field.name)}"],
                    Value(raw / NS_PER_S if is_time else raw, path),
                )
            except SettingsError as error:
                allowed = error.message.partition(" must be ")[2].rstrip(".")
                return path, f"{allowed} (in seconds)" if is_time else allowed
    if spec.scaling.min_replicas > spec.scaling.max_replicas:
        return "scaling.min_replicas", f"at most max_replicas, {spec.scaling.max_replicas}"
    return None


def check_model_name(name: str, *, where: str) -> None:
    """Refuse a name that would be awkward in a URL, a file name or a shell."""
    if not MODEL_NAME.fullmatch(name):
        raise SettingsError(
            f"{where}: {name!r} cannot be a model's name.",
            hint="Use letters, digits and . _ - : / @ and begin with a letter or digit; at most 128.",
        )


def _sections(checked: Mapping[str, object], base: ModelDefaults, *, prefix: str = "") -> ModelDefaults:
    built: dict[str, Struct] = {}
    for section, struct in SECTIONS.items():
        changes: dict[str, object] = {}
        for field in msgspec.structs.fields(struct):
            path = f"{prefix}{section}.{_file_name(field.name)}"
            if path in checked:
                changes[field.name] = _ns(checked[path]) if field.name.endswith("_ns") else checked[path]
        built[section] = msgspec.structs.replace(getattr(base, section), **changes)
        _check_replicas(built[section], prefix)
    return msgspec.convert(built, ModelDefaults, from_attributes=True)


def _check_replicas(section: Struct, prefix: str) -> None:
    if isinstance(section, Scaling) and section.min_replicas > section.max_replicas:
        raise SettingsError(
            f"{prefix}scaling.min_replicas is {section.min_replicas}, more than max_replicas {section.max_replicas}.",
            hint="Raise max_replicas, or lower min_replicas.",
        )


def _ns(value: object) -> int:
    assert isinstance(value, float)
    return round(value * NS_PER_S)


def model_from_assignments(name: str, source: str, assignments: Sequence[str], defaults: ModelDefaults) -> ModelSpec:
    """A model from the command line: `assignments` are "scaling.min_replicas=1" and the like."""
    named = {"name": Value(name, "NAME"), "source": Value(source, "SOURCE")}
    known = [option.path for option in MODEL_OPTIONS]
    return _model({**named, **assigned(assignments, known, example="scaling.min_replicas=1")}, defaults)


def assigned(assignments: Sequence[str], known: Collection[str], *, example: str) -> dict[str, Value]:
    """The values of `--set option=value` texts, by option; one that is not among `known` is refused."""
    found: dict[str, Value] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals:
            hint = f"For example --set {example}."
            raise SettingsError(f"--set {assignment}: write it as option=value.", hint=hint)
        if path not in known:
            raise unknown_option(path, known, where="--set")
        found[path] = Value(text, f"--set {path}", is_text=True)
    return found
