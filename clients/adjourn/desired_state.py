"""PURE. What the agent wants of a training process, as one 64-bit word."""

from dataclasses import dataclass
from typing import Self

from adjourn.v1.agent_service_pb2 import Assignment
from adjourn.v1.job_pb2 import PauseMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """What training should bring about."""

    generation: int = 0
    target: Assignment.Target.ValueType = Assignment.RUN
    mode: PauseMode.ValueType = PauseMode.PAUSE_MODE_UNSPECIFIED

    @property
    def word(self) -> int:
        return self.generation << 16 | self.target << 8 | self.mode

    @classmethod
    def from_word(cls, word: int) -> Self:
        target = Assignment.Target.ValueType(word >> 8 & 0xFF)
        return cls(generation=word >> 16, target=target, mode=PauseMode.ValueType(word & 0xFF))
