"""Under DeepSpeed's ZeRO-3, where weights are gathered module by module, the model trains as plain torch does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.model.bert import BertForMaskedLanguageModel
from trainer.model.create import create_model, parameter_groups

STEPS = 6


def config(norm: str) -> ModelConfig:
    return ModelConfig.model_validate(
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "max_positions": 16}
        | {"vocab_size": 29, "hidden_dropout": 0.0, "attention_dropout": 0.0, "norm": norm}
    )


def batches() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Packed rows; the third batch predicts nothing and the fourth is padding alone."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.tensor([[*range(5), *range(5), 0, 0], [*range(12)]])
    documents = torch.tensor([[1] * 5 + [2] * 5 + [0] * 2, [1] * 12])
    made = []
    for step in range(STEPS):
        ids = torch.randint(5, 29, (2, 12), generator=generator)
        chosen = torch.rand(2, 12, generator=generator) < (0.0 if step == 2 else 0.3)
        made.append((ids, positions, documents * (step != 3), torch.where(chosen, ids, -100)))
    return made


def optimizer(model: BertForMaskedLanguageModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-2, eps=1e-6)


def plain_losses(norm: str) -> list[float]:
    model = create_model(config(norm), seed=3)
    steps, losses = optimizer(model), []
    for batch in batches():
        loss = model(*batch)["mlm"].loss
        loss.backward()
        steps.step()
        steps.zero_grad(set_to_none=False)
        losses.append(loss.item())
    return losses


def zero3_losses(norm: str) -> list[float]:
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = create_model(config(norm), seed=3)
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.0,
        # No weight is small enough to stay gathered: every module must fetch its own.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer(model), config=settings)
    losses = []
    for batch in batches():
        loss = engine(*batch)["mlm"].loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_losses_under_zero3_equal_those_of_plain_torch(norm: str) -> None:
    pytest.importorskip("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = os.environ | process | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, norm]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown inputs or outputs type" not in done.stdout + done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["zero3"] == pytest.approx(results["plain"], rel=1e-6)
    assert results["plain"][2:4] == [0.0, 0.0]
    assert results["plain"][-1] != results["plain"][0]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    print(json.dumps({"plain": plain_losses(sys.argv[1]), "zero3": zero3_losses(sys.argv[1])}), flush=True)
