"""A row's injection through a chat endpoint: the prompt, the settings, what becomes of the row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.povid.injection import EndpointInjector, Injection, Row
from common.config.povid import EndpointConfig, PovidConfig
from common.endpoint.chat_endpoint import ChatEndpoint
from common.records import Dropped, ImageRef, Message, Part, Prompt
from tests.chat_server import Answer, ChatServer

TRUTH = "A man rides a brown horse along the beach at dawn, and a dog"
"""60 characters: with the slack of 40, answers of 10 to 160 characters have a ratio of at most 2."""
WRONG = "A man rides a white horse along the beach at dawn, and a dog"


def make_prompt(question: str, *images: ImageRef) -> Prompt:
    message = Message("user", (Part("image"), Part("text", question)))
    return Prompt("p", (message,), images, TRUTH)


def config(url: str, **changes: Any) -> PovidConfig:
    settings = {"max_retries": 2, "timeout_s": 5.0, **changes}
    endpoint = EndpointConfig(
        base_url=url,
        model="writer",
        **settings,
    )
    return PovidConfig(endpoint=endpoint)


def inject_all(
    settings: PovidConfig,
    cache: Path,
    prompts: Sequence[Prompt],
) -> tuple[list[Injection], dict[str, Any]]:
    """Injections of kind `attribute`, all prompts at once, and the endpoint's usage."""
    assert settings.endpoint is not None
    endpoint_config = settings.endpoint
    rows = [Row(prompt.id, prompt, "attribute") for prompt in prompts]

    async def all_of_them() -> tuple[list[Injection], dict[str, Any]]:
        async with ChatEndpoint(endpoint_config, cache) as endpoint:
            injector = EndpointInjector(settings, endpoint)
            injections = await asyncio.gather(*[injector(row) for row in rows])
            return injections, endpoint.usage()

    return asyncio.run(all_of_them())


def inject(
    settings: PovidConfig,
    cache: Path,
    prompt: Prompt,
) -> Injection:
    (injection,), _ = inject_all(settings, cache, [prompt])
    return injection


def reason_of(injection: Injection) -> str | None:
    """Why a row gave no pair; None if it gave one."""
    if isinstance(injection.result, Dropped):
        return injection.result.reason
    return None


def one_after_the_other(answers: Sequence[Answer]) -> ChatServer:
    """A server that gives these answers in turn."""
    return ChatServer(lambda asked: answers[asked.number - 1])


def always(answer: Answer) -> ChatServer:
    return ChatServer(lambda asked: answer)
