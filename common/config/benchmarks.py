"""The public benchmarks as suites: a section each, with a `kind`.

Nothing is fetched. `path` is a folder with the files as their authors publish them; each suite's docstring in
`reward/benchmarks/` names them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from common.config.section import Fraction, Section, TextOnDisk

ONE_WORD = "Answer the question using a single word or phrase."
"""What LLaVA-1.5 adds to questions with short answers, and with it most published figures."""


class Benchmark(Section):
    """What all public benchmarks have in common."""

    name: str = Field(description="of the suite in the scorecard")
    path: TextOnDisk = Field(description="folder with the published files")
    images: TextOnDisk | None = Field(
        None, description="folder with the pictures; none: the same folder"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="pictures (pairs or sets of them where these count), from the start; none: all",
    )
    validation: Fraction = Field(
        0.0,
        description="share of the pictures that picks the checkpoint; the others are only reported",
    )
    instruction: str = Field(
        "", description="a line below every question; the benchmark's own by default"
    )
    compare: bool = Field(
        False,
        description="whether the judge compares the answers with the start policy's",
    )


class PopeBenchmark(Benchmark):
    """POPE: yes/no questions about objects, three splits."""

    kind: Literal["pope"] = "pope"
    name: str = "pope"


class ChairBenchmark(Benchmark):
    """CHAIR: captions of COCO pictures, held against the objects of their annotations."""

    kind: Literal["chair"] = "chair"
    name: str = "chair"
    synonyms: TextOnDisk = Field(
        description="CHAIR's synonyms.txt: an object a line, its name first, then other words for it"
    )
    question: str = "Please describe this image in detail."
    limit: int | None = Field(
        500, ge=1, description="pictures, drawn by the hash of their id; none: all"
    )


class AmberBenchmark(Benchmark):
    """AMBER: descriptions and yes/no questions about existence, attributes and relations."""

    kind: Literal["amber"] = "amber"
    name: str = "amber"


class ObjectHalBenchmark(Benchmark):
    """Object HalBench: 300 descriptions; measured by CHAIR's rules where annotations are given."""

    kind: Literal["object_halbench"] = "object_halbench"
    name: str = "object_halbench"
    annotations: TextOnDisk | None = Field(
        None, description="folder with COCO's instances and captions files"
    )
    synonyms: TextOnDisk | None = Field(
        None, description="the benchmark's synonyms_refine.txt; needed for a metric"
    )


class MmhalBenchmark(Benchmark):
    """MMHal-Bench: 96 open questions that a language model grades."""

    kind: Literal["mmhal"] = "mmhal"
    name: str = "mmhal"


class LlavaBenchmark(Benchmark):
    """LLaVA-Bench (in the wild): 60 open questions that a language model grades."""

    kind: Literal["llava_bench"] = "llava_bench"
    name: str = "llava_bench"


class HallusionBenchmark(Benchmark):
    """HallusionBench: yes/no questions in sets, with and without figures."""

    kind: Literal["hallusionbench"] = "hallusionbench"
    name: str = "hallusionbench"


class MmvpBenchmark(Benchmark):
    """MMVP: two options about each of two pictures that CLIP takes for the same."""

    kind: Literal["mmvp"] = "mmvp"
    name: str = "mmvp"


class TextVqaBenchmark(Benchmark):
    """TextVQA: questions about text in pictures, ten human answers each."""

    kind: Literal["textvqa"] = "textvqa"
    name: str = "textvqa"
    instruction: str = Field(ONE_WORD, description="a line below every question")


class GqaBenchmark(Benchmark):
    """GQA: short answers, exact match."""

    kind: Literal["gqa"] = "gqa"
    name: str = "gqa"
    instruction: str = Field(ONE_WORD, description="a line below every question")


AnyBenchmark: TypeAlias = (
    PopeBenchmark
    | ChairBenchmark
    | AmberBenchmark
    | ObjectHalBenchmark
    | MmhalBenchmark
    | LlavaBenchmark
    | HallusionBenchmark
    | MmvpBenchmark
    | TextVqaBenchmark
    | GqaBenchmark
)
"""Each is a member of `SuiteConfig` as well."""
