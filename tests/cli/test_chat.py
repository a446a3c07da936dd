"""The terminal, driven with typed lines and a session that answers what it is told to."""

import io

import numpy as np
import pytest
from PIL import Image
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from visualchat.chat import ChatSession
from visualchat.cli.chat import COMMANDS, HELP, Terminal
from visualchat.cli.line_editor import line_editor
from visualchat.data.sources import Messages
from visualchat.engine.answering import Answerer
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatProcessor
from visualchat.tiny.scenes import draw, random_scene


class Keyboard(Console):
    """A console whose input is typed beforehand; an exception among the lines is raised, then the input ends."""

    def __init__(self, *lines):
        super().__init__(file=io.StringIO(), width=200)
        self.lines = iter([*lines, EOFError()])

    def input(self, prompt="", **keywords):
        line = next(self.lines)
        if not isinstance(line, str):
            raise line
        self.print(f"you> {line}", markup=False)
        return line


class Echo:
    """Stands in for a session: keeps what is asked and answers in the given pieces."""

    def __init__(self, *pieces):
        self.pieces = pieces or ("It is ", "a cat.")
        self.asked, self.closed, self.images, self.turns = [], 0, 0, ()

    def ask(self, question, images=()):
        if question == "refuse":
            raise ValueError("the conversation has [red] :cat: too many tokens")
        self.asked.append((question, list(images)))
        self.images += len(images)
        return self.answer()

    def answer(self):
        try:
            for piece in self.pieces:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            self.closed += 1
            self.turns = (*self.turns, self.asked[-1])

    def reset(self):
        self.asked.append("reset")
        self.images = 0


def run(*lines, session=None):
    """What stands on the screen after these lines, and the session."""
    session = session or Echo()
    console = Keyboard(*lines)
    Terminal(session, console).run()
    return console.file.getvalue(), session


