"""Packing: full rows, other ones in every epoch, and nothing that the model could notice."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from visualchat.data.batching.collate import BatchMaker, Collator
from visualchat.data.batching.lengths import token_lengths
from visualchat.data.batching.packing import Packing, best_fit
from visualchat.data.batching.sampler import BatchSpec, ResumableBatchSampler, batches_of_rank, rows_of
from visualchat.data.blend.mixture import permutation
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (16, 16), colour)


def dialogues() -> list[Dialogue]:
    """Text only, image first, image last, two rounds with three images, one image shared by two dialogues."""
    red, blue, green = picture("red"), picture("blue"), picture("green")
    return [
        Dialogue((Turn.ask("Hello?", [], "hi"),), id="text"),
        Dialogue((Turn.ask("What is it?", [red], "a red one"), Turn.ask("Sure?", [], "yes")), id="first"),
        Dialogue((Turn(("What is this? ", blue), "blue"),), id="last"),
        Dialogue((Turn.ask("Which?", [red, green], "both"), Turn.ask("And?", [blue], "no")), id="three"),
        Dialogue((Turn.ask("Why?", [], "because it is so"),), id="why"),
    ]


def paper_like_lengths(count: int = 3000) -> list[int]:
    """Dialogues of 1 to 8 images of 256 tokens and a text of 60 to 900, short ones more often, as table 1's blend."""
    rng = random.Random(0)
    images = rng.choices([1, 2, 3, 4, 6, 8], [40, 40, 10, 4, 3, 3], k=count)
    return [256 * n + min(900, 60 + int(rng.expovariate(1 / 250))) for n in images]


def test_best_fit_by_hand():
    assert best_fit([6, 5, 4, 3, 2], capacity=10) == [0, 1, 0, 1, 1]
    assert best_fit([10, 10, 1], capacity=10) == [0, 1, 2]
    with pytest.raises(ValueError, match="a dialogue of 11 tokens does not fit into a row of 10"):
        best_fit([11], capacity=10)


def test_every_dialogue_once_and_no_row_too_long():
    lengths = paper_like_lengths(500)
    packing = Packing(dict(enumerate(lengths)), 4096, seed=7)
    for epoch in range(3):
        rows = packing.rows(epoch)
        assert len(rows) == len(packing)
        assert sorted(index for row in rows for index in row) == list(range(500))
        assert max(sum(lengths[index] for index in row) for row in rows) <= 4096


def test_at_least_95_percent_of_the_tokens_are_real():
    assert Packing(dict(enumerate(paper_like_lengths())), 4096).efficiency >= 0.95


def plan(seed: int = 0, lengths: list[int] | None = None, capacity: int = 4096) -> Packing:
    return Packing(dict(enumerate(lengths or paper_like_lengths(200))), capacity, seed=seed)


def test_the_plan_depends_on_seed_and_epoch_alone():
    assert plan(1).rows(2) == plan(1).rows(2)
    assert plan(1).rows(3) != plan(1).rows(2)
    assert plan(5).rows(2) != plan(1).rows(2)


def test_dialogues_meet_others_in_other_epochs():
    packing = plan(lengths=[100, 200] * 200, capacity=1000)
    company = [{frozenset(row) for row in packing.rows(epoch)} for epoch in range(2)]
    assert len(company[0] & company[1]) < 10


def test_numbers_with_gaps_are_kept():
    packing = Packing({3: 5, 8: 5, 11: 5}, 10)
    assert sorted(index for row in packing.rows(0) for index in row) == [3, 8, 11]


def test_epochs_of_other_dialogues_have_equally_many_rows():
    """Two epochs in turn through 300 dialogues, long ones first: the second has less to pack."""
    lengths = dict(enumerate([400] * 150 + [90] * 150))

    def order(seed: int, epoch: int) -> range:
        return range(150) if epoch % 2 == 0 else range(150, 300)

    packing = Packing(lengths, 1000, order, epochs=2)
    assert len(packing) == 75
    for epoch in range(4):
        rows = packing.rows(epoch)
        assert len(rows) == 75
        assert sorted(index for row in rows for index in row) == list(order(0, epoch))
    with pytest.raises(ValueError, match="epoch 1 needs 61 rows more than the 1 epochs planned for"):
        Packing(lengths, 1000, lambda seed, epoch: order(seed, epoch + 1), epochs=1).rows(1)


