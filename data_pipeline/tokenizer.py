"""The tokenizer: a sentencepiece model in a folder of its own, with the facts that fix its ids.

The folder holds `spiece.model` and `bertline_tokenizer.json`. The latter is written last: where it is missing,
training was cut short.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.atomic import write_atomically
from data_pipeline.inputs import expand_inputs
from data_pipeline.sentences import SENTENCE_BYTES, sample_sentences, sentences
from data_pipeline.text import DEFAULT_MAX_DOCUMENT_BYTES, DocumentRule, TextOptions, check_options, iter_documents
from trainer.errors import UserError

ModelType = Literal["unigram", "bpe"]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]

MODEL_FILE = "spiece.model"
METADATA_FILE = "bertline_tokenizer.json"
SPECIAL_TOKEN_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
SPECIAL_PIECES = {name: f"[{name.upper()}]" for name in SPECIAL_TOKEN_IDS}
DEFAULT_MAX_SENTENCES = 1_000_000
# Part of what fixes the vocabulary: a Unigram model sums its counts thread by thread.
TRAINING_THREADS = 8

_SILENT = 2
_SCORE_STEPS = 256
# [CLS] and [SEP] take the places of the begin and end marks; as a control symbol [MASK] never comes out of text.
_SPECIAL_OPTIONS: dict[str, Any] = {
    f"{ours}_{part}": value
    for ours, name in {"pad": "pad", "unk": "unk", "bos": "cls", "eos": "sep"}.items()
    for part, value in {"id": SPECIAL_TOKEN_IDS[name], "piece": SPECIAL_PIECES[name]}.items()
}


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer; pickles as its folder's name and loads again where it arrives."""

    folder: Path
    vocab_size: int
    sha256: str
    special_token_ids: dict[str, int]
    processor: Any

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read a tokenizer folder; raises UserError when it is missing, unfinished, damaged or of another kind."""
        folder = Path(folder)
        metadata, model = _read_files(folder)
        digest = hashlib.sha256(model).hexdigest()
        if digest != metadata.get("sha256"):
            raise UserError(
                f"{folder / MODEL_FILE} is damaged: sha256 {digest[:16]}… where {METADATA_FILE} says "
                f"{str(metadata.get('sha256'))[:16]}…; copy or train the tokenizer again"
            )
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        found = {name: processor.piece_to_id(piece) for name, piece in SPECIAL_PIECES.items()}
        if found != SPECIAL_TOKEN_IDS or metadata.get("special_token_ids") != SPECIAL_TOKEN_IDS:
            raise UserError(
                f"{folder} has the special tokens {found}, where {SPECIAL_TOKEN_IDS} are needed; "
                "train it by `python -m data_pipeline tokenizer`"
            )
        return cls(folder, processor.vocab_size(), digest, found, processor)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Tokenizer.load, (self.folder,)

    @property
    def pad_id(self) -> int:
        """Id of [PAD]."""
        return self.special_token_ids["pad"]

    @property
    def unk_id(self) -> int:
        """Id of [UNK]."""
        return self.special_token_ids["unk"]

    @property
    def cls_id(self) -> int:
        """Id of [CLS]."""
        return self.special_token_ids["cls"]

    @property
    def sep_id(self) -> int:
        """Id of [SEP]."""
        return self.special_token_ids["sep"]

    @property
    def mask_id(self) -> int:
        """Id of [MASK]."""
        return self.special_token_ids["mask"]

    def encode_batch(self, texts: Sequence[str]) -> list[Int32Array]:
        """The ids of each text, int32 [tokens], without special tokens; one thread, and the GIL is free meanwhile."""
        return cast("list[Int32Array]", self.processor.encode(list(texts), return_type="numpy", num_threads=1))

    def encode_with_offsets(self, texts: Sequence[str]) -> tuple[list[Int32Array], list[Int64Array]]:
        """`encode_batch`, and where in its text each token lies: int64 [tokens, 2], first character and the end."""
        found = self.processor.encode(list(texts), return_type="offset_mapping", num_threads=1)
        return (
            [np.array(text["ids"], np.int32) for text in found],
            [np.array(text["offsets"], np.int64).reshape(-1, 2) for text in found],
        )

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of some ids; special tokens give nothing."""
        return cast(str, self.processor.decode([int(token) for token in ids]))

    def pieces(self) -> list[str]:
        """Every piece of the vocabulary, in the order of the ids."""
        return [self.processor.id_to_piece(token) for token in range(self.vocab_size)]