def picture(seed=0, width=16, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_question_is_answered():
    screen, session = run("What is it?")
    assert session.asked == [("What is it?", [])]
    assert screen == f"{HELP}\nyou> What is it?\nIt is a cat.\n"
    assert session.closed == 1


def test_blank_lines_ask_nothing_and_spaces_around_a_line_do_not_count():
    _, session = run("", "   ", "  What is it? ")
    assert session.asked == [("What is it?", [])]


def test_an_answer_is_printed_as_it_is():
    """No markup, no emoji codes, no line breaks of the console's own."""
    pieces = ("[bold]x[/bold] ", ":cat: ", "a\n", "\n", "https://example.org ", "y" * 300, " 1 'b' [/nothing]", "")
    screen, _ = run("Say it.", session=Echo(*pieces))
    assert screen.endswith(f"you> Say it.\n{''.join(pieces)}\n")


def test_images_go_with_the_next_question_only(tmp_path):
    paths = []
    for seed in range(3):
        paths.append(tmp_path / f"my picture {seed}.png")
        picture(seed).save(paths[-1])
    screen, session = run(
        f"/image {paths[0]}", f"/image   {paths[1]} ", "Which?", "Sure?", f"/image {paths[2]}", "And this?"
    )
    asked = [(question, [image.tobytes() for image in images]) for question, images in session.asked]
    pixels = [picture(seed).tobytes() for seed in range(3)]
    assert asked == [("Which?", pixels[:2]), ("Sure?", []), ("And this?", pixels[2:])]
    for number in (1, 2, 3):
        assert screen.count(f"Image {number} goes with your next question.") == 1


def test_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture().save(tmp_path / "a.png")
    _, session = run("/image ~/a.png", "What is it?")
    assert [image.tobytes() for image in session.asked[0][1]] == [picture().tobytes()]


def test_what_cannot_be_read_is_told_and_nothing_is_sent(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    missing = tmp_path / "no [red] :cat: here.png"
    screen, session = run(
        f"/image {missing}", f"/image {tmp_path / 'text.png'}", "/image ~nobody.at.all/a.png", "Hello."
    )
    assert f"image file '{missing}' cannot be read as an image: it does not exist or is not a file\n" in screen
    assert f"image file '{tmp_path / 'text.png'}' cannot be read as an image: cannot identify image file" in screen
    assert "~nobody.at.all/a.png: Could not determine home directory" in screen
    assert "next question" not in screen.replace(HELP, "")
    assert session.asked == [("Hello.", [])]


def test_a_refused_question_is_told_and_keeps_its_images():
    screen, session = run("/draw 3", "refuse", "What is it?")
    assert "you> refuse\nthe conversation has [red] :cat: too many tokens\n" in screen
    assert [image.tobytes() for image in session.asked[0][1]] == [draw(random_scene(3)).tobytes()]


def test_draw_draws_by_seed_and_fresh_ones_else():
    _, session = run("/draw 7", "a", "/draw 7", "b", "/draw", "/draw", "c")
    drawn = [[image.tobytes() for image in images] for _, images in session.asked]
    assert drawn[0] == drawn[1] == [draw(random_scene(7)).tobytes()]
    assert len({*drawn[0], *drawn[2]}) == 3


def test_the_help_names_every_command():
    assert [line.split()[0] for line in HELP.splitlines()[1:]] == [
        "/image",
        "/draw",
        "/clear",
        "/undo",
        "/edit",
        "/save",
        "/load",
        "/images",
        "/stats",
        "/reset",
        "/quit",
    ]
    assert "[SEED]" in run()[0]


def test_reset_forgets_the_conversation_and_the_waiting_images():
    screen, session = run("/draw", "a", "/draw", "/reset", "b", "/draw", "c")
    assert [asked if asked == "reset" else (asked[0], len(asked[1])) for asked in session.asked] == [
        ("a", 1),
        "reset",
        ("b", 0),
        ("c", 1),
    ]
    assert screen.count("Image 1 goes with your next question.") == 2
    assert "A new conversation.\n" in screen


@pytest.mark.parametrize("end", [["/quit"], [EOFError()], [KeyboardInterrupt(), KeyboardInterrupt()]])
def test_ways_to_leave(end):
    _, session = run("a", *end, "b")
    assert session.asked == [("a", [])]


def test_one_ctrl_c_at_the_prompt_empties_the_line_only():
    screen, session = run("a", KeyboardInterrupt(), "b", KeyboardInterrupt(), "c")
    assert [question for question, _ in session.asked] == ["a", "b", "c"]
    assert screen.count("Ctrl-C again, or Ctrl-D, leaves.") == 2


def test_quoted_paths_and_several_at_once(tmp_path):
    for name in ("my picture.png", "b.png"):
        picture().save(tmp_path / name)
    here = str(tmp_path)
    _, session = run(f'/image "{here}/my picture.png"', f"/image {here}/my\\ picture.png '{here}/b.png'", "x")
    assert len(session.asked[0][1]) == 3
    screen, _ = run('/image "never ends')
    assert "No closing quotation" in screen


def test_clear_forgets_the_pictures_that_wait():
    screen, session = run("/draw 1", "/draw 2", "/clear", "/draw 3", "a")
    assert len(session.asked[0][1]) == 1
    assert screen.count("Image 1 goes with your next question.") == 2


def test_undo_answers_as_if_the_round_had_not_been(make_model, backbones):
    """With pictures before, in and after it; under attention that keeps images outside the cache, too."""
    for kind in ("causal", "mmca", "cross"):
        model = make_model(attention_kind=kind, cross_attention_every=1)
        slots = 1 if kind == "cross" else 4
        words = VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=slots)
        plain, undone = (ChatSession(model, words, max_new_tokens=6) for _ in range(2))
        first, second, third = ([picture(seed)] for seed in (1, 2, 3))
        for session in (plain, undone):
            "".join(session.ask("What is it?", first))
        "".join(undone.ask("And this?", second))
        undone.undo()
        assert "".join(undone.ask("Which?", third)) == "".join(plain.ask("Which?", third))
        assert undone.ids == plain.ids
        assert undone.images == 2
        "".join(undone.ask("Sure?"))
    with pytest.raises(ValueError, match="there is no round to take back"):
        ChatSession(model, words).undo()


def test_a_saved_conversation_is_data(model, processor, tmp_path):
    session = ChatSession(model, processor, max_new_tokens=4)
    console = Keyboard(
        "/save here", "/draw 1", "What is it?", "Sure?", f"/save {tmp_path / 'kept'}", f"/save {tmp_path}"
    )
    Terminal(session, console).run()
    screen = console.file.getvalue()
    assert "there is nothing to save yet" in screen
    assert "exists and is not an empty folder" in screen
    (again,) = Messages(tmp_path / "kept", ["dialogue.jsonl"])
    assert [(turn.question, turn.answer) for turn in again.turns] == [
        (turn.question, turn.answer.strip()) for turn in session.turns
    ]
    assert decode_image(again.images[0]).tobytes() == draw(random_scene(1)).tobytes()


def test_a_question_is_edited_and_its_pictures_stay(model, processor):
    plain, session = (ChatSession(model, processor, max_new_tokens=6) for _ in range(2))
    Terminal(plain, Keyboard("/draw 1", "Which?")).run()
    console = Keyboard("/draw 1", "What is it?", "Sure?", "/edit 3 No.", "/edit 1 Which?", "/draw 2", "/images")
    Terminal(session, console).run()
    screen = console.file.getvalue()
    assert session.ids == plain.ids
    assert f"you> /edit 1 Which?\n{plain.turns[0].answer}\n" in screen
    assert "there is no round 3 to edit: the conversation has 2" in screen
    assert "Image 1: 64 x 64 pixels, with question 1\nImage 2: 64 x 64 pixels, with your next question\n" in screen


def test_a_saved_conversation_is_loaded_and_continued(make_model, processor, tmp_path):
    for kind, told in (("mmca", "Images: 2 computed, 1 reused, 2 kept in 0.0 MB."), ("causal", "attention kind")):
        model, folder = make_model(attention_kind=kind), tmp_path / kind
        plain, session = (ChatSession(model, processor, max_new_tokens=6) for _ in range(2))
        Terminal(plain, Keyboard("/draw 1", "What is it?", f"/save {folder}", "/draw 2", "And this?")).run()
        console = Keyboard(
            "/images",
            "/stats",
            f"/load {tmp_path}",
            "/draw 1",
            "Hm?",
            f"/load {folder}",
            "/draw 2",
            "And this?",
            "/stats",
        )
        Terminal(session, console).run()
        screen = console.file.getvalue()
        assert session.ids == plain.ids
        assert "There is no image yet." in screen
        assert f"{tmp_path} is not a saved conversation: it has no dialogue.jsonl" in screen
        assert "1 rounds with 1 images are loaded." in screen
        assert told in screen
        assert f"Last answer: {session.timing.tokens} tokens, the first after " in screen


def test_lines_are_edited_completed_and_remembered(tmp_path, monkeypatch):
    """As typed on a keyboard: a line longer than a terminal's own limit, Home, tabulator, Ctrl-C, Ctrl-D."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").touch()
    long = "x" * 5000
    with create_pipe_input() as keys:
        read = line_editor("you> ", COMMANDS, input=keys, output=DummyOutput())
        keys.send_text(f"{long}\x01>\r/im\t ph\t\r")
        assert read() == f">{long}"
        assert read().split() == ["/image", "photo.png"]
        keys.send_text("half a line\x03")
        with pytest.raises(KeyboardInterrupt):
            read()
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            read()
    remembered = (tmp_path / "visualchat" / "chat_history").read_text()
    assert f"+>{long}\n" in remembered
    assert "+/image photo.png" in remembered


def test_ctrl_c_cuts_an_answer_short_and_the_chat_goes_on():
    screen, session = run("a", "b", session=Echo("It is ", KeyboardInterrupt(), "never said"))
    assert screen == f"{HELP}\nyou> a\nIt is \nyou> b\nIt is \n"
    assert session.closed == 2


class Interrupting(Keyboard):
    """Ctrl-C while the first piece of the first answer is printed."""

    interrupted = False

    def out(self, *objects, **keywords):
        super().out(*objects, **keywords)
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


def test_ctrl_c_before_the_first_word_takes_the_question_back(model, processor, monkeypatch):
    session = ChatSession(model, processor, max_new_tokens=4)
    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "prefill", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        console = Keyboard("What is it?")
        Terminal(session, console).run()
    assert "you> What is it?\nInterrupted; the conversation is as before.\n" in console.file.getvalue()
    assert session.turns == ()


def test_ctrl_c_in_a_real_session_keeps_the_round(model, processor):
    session = ChatSession(model, processor, max_new_tokens=20)
    Terminal(session, Interrupting("What is it?", "/draw", "And this?")).run()
    assert [(turn.question, len(turn.images)) for turn in session.turns] == [("What is it?", 0), ("And this?", 1)]


def test_a_real_session_on_the_screen(model, processor):
    session = ChatSession(model, processor, max_new_tokens=8)
    console = Keyboard("/draw 1", "What is it?", "Sure?")
    Terminal(session, console).run()
    first, second = (turn.answer for turn in session.turns)
    screen = console.file.getvalue()
    assert f"you> What is it?\n{first}\nyou> Sure?\n{second}\n" in screen
    assert len(session.turns[0].images) == 1
