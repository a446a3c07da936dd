"""The lines for several machines, typed as on each of two nodes, both of which are this machine, one process each.

`torchrun` is torch's own. For `srun` a test sets what SLURM would set for each task.
"""

import re
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import LIMIT, assert_learns, history, only_run, run, started
from composing import composed, points
from lines import all_lines
from made import corpora
from shrinking import small

pytestmark = pytest.mark.slow

LINES = [line for line in all_lines() if line.typed and line.words[0] in ("torchrun", "srun")]
NODES = 2
SHORTER = ("trainer.max_steps=3", "data.num_workers=0")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def on_node(words: list[str], node: int, port: int) -> tuple[list[str], dict[str, str]]:
    """What is typed on a node, with one process in place of the node's GPUs, and the variables that come with it."""
    if words[0] == "torchrun":
        here = {
            "--nproc-per-node": "1",
            "--node-rank": f"{node}",
            "--master-addr": "127.0.0.1",
            "--master-port": f"{port}",
        }
        options = [here.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        return options, {}
    variables = {
        "SLURM_JOB_ID": f"{port}",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": f"{NODES}",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": f"{NODES}",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_PROCID": f"{node}",
        "SLURM_NODEID": f"{node}",
        "SLURM_LOCALID": "0",
        "MASTER_PORT": f"{port}",
    }
    return words[words.index("visualchat-train") :], variables


@pytest.mark.parametrize("line", LINES, ids=str)
def test_two_nodes_train_what_one_process_does(line, folder):
    command = line.command()
    config = composed(next(points(command)))
    assert config.trainer.num_nodes == NODES
    corpora(folder / "datasets")
    shrunk = [*small(command[0], config), *SHORTER, "trainer.devices=1", "hydra.run.dir=nodes"]
    port = free_port()
    with ExitStack() as stack:
        processes = []
        for node in range(NODES):
            words, variables = on_node([*line.words, *shrunk], node, port)
            processes.append(stack.enter_context(started(folder, *words, **variables)))
        said = [process.communicate(timeout=LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * NODES, said
    losses = assert_learns(only_run(folder), falling=False)
    (rows,) = re.findall(r"data\.batch_size=(\d+)", " ".join(shrunk))[-1:]
    alone = ["trainer/strategy=auto", "trainer.num_nodes=1", f"data.batch_size={NODES * int(rows)}"]
    run(folder, *command, *shrunk, *alone, "hydra.run.dir=alone").ok()
    assert losses == pytest.approx(history(Path(folder, "alone")), rel=0.05)  # 8 bits of bf16
