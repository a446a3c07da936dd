"""NamedImages by the `uuid` that clients gave them, so that a later request need not send them again.

Only the image as it was sent is remembered: what is computed of it is found by its pixels, so an identifier that a
client uses twice never shows a model the wrong one.
"""

from __future__ import annotations

from collections import OrderedDict

from visualchat.serve.errors import ApiError
from visualchat.serve.protocol import ChatRequest, ImagePart, ImageUrl


class NamedImages:
    """Those that were shown last, up to a budget.

    Args:
        budget: Bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    def find(self, scope: str, uuid: str, place: str) -> str:
        """The image, as a data URL.

        Raises:
            ApiError: It is not remembered.
        """
        url = self._known.get((scope, uuid))
        if url is None:
            message = f"{place}: no image of this uuid is remembered; send the image with it, in image_url"
            raise ApiError(404, message, param=place, code="unknown_image")
        self._known.move_to_end((scope, uuid))
        return url

    def remember(self, scope: str, uuid: str, url: str) -> None:
        """Let an image be found by its uuid from now on; another one of the same uuid no longer."""
        self.nbytes -= len(self._known.pop((scope, uuid), ""))
        self._known[scope, uuid] = url
        self.nbytes += len(url)
        while self.nbytes > self.budget:
            _, oldest = self._known.popitem(last=False)
            self.nbytes -= len(oldest)

    def fill(self, asked: ChatRequest, scope: str) -> None:
        """Put images where a request has their uuid alone; one that it shows itself counts first.

        Raises:
            ApiError: One is not remembered.
        """
        shown: dict[str, str] = {}
        for number, message in enumerate(asked.messages):
            for place, part in enumerate(message.content):
                if not isinstance(part, ImagePart) or part.uuid is None:
                    continue
                if part.image_url is None:
                    where = f"messages[{number}].content[{place}].uuid"
                    url = shown.get(part.uuid) or self.find(scope, part.uuid, where)
                    part.image_url = ImageUrl(url=url)
                shown[part.uuid] = part.image_url.url

    def remember_all(self, asked: ChatRequest, scope: str) -> None:
        """Remember the images of a request that have a uuid; they could be read."""
        for message in asked.messages:
            for part in message.content:
                if isinstance(part, ImagePart) and part.uuid is not None and part.image_url is not None:
                    self.remember(scope, part.uuid, part.image_url.url)
