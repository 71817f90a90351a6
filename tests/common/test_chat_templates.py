"""Templates of all makes: what they take, what they leave out, and where a conversation begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.chat import ChatEncoder
from common.data.images import ImageStore
from common.errors import Refused, UserError
from tests.common.chat_models import (
    FAMILIES,
    conversation,
    copy_of,
    edit,
    put_around,
    transformers_ids,
)

PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
END = "{{ eos_token if m['role'] == 'assistant' else '\n' }}"
ASK = "{% if add_generation_prompt %}assistant:\n{% endif %}"
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    + PARTS
    + "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    + PARTS
    + "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
SYSTEM_FOLDED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ first if loop.first else '' }}"
    + PARTS
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n"
    + PARTS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
TURNS = ("<start_of_turn>", "<end_of_turn>")
MARKUP = ("<|im_start|>", "<|im_end|>")
ANSWER = "A blue star."


def template(**roles: str) -> str:
    """A line per turn, `ROLE: TEXT`; `roles` say how else the content of one role is written."""
    content = ""
    for role, text in roles.items():
        content += f"{{% if m['role'] == '{role}' %}}{text}{{% else %}}"
    content += PARTS + "{% endif %}" * len(roles)
    return (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:\n"
        + content
        + END
        + "{% endfor %}"
        + ASK
    )


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("tokenizer_adds_bos", [False, True])
@pytest.mark.parametrize(
    ("text", "tokens", "end"),
    [
        (LLAMA_3, HEADERS, "<|eot_id|>"),
        (PHI_3, ROLES, "<|end|>"),
        (SYSTEM_FOLDED, TURNS, "<end_of_turn>"),
        (DEFAULT_SYSTEM, MARKUP, "<|im_end|>"),
    ],
)
def test_tokens_of_well_known_kinds(
    family: str,
    tokenizer_adds_bos: bool,
    text: str,
    tokens: tuple[str, ...],
    end: str,
    store: ImageStore,
    tmp_path: Path,
) -> None:
    folder = copy_of(FAMILIES[family](), tmp_path / "model", text, tokens)
    if tokenizer_adds_bos:
        put_around(folder, "<s>")
    encoder = ChatEncoder(folder, 512)
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.eos_token_id) == end
    for turns in (("What is seen?",), ("What is seen?", "A circle.", "Which one?")):
        for system in (None, "Be brief."):
            prompt = conversation(store, *turns, system=system)
            prompt_ids = encoder.encode_prompt(prompt).token_ids
            assert list(prompt_ids) == transformers_ids(folder, prompt)
            assert prompt_ids.count(encoder.tokenizer.bos_token_id) <= 1
            trained = [*prompt_ids, *encoder.encode_response(ANSWER)]
            assert trained == transformers_ids(folder, prompt, ANSWER)[: len(trained)]


@pytest.mark.parametrize(
    "written",
    ["{{ m['content'] }}", "{{ m['content'].strip() }}", "{{ m['content'] + '' }}"],
)
@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_role_whose_content_is_a_string_gets_one(
    role: str, written: str, store: ImageStore, tmp_path: Path
) -> None:
    """Printed, a list would be Python's form of it, in silence."""
    folder = copy_of(
        FAMILIES["llava"](), tmp_path / "model", template(**{role: written})
    )
    encoder = ChatEncoder(folder, 512)
    assert encoder.warnings == []
    assert encoder.template.assistant_turn.end == "</s>"
    turns = ("What is seen?", "A circle.", "Which one?")
    prompt = conversation(store, *turns, system="Be brief.")
    plain = copy_of(FAMILIES["llava"](), tmp_path / "plain", template())
    expected = ChatEncoder(plain, 512)
    assert encoder.prompt_text(prompt) == expected.prompt_text(prompt)
    assert (
        encoder.encode_prompt(prompt).token_ids
        == expected.encode_prompt(prompt).token_ids
    )
    assert encoder.encode_response(ANSWER) == expected.encode_response(ANSWER)


def test_turns_that_are_left_out_are_said(tmp_path: Path) -> None:
    folder = copy_of(FAMILIES["llava"](), tmp_path / "system", template(system=""))
    (warning,) = ChatEncoder(folder, 512).warnings
    assert (
        "DOES NOT WRITE A SYSTEM TURN" in warning and "chat_template.jinja" in warning
    )
    last = template().replace("for m in messages", "for m in messages[-1:]")
    folder = copy_of(FAMILIES["llava"](), tmp_path / "last", last)
    warnings = ChatEncoder(folder, 512).warnings
    assert any("THE TURNS BEFORE THE LAST QUESTION" in line for line in warnings)


def test_a_system_turn_that_is_refused_is_its_rows_drop(
    store: ImageStore, tmp_path: Path
) -> None:
    refusing = "{{ raise_exception('System role not supported') }}"
    folder = copy_of(FAMILIES["llava"](), tmp_path / "model", template(system=refusing))
    encoder = ChatEncoder(folder, 512)
    assert encoder.warnings == []
    assert encoder.prompt_ids(conversation(store, "What is seen?"))
    with pytest.raises(Refused, match="System role not supported") as caught:
        encoder.prompt_ids(conversation(store, "What is seen?", system="Be brief."))
    assert caught.value.reason == "chat_template"


def test_quotation_marks_of_a_template_are_not_trained(
    store: ImageStore, tmp_path: Path
) -> None:
    """The one behind an answer belongs to the one in front, which is not sampled."""
    quoted = template().replace("part['text'] }}", "part['text'] | tojson }}")
    folder = copy_of(FAMILIES["llava"](), tmp_path / "model", quoted)
    encoder = ChatEncoder(folder, 512)
    text = encoder.prompt_text(conversation(store, "What is </s>?"))
    assert '"What is </s>?"' in text
    assert encoder.decode(encoder.encode_response(ANSWER)) == ANSWER
    (warning,) = encoder.warnings
    assert "the generation prompt is not how an assistant's turn begins" in warning


def test_a_template_that_cuts_a_text_refuses_written_out_tokens(
    store: ImageStore, tmp_path: Path
) -> None:
    """It may cut what stands in for a token."""
    cutting = template().replace("part['text'] }}", "part['text'][:23] }}")
    folder = copy_of(FAMILIES["llava"](), tmp_path / "model", cutting)
    encoder = ChatEncoder(folder, 512)
    assert "What is </s>?" in encoder.prompt_text(conversation(store, "What is </s>?"))
    with pytest.raises(Refused, match="changes the text") as caught:
        encoder.prompt_ids(conversation(store, "What do you see in it? </s>"))
    assert caught.value.reason == "special_token"


@pytest.mark.parametrize("is_named", [True, False])
def test_two_beginnings_that_transformers_itself_makes_are_refused(
    is_named: bool, tmp_path: Path
) -> None:
    """It sees neither a beginning behind white space, nor one that no bos_token names."""
    text = template()
    text = "\n" + text if is_named else text.replace("{{ bos_token }}", "<s>")
    folder = copy_of(FAMILIES["llava"](), tmp_path / "model", text)
    if not is_named:
        edit(folder / "tokenizer_config.json", lambda content: content.pop("bos_token"))
    assert ChatEncoder(folder, 512)
    put_around(folder, "<s>")
    with pytest.raises(UserError, match="expected one <s> at the beginning") as caught:
        ChatEncoder(folder, 512)
    assert "correct chat_template.jinja, or bos_token" in str(caught.value)
