"""Replies are paid for once: what is kept, what is shared, what is asked again."""

from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.povid import EndpointConfig
from common.endpoint.chat_endpoint import ChatEndpoint
from common.endpoint.reply_cache import ChatReply, ReplyCache
from common.records import PreferencePair, Prompt
from tests.actors.povid.injecting import (
    TRUTH,
    WRONG,
    always,
    config,
    inject,
    inject_all,
    one_after_the_other,
    reason_of,
)
from tests.chat_server import completion, refusal


def test_equal_questions_at_the_same_time_share_a_reply(
    prompt: Prompt,
    cache: Path,
) -> None:
    prompts = [replace(prompt, id=name) for name in "abc"]
    with always(completion(WRONG, delay_s=0.1)) as server:
        injections, usage = inject_all(config(server.url), cache, prompts)
        asked = sorted(injection.asked for injection in injections)
        # One request, whose reply all three share.
        assert asked == ["answered", "cache", "cache"]
        assert len(server.asked) == usage["num_replies"] == 1


def test_nothing_is_asked_again_later_or_after_a_torn_line(
    prompt: Prompt,
    cache: Path,
) -> None:
    with always(completion(WRONG)) as server:
        settings = config(server.url)
        inject(settings, cache, prompt)
        with cache.open("a") as file:
            # A line of another program, one without a reply, and one that a crash has torn.
            file.write('7\n{"event": "reply", "time": 0}\n')
            file.write('{"event": "reply", "key": "ab')
        for _ in range(2):
            (injection,), usage = inject_all(settings, cache, [prompt])
            assert injection.asked == "cache"
            assert isinstance(injection.result, PreferencePair)
        assert len(server.asked) == usage["num_replies"] == 1

        # Another temperature and another answer are other questions.
        inject(config(server.url, temperature=0.5), cache, prompt)
        inject(settings, cache, replace(prompt, reference=TRUTH + "."))
        assert len(server.asked) == 3


def test_a_failure_is_no_reply_to_keep(prompt: Prompt, cache: Path) -> None:
    with one_after_the_other([refusal(400), completion(WRONG)]) as server:
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) == "endpoint_refused"
        injection = inject(config(server.url), cache, prompt)
        assert reason_of(injection) is None


def test_a_failure_that_nobody_waits_for_any_more_is_silent(cache: Path) -> None:
    reported: list[Any] = []

    async def call(url: str) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        endpoint_config = EndpointConfig(base_url=url, model="m")
        async with ChatEndpoint(endpoint_config, cache) as endpoint:
            question = {"role": "user", "content": "?"}
            asker = asyncio.create_task(endpoint.ask([question]))
            await asyncio.sleep(0.05)
            # Its request goes on, since it may be paid for.
            asker.cancel()
            while endpoint.num_pending:
                await asyncio.sleep(0.01)
        # asyncio reports an exception that nobody has read when its task is collected.
        gc.collect()

    with always(replace(refusal(400), delay_s=0.3)) as server:
        asyncio.run(call(server.url))
    assert not reported


def test_replies_without_usage_are_counted_as_such(prompt: Prompt, cache: Path) -> None:
    with always(completion(WRONG, usage=False)) as server:
        settings = config(
            server.url,
            price_in=1,
            price_out=1,
        )
        _, usage = inject_all(settings, cache, [prompt])
    assert usage["num_replies_without_usage"] == 1
    assert usage["cost"] == 0


def test_a_reply_is_one_line_of_json(prompt: Prompt, cache: Path) -> None:
    text = f"{WRONG}\n\u2028"
    with always(completion(text)) as server:
        inject(config(server.url), cache, prompt)
    line, nothing = cache.read_text().split("\n")
    assert nothing == ""
    assert json.loads(line)["text"] == text
    (reply,) = ReplyCache(cache).replies.values()
    assert reply == ChatReply(text, False, 10, 5, cached=True)
