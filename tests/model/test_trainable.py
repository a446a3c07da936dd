"""What trains is what was asked for; adapters start as nothing and merge into the very same model; quantized bases."""

import copy
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

import forked
from visualchat.attention import Modality
from visualchat.cli.config import CONF
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.language import load_language_model
from visualchat.model.parameters import Part, part_sizes
from visualchat.model.trainable import Trainable, merge_adapters, set_trainable, trainable_state
from visualchat.tiny import backbone

RED, BLUE = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
DIALOGUE = Dialogue((Turn.ask("Which is red?", [RED, BLUE], "The first."), Turn.ask("And now?", answer="Still.")))
TEXT = Dialogue((Turn.ask("Which is red?", answer="None."),))
EMBEDDING = "language_model.model.embed_tokens.weight"
CHOICES = sorted(path.stem for path in Path(CONF, "model", "trainable").glob("*.yaml"))


def choice(name) -> Trainable:
    with initialize_config_dir(CONF, version_base="1.3"):
        found = instantiate(compose("train", [f"model/trainable={name}"]).model.trainable)
    assert isinstance(found, Trainable)
    return found


def expected_to_move(name, parameter):
    """The meaning of each choice in words of parameter names."""
    part = parameter.partition(".")[0]
    adapter = ".lora_" in parameter
    if part == "multi_modal_projector":
        return True
    if parameter == EMBEDDING:
        return name != "projector"
    if part == "vision_tower":
        return name in ("all", "vision") or (adapter and name in ("lora_vision", "lora_both"))
    return name == "all" or (adapter and name in ("lora_language", "lora_images", "lora_both"))


def step(model, batch, rate=0.1):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    loss = model.train()(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_only_projector_and_embedding_move(model, processor):
    set_trainable(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    dialogue = Dialogue((Turn.ask("Colour?", [Image.new("RGB", (16, 16), "red")], "red"),))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**processor.batch([dialogue])).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {
        "language_model.model.embed_tokens.weight",
        "multi_modal_projector.weight",
        "multi_modal_projector.bias",
    }
    assert moved == set(trainable_state(model))


def test_tied_weights_are_refused(model):
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="token embedding and language head are tied"):
        set_trainable(model)


@pytest.mark.parametrize("name", CHOICES)
def test_exactly_what_was_chosen_moves(name, model, processor):
    set_trainable(model, choice(name))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if expected_to_move(name, n)
    }
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    batch = processor.batch([DIALOGUE])
    for _ in range(2):  # half of an adapter starts at zero, so that the other half has no gradient in the first step
        step(model, batch)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    allowed = {n for n in before if expected_to_move(name, n)}
    assert moved <= allowed
    unused = {n for n in allowed - moved if n.startswith("vision_tower.")}  # such as the pooler, which nothing reads
    if name == "lora_images":  # an image token that sees itself alone weighs nothing, and is last read as key and value
        unused |= {n for n in allowed - moved if re.search(r"q_proj|layers\.1\.(self_attn\.o_proj|mlp)", n)}
    assert allowed - moved == unused
    assert unused < allowed


@pytest.mark.parametrize("name", ["lora_language", "lora_vision", "lora_both"])
def test_adapters_start_as_nothing_and_merge_into_the_same_model(name, make_model, processor, tmp_path):
    plain, model = make_model(), make_model()
    set_trainable(model, choice(name))
    batch = processor.batch([DIALOGUE])
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, plain(**batch).logits)
    for _ in range(3):
        step(model, batch)
    with torch.no_grad():
        tuned = model.eval()(**batch).logits
    assert not torch.allclose(tuned, plain(**batch).logits, atol=1e-3)
    merged = merge_adapters(model)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in plain.named_parameters()}
    with torch.no_grad():  # the sum of two products becomes a product with a sum
        assert torch.allclose(merged(**batch).logits, tuned, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, merged(**batch).logits)


