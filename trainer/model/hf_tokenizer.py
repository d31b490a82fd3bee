"""The training tokenizer as a Hugging Face tokenizer that gives the same ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.model.hf_normalizer import build_normalizer

SENTENCEPIECE_FILE = "spiece.model"
# The names by which transformers knows the special tokens, in the order of their ids.
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_HF_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_UNIGRAM, _BPE = 1, 2


def export_tokenizer(folder: Path, *, out: Path, max_seq_len: int) -> int | None:
    """Write `folder`'s tokenizer into `out` and return its vocabulary's size.

    A sentencepiece folder becomes `tokenizer.json` and `tokenizer_config.json`; the files of a Hugging Face
    folder are copied as they are, and None is returned: such a model keeps the vocabulary that it came with.
    UserError where there is no tokenizer or where `tokenizers` cannot express it.
    """
    if (folder / SENTENCEPIECE_FILE).is_file():
        proto = read_sentencepiece(folder / SENTENCEPIECE_FILE)
        # Not by its own save, which tells of a full disk by a bare Exception.
        (out / "tokenizer.json").write_text(build_tokenizer(proto).to_str(pretty=True), encoding="utf-8")
        config = tokenizer_config(max_seq_len=max_seq_len)
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return len(proto.pieces)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"{folder} holds no tokenizer: expected {SENTENCEPIECE_FILE} (made by `data_pipeline tokenizer`), "
            "or tokenizer.json or vocab.txt (a Hugging Face folder)"
        )
    for name in _HF_TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    return None


def tokenizer_config(*, max_seq_len: int) -> dict[str, Any]:
    """What `AutoTokenizer` reads beside `tokenizer.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }


def read_sentencepiece(path: Path) -> Any:
    """The `ModelProto` of a sentencepiece model, refused where its ids could not be reproduced."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # the parser's own error class moves between protobuf's releases
        raise UserError(f"{path} is not a sentencepiece model ({error}); train the tokenizer again") from None
    for reason in _inexpressible(proto):
        raise UserError(f"{path} cannot be exported to Hugging Face: {reason}; train it with `data_pipeline tokenizer`")
    return proto


def _inexpressible(proto: Any) -> list[str]:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    specials = list(SPECIAL_TOKENS.values())
    found = [piece.piece for piece in proto.pieces[: len(specials)]]
    kinds = {piece.type for piece in proto.pieces[len(specials) :]}
    checks: list[tuple[bool, str]] = [
        (found == specials, f"its first pieces are {found}, expected {specials}"),
        (kinds <= {_NORMAL}, f"piece types {sorted(kinds - {_NORMAL})} beside normal pieces"),
        (trainer.model_type in (_UNIGRAM, _BPE), f"model type {trainer.model_type}, expected unigram (1) or bpe (2)"),
        (not trainer.byte_fallback, "byte_fallback is on"),
        (not trainer.treat_whitespace_as_suffix, "treat_whitespace_as_suffix is on"),
        (normalizer.name == "nmt_nfkc", f"its normalisation is {normalizer.name!r}, expected 'nmt_nfkc'"),
        (normalizer.add_dummy_prefix, "add_dummy_prefix is off"),
        (normalizer.remove_extra_whitespaces, "remove_extra_whitespaces is off"),
        (normalizer.escape_whitespaces, "escape_whitespaces is off"),
    ]
    return [reason for holds, reason in checks if not holds]


def build_tokenizer(proto: Any) -> Any:
    """A `tokenizers.Tokenizer` with the ids of the sentencepiece model; `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`.

    Two things differ by nature: the special tokens' names written out in a text become these tokens, which
    sentencepiece would spell, so that a person can write [MASK]; and where two unigram segmentations have
    scores equal but for rounding, the choice is that of 64-bit sums, not of sentencepiece's 32-bit ones
    (none is left to rounding where scores are multiples of 1/256).
    """
    tokenizers = _require_tokenizers()
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors

    models: dict[int, Callable[[Any], Any]] = {_UNIGRAM: _unigram, _BPE: _byte_pair_encoding}
    tokenizer = tokenizers.Tokenizer(models[proto.trainer_spec.model_type](proto))
    tokenizer.normalizer = build_normalizer(proto.normalizer_spec.precompiled_charsmap)
    # "first": what follows a [MASK] without a blank continues a word. No split: unknown characters fuse across blanks.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    names = list(SPECIAL_TOKENS.values())
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, names.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _unigram(proto: Any) -> Any:
    from tokenizers import models

    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    return models.Unigram(pieces, unk_id=list(SPECIAL_TOKENS.values()).index("[UNK]"), byte_fallback=False)


def _byte_pair_encoding(proto: Any) -> Any:
    from tokenizers import models

    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges = []
    for piece in sorted(proto.pieces, key=lambda piece: -piece.score):
        if piece.type != _NORMAL:
            continue
        cuts = ((piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)))
        merges += [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    return models.BPE(vocab=vocabulary, merges=merges, unk_token=SPECIAL_TOKENS["unk_token"], fuse_unk=True)


def _require_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError("exporting a tokenizer needs the package tokenizers: pip install 'bertline[hf]'") from None
    return tokenizers
