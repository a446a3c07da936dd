"""Every command line of README.md, CONTRIBUTING.md, docs/ and the heads of conf/ composes as it stands."""

import functools
import re
import subprocess

import pytest
from composing import UNBUILT, composed, points
from lines import DOCUMENTS, ROOT, SHELL, Line, all_lines, blocks, commands, lines_of, unset_variables

from targets import check_targets

LINES = all_lines()
DIFFERENT = list({line.words: line for line in reversed(LINES) if line.command()}.values())
"""The same words in two documents are one line here."""
ASKING = ("--help", "--version")


@pytest.mark.parametrize("line", DIFFERENT, ids=str)
def test_the_line_composes(line):
    """Every override is known, every choice exists, every value resolves, every target exists and takes its arguments.

    Of a sweep every value is in one run at least.
    """
    command = line.command()
    if not any(word in ASKING for word in command):
        for point in points(command):
            assert targets(tuple(point)) or command[0] in UNBUILT


@functools.cache
def targets(command: tuple[str, ...]) -> int:
    """How many targets the configuration of a line has, all sound; documents repeat each other's lines."""
    return check_targets(composed(command))


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "torchrun"], ids=str)
def test_torchrun_takes_its_options(line):
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(line.words[1:])
    assert (options.training_script, options.module) == ("visualchat.cli.train", True)


@pytest.mark.parametrize("line", [line for line in LINES if line.words[0] == "make"], ids=str)
def test_make_knows_the_target(line):
    done = subprocess.run(["make", "-n", *line.words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_each_block_sets_the_variables_that_it_uses(path):
    """A block is copied into a shell of its own: what another block has set is empty there, and nobody is told."""
    for language, text in blocks(path.read_text("utf-8")):
        if language in SHELL and language:
            assert not unset_variables(text), text


MARKDOWN = """
Type `visualchat-train a=1`, or `visualchat-train`; `make train ARGS="a=2 b"`.

```bash
$ A="a=3 b='c d'"   # a comment
if true; then X=1 visualchat-train $A \\
    d=[e,f] ... | tee log; fi && make test
git clone somewhere
```

    visualchat-data check   # two
    visualchat-data show 3

    not a command

1. A list

   ```console
   $ srun --nodes 2 visualchat-train "a=g h"
   ```

```python
visualchat-train
```
"""


def test_lines_are_found_as_a_shell_reads_them():
    found = [*lines_of("page.md", MARKDOWN)]
    assert found == [
        Line("page.md", ("visualchat-train", "a=3", "b='c", "d'", "d=[e,f]", "..."), (("X", "1"),)),
        Line("page.md", ("make", "test")),
        Line("page.md", ("srun", "--nodes", "2", "visualchat-train", "a=g h")),
        Line("page.md", ("visualchat-data", "check")),
        Line("page.md", ("visualchat-data", "show", "3")),
        Line("page.md", ("visualchat-train", "a=1"), typed=False),
        Line("page.md", ("make", "train", "ARGS=a=2 b"), typed=False),
    ]
    assert [line.command() for line in found[1:3]] == [[], ["visualchat-train", "a=g h"]]
    assert found[-1].command() == ["visualchat-train", "a=2", "b"]
    assert unset_variables("A=1\nvisualchat-train $A $B") == ["B"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("visualchat-train attention=mcma", "mcma"),
        ("visualchat-train trainer.max_epoch=2", "max_epoch"),
        ("visualchat-train +optimizer.momentum=0.9", "takes no"),
        ("visualchat-train seed='${nowhere}'", "nowhere"),
        ("visualchat-train -m attention=causal,mcma", "mcma"),
        ("visualchat-train -m attention=causal", "nothing to sweep over"),
        ("visualchat-train experiment=paper rows_per_step=100 data.batch_size=3", "must divide"),
    ],
)
def test_a_line_that_does_not_compose_is_found(words, message):
    ((_, line),) = commands(words)
    with pytest.raises(Exception, match=re.escape(message)):
        test_the_line_composes(Line("", tuple(line)))
