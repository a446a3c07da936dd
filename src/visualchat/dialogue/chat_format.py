"""A chat-tuned language model's own prompt format, read off its tokenizer's chat template.

Section 4.3 of arXiv 2309.14327: a chat-tuned base must be addressed in the very format it was tuned with. The chat
template (Jinja) is asked once for a dialogue of marks; what stands between the marks are the fixed texts. Only in these
do special tokens count, so nothing that a user types can end a turn.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from visualchat.dialogue.encoding import encode_text
from visualchat.dialogue.template import Template

_SYSTEM = "markofsystem"
_ROUNDS = ("markofquestion1", "markofanswer1", "markofquestion2", "markofanswer2", "markofquestion3")

STEPS = 100_000
"""Lines that a chat template may run for a dialogue of two rounds; real ones run some hundreds."""


def chat_format(tokenizer: PreTrainedTokenizerBase) -> Template:
    """The tokenizer's chat template as a `Template`; images and their labels stand in the user's message.

    Where the chat template knows no system message, the system text opens the first question, before a blank line.

    Raises:
        ValueError: There is no chat template, or it is not of the kind that repeats one form of round: it drops or
            moves a message, changes its form with the round, or ends no answer with a special token.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template; choose the template 'paper' for a base that "
            "is not tuned to chat"
        )
    bare, *rounds = _between(tokenizer, _ROUNDS)
    asked, answered, *later, prompt = rounds
    if later != [asked, answered]:
        raise _unfit(tokenizer, f"its second round stands between {later}, its first between {[asked, answered]}")
    if not asked.startswith(prompt):
        raise _unfit(tokenizer, f"it asks for an answer by {prompt!r} and writes one after {asked!r}")
    answer_prefix = asked[len(prompt) :]
    if answer_prefix.strip():  # a header that the template leaves out of the prompt, or an empty thought
        prompt, answer_prefix = asked, ""
    ends = [answered.find(token) + len(token) for token in _special_tokens(tokenizer) if token in answered]
    if not ends:
        raise _unfit(tokenizer, f"no special token of the tokenizer ends an answer, found {answered!r} after it")
    end = min(ends)
    opening, after_system = _round_system(tokenizer, rounds) or (bare, "\n\n")
    prefixes_space = encode_text(tokenizer, "a b") == encode_text(tokenizer, "a") + encode_text(tokenizer, "b")
    if not answer_prefix and prompt.endswith(" "):  # the space before a word belongs to the word
        prompt, answer_prefix = prompt[:-1], " "
    return Template(
        special=True,
        opening=opening,
        after_system=after_system,
        bare_opening=bare,
        turn=answered[end:],
        question="",
        answer=prompt,
        answer_prefix=answer_prefix.removesuffix(" ") if prefixes_space else answer_prefix,
        end=answered[:end],
        add_bos=False,
        strip=_strips(tokenizer),
        prefixes_space=prefixes_space,
    )


def _unfit(tokenizer: PreTrainedTokenizerBase, why: str) -> ValueError:
    return ValueError(f"the chat template of {_place(tokenizer)!r} cannot be used: {why}")


def _place(tokenizer: PreTrainedTokenizerBase) -> str:
    """The file that holds the chat template; what the tokenizer is called where it is not a local folder's."""
    folder = Path(tokenizer.name_or_path)
    files = (folder / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    return next((str(file) for file in files if file.is_file()), tokenizer.name_or_path)


def _rendered(tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> str:
    """The chat template's text for a dialogue of marks that waits for an answer."""
    roles = ["user", "assistant"] * len(marks)
    if marks[0] == _SYSTEM:
        roles = ["system", *roles]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=False)]
    try:
        with _bounded(STEPS):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, SyntaxError, RecursionError, OverflowError, MemoryError, TimeoutError) as error:
        raise _unfit(tokenizer, str(error) or type(error).__name__) from error


@contextmanager
def _bounded(steps: int) -> Iterator[None]:
    """Let no template run more lines, so that nested loops end; the same on any machine, and in any thread.

    Raises:
        TimeoutError: It would.
    """
    left = steps

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != "<template>":  # as Jinja names what it compiles
            return None
        left -= 1
        if left < 0:
            raise TimeoutError(f"it runs more than {steps:,} lines for a dialogue of two rounds")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _between(tokenizer: PreTrainedTokenizerBase, marks: Sequence[str]) -> list[str]:
    """What stands before, between and after the marks."""
    text = _rendered(tokenizer, marks)
    written = re.findall("|".join(marks), text)
    if written != list(marks):
        raise _unfit(tokenizer, f"of the messages {list(marks)} it writes {written}")
    return re.split("|".join(marks), text)


def _round_system(tokenizer: PreTrainedTokenizerBase, rounds: list[str]) -> tuple[str, str] | None:
    """What stands before and after the system text; None where the template refuses a system message."""
    try:
        opening, after, *rest = _between(tokenizer, (_SYSTEM, *_ROUNDS))
    except ValueError:
        return None
    if rest != rounds:
        raise _unfit(tokenizer, f"with a system message its rounds stand between {rest}, without between {rounds}")
    return opening, after


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def _strips(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template leaves out whitespace around a message."""
    padded = f"\t{_ROUNDS[0]}\t"
    return padded not in _rendered(tokenizer, (padded,))
