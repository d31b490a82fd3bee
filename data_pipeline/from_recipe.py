"""From a recipe's settings to the objects that read rows: the one way in which readers and loaders are built."""

from __future__ import annotations

from data_pipeline.corpus import Corpus, Source
from data_pipeline.hashing import derive_key
from data_pipeline.loader import Cursor, TrainLoader
from data_pipeline.manifest import SplitName
from data_pipeline.mixing import MixedReader
from data_pipeline.objective import masker_for, row_content_for
from data_pipeline.phased_loader import PhasedLoader
from data_pipeline.reader import Reader, RowReader
from data_pipeline.shards import BlockStore
from trainer.config import Config, data_config_hash
from trainer.errors import UserError
from trainer.phases import Phase, phases_of, plan_all_batches


def reader_for(
    config: Config, corpus: Corpus, *, split: SplitName, seed: int, phase: int = 0, dp_world_size: int = 1
) -> Reader:
    """The rows of one split of all sources, mixed by the recipe's weights; UserError when a source has none."""

    def read(number: int, source: Source) -> RowReader:
        if source.manifest.splits[split].documents == 0:
            raise UserError(_without_documents(source, split))
        return RowReader(
            BlockStore(source.folder, manifest=source.manifest, split=split, skipped=corpus.skipped),
            max_seq_len=config.data.max_seq_len,
            packing=config.data.packing,
            lanes=config.data.lanes,
            # Two sources that hold the same documents are not shuffled alike.
            seed=seed if number == 0 else derive_key("source", seed, number),
            phase=phase,
            dp_world_size=dp_world_size,
            source=number,
            content=row_content_for(config, corpus, source, training=split == "train"),
        )

    readers = [read(number, source) for number, source in enumerate(corpus.sources)]
    if len(readers) == 1:
        return readers[0]
    return MixedReader(readers, weights=[source.weight for source in corpus.sources], lanes=config.data.lanes)


def _without_documents(source: Source, split: SplitName) -> str:
    if split == "validation":
        return (
            f"{source.folder} holds no validation documents; build with --validation-fraction 0.01 "
            "(data.validation_fraction in a recipe with raw text), or set evaluation: null"
        )
    return f"{source.folder} holds no training documents; build with a smaller --validation-fraction, or more text"


def loader_for(config: Config, corpus: Corpus, *, dp_rank: int, dp_world_size: int) -> PhasedLoader:
    """The training rows of one data-parallel rank from step 0; UserError where a batch cannot be dealt evenly."""
    plan_all_batches(config, dp_world_size=dp_world_size)
    phases = phases_of(config)
    loaders = [_phase_loader(phase, corpus, dp_rank=dp_rank, dp_world_size=dp_world_size) for phase in phases]
    return PhasedLoader(phases, loaders, stops=config.data.on_exhausted == "stop")


def _phase_loader(phase: Phase, corpus: Corpus, *, dp_rank: int, dp_world_size: int) -> TrainLoader:
    config = phase.config
    cursor = Cursor(
        fingerprint=corpus.fingerprint,
        data_config_hash=data_config_hash(config),
        seed=config.seed,
        phase=phase.number,
        next_row=0,
    )
    return TrainLoader(
        reader_for(config, corpus, split="train", seed=config.seed, phase=phase.number, dp_world_size=dp_world_size),
        masker_for(config, corpus, seed=config.seed, phase=phase.number),
        cursor=cursor,
        batch_sizes=phase.batch_sizes,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        prefetch_batches=config.data.prefetch_batches,
    )
