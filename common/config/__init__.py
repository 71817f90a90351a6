"""The configuration of a run: one pydantic tree whose defaults are the vetted setting.

A preset is a TOML file of these fields; `--section.key value` overrides one of them (see `common/config/overrides.py`).
Fields whose value the papers do not state say so ("ours").
"""

from __future__ import annotations

from common.config.asking import Asking, ClaimsJudge, EndpointJudge, VlmJudge
from common.config.data import (
    Data,
    HeldOut,
    PairFile,
    PromptFile,
    PromptSource,
    ShapesPrompts,
    TabletopPrompts,
)
from common.config.evaluation import Evaluation, Tracking
from common.config.eyes import EndpointEye, EngineEye, EyeConfig, TorchEye
from common.config.judges import (
    AnswerJudge,
    ChairJudge,
    ClipJudge,
    EnsembleJudge,
    JudgeConfig,
    Member,
    PolicyJudge,
    PythonJudge,
    RewardModelJudge,
    RulesJudge,
    UserCode,
)
from common.config.learner import Fast, Learner, LossConfig, Optimizer
from common.config.loop import Checkpoint, Loop, Mixture, Warnings
from common.config.model import (
    SHAPES_POLICY,
    TABLETOP_POLICY,
    Full,
    Lora,
    Model,
    Tuning,
)
from common.config.reward import Reward
from common.config.rollout import EngineOptions, OnlineBdhs, Rollout
from common.config.run import Cluster, Run, RunConfig
from common.config.suites import (
    PreferenceSuite,
    PromptsSuite,
    ShapesSuite,
    SuiteConfig,
    TabletopSuite,
)

__all__ = [
    "SHAPES_POLICY",
    "TABLETOP_POLICY",
    "AnswerJudge",
    "Asking",
    "ChairJudge",
    "Checkpoint",
    "ClaimsJudge",
    "ClipJudge",
    "Cluster",
    "Data",
    "EndpointEye",
    "EndpointJudge",
    "EngineEye",
    "EngineOptions",
    "EnsembleJudge",
    "Evaluation",
    "EyeConfig",
    "Fast",
    "Full",
    "HeldOut",
    "JudgeConfig",
    "Learner",
    "Loop",
    "Lora",
    "LossConfig",
    "Member",
    "Mixture",
    "Model",
    "OnlineBdhs",
    "Optimizer",
    "PairFile",
    "PolicyJudge",
    "PreferenceSuite",
    "PromptFile",
    "PromptSource",
    "PromptsSuite",
    "PythonJudge",
    "Reward",
    "RewardModelJudge",
    "Rollout",
    "RulesJudge",
    "Run",
    "RunConfig",
    "ShapesPrompts",
    "ShapesSuite",
    "SuiteConfig",
    "TabletopPrompts",
    "TabletopSuite",
    "TorchEye",
    "Tracking",
    "Tuning",
    "UserCode",
    "VlmJudge",
    "Warnings",
]
