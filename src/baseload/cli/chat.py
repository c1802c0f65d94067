"""`baseload chat`: talk to a model in the terminal, or ask one question and get the answer."""

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.markup import escape

from baseload.cli.flags import AsJson, at_place
from baseload.cli.http import TIMEOUT_S, refused, send, stream
from baseload.cli.reach import Place, address
from baseload.cli.screen import err, out, print_json, say
from baseload.domain.errors import BaseloadError, ControlError

PATH = "/v1/chat/completions"
LEAVE = ("/bye", "/quit", "/exit")


class Answer(msgspec.Struct, frozen=True):
    """What a model answered, and how fast."""

    text: str
    first_token_s: float
    total_s: float
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@at_place
def chat(
    question: Annotated[str, typer.Argument(help="Ask this and end; without it, a conversation begins.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Default: guide, or the first model.")] = "",
    system: Annotated[str, typer.Option("--system", help="What the model is told first.")] = "",
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2)] = 0.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 512,
    *,
    place: Place,
    as_json: AsJson = False,
) -> None:
    """Talk to a model. A sleeping one wakes first."""
    url, secret = address(place)
    if not url:
        raise ControlError("Baseload is not running here.", hint="Start it with: baseload up")
    talk = _Talk(url, secret, model or _default_model(url, secret), temperature, max_tokens)
    told: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    if question or not sys.stdin.isatty():
        asked = question or sys.stdin.read().strip()
        if not asked:
            raise BaseloadError("Nothing was asked.", hint='For example: baseload chat "What is Baseload?"')
        answer = talk.ask([*told, {"role": "user", "content": asked}], quiet=as_json)
        if as_json:
            print_json({"model": talk.model, **msgspec.to_builtins(answer)})
        return
    _converse(talk, told)


def _default_model(url: str, key: str) -> str:
    response = send(url, "GET", "/v1/models", key=key, timeout_s=TIMEOUT_S)
    body = response.read()
    if response.status >= 400:
        raise refused(response.status, body)
    names = [model["id"] for model in msgspec.json.decode(body)["data"]]
    if not names:
        raise BaseloadError("There is no model yet.", hint="Add one with: baseload models add NAME FOLDER")
    return "guide" if "guide" in names else str(names[0])


def _converse(talk: "_Talk", told: list[dict[str, str]]) -> None:
    say(f"Talking to {talk.model}. Empty line or Ctrl-D ends.", style="dim")
    while True:
        try:
            asked = out().input("[bold]› [/]").strip()
        except EOFError:
            return
        if not asked or asked in LEAVE:
            return
        told.append({"role": "user", "content": asked})
        try:
            answer = talk.ask(told)
        except KeyboardInterrupt:
            say("\n(stopped)", style="dim")
            told.pop()
            continue
        told.append({"role": "assistant", "content": answer.text})


class _Talk:
    """One model at one address."""

    def __init__(self, url: str, key: str, model: str, temperature: float, max_tokens: int) -> None:
        self.model = model
        self._url = url
        self._key = key
        self._fixed = {"model": model, "temperature": temperature, "max_tokens": max_tokens, "stream": True}

    def ask(self, messages: Sequence[dict[str, str]], *, quiet: bool = False) -> Answer:
        """Send the conversation and print the answer as it comes."""
        body = msgspec.json.encode({**self._fixed, "messages": messages, "stream_options": {"include_usage": True}})
        began = time.monotonic()
        first, finish = 0.0, ""
        pieces: list[str] = []
        usage: dict[str, int] = {}
        spinner = err().status(f"Waiting for [bold]{escape(self.model)}[/] (a sleeping model wakes first)…")
        spinner.start()
        try:
            for chunk in stream(self._url, PATH, key=self._key, body=body):
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", []):
                    finish = choice.get("finish_reason") or finish
                    piece = choice.get("delta", {}).get("content")
                    if not piece:
                        continue
                    if not pieces:
                        first = time.monotonic() - began
                        spinner.stop()
                    pieces.append(piece)
                    if not quiet:
                        sys.stdout.write(piece)
                        sys.stdout.flush()
        finally:
            spinner.stop()
        total = time.monotonic() - began
        if not quiet:
            sys.stdout.write("\n")
        answer = Answer(
            "".join(pieces), first, total, finish, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        )
        if not quiet and sys.stderr.isatty():
            err().print(_pace(answer), style="dim", highlight=False)
        return answer


def _pace(answer: Answer) -> str:
    if not answer.text:
        return "(an empty answer)"
    writing = answer.total_s - answer.first_token_s
    rate = (
        f", {(answer.completion_tokens - 1) / writing:.0f} tokens/s"
        if answer.completion_tokens > 1 and writing
        else ""
    )
    cut = " (cut at --max-tokens)" if answer.finish_reason == "length" else ""
    return f"first token after {answer.first_token_s:.2f} s{rate}{cut}"