def test_adapters_of_image_tokens_leave_text_as_it_is(make_model, processor):
    """And images change: the same adapters on all tokens give the same images, where nothing of an image sees text."""
    plain, model, everywhere = make_model(), make_model(), make_model()
    set_trainable(model, choice("lora_images"))
    set_trainable(everywhere, choice("lora_language"))
    batch = processor.batch([DIALOGUE])
    for _ in range(3):
        step(model, batch)
    everywhere.load_state_dict(trainable_state(model), strict=False)
    copied = copy.deepcopy(model)
    copied(**processor.batch([TEXT]))  # what is image and what is text of a pass is of that model alone
    with torch.no_grad():
        states = [one.eval()(**batch, output_hidden_states=True).hidden_states for one in (plain, model, everywhere)]
        text = processor.batch([TEXT])
        one, other, third = (m(**text).logits for m in (plain_with_embedding(plain, model), model, everywhere))
    slots = batch["mm_token_type_ids"] == Modality.IMAGE
    assert torch.equal(one, other)
    assert not torch.allclose(one, third, atol=1e-3)
    before, tuned, all_tuned = (of[-1][slots] for of in states)
    assert torch.equal(tuned, all_tuned)
    assert not torch.allclose(before, tuned, atol=1e-3)
    with pytest.raises(ValueError, match="cannot be merged: they are kept in a light folder"):
        merge_adapters(model)


def plain_with_embedding(plain, tuned):
    """A model without adapters, with what else trained."""
    plain.load_state_dict(trainable_state(tuned), strict=False)
    return plain


def test_adapters_leave_the_base_the_base(make_model):
    plain, model = make_model(), make_model()
    set_trainable(plain)
    set_trainable(model, Trainable(vision="lora", language="lora", lora_rank=2))
    assert base_fingerprint(model) == base_fingerprint(plain)
    assert sum(".lora_" in name for name in trainable_state(model)) > 0


def test_the_trained_embedding_is_the_one_that_generates(model, processor):
    """Moving a row of the embedding changes what is generated after that token, as it changes the loss."""
    set_trainable(model)
    prompt = processor.prompt([Dialogue((Turn.ask("Which?", [RED]),))])
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    before = model.eval().generate(**prompt, **settings)
    first = before.sequences[0, prompt["input_ids"].shape[1]]
    with torch.no_grad():
        model.get_input_embeddings().weight[first] += 1.0
    after = model.generate(**prompt, **settings)
    assert torch.equal(before.logits[0], after.logits[0]) == (first not in prompt["input_ids"])
    assert not torch.equal(before.logits[1], after.logits[1])


