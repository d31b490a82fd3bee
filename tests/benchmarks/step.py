"""The training step: our engine beside transformers' model in a bare PyTorch loop, on the same text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

from data_pipeline.batch import Batch
from data_pipeline.corpus import open_folder
from data_pipeline.from_recipe import loader_for
from data_pipeline.shards import load_manifest
from tests.benchmarks.hf_peers import framed, group_texts, masking_collator
from tests.benchmarks.material import Material
from tests.benchmarks.report import Figure, Outcome
from tests.benchmarks.timing import Contender, paired_ratio, race
from trainer.config import Config, DataConfig, EngineConfig, ModelConfig, TrainConfig
from trainer.ds_config import build_ds_config
from trainer.half_precision import half_precisions
from trainer.model.hf_config import to_hf_config
from trainer.model.loss_term import MASKED_LANGUAGE_MODEL
from trainer.phases import most_micro_steps
from trainer.runtime import Runtime, started
from trainer.setup import make_engine, resolve
from trainer.step import DataParallelStep
from trainer.topology import topology_from_env

ROW_TOKENS = 128
_BATCH_ROWS = 32
ZERO_STAGES = (0, 1)
_POOL_BATCHES = 16
_PADDED = "HF, padded, documents cut at 128"
_GROUPED = "HF, group_texts, full rows"
_TARGETS = {_PADDED: 3.0, _GROUPED: 2.2}


def measure_step(
    material: Material, *, cores: int, rounds: int, seconds: float = 2.5, batch_rows: int = _BATCH_ROWS
) -> Outcome:
    """Tokens a second that are not padding, in fp32, with `cores` threads.

    Whoever trains, the batches lie ready in memory, have about equally many tokens and are masked at 15 %; the
    update clips the gradient's norm to 1 and is torch's fused AdamW.
    """
    torch.manual_seed(0)
    config = _config(material, batch_rows=batch_rows)
    ours = _own_batches(config, material)
    peers = _peer_batches(material, tokens=mean(batch.tokens for batch in ours))
    with ExitStack() as stack:
        runtime = stack.enter_context(started(topology_from_env({}), deterministic=False))
        contenders = []
        for stage in ZERO_STAGES:
            engine = stack.enter_context(closing(_own_engine(config, stage, runtime)))
            contenders.append(Contender(_own_name(stage), _own_work(engine, ours)))
        for name, batches in peers.items():
            model = BertForMaskedLM(BertConfig(**to_hf_config(config.model, suffix="ForMaskedLM", dtype="float32")))
            contenders.append(Contender(name, _peer_work(model.train().to(runtime.device), batches)))
        rates = race(contenders, rounds=rounds, seconds=seconds, label="step")
    shape = config.model
    return Outcome(
        title=(
            f"Training step: {shape.num_layers} layers × {shape.hidden_size}, vocabulary {shape.vocab_size:,}, "
            f"about {batch_rows * ROW_TOKENS:,} tokens an update, fp32, {cores} threads"
        ),
        unit="tokens",
        rates=rates,
        figures=_figures(rates),
        remarks=(_padding_remark(ours, peers),),
    )


def _figures(rates: Mapping[str, Sequence[float]]) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{own} ÷ {name}", paired_ratio(rates[own], rates[name]), target=target)
        for own in map(_own_name, ZERO_STAGES)
        for name, target in _TARGETS.items()
    )


def _padding_remark(ours: Sequence[Batch], peers: Mapping[str, Sequence[Any]]) -> str:
    tokens_and_positions = {
        "bertline": [(batch.tokens, batch.input_ids.size) for batch in ours],
        **{name: [(_tokens(batch), batch["input_ids"].numel()) for batch in peers[name]] for name in peers},
    }
    shares = {name: 1.0 - np.divide(*np.sum(counts, axis=0)) for name, counts in tokens_and_positions.items()}
    return "padding: " + " · ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _own_name(stage: int) -> str:
    return f"bertline, ZeRO-{stage}"


def _config(material: Material, *, batch_rows: int) -> Config:
    config = Config(
        name="bench",
        data=DataConfig(shards=str(material.shards), max_seq_len=ROW_TOKENS),
        model=ModelConfig(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024, max_positions=ROW_TOKENS),
        train=TrainConfig(steps=1, global_batch_size=batch_rows, micro_batch_size=batch_rows),
    )
    return resolve(config, load_manifest(material.shards))


def _own_batches(config: Config, material: Material) -> list[Batch]:
    with closing(loader_for(config, open_folder(material.shards), dp_rank=0, dp_world_size=1)) as loader:
        return [batch for step in itertools.islice(loader, _POOL_BATCHES) for batch in step]


def _own_engine(config: Config, zero_stage: int, runtime: Runtime) -> DataParallelStep:
    engine = EngineConfig(ds_config=f"zero{zero_stage}", precision="fp32")
    ds_plan = build_ds_config(
        config.model_copy(update={"engine": engine}),
        topology=runtime.topology,
        batch_plan=most_micro_steps(config, dp_world_size=1),
        device_type=runtime.device.type,
        half_precisions=half_precisions(runtime.device.type),
    )
    return make_engine(config, ds_plan=ds_plan, runtime=runtime, source=None)


def _own_work(engine: DataParallelStep, batches: Sequence[Batch]) -> Callable[[], int]:
    turns = itertools.cycle(batches)
    steps = itertools.count()

    def work() -> int:
        batch = next(turns)
        float(engine.train_step([batch], step=next(steps), learning_rate=1e-4)[MASKED_LANGUAGE_MODEL].loss)
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
        float(loss.detach())
        return _tokens(batch)

    return work


def _tokens(batch: Any) -> int:
    """Tokens of a collated batch that are not padding."""
    mask = batch.get("attention_mask")
    return int(batch["input_ids"].numel() if mask is None else mask.sum())
