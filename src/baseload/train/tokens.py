"""Text to tokens for training: a byte-level BPE tokenizer of our own, and documents encoded with loss weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from baseload.domain.errors import DataError, ModelError
from baseload.train.data import Document, Piece

PAD, BOS, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>")


def chat_template(*, lowercase_user: bool, last_question_only: bool = False) -> str:
    """A short chat template in which every role, a message and its end are one token apart.

    `last_question_only` leaves out all before the last user's message: for a model that answers each question alone.
    """
    spoken = "(message.content | trim | lower)" if lowercase_user else "(message.content | trim)"
    find_last = (
        "{% set last = namespace(at=0) %}"
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{% set last.at = loop.index0 %}{% endif %}{% endfor %}"
    )
    return (
        (find_last if last_question_only else "")
        + "{{ bos_token }}"
        + ("{% for message in messages[last.at:] %}" if last_question_only else "{% for message in messages %}")
        + "{% if message.role == 'assistant' %}<|assistant|>{{ message.content | trim }}<|end|>"
        "{% elif message.role == 'user' %}<|user|>{{ " + spoken + " }}<|end|>"
        "{% else %}<|system|>{{ message.content | trim }}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, special: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE tokenizer: every text can be encoded, and digits stay single. `special` adds tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in (*SPECIAL_TOKENS, *special)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer, *, template: str, max_context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out."""
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": True,
        "model_max_length": max_context,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (directory / "tokenizer_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2))


class ChatEncoder:
    """Encodes documents with any tokenizer and chat template; the loss falls on the assistant's words.

    `prompt_weight` is the weight of all other tokens. Running text weighs 1 throughout.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, template: str, bos: str, eos: str, prompt_weight: float = 0.0
    ) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(template)
        self._tokenizer = tokenizer
        self._bos, self._eos = bos, eos
        self._prompt_weight = prompt_weight

    def encode(self, document: Document) -> Piece:
        """The whole document as one piece."""
        if not document.messages:
            text = f"{self._bos}{document.text}{self._eos}"
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
            return Piece(ids, (1.0,) * len(ids))
        full = self.render(document)
        learnt = self._learnt(document, full)
        if document.last_only:
            learnt = learnt[-1:]
        encoding = self._tokenizer.encode(full, add_special_tokens=False)
        weights = tuple(
            1.0 if any(begin <= start < end for begin, end in learnt) else self._prompt_weight
            for start, _ in encoding.offsets
        )
        ids = tuple(encoding.ids)
        if document.last_tokens and learnt:
            end = next(i for i, (start, _) in enumerate(encoding.offsets) if start >= learnt[-1][0])
            end += document.last_tokens
            return Piece(ids[:end], weights[:end])
        return Piece(ids, weights)

    def render(self, document: Document, *, turns: int | None = None, open_answer: bool = False) -> str:
        """The conversation's first `turns` messages as text, ready for an answer when `open_answer`."""
        messages = [{"role": m.role, "content": m.content} for m in document.messages[:turns]]
        return self._template.render(
            messages=messages, bos_token=self._bos, eos_token=self._eos, add_generation_prompt=open_answer
        )

    def _learnt(self, document: Document, full: str) -> list[tuple[int, int]]:
        """The character spans of the assistant's messages, with the token that ends each."""
        spans = []
        for turn, message in enumerate(document.messages):
            if message.role == "assistant":
                before = self.render(document, turns=turn, open_answer=True)
                after = self.render(document, turns=turn + 1)
                if not (full.startswith(before) and full.startswith(after)):
                    raise DataError(
                        "The chat template writes earlier turns differently once later ones follow.",
                        hint="Train on single turns, or use a template that only appends.",
                    )
                spans.append((len(before), len(after)))
        return spans


def open_encoder(model_dir: Path, *, prompt_weight: float) -> tuple[Tokenizer, ChatEncoder]:
    """The tokenizer and encoder of a Hugging Face directory that has a chat template."""
    try:
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        raw = msgspec.json.decode((model_dir / "tokenizer_config.json").read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError) as error:
        raise ModelError(
            f"The tokenizer in {model_dir} cannot be read: {error}.", hint="Download it again."
        ) from error
    template = raw.get("chat_template")
    jinja = model_dir / "chat_template.jinja"
    if not isinstance(template, str) and jinja.is_file():
        template = jinja.read_text(encoding="utf-8")
    encoder = ChatEncoder(
        tokenizer,
        template=template if isinstance(template, str) else "",
        bos=_token_text(raw.get("bos_token")),
        eos=_token_text(raw.get("eos_token")),
        prompt_weight=prompt_weight,
    )
    return tokenizer, encoder


def _token_text(value: object) -> str:
    """A special token, given as text or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
