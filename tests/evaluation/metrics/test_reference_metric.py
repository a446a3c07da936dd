"""Whether answers speak of images that were shown."""

import pytest
from answers import answered

from visualchat.evaluation.metrics.references import beyond, reference_consistency


@pytest.mark.parametrize(
    ("said", "sent", "words"),
    [
        ("A dog.", 0, []),
        ("Image 2 is brighter.", 2, []),
        ("Image 3 is brighter than image 2.", 2, ["Image 3"]),
        ("Both images show a dog.", 1, ["Both images"]),
        ("The image shows a dog.", 0, ["The image"]),
        ('The label says "Image 9".', 1, []),
        ("Image 0.", 3, ["Image 0"]),
        ("The first and the fourth picture, and the third one.", 3, ["first and the fourth picture"]),
    ],
)
def test_an_answer_speaks_of_images_that_were_sent(said, sent, words):
    assert beyond(said, sent) == words
    (score,) = reference_consistency([answered(said, "x", sent=sent)])
    assert (score.value, score.parsed) == (float(not words), said)
