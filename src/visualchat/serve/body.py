"""The body of a request, within limits of size and time."""

from __future__ import annotations

import asyncio

from fastapi import Request

from visualchat.serve.errors import ApiError
from visualchat.serve.settings import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """The request's body, as far as it may be read.

    Raises:
        ApiError: It is not JSON, too large, or too slow.
        ClientDisconnect: Its client hung up.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body is {kind or 'of no type'}: expected Content-Type: application/json")
    large = ApiError(413, f"the body has more than {limits.body_bytes} bytes; send smaller images, or fewer")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body_bytes:
        raise large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload_seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > limits.body_bytes:
                    raise large
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {limits.upload_seconds:g} seconds") from None
    return bytes(body)