def test_a_run_without_end_has_rows_to_spare():
    packing = Packing(dict(enumerate([90] * 3000)), 1000, lambda seed, epoch: range(2980 + epoch % 20), epochs=None)
    assert len(packing) == 276  # 272.6 rows, and a hundredth more
    assert len(packing.rows(7)) == len(packing.rows(33)) == 276


def test_nothing_to_pack_is_an_error():
    with pytest.raises(ValueError, match="there is no dialogue to pack"):
        Packing({}, 10)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_ranks_share_every_row_exactly_once_in_equally_many_batches(size, world_size):
    shares = [
        batches_of_rank(rows_of(partial(permutation, size))(0, 4), 2, rank, world_size) for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row[0] for share in shares for spec in share for row in spec.rows) == list(range(size))


def test_a_sampler_starts_anywhere_and_ends_where_the_epoch_ends():
    whole = ResumableBatchSampler(rows_of(partial(permutation, 10)), 10, batch_size=3)
    expected = {epoch: list(whole) for epoch in range(3) if whole.set_epoch(epoch) is None}
    late = ResumableBatchSampler(rows_of(partial(permutation, 10)), 10, batch_size=3, start=(1, 2))
    assert len(late) == len(whole) == 4
    begun = iter(late)
    late.set_epoch(1)
    assert list(begun) == expected[1][2:]
    late.set_epoch(2)
    assert list(late) == expected[2]


@pytest.fixture
def packed(processor, collated):
    def make(rows: list[int], model_dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        batch = collated(processor, dialogues(), rows)
        batch["pixel_values"] = batch["pixel_values"].to(model_dtype)
        return batch

    return make


def test_a_packed_batch(processor, packed):
    lengths = [len(processor.encode(dialogue)) for dialogue in dialogues()]
    batch = packed([2, 3])
    first, second = lengths[0] + lengths[1], sum(lengths[2:])
    longest = max(first, second)
    assert batch["input_ids"].shape == (2, longest)
    assert batch["attention_mask"].sum(1).tolist() == [first, second]
    segments = [0] * lengths[0] + [1] * lengths[1] + [-1] * (longest - first)
    positions = [*range(lengths[0]), *range(lengths[1]), *range(longest - first)]
    assert batch["segment_ids"][0].tolist() == segments
    assert batch["position_ids"][0].tolist() == positions
    assert batch["input_ids"][0, : lengths[0]].tolist() == processor.encode(dialogues()[0]).input_ids
    assert batch["pixel_values"].shape[0] == 3
    assert batch["image_index"].tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["causal", "mmca", "mmca_joint", "mmca_reference"])
