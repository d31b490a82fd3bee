"""From a recipe's objective to what makes it: the masker, and what stands in a row."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.augmentation import Augmentation
from data_pipeline.corpus import Corpus, Source
from data_pipeline.damage import SkippedBlocks
from data_pipeline.manifest import WORDS_FIELD
from data_pipeline.mask_rate import MaskRate
from data_pipeline.masking import TokenMasker
from data_pipeline.pairs import PairRule
from data_pipeline.row_content import PLAIN_CONTENT, RowContent
from data_pipeline.shards import BlockStore
from data_pipeline.vocabulary import Vocabulary, load_tokenizer
from data_pipeline.word_masking import SpanMasker, WholeWordMasker
from trainer.config import Config
from trainer.errors import UserError


def masker_for(config: Config, corpus: Corpus, *, seed: int, phase: int = 0, training: bool = True) -> TokenMasker:
    """The recipe's masking over the corpus's tokenizer; held-out rows are masked at the rate that training ends with.

    UserError for whole words or spans of words where neither shards nor vocabulary tell words apart.
    """
    objective = config.objective
    rate = objective.mask_rate
    settings: dict[str, Any] = {
        "vocab_size": corpus.manifest.vocab_size,
        "mask_rate": MaskRate(rate.start if training else rate.end, rate.end, rate.rows or 1),
        "mask_token_rate": objective.mask_token_rate,
        "random_token_rate": objective.random_token_rate,
        "seed": seed,
        "phase": phase,
    }
    special = corpus.manifest.special_token_ids
    if objective.masking == "token":
        return TokenMasker(special_ids=sorted(special.values()), mask_id=special["mask"], **settings)
    vocabulary = _vocabulary(corpus)
    for source in corpus.sources:
        if not (vocabulary.knows_words or WORDS_FIELD in source.manifest.fields):
            raise UserError(
                f"objective.masking={objective.masking} needs to know where words begin, but {source.folder} stores no "
                f"words and only {vocabulary.word_start.mean():.1%} of its vocabulary's pieces begin one, as in a "
                "language without spaces; build the shards with --word-starts jieba (data.word_starts in a recipe), or "
                "use masking: token"
            )
    masker = SpanMasker if objective.masking == "span" else WholeWordMasker
    return masker(word_start=vocabulary.word_start, special_token_ids=special, **settings)


def row_content_for(config: Config, corpus: Corpus, source: Source, *, training: bool) -> RowContent:
    """What the rows of one source hold; held-out rows are paired as training rows are, but never augmented.

    UserError where the source allows no pairs.
    """
    objective, augmentation = config.objective, config.data.augmentation if training else None
    # Rows of different sources share a batch: all carry word starts where any must.
    words = (objective.masking != "token" or objective.pairs != "none") and any(
        WORDS_FIELD in one.manifest.fields for one in corpus.sources
    )
    if objective.pairs == "none" and augmentation is None and not words:
        return PLAIN_CONTENT
    vocabulary = _vocabulary(corpus)
    rule = None if objective.pairs == "none" else PairRule(objective.pairs, objective.negatives)
    if rule is not None:
        _check_pairs(rule, source, vocabulary=vocabulary, skipped=corpus.skipped)
    disturbed = None if augmentation is None else Augmentation(**augmentation.model_dump())
    return RowContent(vocabulary=vocabulary, pairs=rule, augmentation=disturbed, words=words)


def _check_pairs(rule: PairRule, source: Source, *, vocabulary: Vocabulary, skipped: SkippedBlocks | None) -> None:
    """UserError where no document has a neighbour to draw from, or none of the first block two sentences."""
    split = source.manifest.splits["train"]
    if rule.kind == "nsp" and split.documents == split.blocks:
        raise UserError(
            f"objective.pairs=nsp draws its negatives from other documents of a block, but each of the {split.blocks} "
            f"blocks of {source.folder} holds one document; build with larger blocks or shorter documents, or use "
            "pairs: sop"
        )
    block = BlockStore(source.folder, manifest=source.manifest, split="train", skipped=skipped).read_or_skip(0)
    if block is None:
        return
    ends = vocabulary.sentence_end.take(block.tokens)
    # A sentence that ends a document divides nothing.
    ends[np.cumsum(block.lengths, dtype=np.int64) - 1] = False
    if not ends.any():
        raise UserError(
            f"objective.pairs={rule.kind} needs documents of several sentences, but none of the {len(block.lengths)} "
            f"documents of the first block of {source.folder} has a sentence end inside; join sentences to documents "
            "(--document blank-line), or use pairs: none"
        )


def _vocabulary(corpus: Corpus) -> Vocabulary:
    first = corpus.sources[0]
    return Vocabulary.of_pieces(load_tokenizer(first.folder, first.manifest).pieces())
