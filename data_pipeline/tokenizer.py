"""The tokenizer: a sentencepiece model in a folder of its own, with the facts that fix its ids.

The folder holds `spiece.model` and `bertline_tokenizer.json`. The latter is written last: where it is missing,
training was cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.atomic import write_atomically
from trainer.errors import UserError

ModelType = Literal["unigram", "bpe"]
Int32Array = npt.NDArray[np.int32]

MODEL_FILE = "spiece.model"
METADATA_FILE = "bertline_tokenizer.json"
SPECIAL_TOKEN_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
SPECIAL_PIECES = {name: f"[{name.upper()}]" for name in SPECIAL_TOKEN_IDS}


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

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of some ids; special tokens give nothing."""
        return cast(str, self.processor.decode([int(token) for token in ids]))

    def pieces(self) -> list[str]:
        """Every piece of the vocabulary, in the order of the ids."""
        return [self.processor.id_to_piece(token) for token in range(self.vocab_size)]


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
