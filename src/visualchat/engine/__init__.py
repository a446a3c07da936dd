"""Many conversations on one model at once: requests wait, join the running batch at any step, and leave it at any."""

from visualchat.engine.engine import Engine, EngineStats
from visualchat.engine.handle import Handle
from visualchat.engine.request import Answer, Constraint, NotStored, QueueFull, Request, Score, Usage

__all__ = [
    "Answer",
    "Constraint",
    "Engine",
    "EngineStats",
    "Handle",
    "NotStored",
    "QueueFull",
    "Request",
    "Score",
    "Usage",
]
