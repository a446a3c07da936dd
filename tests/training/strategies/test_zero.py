"""Every strategy of conf/ on CPUs: one process and two processes, whole and split, train alike, resume and export."""

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities import rank_zero as fabric_rank_zero
from lightning.pytorch.utilities import rank_zero as pytorch_rank_zero
from safetensors.torch import load_file

from visualchat.cli.config import CONF
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.tiny import backbone
from visualchat.training.checkpoint_io import begin, finish, nothing_but_tensors
from visualchat.training.module import VisualChatModule
from visualchat.training.strategies.zero import ZeroStrategy, trained_parts

SCRIPT = Path(__file__).with_name("strategies.py")

# fp32: sums over ranks add in another order; AdamW divides by a root of squared gradients, which enlarges that at first
ROUNDING = {"rtol": 2e-5, "atol": 1e-5}


def train(folder: Path, name: str, ranks: int, *precision: str) -> list[dict]:
    """What each rank kept of a run in processes of its own; see `strategies.py`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), name, str(ranks), str(folder), *precision],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("strategies")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """One plain process, without gradient checkpointing."""
    (found,) = train(folder, "auto", 1)
    return found


def check_weights_at_birth(weights: dict[str, torch.Tensor], alone: dict) -> None:
    """The files' values to the last bit, new tokens their mean; the fresh projector has what the seed gives."""
    for prefix, name in (("vision_tower.", "vision"), ("language_model.", "language_mixed")):
        stored = load_file(Path(backbone(name)) / "model.safetensors")
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        shared = own.keys() & stored.keys()
        assert own.keys() - stored.keys() <= {"lm_head.weight"}  # tied in the file
        assert len(shared) > 30
        for key in shared:
            rows = len(stored[key])
            assert torch.equal(own[key][:rows], stored[key]), key
            assert torch.equal(own[key][rows:], own[key][:rows].mean(dim=0).expand_as(own[key][rows:])), key
    assert len(weights["language_model.model.embed_tokens.weight"]) == 436
    assert torch.equal(weights["language_model.lm_head.weight"], weights["language_model.model.embed_tokens.weight"])
    assert weights.keys() == alone["weights"].keys()
    for key, value in alone["weights"].items():
        assert torch.equal(weights[key], value), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3_offload", "fsdp2", "zero2", "zero1", "ddp"])
def test_two_ranks_train_as_one(alone, folder, name):
    """With frozen backbones, gradient checkpointing, accumulation and clipping; ranks without images, idle ranks."""
    ranks = train(folder, name, 2)
    assert [True, False] in [[*pair] for pair in zip(*(rank["images"] for rank in ranks), strict=True)]
    for rank in ranks:
        check_weights_at_birth(rank["weights"], alone)
        assert rank["steps"] == alone["steps"] == 4
        assert rank["losses"] == pytest.approx(alone["losses"], rel=ROUNDING["rtol"])
        assert rank["resumed"] == rank["losses"][3:]  # to the last bit
        assert rank["metrics"]["validation/loss"] == pytest.approx(alone["metrics"]["validation/loss"], rel=1e-4)
    # sample answers in validation: rank r has the r-th prompt, after each epoch
    answers = [ranks[0]["answers"][0], ranks[1]["answers"][0], ranks[0]["answers"][1], ranks[1]["answers"][1]]
    assert answers == alone["answers"]
    own, expected = (load_file(folder / f"{run}-model" / "model.safetensors") for run in (name, "auto"))
    assert own.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(own[key], value, rtol=0, atol=2e-4), key  # after four steps of up to 1e-2


@pytest.mark.slow
def test_a_zero_3_checkpoint_holds_what_trains_and_its_export_answers(alone, folder):
    """The checkpoint after the last epoch and the exported model hold the same trained parameters."""
    if not (folder / "zero3_offload-model").exists():
        train(folder, "zero3_offload", 2)
    (checkpoint,) = (folder / "zero3_offload").glob("epoch=1.ckpt")
    parts = trained_parts(checkpoint)
    assert sum(part.numel() for part in parts.values()) == 68480  # projector and embedding
    model = VisualChatForConditionalGeneration.from_pretrained(folder / "zero3_offload-model")
    state = model.state_dict()
    for name, part in parts.items():
        assert torch.equal(state[name], part), name
    shards = [*(checkpoint / "checkpoint").iterdir()]
    # each trained value thrice in fp32: itself and AdamW's two moments; what else is saved is small
    assert sum(shard.stat().st_size for shard in shards) < 3 * 4 * 68480 + 100_000
    processor = VisualChatProcessor.from_pretrained(folder / "zero3_offload-model")
    inputs = processor(text="What is 3?")
    assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.slow
