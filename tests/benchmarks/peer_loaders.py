"""The loader's peers: others' loaders, each with Hugging Face's masking collator, asked for one batch at a time.

Run as `python peer_loaders.py NAME FOLDER` in an environment of its own; it imports nothing of this project. FOLDER,
written by `tests.benchmarks.loader`, holds documents.npz and tokenizer/. It prints its versions as one line; then each
line of its input asks for one batch, answered by the batch's number of tokens that are not padding.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

Int64Array: TypeAlias = npt.NDArray[np.int64]
Collator: TypeAlias = Callable[[list[Any]], Any]
# Framed documents, a folder to store them in, and what makes a masked batch of rows: gives batches without end.
Peer: TypeAlias = Callable[[list[Int64Array], Path, Collator], Iterator[Any]]

ROW_TOKENS = 512
BATCH_ROWS = 32
# The batch of `datasets.map` in transformers' own example: what is left over of each is dropped.
_DOCUMENTS_A_GROUP = 1000
_SHUFFLED = 1000


def full_rows(documents: Iterable[Int64Array], *, row_tokens: int) -> Iterator[Int64Array]:
    """Framed documents laid end to end and cut into full rows, a thousand documents at a time (run_mlm.py's way)."""
    stream = iter(documents)
    while group := list(itertools.islice(stream, _DOCUMENTS_A_GROUP)):
        joined = np.concatenate(group)
        yield from joined[: len(joined) // row_tokens * row_tokens].reshape(-1, row_tokens)


def webdataset(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """One sample a document, as its users store them, grouped into rows as they come."""
    import webdataset as wds

    tar = folder / "documents-000000.tar"
    _write_samples(tar, documents)

    def rows(samples: Iterator[tuple[Any]]) -> Iterator[torch.Tensor]:
        stored = (tokens.astype(np.int64) for (tokens,) in samples)
        return map(torch.from_numpy, full_rows(stored, row_tokens=ROW_TOKENS))

    dataset = (
        wds.WebDataset(str(tar), shardshuffle=False)
        .shuffle(_SHUFFLED)
        .decode()
        .to_tuple("tokens.npy")
        .compose(rows)
        .batched(BATCH_ROWS, collation_fn=collate)
    )
    return itertools.chain.from_iterable(itertools.repeat(dataset))


def mosaicml(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """Full rows in MDS shards: nothing is left to do but to read, to shuffle and to mask."""
    _stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder / "mds"), columns={"input_ids": f"ndarray:int64:{ROW_TOKENS}"}) as writer:
        for row in full_rows(documents, row_tokens=ROW_TOKENS):
            writer.write({"input_ids": row})
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH_ROWS)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH_ROWS,
        collate_fn=lambda rows: collate([torch.tensor(row["input_ids"]) for row in rows]),
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def datasets(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """Full rows in parquet, streamed: nothing is left to do but to read, to shuffle and to mask."""
    import datasets as hf

    path = str(folder / "rows.parquet")
    rows = list(full_rows(documents, row_tokens=ROW_TOKENS))
    hf.Dataset.from_dict({"input_ids": rows}).to_parquet(path)
    dataset = hf.load_dataset("parquet", data_files=path, split="train", streaming=True, cache_dir=str(folder / "hf"))
    shuffled = dataset.shuffle(seed=0, buffer_size=_SHUFFLED).with_format("torch")
    loader = torch.utils.data.DataLoader(shuffled, batch_size=BATCH_ROWS, collate_fn=collate)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def energon(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """One sample a document, cut to a row's length, packed first fit from a buffer of a thousand."""
    from megatron import energon as megatron
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    @megatron.edataclass
    class Row(megatron.Sample):  # type: ignore[misc]  # it has no types here
        tokens: torch.Tensor

    def cook(sample: Any) -> Any:
        tokens = torch.from_numpy(sample["tokens.npy"].astype(np.int64))
        return Row(**megatron.basic_sample_keys(sample), tokens=tokens)

    def pack_selected_samples(encoder: object, samples: list[Any]) -> Any:
        return Row.derive_from(samples[0], tokens=torch.cat([sample.tokens for sample in samples]))

    def batch(encoder: object, samples: list[Any]) -> Any:
        return collate([{"input_ids": sample.tokens} for sample in samples])

    class Packer(megatron.DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (megatron.Cooker(megatron.stateless(cook)),)

        def select_samples_to_pack(self, samples: list[Any]) -> list[list[Any]]:
            return _first_fit(samples)

    Packer.pack_selected_samples = megatron.stateless(pack_selected_samples)
    Packer.batch = megatron.stateless(batch)
    _write_samples(folder / "documents-000000.tar", (tokens[:ROW_TOKENS] for tokens in documents))
    WebdatasetPreparator.prepare_dataset(
        folder, ["documents-000000.tar"], split_parts_ratio=[("train", 1.0)], workers=1
    )
    kind = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(kind, encoding="utf-8")
    dataset = megatron.get_train_dataset(
        folder,
        batch_size=BATCH_ROWS,
        packing_buffer_size=_SHUFFLED,
        shuffle_buffer_size=_SHUFFLED,
        max_samples_per_sequence=None,
        worker_config=megatron.WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Packer(),
    )
    return iter(megatron.get_loader(dataset))


def collator_tensors(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """The collator alone, over the same rows in memory."""
    rows = [torch.from_numpy(row) for row in _first_rows(documents)]
    return (collate(list(rows)) for _ in itertools.count())


def collator_lists(documents: list[Int64Array], folder: Path, collate: Collator) -> Iterator[Any]:
    """The collator alone, over rows as lists."""
    rows = [{"input_ids": row.tolist()} for row in _first_rows(documents)]
    return (collate(list(rows)) for _ in itertools.count())


def _stand_in_for_torchvision() -> None:
    """MosaicML's package imports it for data sets of pictures, which nothing here reads; it would have to fit torch."""
    needed = {"torchvision.datasets": ("VisionDataset",), "torchvision.transforms.functional": ("to_tensor",)}
    for name in ("torchvision", "torchvision.transforms", *needed):
        module = ModuleType(name)
        vars(module).update(dict.fromkeys(needed.get(name, ()), object))
        sys.modules[name] = module


def _first_fit(samples: list[Any]) -> list[list[Any]]:
    """Samples laid together, the longest first, each where it fits first."""
    rows: list[list[Any]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda one: -len(one.tokens)):
        need = len(sample.tokens)
        place = next((number for number, space in enumerate(free) if space >= need), len(free))
        if place == len(free):
            rows.append([])
            free.append(ROW_TOKENS)
        rows[place].append(sample)
        free[place] -= need
    return rows


def _write_samples(tar: Path, documents: Iterable[Int64Array]) -> None:
    import webdataset as wds

    with wds.TarWriter(str(tar)) as writer:
        for number, tokens in enumerate(documents):
            writer.write({"__key__": f"{number:08d}", "tokens.npy": tokens.astype(np.uint16)})


def _first_rows(documents: list[Int64Array]) -> list[Int64Array]:
    return list(itertools.islice(full_rows(documents, row_tokens=ROW_TOKENS), BATCH_ROWS))


PEERS: dict[str, Peer] = {
    peer.__name__: peer for peer in (webdataset, mosaicml, datasets, energon, collator_tensors, collator_lists)
}
_PACKAGES = {
    "webdataset": "webdataset",
    "mosaicml": "mosaicml-streaming",
    "datasets": "datasets",
    "energon": "megatron-energon",
}


def serve(name: str, folder: Path, *, requests: TextIO, answers: TextIO) -> None:
    """Make one batch for each line of `requests`, until they end."""
    torch.manual_seed(0)
    with np.load(folder / "documents.npz") as stored:
        documents = np.split(stored["tokens"].astype(np.int64), np.cumsum(stored["lengths"])[:-1])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    own_folder = folder / name
    own_folder.mkdir()
    batches = PEERS[name](documents, own_folder, DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15))
    packages = ("transformers", *filter(None, [_PACKAGES.get(name)]))
    print(
        " · ".join(f"{package} {importlib.metadata.version(package)}" for package in packages), file=answers, flush=True
    )
    for _ in requests:
        print(_tokens(next(batches)), file=answers, flush=True)


def _tokens(batch: Any) -> int:
    """Tokens that are not padding; without an attention mask all rows are full."""
    return int(batch["attention_mask"].sum()) if "attention_mask" in batch else int(batch["input_ids"].numel())


if __name__ == "__main__":
    # Whatever the libraries print must not get between the answers.
    own_output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.argv[1], Path(sys.argv[2]), requests=sys.stdin, answers=own_output)
