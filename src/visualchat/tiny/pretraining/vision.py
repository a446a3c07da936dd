"""Pretraining of the tiny vision tower: a SigLIP-style ViT that learns to name what lies under each patch.

All training heads are linear and sit on the last hidden state, so that one linear projector can later read the same
things; they are thrown away. Each of the 2x2 patches of a filled cell is labelled with that cell's shape.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from visualchat.tiny.pretraining import OnStep
from visualchat.tiny.scenes import (
    CELL_OF_PATCH,
    CELLS,
    COLOURS,
    COMPOSITIONS,
    PATCH_SIZE,
    PICTURE_SIZE,
    SHAPES,
    Scene,
    draw,
    sample_scene,
)

# Shapes: B images, P = 16 patches in raster order, D = 96 hidden size.


@dataclass(frozen=True)
class VisionRecipe:
    """How the vision tower is trained."""

    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.02


def vision_config() -> SiglipVisionConfig:
    """The architecture: 3 layers of width 96 over 16 patches; no class token, no pooling head."""
    return SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )


def image_processor() -> SiglipImageProcessorPil:
    """Images -> pixel values in [-1, 1], 64x64; needs PIL only."""
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    return SiglipImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class PatchReader(nn.Module):
    """Linear heads over the last hidden state [B, P, D]; per patch, and per image over the mean of its patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.cell = nn.Linear(width, len(CELLS))
        self.count = nn.Linear(width, len(CELLS))
        self.presence = nn.Linear(width, len(COMPOSITIONS))

    def forward(self, states: Tensor) -> dict[str, Tensor]:
        """Scores of each head by name; see `targets_of` for what they name."""
        mean = states.mean(dim=1)
        return {
            "colour": self.colour(states),
            "shape": self.shape(states),
            "cell": self.cell(states),
            "count": self.count(mean),
            "presence": self.presence(mean),
        }


def targets_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the heads should say: colour and shape (0 is none) and cell [B, P], count - 1 [B], presence [B, 30]."""
    colours, shapes = list(COLOURS), list(SHAPES)
    cell_colour = torch.zeros(len(scenes), len(CELLS), dtype=torch.long)
    cell_shape = torch.zeros_like(cell_colour)
    presence = torch.zeros(len(scenes), len(COMPOSITIONS))
    for row, scene in enumerate(scenes):
        for shape in scene.shapes:
            cell_colour[row, shape.cell] = 1 + colours.index(shape.colour)
            cell_shape[row, shape.cell] = 1 + shapes.index(shape.shape)
            presence[row, COMPOSITIONS.index(shape.pair)] = 1
    cells = torch.tensor(CELL_OF_PATCH)
    return {
        "colour": cell_colour[:, cells],
        "shape": cell_shape[:, cells],
        "cell": cells.expand(len(scenes), -1),
        "count": torch.tensor([len(scene.shapes) - 1 for scene in scenes]),
        "presence": presence,
    }


def pixels_of(scenes: list[Scene]) -> Tensor:
    """The drawn images as the image processor would give them, float [B, 3, 64, 64] in [-1, 1]."""
    pixels = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vision(
    recipe: VisionRecipe, seed: int, on_step: OnStep = lambda done, total, loss: None
) -> tuple[SiglipVisionModel, dict[str, float]]:
    """Train the tower from nothing on scenes of all compositions.

    Args:
        recipe: Steps, batch size and rates.
        seed: Decides weights and images.
        on_step: Called after each step with steps done, steps in all and the loss.

    Returns:
        The tower in evaluation mode, and what its heads score on 2000 new images.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"vision {seed}")
    tower = SiglipVisionModel(vision_config())
    reader = PatchReader(tower.config.hidden_size)
    parameters = [*tower.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=recipe.warmup / recipe.steps
    )
    for step in range(recipe.steps):
        scenes = [sample_scene(rng) for _ in range(recipe.batch_size)]
        loss = _loss(reader(tower(pixels_of(scenes)).last_hidden_state), targets_of(scenes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        on_step(step + 1, recipe.steps, loss.item())
    tower.eval()
    return tower, score_vision(tower, reader, random.Random(f"vision test {seed}"))


def _loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    classes = ("colour", "shape", "cell", "count")
    loss = sum(cross_entropy(outputs[name].flatten(0, -2), targets[name].flatten()) for name in classes)
    return loss + 3 * binary_cross_entropy_with_logits(outputs["presence"], targets["presence"])


@torch.no_grad()
def score_vision(
    tower: SiglipVisionModel, reader: PatchReader, rng: random.Random, size: int = 2000
) -> dict[str, float]:
    """Share of right answers of each head on `size` new images (per patch, per image, or per composition)."""
    right: dict[str, float] = {}
    for _ in range(size // 250):
        scenes = [sample_scene(rng) for _ in range(250)]
        outputs, targets = reader(tower(pixels_of(scenes)).last_hidden_state), targets_of(scenes)
        for name, value in outputs.items():
            guess = (value > 0).float() if name == "presence" else value.argmax(-1)
            right[name] = right.get(name, 0.0) + (guess == targets[name]).float().mean().item() / (size // 250)
    return {name: round(value, 4) for name, value in right.items()}