def test_zero_3_in_bf16_and_in_one_process(alone, folder):
    (found,) = train(folder, "zero3", 1, "bf16-mixed")
    # bf16 keeps 8 bits; before the first step, so that nothing adds up
    assert found["losses"][:2] == pytest.approx(alone["losses"][:2], rel=2e-2)
    assert found["losses"] == pytest.approx(alone["losses"], rel=0.5)
    assert found["resumed"] == found["losses"][3:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_ranks_with_bf16_weights_resume_to_the_last_bit(alone, tmp_path, name):
    """A checkpoint holds the fp32 masters and moments of weights that have 16 bits, whole on one rank or split."""
    ranks = train(tmp_path, name, 2, "bf16-true")
    for rank in ranks:
        assert rank["resumed"] == rank["losses"][3:]
        assert rank["losses"][:2] == pytest.approx(alone["losses"][:2], rel=2e-2)  # bf16 keeps 8 bits
    checkpoint = torch.load(tmp_path / name / "epoch=1.ckpt")
    (optimizer,) = checkpoint["optimizer_states"]
    weights = [*checkpoint["state_dict"].values()]
    masters = [state["master"] for state in optimizer["state"].values()]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert {value.dtype for state in optimizer["state"].values() for value in state.values()} == {torch.float32}
    rounded = sorted((master.bfloat16().double().sum().item(), master.numel()) for master in masters)
    assert rounded == sorted((weight.double().sum().item(), weight.numel()) for weight in weights)


def strategy(name: str, **settings) -> ZeroStrategy:
    with initialize_config_dir(CONF, version_base="1.3"):
        return instantiate(compose("train", [f"trainer/strategy={name}"]).trainer.strategy, **settings)


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme"])
def test_deepspeed_accepts_the_configuration(name):
    """Every key of zero_optimization is one of DeepSpeed's, with a value of its kind; Lightning alone accumulates."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = strategy(name).config
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    assert int(zero.stage) == int(name[4])
    assert zero.overlap_comm == (name != "zero1")
    assert (zero.stage < 3) or zero.prefetch_bucket_size > 0
    assert config["gradient_accumulation_steps"] == 1


def test_precision_and_clipping_come_from_the_trainer(make_model):
    zero = strategy("zero2")
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, strategy=zero, precision="16-mixed", gradient_clip_val=0.5, logger=False
    )
    module = VisualChatModule(make_model)
    trainer.strategy.connect(module)
    module.trainer = trainer
    zero._init_config_if_needed()
    assert zero.config["gradient_clipping"] == 0.5
    assert (zero.config["fp16"]["enabled"], zero.config["fp16"]["loss_scale_window"]) == (True, 100)


@pytest.mark.parametrize("name", ["zero3_offload", "fsdp2", "ddp"])
@pytest.mark.parametrize("cluster", ["slurm", "torchrun", "plain"])
def test_several_nodes_are_lightnings_own_environments(monkeypatch, name, cluster):
    """The second of two nodes with one process each: ranks and launcher, before anything connects."""
    environments = {
        "slurm": {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "1",
            "SLURM_JOB_NAME": "train",
            "SLURM_JOB_ID": "12345",
            "SLURM_NODELIST": "gpu[01-02]",
            "SLURM_PROCID": "1",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "1",
        },
        "torchrun": {
            "TORCHELASTIC_RUN_ID": "1",
            "MASTER_ADDR": "gpu01",
            "MASTER_PORT": "29500",
            "RANK": "1",
            "LOCAL_RANK": "0",
            "GROUP_RANK": "1",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
        },
        "plain": {"MASTER_ADDR": "gpu01", "MASTER_PORT": "29500", "NODE_RANK": "1", "LOCAL_RANK": "0"},
    }
    for key, value in environments[cluster].items():
        monkeypatch.setenv(key, value)
    for own in (fabric_rank_zero, pytorch_rank_zero):  # Lightning notes the rank for the whole process: put it back
        monkeypatch.setattr(own.rank_zero_only, "rank", 0)
    trainer = lightning.Trainer(accelerator="cpu", devices=1, num_nodes=2, strategy=strategy(name), logger=False)
    assert (trainer.world_size, trainer.node_rank, trainer.local_rank) == (2, 1, 0)
    trainer.strategy.set_world_ranks()
    assert trainer.global_rank == 1
    assert trainer.strategy.cluster_environment.main_address == "gpu01"
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment) == (cluster == "slurm")
    assert trainer.strategy.cluster_environment.creates_processes_externally


def test_a_zero_checkpoint_that_could_run_code_is_not_loaded(tmp_path):
    """DeepSpeed itself would unpickle it; its manifest is right."""

    class Touch:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was here"),)

    part = begin(tmp_path / "last.ckpt")
    (part / "checkpoint").mkdir()
    shard = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"x": Touch()}, part / "checkpoint" / shard)
    torch.save({"buffer_names": Touch()}, part / "checkpoint" / "mp_rank_00_model_states.pt")
    finish(part, tmp_path / "last.ckpt", {"global_step": 1})
    with pytest.raises(ValueError, match=r"holds more than numbers \(posix.mkdir\) and so could run code"):
        trained_parts(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"holds more than numbers \(posix.mkdir\)"), nothing_but_tensors():
        TorchCheckpointEngine().load(str(tmp_path / "last.ckpt" / "checkpoint" / shard))  # what resuming does
    assert not (tmp_path / "was here").exists()
    (tmp_path / "last.ckpt" / "checkpoint" / shard).unlink()
    with pytest.raises(ValueError, match=r"last.ckpt is not usable: its files are not those of its manifest.json"):
        trained_parts(tmp_path / "last.ckpt")


def test_a_folder_that_is_no_zero_checkpoint_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"is not a ZeRO checkpoint: expected a folder that holds a folder 'checkpoint'"
    ):
        trained_parts(tmp_path)
