"""vLLM with its engine core in a process of its own: sampling goes on while this process prepares prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors.engine.core_watch import CoreWatch
from actors.engine.orphans import adopt
from actors.engine.vllm_engine import VllmEngine
from actors.vllm_api import (
    AsyncEngineArgs,
    AsyncLLM,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    parse_model_prompt,
)
from common.protocols import Vitals


class AsyncVllmEngine(VllmEngine):
    """The default engine. Construct it inside the event loop that uses it."""

    def _launch(
        self,
        arguments: dict[str, Any],
    ) -> None:
        engine_args = AsyncEngineArgs(
            **arguments,
            enable_sleep_mode=self._frees_memory,
            enable_log_requests=False,
        )
        adopt()
        self._llm = AsyncLLM.from_engine_args(engine_args)
        self._core = CoreWatch(self._llm)

    async def _render(
        self,
        payload: dict[str, Any],
    ) -> Any:
        parsed = parse_model_prompt(self._llm.model_config, payload)
        (rendered,) = await self._llm.renderer.render_cmpl_async([parsed])
        return rendered

    async def _submit(
        self,
        request_id: str,
        rendered: Any,
        params: SamplingParams,
    ) -> Awaitable[RequestOutput]:
        adapter = await self._policy()
        # The queue, not the generator of `generate`: it can be awaited long after the request was enqueued.
        queue = await self._llm.add_request(
            request_id, rendered, params, lora_request=adapter
        )

        async def finished_output() -> RequestOutput:
            try:
                output = await queue.get()
                while not output.finished:
                    output = await queue.get()
                assert isinstance(output, RequestOutput)
                return output
            finally:
                queue.close()

        return finished_output()

    async def _forget_images(self) -> None:
        await self._llm.reset_mm_cache()

    async def _abort(self, request_ids: Sequence[str]) -> None:
        await self._llm.abort(list(request_ids))

    async def _swap(
        self,
        load: Callable[[], Awaitable[None]],
        version: str,
    ) -> str:
        llm = self._llm
        # "keep" leaves running answers where they are; they go on under the new weights.
        await llm.pause_generation(mode="keep", clear_cache=True)
        # Only now: a core that hangs does not pause, and is noticed like at any other time.
        self._core.expect_silence()
        await load()
        # Before generation goes on, so that every token is labelled with its weights.
        await llm.update_weight_version(version)
        echo = await self._echo()
        # Not after an error: what the engine holds then is unknown, and it waits for weights that it can take.
        await llm.resume_generation()
        self._core.expect_answers()
        return echo

    async def _echo(self) -> str:
        return str(await self._llm.get_weight_version())

    async def _on_workers(self, method: str, *args: Any) -> list[Any]:
        results: list[Any]
        results = await self._llm.collective_rpc(method, self._timeout_s, args)
        return results

    async def _load_adapter(self, adapter: LoRARequest) -> None:
        await self._llm.add_lora(adapter)

    async def sleep(self, level: int) -> None:
        async with self._swap_lock:
            self._core.expect_silence()
            await self._llm.sleep(level)

    async def wake(self) -> None:
        async with self._swap_lock:
            await self._llm.wake_up()
            self._core.expect_answers()

    def vitals(self) -> Vitals:
        return self._core.vitals()

    async def close(self) -> None:
        self._core.close()
        self._llm.shutdown()
