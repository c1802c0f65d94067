"""Settings as text for people: a commented example file, and the rows of docs/settings.md."""

from collections.abc import Iterable

from baseload.wire.settings import GLOBAL_OPTIONS, MODEL_OPTIONS, SECTIONS, Option


def example_toml() -> str:
    """A complete settings file: every option with its default and meaning, commented out."""
    lines = ["# Baseload settings. Weight: this file < environment (BASELOAD_PORT=…) < flags (--port …).", ""]
    for option in GLOBAL_OPTIONS:
        if "." not in option.path:
            lines += [f"# {option.doc}", f"#{option.path} = {toml_value(option.default)}", ""]
    for table in ("gateway", "journal", "limits"):
        lines += [f"[{table}]"]
        for option in GLOBAL_OPTIONS:
            if option.path.startswith(f"{table}."):
                lines += [
                    f"# {option.doc}",
                    f"#{option.path.removeprefix(f'{table}.')} = {toml_value(option.default)}",
                ]
        lines += [""]
    lines += ["# What a model gets where its own table says nothing."]
    for section in SECTIONS:
        lines += [f"[defaults.{section}]"]
        for option in MODEL_OPTIONS:
            head, _, tail = option.path.partition(".")
            if head == section:
                lines += [f"# {option.doc}", f"#{tail} = {toml_value(option.default)}"]
        lines += [""]
    lines += [
        "# A model: a Hugging Face folder, served by Baseload's own engine.",
        "#[[models]]",
        '#name = "llama"',
        '#source = "models/Llama-3.2-1B-Instruct"',
        "#scaling.min_replicas = 0    # sleep when idle; the first request wakes it",
        "#scaling.idle_s = 300",
        "#price.usd_per_hour = 0.25",
        "",
        "# Or any worker that speaks the OpenAI API, run by somebody else.",
        "#[[models]]",
        '#name = "remote"',
        '#source = "https://10.0.0.7:8000"',
        '#remote.secret = "CLOUD"    # its API key is in BASELOAD_SECRET_CLOUD, or in the data folder: secrets/CLOUD',
        '#remote.ca_file = "their-ca.pem"',
    ]
    return "\n".join(lines) + "\n"


def toml_value(value: object) -> str:
    """A default as it stands in a TOML file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown_rows(options: Iterable[Option]) -> list[str]:
    """Table rows for docs/settings.md, one for each option; a tidy test compares them with the page."""
    rows = []
    for option in options:
        kind = " \\| ".join(option.choices) if option.choices else option.kind.__name__
        rows.append(f"| `{option.path}` | {kind} | `{toml_value(option.default)}` | {option.doc} |")
    return rows
