"""A chat computed in one pass without a cache, to compare with what the session made of it round by round."""

import torch


def best_tokens(model, processor, session, images) -> torch.Tensor:
    """The likeliest token after each token of a session, (S,); `images` are all that it was shown, in order."""
    with torch.no_grad():
        out = model(
            torch.tensor([session.ids]),
            processor.image_processor(images=images, return_tensors="pt")["pixel_values"],
            mm_token_type_ids=torch.tensor([session.modality]),
            unit_ids=torch.tensor([session.units]),
            use_cache=False,
        )
    return out.logits[0].argmax(-1)
