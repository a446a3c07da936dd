"""Which images a text speaks of, against sentences that were labelled by hand, those that are misread included."""

import pytest

from visualchat.dialogue.mentions import mentioned, mentions

LABELLED = {
    # by number
    "What is in image 2?": "2",
    "Image 3 shows a harbour at dusk.": "3",
    "Compare images 1 and 3.": "1 3",
    "Images 1, 2 and 4 were taken outdoors; image 3 was not.": "1 2 4|3",
    "Do images #1 & #2 show the same dog?": "1 2",
    "The dog of Image #2 is older.": "2",
    "In image (1) the sky is grey.": "1",
    "See picture no. 4.": "4",
    "Look at photo number 2, please.": "2",
    "Is image two brighter than image one?": "2|1",
    "Pictures 2-4 tell the story.": "2 3 4",
    "Photos 1 to 3 were taken in a row.": "1 2 3",
    "image 1 vs image 2": "1|2",
    "Images 1 or 2?": "1 2",
    "In image 1, 2 dogs are playing.": "1",
    "The answer is image 12.": "12",
    "image 0 is empty": "0",
    "(Image 2) has more trees than (image 1).": "2|1",
    # by ordinal
    "What is the man in the second image doing?": "2",
    "The first picture shows a cat, the third one a horse.": "1",
    "Unlike the 1st photo, the 2nd photograph is blurred.": "1|2",
    "The first and third images were taken indoors.": "1 3",
    "Look at the first two images.": "1 2",
    "The first three pictures belong together.": "1 2 3",
    "Second image: a red bus.": "2",
    "The tenth photo is missing.": "10",
    "Is the first or the second picture older?": "1 2",
    # by how many there are
    "Both images show a beach.": "=2",
    "What do the two pictures have in common?": "=2",
    "Name a difference between these three images.": "=3",
    "Both of the photos are dark.": "=2",
    "All four images were drawn.": "=4",
    "The two black and white photos are old.": "=2",
    "The pair of images shows the same street.": "=2",
    # by relation, and alone
    "In the other image the door is open.": "other",
    "The previous picture was brighter.": "other",
    "The image features a train.": "the",
    "What is unusual about this photo?": "the",
    "Describe the given image.": "the",
    "The last image is the brightest.": "the",
    # none
    "Which image has the red circle?": "",
    "Is there a star in any image?": "",
    "Every picture tells a story.": "",
    "The photo frame is made of wood.": "",
    "The two pictures on the wall are crooked.": "",
    "There are three photos on the desk.": "",
    "The first picture hanging above the sofa is a portrait.": "",
    "Picture two dogs in a park.": "",
    "Can you picture three people on a boat?": "",
    "It is stored as an image 2 MB large.": "",
    "The camera writes image 1920x1080.": "",
    "A 3D image 2.5 metres wide.": "",
    "The second man took a picture.": "",
    "She took her first photo at six.": "",
    # quoted: read, and kept apart
    'The sign says "Image 2".': '"2',
    "The caption reads 'see picture 4'.": '"4',
    # misread, and counted as such below
    "Image 2": "",  # the answer to "What is written on the label?"
    "The slide is titled Figure 1, Image 7.": "",
    "The first photo of the Moon was taken in 1840.": "",
    "The picture is hanging in the hall.": "",
    "The left image is darker than the right one.": "other",
    "The third is the best of them.": "3",
    "The former shows a cat, the latter a dog.": "other",
    "Image two: dogs.": "2",
}
"""Sentences, and which images a reader would say they speak of; `=2` for both, a mark where the words are quoted."""

MISREAD = {
    "Image 2": "2",
    "The slide is titled Figure 1, Image 7.": "7",
    "The first photo of the Moon was taken in 1840.": "1",
    "The picture is hanging in the hall.": "the",
    "She took her first photo at six.": "1",
    "The two black and white photos are old.": "",
    "The left image is darker than the right one.": "",
    "The third is the best of them.": "",
    "The former shows a cat, the latter a dog.": "",
}
"""What the rules make of sentences that they do not understand."""


def read(text: str) -> str:
    def said(mention) -> str:
        words = {"number": " ".join(map(str, mention.numbers)), "count": f"={mention.count}"}
        return '"' * mention.quoted + words.get(
            mention.kind, {"other": "other", "definite": "the"}.get(mention.kind, "")
        )

    return "|".join(said(mention) for mention in mentions(text))


@pytest.mark.parametrize("text", LABELLED)
def test_a_labelled_sentence(text):
    assert read(text) == MISREAD.get(text, LABELLED[text])
    assert (LABELLED[text] == read(text)) == (text not in MISREAD)


def test_how_often_the_rules_are_right():
    """The figures that docs/data.md gives."""
    truth = {(text, found) for text, label in LABELLED.items() for found in label.split("|") if found}
    said = {(text, found) for text in LABELLED for found in read(text).split("|") if found}
    assert (len(LABELLED), len(truth), len(said), len(truth & said)) == (64, 51, 52, 47)


def test_the_words_of_a_mention_are_where_it_says():
    text = "Both pictures, then images 1, 2 and 3, then the other photo."
    for mention in mentions(text):
        assert text[mention.start :].startswith(mention.words)
    assert [mention.count for mention in mentions(text)] == [2, 3, 2]


def test_numbers_of_a_text_in_order_without_quoted_ones():
    assert mentioned('Is the third image like images 1 and 3, or like "image 9"?') == (1, 3)
    assert mentioned("Which image?") == ()
