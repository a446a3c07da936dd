"""Corpora on disk as dialogues: one reader a family."""

from visualchat.data.sources.base import Entry, Policy, Reason, Report, RowError, Source
from visualchat.data.sources.captions import AOkVqa, CocoCaption, MiniGpt4, OcrVqa
from visualchat.data.sources.llava import Llava
from visualchat.data.sources.messages import Messages
from visualchat.data.sources.mimic_it import MimicIt
from visualchat.data.sources.sparkles import Sparkles

__all__ = [
    "AOkVqa",
    "CocoCaption",
    "Entry",
    "Llava",
    "Messages",
    "MimicIt",
    "MiniGpt4",
    "OcrVqa",
    "Policy",
    "Reason",
    "Report",
    "RowError",
    "Source",
    "Sparkles",
]