@pytest.mark.parametrize(("bits", "stored"), [(8, "int8"), (4, "nf4")])
def test_a_quantized_base_trains_its_adapters(bits, stored):
    tiny = backbone("vision"), backbone("language_mixed")

    def make(language_bits):
        torch.manual_seed(0)
        settings = {"image_seq_length": 16, "projector_type": "linear_norm", "language_bits": language_bits}
        return VisualChatForConditionalGeneration.from_backbones(*tiny, **settings)

    plain, model = make(None), make(bits)
    set_trainable(model, Trainable(language="lora", lora_rank=4, lora_alpha=4))
    batch = VisualChatProcessor.from_backbones(*tiny, image_seq_length=16).batch([DIALOGUE])
    with torch.no_grad():
        close, exact = model.eval()(**batch).logits, plain(**batch).logits
    # what rounding to 8 or 4 bits costs: logits point the same way, further apart with fewer bits
    assert torch.cosine_similarity(close.flatten(), exact.flatten(), dim=0) > (0.99 if bits == 8 else 0.9)
    assert not torch.equal(close, exact)
    fingerprint = base_fingerprint(model)
    losses = [step(model, batch, rate=0.02) for _ in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    assert base_fingerprint(model) == fingerprint
    counted = {size.part: size for size in part_sizes(model)}
    exactly = {size.part: size for size in part_sizes(plain)}
    assert stored in counted[Part.LANGUAGE].dtypes
    assert counted[Part.LANGUAGE].parameters == exactly[Part.LANGUAGE].parameters


def test_four_bits_give_the_same_on_every_cpu(monkeypatch):
    """Where a CPU has AVX512-BF16, bitsandbytes would pack weights for inference when they are first evaluated.

    Layers packed so round to bf16 and give no gradient. The tiny world's shapes can be packed, the other tests' cannot.
    """
    found = []
    for available in (True, False):
        monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda available=available: available)
        torch.manual_seed(0)
        language_model = load_language_model(backbone("language_mixed"), torch.float32, bits=4).requires_grad_(False)
        stored = {name: value.clone() for name, value in language_model.state_dict().items()}
        fingerprint = base_fingerprint(language_model)
        ids = torch.arange(4, 36)[None]
        with torch.no_grad():
            logits = language_model.eval()(ids).logits
        embedded = language_model.get_input_embeddings()(ids).requires_grad_()
        language_model.train()(inputs_embeds=embedded, labels=ids).loss.backward()  # training after an evaluation
        assert base_fingerprint(language_model) == fingerprint
        state = language_model.state_dict()
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[name], value) for name, value in stored.items())
        found.append((fingerprint, logits, embedded.grad))
    ours, theirs = found
    assert ours[0] == theirs[0]
    assert torch.equal(ours[1], theirs[1])
    assert torch.equal(ours[2], theirs[2])
    assert ours[2].norm() > 0


def test_the_table_of_parts(model):
    set_trainable(model, Trainable(language="lora", lora_rank=2))
    sizes = {size.part: (size.parameters, size.trainable) for size in part_sizes(model)}
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora" in n)
    projector = sum(p.numel() for p in model.multi_modal_projector.parameters())
    embedding, head = model.get_input_embeddings().weight.numel(), model.get_output_embeddings().weight.numel()
    vision = sum(p.numel() for p in model.vision_tower.parameters())
    assert sizes[Part.ADAPTERS] == (adapters, adapters)
    assert sizes[Part.PROJECTOR] == (projector, projector)
    assert sizes[Part.EMBEDDING] == (embedding, embedding)
    assert sizes[Part.HEAD] == (head, 0)
    assert sizes[Part.VISION] == (vision, 0)
    assert sum(n for n, _ in sizes.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": "half"}, "trainable.vision='half', expected one of frozen, lora, full"),
        ({"projector": False, "embedding": False}, "nothing trains"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Trainable(**settings)


def test_a_quantized_model_cannot_train_as_a_whole(make_model):
    with pytest.raises(ValueError, match="a quantized language model is frozen"):
        set_trainable(make_model(language_bits=8), Trainable(language="full"))


def test_another_number_of_bits_is_refused(make_model):
    with pytest.raises(ValueError, match="language_bits=3, expected 8, 4 or None"):
        make_model(language_bits=3)


def test_four_bits_that_a_cpu_would_scale_wrongly_are_refused(make_model):
    with pytest.raises(ValueError, match=r"whole blocks of 64 weights, .*q_proj has rows of 32: choose .*=int8 or"):
        make_model(language_bits=4)


def test_bits_do_not_depend_on_the_trainers_precision():
    """In processes of their own, because bitsandbytes keeps the borders between codes that it makes first."""
    found = [forked.called(_print_fingerprint, dtype) for dtype in ("float32", "bfloat16")]
    assert [done.stderr for done in found if done.returncode] == []
    assert found[0].stdout == found[1].stdout != ""


def _print_fingerprint(dtype):
    torch.set_default_dtype(getattr(torch, dtype))
    base = load_language_model(backbone("language_mixed"), torch.bfloat16, bits=4)
    print(base_fingerprint(base.requires_grad_(False)))