@pytest.mark.parametrize("rows", [[5], [2, 3], [1, 1, 1, 1, 1], [4, 1]])
def test_packed_logits_and_loss_equal_unpacked(make_model, processor, packed, kind, implementation, rows):
    """In float64, where the sums' other order leaves rounding errors of 1e-15 relative, grown by two layers."""
    model = make_model(attention_kind=kind, attention_implementation=implementation, dtype=torch.float64)
    alone = model(**processor.batch(dialogues()))
    together = model(**packed(rows))
    assert torch.allclose(together.logits, alone.logits, rtol=0, atol=1e-11)
    assert abs(together.loss.item() - alone.loss.item()) < 1e-12


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_packed_gradients_equal_unpacked(make_model, processor, packed, kind):
    found = []
    for batch in (processor.batch(dialogues()), packed([3, 2])):
        model = make_model(attention_kind=kind, dtype=torch.float64).train()
        model(**batch).loss.backward()
        found.append([p.grad for p in (model.multi_modal_projector.weight, model.get_input_embeddings().weight)])
    for alone, together in zip(*found, strict=True):
        assert torch.allclose(alone, together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_packed_equals_unpacked_in_float32(make_model, processor, packed, kind):
    """Logits here are of size 10; float32 keeps 7 digits and two layers lose about one."""
    model = make_model(attention_kind=kind)
    alone, together = model(**processor.batch(dialogues())), model(**packed([2, 3], torch.float32))
    assert torch.allclose(together.logits, alone.logits, rtol=1e-4, atol=1e-4)
    assert together.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_another_dialogue_in_the_row_changes_nothing(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    first, second, *_ = dialogues()
    other = Dialogue((Turn.ask("Quite another question?", [picture("white")], "no!"),), id="other")
    kept = len(processor.encode(first))
    rows = [processor.batch([first, following], rows=[2]) for following in (second, other)]
    found = [model(**{k: v for k, v in row.items() if k != "labels"}).logits[:, :kept] for row in rows]
    assert torch.allclose(*found, rtol=0, atol=1e-5)


def test_each_distinct_image_is_encoded_once(make_model, packed):
    model = make_model()
    seen = []
    model.vision_tower.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model(**packed([5], torch.float32))
    assert seen == [3]


def test_pictures_of_equal_bytes_but_not_of_equal_size_stay_apart(processor, collated):
    pixels = bytes(range(2 * 8 * 3))
    tall, wide = Image.frombytes("RGB", (2, 8), pixels), Image.frombytes("RGB", (8, 2), pixels)
    batch = collated(processor, [Dialogue((Turn.ask("?", [tall, wide, tall.copy()], "a"),))])
    assert batch["image_index"].tolist() == [0, 1, 0]


def test_packing_without_positions_is_refused(make_model, processor):
    batch = processor.batch(dialogues(), rows=[5])
    del batch["position_ids"]
    with pytest.raises(ValueError, match="need position_ids"):
        make_model()(**batch)


def test_a_row_over_the_limit_is_refused_with_its_dialogues(processor, collated):
    total = sum(len(processor.encode(dialogue)) for dialogue in dialogues()[:2])
    message = rf"text, first: {total} tokens \(3 turns, 1 images\) exceed the limit of {total - 1}"
    with pytest.raises(ValueError, match=message):
        collated(processor, dialogues()[:2], [2], max_length=total - 1)


def test_lengths_are_those_of_the_batch_and_no_image_is_decoded(processor, monkeypatch):
    expected = {index: len(processor.encode(dialogue)) for index, dialogue in enumerate(dialogues())}
    monkeypatch.setattr("visualchat.data.batching.images.decode_image", lambda *a: pytest.fail("decoded"))
    for workers in (0, 2):
        assert token_lengths(dialogues(), processor, None, num_workers=workers) == (expected, {})


def data(processor, **settings) -> VisualChatDataModule:
    settings = {"batch_size": 2, "max_length": 300, "packing": True, **settings}
    return VisualChatDataModule(processor, dialogues() * 4, dialogues(), **settings)


def test_the_datamodule_packs_training_alone(processor):
    module = data(processor)
    batches = list(module.train_dataloader())
    assert len(batches) == module.train_batches()
    rows = torch.cat(
        [torch.nn.functional.pad(b["segment_ids"], (0, 300 - b["segment_ids"].shape[1]), value=-1) for b in batches]
    )
    assert len(rows) == len(module.pack())
    assert int((rows.max(1).values + 1).sum()) == 20
    assert module.pack().efficiency == pytest.approx((rows >= 0).float().mean().item())
    assert "segment_ids" not in next(iter(module.val_dataloader()))


def test_packed_batches_do_not_depend_on_the_workers(processor):
    expected = list(data(processor).train_dataloader())
    for found, wanted in zip(data(processor, num_workers=2).train_dataloader(), expected, strict=True):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_packing_needs_a_limit(processor):
    with pytest.raises(ValueError, match="packing=true fills rows of max_length tokens"):
        data(processor, max_length=None)


def test_an_idle_batch_trains_nothing(make_model, processor):
    for is_packed in (False, True):
        maker = BatchMaker(dialogues(), Collator(processor), packed=is_packed)
        model = make_model().train()
        out = model(**maker[BatchSpec(())])
        out.loss.backward()
        assert out.loss.item() == 0.0
        assert not np.any([p.grad.any().item() for p in model.parameters() if p.grad is not None])
        assert model.multi_modal_projector.weight.grad is not None
