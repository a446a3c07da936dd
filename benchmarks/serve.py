"""What replicas and routing by content are worth: requests a second, time to first token, and what was known already.

    python benchmarks/serve.py                              some minutes; the tiny world's model, 1, 8 and 32 clients
    python benchmarks/serve.py --clients 2 --images 2 --ways plain      a small run

Clients ask a server in a process of its own: each conversation shows one of a few images, as several others do, and has
two rounds. Ways: `plain` is one engine in the server's process; `routed` are two replicas of `cluster=ray`; `spread`
are the same with `cluster.by_content=false`. Server, replicas and clients share one machine: with two cores the times
tell what Ray costs, not what a second machine brings; what was known tells of routing, whatever the machine. Writes
benchmarks/results/serve-cpu.json and .png, and prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from common import cpu_name

from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.tiny import backbone
from visualchat.tiny.scenes import draw, random_scene

RESULTS = Path(__file__).parent / "results" / "serve-cpu.json"
WAYS = {
    "plain": [],
    "routed": ["cluster=ray"],
    "spread": ["cluster=ray", "cluster.by_content=false"],
}
QUESTIONS = ("What shape is in image 1?", "What color is it?")
SHOWN = 3
"""Conversations about each image."""


def save_model(folder: Path) -> None:
    """The tiny world's backbones, joined by an untrained projector."""
    torch.manual_seed(0)
    vision, language = backbone("vision"), backbone("language_mixed")
    settings: dict[str, Any] = {"image_seq_length": 16}
    VisualChatForConditionalGeneration.from_backbones(
        vision, language, attention_kind="mmca_joint", image_numbers="learned", **settings
    ).save_pretrained(folder)
    VisualChatProcessor.from_backbones(vision, language, **settings).save_pretrained(folder)


@contextmanager
def serving(folder: Path, way: str) -> Iterator[str]:
    """A server's address while the block runs."""
    command = [str(Path(sys.executable).parent / "visualchat-serve"), f"folder={folder}", "port=0", *WAYS[way]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=folder.parent) as process:
        assert process.stdout is not None
        try:
            found = next((match for line in process.stdout if (match := re.search(r" at (http://\S+)", line))), None)
            assert found, "the server did not start"
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.stdout.read()


def shown(seed: int) -> dict[str, Any]:
    """An image as a part of a message."""
    file = io.BytesIO()
    draw(random_scene(seed)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


async def answered(client: httpx.AsyncClient, messages: list[dict[str, Any]]) -> tuple[str, float]:
    """A streamed answer, and the milliseconds until its first token."""
    said, first, begun = "", 0.0, time.perf_counter()
    body = {"model": "visualchat", "messages": messages, "max_tokens": 16, "stream": True}
    async with client.stream("POST", "/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                first = first or (1000 * (time.perf_counter() - begun) if text else 0.0)
                said += text or ""
    return said, first


async def talk(client: httpx.AsyncClient, seed: int) -> list[float]:
    """One conversation: the milliseconds to the first token of each of its answers."""
    messages, times = [], []
    for number, question in enumerate(QUESTIONS):
        parts = [shown(seed)] if number == 0 else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        said, first = await answered(client, messages)
        messages.append({"role": "assistant", "content": said})
        times.append(first)
    return times


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """What the server has counted."""
    text = (await client.get(str(client.base_url).replace("/v1/", "/metrics"))).text
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    names = {
        "prompt": "visualchat_prompt_tokens_total",
        "known": "visualchat_cached_tokens_total",
        "computed": "visualchat_image_store_misses",
    }
    return {name: float(found[key]) for name, key in names.items()}


async def load(address: str, clients: int, images: int, offset: int) -> dict[str, float]:
    """So many clients at a time have all conversations about so many images that no one has shown before."""
    seeds = [offset + number for number in range(images)] * SHOWN
    random.Random(clients).shuffle(seeds)
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        before, times = await figures(client), []

        async def one() -> None:
            while seeds:
                times.extend(await talk(client, seeds.pop()))

        begun = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds, after = time.perf_counter() - begun, await figures(client)
    counted = {name: after[name] - before[name] for name in before}
    return {
        "requests a second": len(times) / seconds,
        "first token, ms": statistics.median(times),
        "first token, ms, slowest of twenty": statistics.quantiles(times, n=20)[-1],
        "images computed": counted["computed"],
        "known share of prompts": counted["known"] / counted["prompt"],
    }


def measure(setting: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    machine = {"processor": cpu_name(), "cores": os.cpu_count(), "torch": version("torch"), "ray": version("ray")}
    found: dict[str, Any] = {"machine": machine, "images": setting.images, "conversations of each": SHOWN, "ways": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save_model(folder)
        for way in setting.ways:
            with serving(folder, way) as address:
                asyncio.run(load(address, 2, 2, 10**6))  # warms up
                found["ways"][way] = {
                    str(clients): asyncio.run(load(address, clients, setting.images, 1000 * number))
                    for number, clients in enumerate(setting.clients)
                }
    return found


def table(result: dict[str, Any]) -> str:
    """For a document."""
    first = next(iter(result["ways"].values()))
    names = [*next(iter(first.values()))]
    lines = [f"| way, clients | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for way, by_clients in result["ways"].items():
        for clients, measured in by_clients.items():
            cells = [f"{measured[name]:.{2 if measured[name] < 1 else 0}f}" for name in names]
            lines.append(f"| {way}, {clients} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figure(result: dict[str, Any], path: Path) -> None:
    """Requests a second, time to first token and images computed, by clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for axes, name in zip(all_axes, ("requests a second", "first token, ms", "images computed"), strict=True):
        for way, by_clients in result["ways"].items():
            axes.plot([*by_clients], [measured[name] for measured in by_clients.values()], marker="o", label=way)
        axes.set(xlabel="clients", ylabel=name, ylim=(0, None))
    all_axes[0].legend()
    machine = result["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['cores']} cores for all; the tiny world's model", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--output", type=Path, default=RESULTS)
    setting = parser.parse_args()
    result = measure(setting)
    setting.output.write_text(json.dumps(result, indent=1) + "\n")
    draw_figure(result, setting.output.with_suffix(".png"))
    print(table(result))


if __name__ == "__main__":
    main()
