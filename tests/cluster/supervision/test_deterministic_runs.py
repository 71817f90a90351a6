"""A deterministic run whose workers die trains on the same pairs as one in which nobody does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.run.crew import GOES_BACK
from tests.cluster.runs import events, trained_pairs
from tests.cluster.supervision.chaos_runs import BROADCAST, Chaos, check, config_of, run
from tests.fakes.runtime import LocalHandle

pytestmark = pytest.mark.usefixtures("short_pauses")


@pytest.mark.parametrize(
    ("transport", "method", "draw"),
    [("object_store", "load", "epochs"), ("broadcast", "receive", "by_worth")],
)
def test_a_deterministic_run_is_the_same_after_deaths(
    tmp_path: Path, transport: str, method: str, draw: str
) -> None:
    def result(folder: str, *plan: tuple[str, int, str]) -> tuple[object, object]:
        config = config_of(
            tmp_path / folder,
            rollout__deterministic=True,
            rollout__draw=draw,
            loop__max_staleness=0,
            **BROADCAST | {"weights__transport": transport},
        )
        chaos = Chaos(*plan)
        run_dir = run(config, chaos)
        assert chaos.plan == []
        checksums = {}
        for event in events(run_dir, "publish"):
            checksums[event["version"]] = event["checksum"]
        # Pushed only by a learner that died before its first checkpoint was on disk.
        checksums.pop(0, None)
        return trained_pairs(run_dir), checksums

    calm = result("calm")
    stormy = result(
        "stormy",
        ("generate", 4, "kill"),
        ("rank", 5, "hang"),
        (method, 3, "kill"),
        ("step", 6, "kill"),
    )
    assert calm == stormy


class BetweenPublishes(Chaos):
    """Kills an engine once, when the learner has done an odd number of steps: with two to a publish, it is ahead."""

    async def strike(self, method: str, handle: LocalHandle) -> None:
        await super().strike(method, handle)
        steps = self.counts.get("step", 0)
        if method == "generate" and steps > 2 and steps % 2 and not self.plan:
            self.plan.append(("done", 1, "kill"))
            handle.kill()
            await asyncio.Event().wait()


def test_between_publishes_a_deterministic_run_goes_back(tmp_path: Path) -> None:
    def result(folder: str, chaos: Chaos) -> Path:
        config = config_of(
            tmp_path / folder,
            rollout__deterministic=True,
            loop__max_staleness=0,
            loop__publish_interval=2,
        )
        run_dir = run(config, chaos)
        check(run_dir)
        return run_dir

    calm = result("calm", Chaos())
    stormy = result("stormy", BetweenPublishes())
    assert trained_pairs(stormy) == trained_pairs(calm)
    causes = [event["cause"] for event in events(stormy, "restart")]
    assert sorted(causes) == sorted(["the fake has died", GOES_BACK])
