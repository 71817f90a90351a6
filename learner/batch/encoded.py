"""A preference pair as tokens and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.chat import EncodedPrompt
from common.records import PreferencePair

TokenIds = tuple[int, ...]
ImageKey = tuple[str, ...]
"""The images of a prompt by content and view, in order; empty for a prompt without images."""
PromptKey = tuple[TokenIds, ImageKey]
"""Equal for prompts that are the same to the model: tokens and images."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A pair that can be trained on, with its prompt's tensors and both responses as tokens.

    `cropped` is the same pair behind a crop of its images, for the loss that needs it; it has as many tokens. `view`
    names what was done to the images of `prompt`; it is empty if nothing was.
    """

    pair: PreferencePair
    prompt: EncodedPrompt
    chosen: TokenIds
    rejected: TokenIds
    cropped: EncodedPair | None = None
    view: str = ""

    @property
    def has_media(self) -> bool:
        """Whether the vision encoder runs for this pair."""
        return bool(self.pair.prompt.images)

    @property
    def prompt_key(self) -> PromptKey:
        """Equal for pairs whose prompts are the same to the model: tokens and images."""
        return self.prompt.token_ids, self.image_key

    @property
    def image_key(self) -> ImageKey:
        """The prompt's images by content and view, in order."""
        images = self.pair.prompt.images
        return tuple(self.view + image.sha256 for image in images)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and both responses, the prompt's once; with a crop, of that prompt and answer too."""
        total = len(self.prompt.token_ids)
        total += len(self.chosen)
        total += len(self.rejected)
        if self.cropped is not None:
            # Only the chosen answer is asked for behind the crop.
            total += len(self.cropped.prompt.token_ids)
            total += len(self.chosen)
        return total


Row = tuple[EncodedPair, TokenIds]
"""A pair whose prompt is used, and the token ids of a completion behind it."""


def rows_of(pairs: Sequence[EncodedPair]) -> list[Row]:
    """Prompt and completion of every row of a forward: all chosen, all rejected, then chosen behind each crop."""
    # Three blocks: `pair_logps` cuts them apart by the number of pairs.
    chosen = []
    rejected = []
    behind_crop = []
    for pair in pairs:
        chosen.append((pair, pair.chosen))
        rejected.append((pair, pair.rejected))
        if pair.cropped is not None:
            behind_crop.append((pair.cropped, pair.cropped.chosen))
    return chosen + rejected + behind_crop
