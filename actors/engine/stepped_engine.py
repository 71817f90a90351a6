"""vLLM in this process, stepped by a task of ours: the same requests give the same tokens, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from actors.engine.vllm_engine import VllmEngine
from actors.vllm_api import (
    EngineArgs,
    LLMEngine,
    LoRARequest,
    RequestOutput,
    SamplingParams,
    parse_model_prompt,
)

Future: TypeAlias = asyncio.Future[RequestOutput]


class SteppedVllmEngine(VllmEngine):
    """Requests of one call are enqueued in order before the next step; weights change between two steps."""

    def _launch(
        self,
        arguments: dict[str, Any],
    ) -> None:
        # Asynchronous scheduling would let the batch depend on timing.
        engine_args = EngineArgs(
            **arguments,
            enable_sleep_mode=self._frees_memory,
            async_scheduling=False,
        )
        self._engine = LLMEngine.from_engine_args(engine_args)
        # Request id -> what its caller awaits.
        self._waiting: dict[str, Future] = {}
        self._stepper: asyncio.Task[None] | None = None
        # While weights come in, or half of them are there.
        self._halted = False
        # One thread: what is given up is still waited for by the next load.
        self._loading = ThreadPoolExecutor(1, "loading")

    async def _render(
        self,
        payload: dict[str, Any],
    ) -> Any:
        parsed = parse_model_prompt(self._engine.model_config, payload)
        (rendered,) = self._engine.renderer.render_cmpl([parsed])
        return rendered

    async def _submit(
        self,
        request_id: str,
        rendered: Any,
        params: SamplingParams,
    ) -> Awaitable[RequestOutput]:
        loop = asyncio.get_running_loop()
        future: Future = loop.create_future()
        adapter = await self._policy()
        self._engine.add_request(
            request_id,
            rendered,
            params,
            lora_request=adapter,
        )
        self._waiting[request_id] = future
        self._go_on()
        return future

    def _go_on(self) -> None:
        if self._stepper is None or self._stepper.done():
            self._stepper = asyncio.create_task(self._step_until_done())

    async def _step_until_done(self) -> None:
        """Step while there are requests, letting other tasks run between steps."""
        try:
            while not self._halted and self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    assert isinstance(output, RequestOutput)
                    if output.finished:
                        self._finish(output)
                # Lets callers submit their next requests.
                await asyncio.sleep(0)
        except Exception as error:
            for future in self._waiting.values():
                future.set_exception(error)
            self._waiting.clear()

    def _finish(self, output: RequestOutput) -> None:
        # An aborted request is no longer waited for.
        future = self._waiting.pop(output.request_id, None)
        if future is not None:
            future.set_result(output)

    async def _forget_images(self) -> None:
        self._engine.reset_mm_cache()

    async def _abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            future = self._waiting.pop(request_id, None)
            if future is not None:
                future.cancel()
        self._engine.abort_request(list(request_ids))

    async def _swap(
        self,
        load: Callable[[], Awaitable[None]],
        version: str,
    ) -> str:
        engine = self._engine
        # Stays where it is after an error: what the engine holds then is unknown.
        self._halted = True
        await load()
        # After the load: what is sampled from now on is of the new weights.
        engine.set_weight_version(version)
        # Running answers compute their prefix again, under the new weights.
        engine.reset_prefix_cache(reset_running_requests=True)
        engine.reset_mm_cache()
        engine.reset_encoder_cache()
        self._halted = False
        self._go_on()
        return await self._echo()

    async def _echo(self) -> str:
        return str(self._engine.get_weight_version())

    async def _on_workers(self, method: str, *args: Any) -> list[Any]:
        call = partial(self._engine.collective_rpc, method, args=args)
        # A push takes seconds, and this worker has to hear meanwhile that it has fallen apart, or takes too long.
        loop = asyncio.get_running_loop()
        results: list[Any] = await loop.run_in_executor(self._loading, call)
        return results

    async def _load_adapter(self, adapter: LoRARequest) -> None:
        self._engine.add_lora(adapter)

    async def sleep(self, level: int) -> None:
        async with self._swap_lock:
            self._engine.sleep(level)

    async def wake(self) -> None:
        async with self._swap_lock:
            self._engine.wake_up()

    async def close(self) -> None:
        self._loading.shutdown(wait=False)
        if self._stepper is not None:
            self._stepper.cancel()
        self._engine.renderer.shutdown()
        self._engine.engine_core.shutdown()
