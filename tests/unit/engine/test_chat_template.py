import json
from pathlib import Path

import pytest

from baseload.domain.errors import ModelError, Reason, Refusal
from baseload.engine.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "Größe?"}]


def template(source: str, **variables: str) -> ChatTemplate:
    return ChatTemplate(source, variables=variables)


def test_what_hugging_face_templates_expect_is_there() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'skip' %}{% continue %}{% endif %}"
        "{{ m | tojson }}{% endfor %}{% if add_generation_prompt %}|{% endif %}"
        "{{ strftime_now('%Y')|length }}{% if tools %}tools{% endif %}"
    )
    text = template(source, bos_token="<s>").render([{"role": "skip"}, *MESSAGES])
    assert text == '<s>{"role": "user", "content": "Größe?"}|4'


def test_a_templates_complaint_is_a_refusal() -> None:
    with pytest.raises(Refusal, match="roles must alternate") as caught:
        template("{{ raise_exception('roles must alternate') }}").render(MESSAGES)
    assert (caught.value.reason, caught.value.param) == (Reason.BAD_REQUEST, "messages")
    with pytest.raises(Refusal, match="failed on these messages"):
        template("{{ messages[3].content }}").render(MESSAGES)


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ strftime_now.__globals__['json'] }}"]
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(Refusal):
        template(source).render(MESSAGES)


def test_where_the_template_is_found(tmp_path: Path) -> None:
    assert ChatTemplate.open(tmp_path) is None
    config = {"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}C"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = [ChatTemplate.open(tmp_path)]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ bos_token }}B"}))
    found.append(ChatTemplate.open(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}A")
    found.append(ChatTemplate.open(tmp_path))
    assert [each.render(MESSAGES) for each in found if each] == ["<s>C", "<s>B", "<s>A"]


def test_a_broken_template_is_the_models_fault(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja is not valid"):
        ChatTemplate.open(tmp_path)
