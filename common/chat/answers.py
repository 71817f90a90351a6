"""Answers as tokens: how they begin, how they end, and that what is written in them stays text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from common.chat.directory import ModelDirectory
from common.chat.plain_text import PlainText
from common.chat.template import ANSWER, PROBE, PROBE_ANSWER
from common.end_marks import END_MARKS, without_end_mark
from common.errors import Refused
from common.row_faults import outside_embedding, refusing


class AnswerEncoder(ModelDirectory):
    """Encodes answers behind the prompts of a model's chat template."""

    @cached_property
    def plain_text(self) -> PlainText:
        """Keeps special tokens that a text spells from being taken for tokens."""
        end = self.tokenizer.convert_ids_to_tokens(list(self.stop_token_ids))
        return PlainText(self.tokenizer, self.media_tokens, filter(None, end))

    @cached_property
    def _end_marks(self) -> tuple[str, ...]:
        """What may stand at the end of an answer as text: ends of turns and padding, of this model and of others."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(self.stop_token_ids))
        marks = {*tokens, self.tokenizer.pad_token, self.tokenizer.eos_token}
        # Answers that another model wrote carry that model's marks.
        marks.update(END_MARKS)
        marks -= {None, "", self.tokenizer.unk_token, *self.media_tokens}
        return tuple(sorted(marks))

    def without_end_mark(self, text: str) -> str:
        """An answer without the ends of turns that are written out behind it."""
        return without_end_mark(text, self._end_marks)

    def check_known(self, row: str, token_ids: Sequence[int]) -> None:
        """Refuse (`token_unknown`) a token that the model has no embedding for."""
        # Features take the place of media tokens, so these need no row.
        of_text = set(token_ids).difference(self.media_token_ids)
        outside = outside_embedding(of_text, self.num_embeddings)
        if outside is None:
            return
        raise Refused(
            "token_unknown",
            f"{row}: expected tokens below the embedding's size {self.num_embeddings}, got id {outside}; take its word "
            "out, or correct tokenizer.json",
        )

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer that is only known as text, with the token that ends an assistant's turn.

        An end mark that is written out behind the answer is taken off; other special tokens stay text. An answer that
        spells a media token keeps it: whoever trains on it or scores it refuses it.

        Raises:
            Refused: `special_token`, `token_unknown`, or `tokenizer` with what the tokenizer raises about the text.
        """
        answer = self.without_end_mark(text)
        gap = self.template.assistant_turn.gap if answer else ""
        return (*self._answer_ids(answer, gap), self.eos_token_id)

    def encode_prefix(self, text: str) -> tuple[int, ...]:
        """Token ids of an answer's beginning, which the policy goes on from (Refused as `encode_response`)."""
        return self._answer_ids(self.without_end_mark(text))

    def _answer_ids(self, answer: str, gap: str = "") -> tuple[int, ...]:
        lead = self._answer_lead
        # Sampled answers have it already.
        if not answer or answer.startswith(lead):
            lead = ""
        whole = f"{lead}{answer}{gap}"
        row = f"answer {answer[:40]!r}"
        with refusing(
            "tokenizer",
            f"{row}: expected a text that the tokenizer of {self.where} takes",
            "change the text or leave the row out",
        ):
            if any(token in whole for token in self.media_tokens):
                token_ids = self.tokenizer.encode(whole, add_special_tokens=False)
            else:
                token_ids = self.plain_text.ids(whole)
        self.check_known(row, token_ids)
        return tuple(token_ids)

    @cached_property
    def _answer_lead(self) -> str:
        """White space that answers begin with: "ASSISTANT: answer" behind the prompt "ASSISTANT:" has some.

        Tokenizers with SentencePiece's prefix put the space there themselves. Only transformers' own tokens of a whole
        turn tell.
        """
        lead = self.template.assistant_turn.lead
        if not lead:
            return ""
        prompt = self.text_ids(self.template.render([PROBE]))
        turn = [PROBE, PROBE_ANSWER]
        whole = self.text_ids(self.template.render(turn, is_prompt=False))
        answer = whole[len(prompt) :]
        for candidate in ("", lead):
            token_ids = self.tokenizer.encode(
                candidate + ANSWER, add_special_tokens=False
            )
            if answer[: len(token_ids)] == token_ids:
                return candidate
        return ""

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a rendered text, images unexpanded."""
        adds_special = self.adds_special_tokens(text)
        encoding = self.tokenizer(text, add_special_tokens=adds_special)
        return [int(token) for token in encoding["input_ids"]]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """The text of response tokens, without special tokens and without the token that ended the answer."""
        # Not every end of a turn is marked as special.
        if token_ids and token_ids[-1] in self.stop_token_ids:
            token_ids = token_ids[:-1]
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return str(text)

    def adds_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer may put its own tokens around a rendered text, as transformers decides it.

        A template that writes the first token itself would get a second one (Llama, Gemma).
        """
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))