def train_tokenizer(
    paths: Sequence[str | Path],
    *,
    out: str | Path,
    vocab_size: int,
    model_type: ModelType = "unigram",
    character_coverage: float = 0.9995,
    seed: int = 0,
    document: DocumentRule = "line",
    text_field: str = "text",
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES,
    max_sentences: int = DEFAULT_MAX_SENTENCES,
    progress: bool = True,
) -> Tokenizer:
    """Train a tokenizer on text and write it to the folder `out`; one process calls this.

    At most `max_sentences` lines, drawn evenly from the whole input by `seed`, are held and learnt from. Raises
    UserError for bad input, a folder that already holds a tokenizer, and a vocabulary the text does not allow.
    """
    out = Path(out)
    if (out / METADATA_FILE).exists():
        raise UserError(f"{out} already holds a tokenizer; choose another --out, or remove it first")
    if vocab_size <= len(SPECIAL_TOKEN_IDS):
        raise UserError(f"--vocab-size {vocab_size} leaves no room beside the {len(SPECIAL_TOKEN_IDS)} special tokens")
    if not 0.0 < character_coverage <= 1.0:
        raise UserError(f"--character-coverage {character_coverage} is outside (0, 1]; the usual one is 0.9995")
    if max_sentences < 1:
        raise UserError(
            f"--max-sentences {max_sentences} is not positive; the usual number is {DEFAULT_MAX_SENTENCES:,}"
        )
    options = TextOptions(document, text_field, max_document_bytes)
    files = expand_inputs(paths)
    check_options(files, options=options)
    # Every build worker imports this module, and only training shows its progress.
    from data_pipeline.progress import status

    with status("reading text for the tokenizer", enabled=progress):
        sample = sample_sentences(sentences(iter_documents(files, options=options)), size=max_sentences, seed=seed)
    if not sample:
        raise UserError(f"{paths[0]}: the input holds no document, only blank lines; name files with text")
    with status(f"training a {model_type} vocabulary of {vocab_size:,} on {len(sample):,} lines", enabled=progress):
        model = _train(sample, vocab_size=vocab_size, model_type=model_type, character_coverage=character_coverage)
    return write_tokenizer(
        out,
        model=model,
        metadata={
            "vocab_size": vocab_size,
            "model_type": model_type,
            "character_coverage": character_coverage,
            "seed": seed,
            "sampled_sentences": len(sample),
            "max_sentences": max_sentences,
            "training_threads": TRAINING_THREADS,
            "sentencepiece_version": sentencepiece.__version__,
        },
    )


def write_tokenizer(folder: Path, *, model: bytes, metadata: dict[str, Any]) -> Tokenizer:
    """Write a tokenizer folder, whole or unfinished but never wrong, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MODEL_FILE, model)
    description = {
        **metadata,
        "special_token_ids": SPECIAL_TOKEN_IDS,
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    write_atomically(folder / METADATA_FILE, (json.dumps(description, indent=2, sort_keys=True) + "\n").encode())
    return Tokenizer.load(folder)


def copy_tokenizer(tokenizer: Tokenizer, *, folder: Path) -> None:
    """Write the same two files, byte for byte, into another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL_FILE, METADATA_FILE):
        write_atomically(folder / name, (tokenizer.folder / name).read_bytes())


def _train(sample: list[str], *, vocab_size: int, model_type: ModelType, character_coverage: float) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            max_sentence_length=SENTENCE_BYTES,
            num_threads=TRAINING_THREADS,
            minloglevel=_SILENT,
            control_symbols=[SPECIAL_PIECES["mask"]],
            **_SPECIAL_OPTIONS,
        )
    except RuntimeError as error:
        raise _explained(str(error), vocab_size=vocab_size) from error
    return _with_exact_scores(model.getvalue()) if model_type == "unigram" else model.getvalue()


def _with_exact_scores(model: bytes) -> bytes:
    """The Unigram model with scores rounded to multiples of 1/256, which is far finer than they are learnt.

    Sums of such scores are exact in 32-bit and in 64-bit floats alike, so that another implementation, which
    adds in the other width, breaks no tie differently and segments every text as sentencepiece does.
    """
    # Every build worker imports this module, and only training needs the messages.
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    rounded: bytes = proto.SerializeToString(deterministic=True)
    return rounded


def _explained(message: str, *, vocab_size: int) -> UserError:
    """What sentencepiece's refusal means, in one line."""
    if most := re.search(r"Vocabulary size too high \(\d+\).*<= (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is larger than this text allows; the largest that fits is {most[1]}: "
            "use that, or give more text"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is smaller than the {least[1]} characters and special tokens of this text; "
            "use a larger one, or a lower --character-coverage"
        )
    return UserError(f"sentencepiece refuses to train on this text: {message}")


def _read_files(folder: Path) -> tuple[dict[str, Any], bytes]:
    if not folder.is_dir():
        raise UserError(f"the tokenizer folder {folder} does not exist; make it by `python -m data_pipeline tokenizer`")
    for name in (METADATA_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is no finished tokenizer: it has no {name}; make it by `python -m data_pipeline tokenizer`"
            )
    try:
        metadata = json.loads((folder / METADATA_FILE).read_bytes())
    except ValueError as error:
        raise UserError(f"{folder / METADATA_FILE} is damaged: {error}; copy or train the tokenizer again") from error
    if not isinstance(metadata, dict):
        raise UserError(f"{folder / METADATA_FILE} is damaged: not a JSON object; copy or train the tokenizer again")
    return metadata, (folder / MODEL_FILE).read_bytes()
