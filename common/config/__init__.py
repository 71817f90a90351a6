"""The configuration of a run; sections are imported from here."""

from __future__ import annotations

from common.config.tree import (
    SHAPES_POLICY as SHAPES_POLICY,
)
from common.config.tree import (
    Checkpoint as Checkpoint,
)
from common.config.tree import (
    Cluster as Cluster,
)
from common.config.tree import (
    Data as Data,
)
from common.config.tree import (
    EngineOptions as EngineOptions,
)
from common.config.tree import (
    Evaluation as Evaluation,
)
from common.config.tree import (
    Fast as Fast,
)
from common.config.tree import (
    Full as Full,
)
from common.config.tree import (
    JudgeConfig as JudgeConfig,
)
from common.config.tree import (
    Learner as Learner,
)
from common.config.tree import (
    Loop as Loop,
)
from common.config.tree import (
    Lora as Lora,
)
from common.config.tree import (
    LossConfig as LossConfig,
)
from common.config.tree import (
    Mixture as Mixture,
)
from common.config.tree import (
    Model as Model,
)
from common.config.tree import (
    OnlineBdhs as OnlineBdhs,
)
from common.config.tree import (
    Optimizer as Optimizer,
)
from common.config.tree import (
    PairFile as PairFile,
)
from common.config.tree import (
    PolicyJudge as PolicyJudge,
)
from common.config.tree import (
    PromptFile as PromptFile,
)
from common.config.tree import (
    PromptSource as PromptSource,
)
from common.config.tree import (
    Reward as Reward,
)
from common.config.tree import (
    Rollout as Rollout,
)
from common.config.tree import (
    RulesJudge as RulesJudge,
)
from common.config.tree import (
    Run as Run,
)
from common.config.tree import (
    RunConfig as RunConfig,
)
from common.config.tree import (
    Section as Section,
)
from common.config.tree import (
    ShapesPrompts as ShapesPrompts,
)
from common.config.tree import (
    ShapesSuite as ShapesSuite,
)
from common.config.tree import (
    SuiteConfig as SuiteConfig,
)
from common.config.tree import (
    Tuning as Tuning,
)
from common.config.tree import (
    by_kind as by_kind,
)
