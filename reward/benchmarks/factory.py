"""Makes the benchmark of a config section."""

from __future__ import annotations

from common.config.benchmarks import AnyBenchmark
from reward.benchmarks.amber import Amber
from reward.benchmarks.base import Benchmark
from reward.benchmarks.chair import Chair
from reward.benchmarks.gqa import Gqa
from reward.benchmarks.hallusionbench import HallusionBench
from reward.benchmarks.llava_bench import LlavaBench
from reward.benchmarks.mmhal import MmhalBench
from reward.benchmarks.mmvp import Mmvp
from reward.benchmarks.object_halbench import ObjectHalBench
from reward.benchmarks.pope import Pope
from reward.benchmarks.textvqa import TextVqa


def make_benchmark(section: AnyBenchmark) -> Benchmark:
    """The benchmark of this kind (UserError when its folder or word lists cannot be used)."""
    match section.kind:
        case "pope":
            return Pope(section)
        case "chair":
            return Chair(section)
        case "amber":
            return Amber(section)
        case "object_halbench":
            return ObjectHalBench(section)
        case "mmhal":
            return MmhalBench(section)
        case "llava_bench":
            return LlavaBench(section)
        case "hallusionbench":
            return HallusionBench(section)
        case "mmvp":
            return Mmvp(section)
        case "textvqa":
            return TextVqa(section)
        case "gqa":
            return Gqa(section)
