"""Dialogues at hand, measured."""

from visualchat.dialogue import Dialogue, Turn
from visualchat.plan.measure import measured
from visualchat.tiny.scenes import draw, random_scene


def test_measured_dialogues(processor):
    picture = draw(random_scene(1))
    dialogues = [Dialogue((Turn.ask("Hi", shown, "Yes"),), "test") for shown in ([], [picture])]
    encodings = [processor.encode(dialogue) for dialogue in dialogues]
    load = measured(encodings, [0, 1], 10, "test")
    assert (load.dialogues, load.images, load.most_images) == (10, 0.5, 1)
    assert load.tokens(4) == sum(map(len, encodings)) / 2
    assert load.longest == max(map(len, encodings))
    assert load.answers == sum(label >= 0 for encoding in encodings for label in encoding.labels) / 2
