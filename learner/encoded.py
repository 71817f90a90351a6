"""A preference pair as tokens and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.chat import EncodedPrompt
from common.records import PreferencePair


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair that can be trained on, with its prompt's tensors and both responses as tokens.

    `cropped` is the pair behind a crop of its images, for the loss that wants it; it has as many tokens. `view` says
    what was done to the images of `prompt`, empty for nothing.
    """

    pair: PreferencePair
    prompt: EncodedPrompt
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    cropped: EncodedPair | None = None
    view: str = ""

    @property
    def has_media(self) -> bool:
        """Whether the vision tower runs for this pair."""
        return bool(self.pair.prompt.images)

    @property
    def prompt_key(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Equal for pairs whose prompts are the same to the model: tokens and images."""
        return self.prompt.token_ids, self.image_key

    @property
    def image_key(self) -> tuple[str, ...]:
        """The prompt's images by content and view, in order."""
        return tuple(self.view + image.sha256 for image in self.pair.prompt.images)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and both responses, the prompt's once; with a crop, of that prompt and answer too."""
        own = len(self.prompt.token_ids) + len(self.chosen) + len(self.rejected)
        return own + (
            len(self.cropped.prompt.token_ids) + len(self.chosen)
            if self.cropped is not None
            else 0
        )


def rows_of(pairs: Sequence[EncodedPair]) -> list[tuple[EncodedPair, tuple[int, ...]]]:
    """Prompt and completion of every row of a forward: all chosen, all rejected, then chosen behind each crop."""
    crops = [pair.cropped for pair in pairs if pair.cropped is not None]
    return [
        *((pair, pair.chosen) for pair in pairs),
        *((pair, pair.rejected) for pair in pairs),
        *((crop, crop.chosen) for crop in crops),
    ]
