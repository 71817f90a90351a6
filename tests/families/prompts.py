"""Questions about pictures of a family's sizes."""

from __future__ import annotations

from PIL import Image

from common.data.images import ImageStore
from common.records import ImageRef, Message, Part, Prompt
from tests.families.case import Case, Size
from tests.tiny_models import picture

QUESTION = "Describe the image."


def ask(name: str, *images: ImageRef, text: str = QUESTION) -> Prompt:
    """A question behind any number of pictures."""
    parts = [*[Part("image") for _ in images], Part("text", text)]
    return Prompt(name, (Message("user", tuple(parts)),), images)


def prompts_of(case: Case, store: ImageStore) -> list[Prompt]:
    """A question about a picture of each of the family's sizes."""
    prompts = []
    for seed, size in enumerate(case.sizes):
        image = store.add(picture(seed, side=160).resize(size))
        prompts.append(ask(f"{case.name}-{seed}", image))
    return prompts


def blank(size: Size, store: ImageStore) -> ImageRef:
    """A grey picture: it holds nothing, and has the tokens of any other of its size."""
    return store.add(Image.new("RGB", size, (90, 90, 90)))
