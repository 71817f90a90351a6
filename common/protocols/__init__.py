"""The seams between the rooms: what one part of the system may expect of another.

    Engine       samples and scores answers                   vLLM, in actors/
    Judge        scores groups of answers                     reward/judges/
    Eye          answers a judge's questions about pictures   reward/eyes/
    Suite        asks a policy and measures its answers       reward/suites/
    TrainEngine  owns module and optimizer                    DeepSpeed or plain torch, in learner/engines/
    Runtime      starts workers, of which Handle calls one    Ray or this process, in cluster/runtime/

Algorithm code is written against these protocols. It knows no Ray, vLLM or DeepSpeed, and tests give it small classes
of their own. A file holds a seam with what passes it; all of them are imported from here.
"""

from __future__ import annotations

from common.protocols.engine import Engine, GenerationRequest, ImageNoise, Tensors
from common.protocols.judge import Eye, Judge, JudgeError, Question, Reply
from common.protocols.runtime import Handle, Process, Pulse, Runtime, Sight, Vitals
from common.protocols.suite import Suite
from common.protocols.train_engine import Slot, TrainEngine

__all__ = [
    "Engine",
    "Eye",
    "GenerationRequest",
    "Handle",
    "ImageNoise",
    "Judge",
    "JudgeError",
    "Process",
    "Pulse",
    "Question",
    "Reply",
    "Runtime",
    "Sight",
    "Slot",
    "Suite",
    "Tensors",
    "TrainEngine",
    "Vitals",
]
