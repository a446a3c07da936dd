"""The console commands. Nothing here imports torch: see `visualchat.cli.command`."""

from __future__ import annotations

from visualchat.cli import help
from visualchat.cli.command import Command, start


def train() -> None:
    """`visualchat-train`."""
    start(Command("train", "visualchat.cli.train", help.TRAIN))


def evaluate() -> None:
    """`visualchat-evaluate`."""
    start(Command("evaluate", "visualchat.cli.evaluate", help.EVALUATE))


def chat() -> None:
    """`visualchat-chat`."""
    start(Command("chat", "visualchat.cli.chat", help.CHAT))


def generate() -> None:
    """`visualchat-generate`."""
    start(Command("generate", "visualchat.cli.generate", help.GENERATE))


def judge() -> None:
    """`visualchat-judge`."""
    start(Command("judge", "visualchat.cli.judge", help.JUDGE))


def serve() -> None:
    """`visualchat-serve`."""
    start(Command("serve", "visualchat.cli.serve", help.SERVE))


def study() -> None:
    """`visualchat-study`."""
    start(Command("studies", "visualchat.cli.study", help.STUDY))


def web() -> None:
    """`visualchat-web`."""
    start(Command("serve", "visualchat.cli.web", help.WEB))


def data() -> None:
    """`visualchat-data`."""
    actions = ("check", "stats", "references", "show", "convert", "prepare")
    start(Command("data_tool", "visualchat.cli.data", help.DATA, actions))


def plan() -> None:
    """`visualchat-plan`."""
    start(Command("plan", "visualchat.cli.plan", help.PLAN))


def convert() -> None:
    """`visualchat-convert`."""
    start(Command("convert", "visualchat.cli.convert", help.CONVERT, ("from_published", "to_published")))
