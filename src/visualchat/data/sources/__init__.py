"""Corpora on disk as dialogues: one reader a family."""

from visualchat.data.sources.base import Policy, Source
from visualchat.data.sources.captions import AOkVqa, CocoCaption, MiniGpt4, OcrVqa
from visualchat.data.sources.llava import Llava
from visualchat.data.sources.messages import Messages
from visualchat.data.sources.mimic_it import MimicIt
from visualchat.data.sources.picture_folder import PictureFolder
from visualchat.data.sources.rows import Entry, Reason, Report, RowError
from visualchat.data.sources.sparkles import Sparkles
from visualchat.data.sources.spreadsheet import Spreadsheet

__all__ = [
    "AOkVqa",
    "CocoCaption",
    "Entry",
    "Llava",
    "Messages",
    "MimicIt",
    "MiniGpt4",
    "OcrVqa",
    "PictureFolder",
    "Policy",
    "Reason",
    "Report",
    "RowError",
    "Source",
    "Sparkles",
    "Spreadsheet",
]
