"""The training step: our engine beside transformers' model in a bare PyTorch loop, on the same text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from data_pipeline.batch import Batch
from data_pipeline.shards import load_manifest
from tests.benchmarks.hf_peers import framed, group_texts, masking_collator
from tests.benchmarks.material import Material
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from trainer.ds_config import build_ds_config
from trainer.model.hf_config import to_hf_config
from trainer.runtime import Runtime, started
from trainer.setup import loader_for, make_engine, resolve
from trainer.step import DataParallelStep
from trainer.topology import plan_batches, topology_from_env

ROW_TOKENS = 128
BATCH_ROWS = 32
ZERO_STAGES = (0, 1)
_POOL_BATCHES = 16
_PADDED = "HF, padded, documents cut at 128"
_GROUPED = "HF, group_texts, full rows"
_TARGETS = {_PADDED: 3.0, _GROUPED: 2.2}


def measure_step(material: Material, *, cores: int, rounds: int, seconds: float = 2.5) -> Outcome:
    """Tokens a second that are not padding, in fp32, with `cores` threads.

    Whoever trains, the batches lie ready in memory, have about equally many tokens and are masked at 15 %; the
    update clips the gradient's norm to 1 and is torch's fused AdamW.
    """
    torch.manual_seed(0)
    with ExitStack() as stack:
        runtime = stack.enter_context(started(topology_from_env({}), deterministic=False))
        config = _config(material, zero_stage=0)
        ours = _own_batches(config, material)
        contenders = [
            Contender(_own_name(stage), _own_work(_own_engine(material, stage, runtime, stack), ours))
            for stage in ZERO_STAGES
        ]
        for name, batches in _peer_batches(material, tokens=mean(batch.tokens for batch in ours)).items():
            model = BertForMaskedLM(BertConfig(**to_hf_config(config.model, suffix="ForMaskedLM", dtype="float32")))
            contenders.append(Contender(name, _peer_work(model.train().to(runtime.device), batches)))
        rates = race(contenders, rounds=rounds, seconds=seconds, label="step")
    figures = [
        Figure(f"{_own_name(stage)} ÷ {name}", paired_ratio(rates[_own_name(stage)], rates[name]), target=target)
        for stage in ZERO_STAGES
        for name, target in _TARGETS.items()
    ]
    shape = config.model
    return Outcome(
        title=(
            f"Training step: {shape.num_layers} layers × {shape.hidden_size}, vocabulary "
            f"{shape.vocab_size:,}, about {BATCH_ROWS * ROW_TOKENS:,} tokens an update, fp32, {cores} threads"
        ),
        unit="tokens",
        rates=rates,
        figures=tuple(figures),
    )


def _own_name(stage: int) -> str:
    return f"bertline, ZeRO-{stage}"


def _config(material: Material, *, zero_stage: int) -> Config:
    config = Config(
        name="bench",
        data=DataConfig(shards=str(material.shards), max_seq_len=ROW_TOKENS),
        model=ModelConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, max_positions=ROW_TOKENS),
        train=TrainConfig(steps=1, global_batch_size=BATCH_ROWS, micro_batch_size=BATCH_ROWS),
        engine=EngineConfig(ds_config=f"zero{zero_stage}", precision="fp32"),
    )
    return resolve(config, load_manifest(material.shards))


def _own_batches(config: Config, material: Material) -> list[Batch]:
    batch_plan = plan_batches(
        global_batch_size=BATCH_ROWS, micro_batch_size=BATCH_ROWS, dp_world_size=1, lanes=config.data.lanes
    )
    manifest = load_manifest(material.shards)
    with closing(loader_for(config, material.shards, manifest, dp_rank=0, batch_plan=batch_plan)) as loader:
        return [batch for step in itertools.islice(loader, _POOL_BATCHES) for batch in step]


def _own_engine(material: Material, stage: int, runtime: Runtime, stack: ExitStack) -> DataParallelStep:
    config = _config(material, zero_stage=stage)
    ds_plan = build_ds_config(
        config,
        topology=runtime.topology,
        batch_plan=plan_batches(
            global_batch_size=BATCH_ROWS, micro_batch_size=BATCH_ROWS, dp_world_size=1, lanes=config.data.lanes
        ),
        device_type=runtime.device.type,
        bf16_supported=runtime.bf16_supported,
    )
    return stack.enter_context(closing(make_engine(config, ds_plan=ds_plan, runtime=runtime, source=None)))


def _own_work(engine: DataParallelStep, batches: Sequence[Batch]) -> Callable[[], int]:
    turns = itertools.cycle(batches)
    steps = itertools.count()

    def work() -> int:
        batch = next(turns)
        float(engine.train_step([batch], step=next(steps), learning_rate=1e-4).loss)
        return batch.tokens

    return work


def _peer_batches(material: Material, *, tokens: float) -> dict[str, list[Any]]:
    """Collated batches by contender, each of about `tokens` tokens, from documents in a random order."""
    documents = list(material.read_tokens())
    shuffled = [documents[number] for number in np.random.default_rng(0).permutation(len(documents))]
    collate = masking_collator(material.tokenizer)
    cut = [framed(ids, longest=ROW_TOKENS) for ids in shuffled]
    padded_rows = max(1, round(tokens / mean(map(len, cut))))
    grouped_rows = max(1, round(tokens / ROW_TOKENS))
    rows = group_texts(shuffled, row_tokens=ROW_TOKENS)
    return {
        _PADDED: _pool(({"input_ids": row.tolist()} for row in cut), rows=padded_rows, collate=collate),
        _GROUPED: _pool(map(torch.from_numpy, rows), rows=grouped_rows, collate=collate),
    }


def _pool(examples: Iterable[Any], *, rows: int, collate: Callable[[list[Any]], Any]) -> list[Any]:
    stream = iter(examples)
    groups = (list(itertools.islice(stream, rows)) for _ in range(_POOL_BATCHES))
    return [collate(group) for group in groups if group]


def _peer_work(model: torch.nn.Module, batches: Sequence[Any]) -> Callable[[], int]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    turns = itertools.cycle(batches)

    def work() -> int:
        batch = next(turns)
        device = next(model.parameters()).device
        optimizer.zero_grad(set_to_none=True)
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        float(loss)
        mask = batch.get("attention_mask")
        return int(batch["input_ids"].numel() if mask is None else mask.sum())

    return work
