"""The command line: from raw text to token shards, and what they hold."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from trainer.errors import UserError, run_command

_DESCRIPTION = """\
From raw text to token shards, in two steps:

  python -m data_pipeline tokenizer --input corpus/ --out tokenizer/ --vocab-size 30000
  python -m data_pipeline build     --input corpus/ --tokenizer tokenizer/ --out shards/

Then look at them and, after copying them, check them:

  python -m data_pipeline inspect shards/ --html shards.html
  python -m data_pipeline verify shards/

See in which order a run reads them, the same on any number of processes:

  python -m data_pipeline order RECIPE --steps 0:2 --world-size 4

Text is read from .txt (a document a line), .jsonl and .parquet (a text field each), .txt and .jsonl also
compressed by gzip (.gz) or zstd (.zst), and .tar (a WebDataset of .txt or .json members); from local paths,
http(s)://, s3:// and gs://."""

_INSPECT_CACHE_BYTES = 1 << 30
_EXIT_CODES = "Exit code: 0 when all is well, 1 when `verify` finds damage, 2 for a mistake, named in one line."


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line as a namespace; exits with 2 and a usage line for an unknown option."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_tokenizer(commands)
    _add_build(commands)
    verify = commands.add_parser("verify", help="read everything and check every checksum and count")
    verify.add_argument("folder", metavar="DIR", help="a folder of shards, or its http(s)://, s3:// or gs:// place")
    verify.add_argument("--sample", type=_natural, metavar="N", help="tokenize N documents of the text again too")
    verify.add_argument("--input", nargs="+", metavar="PATH", help="with --sample: the text the shards were built from")
    verify.set_defaults(run=_verify)
    inspect = commands.add_parser("inspect", help="print what shards hold")
    inspect.add_argument("folder", metavar="DIR", help="a folder of shards, or its http(s)://, s3:// or gs:// place")
    inspect.add_argument(
        "--examples", type=_natural, default=2, metavar="N", help="decoded documents and rows to show [2]"
    )
    inspect.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and masked rows too")
    inspect.set_defaults(run=_inspect)
    _add_order(commands)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code."""
    options = parse_arguments(arguments)
    return run_command(lambda: int(options.run(options)))


def _add_tokenizer(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("tokenizer", help="train a sentencepiece tokenizer on text")
    _add_input(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the tokenizer folder to make")
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="N", help="pieces, the special tokens included"
    )
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="unigram", help="[unigram]")
    parser.add_argument(
        "--character-coverage", type=float, default=0.9995, metavar="F", help="share of characters to know [0.9995]"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which lines a large input is sampled by [0]")
    parser.add_argument("--max-sentences", type=int, metavar="N", help="lines to learn from, drawn evenly [1,000,000]")
    parser.set_defaults(run=_tokenizer)


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("build", help="tokenize text into shards; started again, it goes on")
    _add_input(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a tokenizer folder")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the shard folder to make, or go on with"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes [the cores]; the shards do not depend on it"
    )
    parser.add_argument("--shard-tokens", type=int, metavar="N", help="tokens a shard [67,108,864]")
    parser.add_argument("--block-tokens", type=int, metavar="N", help="tokens a block [by the input's size]")
    parser.add_argument(
        "--validation-fraction", type=float, metavar="F", help="share of documents held out [0.01]; 0 for none"
    )
    parser.add_argument(
        "--word-starts",
        choices=("vocabulary", "jieba"),
        help="where words begin, for whole-word masking: by blanks, as the pieces say, or by jieba for Chinese "
        "[vocabulary]",
    )
    parser.add_argument(
        "--deduplicate",
        action="store_true",
        help="keep the first of documents that are equal but for white space and Unicode form",
    )
    parser.set_defaults(run=_build)


def _add_order(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("order", help="print a hash of every row that a run's steps train on, in order")
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a recipe's name")
    parser.add_argument(
        "--steps", type=_steps, required=True, metavar="A:B", help="the batches that take the run from step A to step B"
    )
    parser.add_argument("--world-size", type=_positive, default=1, metavar="W", help="ranks that read them [1]")
    parser.add_argument("--micro-batch-size", type=_positive, metavar="M", help="rows a rank reads at once [recipe]")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="set one value of the recipe"
    )
    parser.set_defaults(run=_order)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, URLs, folders, quoted globs")
    parser.add_argument(
        "--document", choices=("line", "blank-line"), default="line", help="what ends a document in .txt [line]"
    )
    parser.add_argument("--text-field", default="text", metavar="NAME", help="field or column that holds text [text]")
    parser.add_argument("--max-document-bytes", type=int, metavar="N", help="refuse a longer document [64 MiB]")


def _given(options: argparse.Namespace, *names: str) -> dict[str, object]:
    """The options that were given: what was left out has its default in the function that is called."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _tokenizer(options: argparse.Namespace) -> int:
    # Imported when used: --help and a build's worker processes, which load this module again, stay quick.
    from data_pipeline.tokenizer import train_tokenizer

    names = ("model_type", "character_coverage", "seed", "document", "text_field")
    tokenizer = train_tokenizer(
        options.input,
        out=options.out,
        vocab_size=options.vocab_size,
        **_given(options, *names, "max_sentences", "max_document_bytes"),  # type: ignore[arg-type]
    )
    print(f"{options.out}: {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256}")
    return 0


def _build(options: argparse.Namespace) -> int:
    from data_pipeline.mpi import build_over_ranks, mpi_world_size

    if mpi_world_size() == 1:
        return _build_here(options)
    return build_over_ranks(lambda executor, workers: _build_here(options, executor=executor, ranks=workers))


def _build_here(options: argparse.Namespace, *, executor: Executor | None = None, ranks: int | None = None) -> int:
    from data_pipeline.build import build_shards
    from data_pipeline.manifest import MANIFEST_FILE

    if ranks is not None and options.workers is not None:
        raise UserError("--workers is the number of processes without MPI; under mpirun leave it out: the ranks work")
    already_built = (options.out / MANIFEST_FILE).is_file()
    names = ("shard_tokens", "block_tokens", "validation_fraction", "document", "text_field", "word_starts")
    try:
        manifest = build_shards(
            options.input,
            tokenizer=options.tokenizer,
            out=options.out,
            workers=options.workers if ranks is None else ranks,
            deduplicate=options.deduplicate,
            executor=executor,
            **_given(options, *names, "max_document_bytes"),  # type: ignore[arg-type]
        )
    except KeyboardInterrupt:
        print("interrupted; finished shards are kept: run the same again to go on", file=sys.stderr)
        raise
    for name, split in manifest.splits.items():
        print(f"{name}: {split.tokens:,} tokens, {split.documents:,} documents in {len(split.shards)} shards")
    if manifest.duplicate_documents:
        print(f"{manifest.duplicate_documents:,} of {manifest.input_documents:,} documents were duplicates")
    print(f"{options.out}: {'already built' if already_built else 'built'}, fingerprint {manifest.fingerprint}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_pipeline.verify_remote import find_damage_anywhere, is_remote
    from data_pipeline.verify_text import find_differences

    if (options.sample is None) != (options.input is None):
        raise UserError("--sample N and --input PATH... go together: how many documents to compare, and their text")
    if options.sample is not None and is_remote(options.folder):
        raise UserError(f"--sample compares shards in a local folder with their text; copy {options.folder} first")
    manifest, findings = find_damage_anywhere(options.folder)
    damage = 0
    for line in findings:
        print(line, flush=True)
        damage += 1
    if options.sample is not None:
        for line in find_differences(
            Path(options.folder), manifest=manifest, paths=options.input, sample=options.sample
        ):
            print(line, flush=True)
            damage += 1
    if damage:
        print(f"{options.folder}: {damage} damaged; copy those files again, or remove the folder and build it again")
        return 1
    splits = manifest.splits.values()
    print(
        f"{options.folder}: all well; {sum(len(split.shards) for split in splits)} shards, "
        f"{sum(split.documents for split in splits):,} documents, {sum(split.tokens for split in splits):,} tokens"
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    import tempfile
    from dataclasses import replace

    from data_pipeline.facts import gather_facts
    from data_pipeline.remote_shards import CacheSettings, open_shards
    from data_pipeline.report import print_report

    if options.html is not None and not options.html.parent.is_dir():
        raise UserError(f"--html {options.html}: the folder {options.html.parent} does not exist; make it first")
    with tempfile.TemporaryDirectory(prefix="bertline-inspect-") as cache:
        folder = open_shards(options.folder, cache=CacheSettings(Path(cache), max_bytes=_INSPECT_CACHE_BYTES))
        facts = replace(gather_facts(folder, examples=options.examples), place=options.folder)
    print_report(facts)
    if options.html is not None:
        from data_pipeline.page import write_page

        write_page(options.html, facts)
        print(f"\n{options.html}: written")
    return 0


def _order(options: argparse.Namespace) -> int:
    from data_pipeline.corpus import open_corpus
    from data_pipeline.row_hashes import row_hashes
    from trainer.phases import with_micro_batch_size
    from trainer.prepare import shard_folders
    from trainer.recipe import load_recipe

    config = load_recipe(options.recipe, overrides=options.overrides)
    if options.micro_batch_size is not None:
        config = with_micro_batch_size(config, options.micro_batch_size)
    folders = shard_folders(config, report=lambda line: print(line, file=sys.stderr))
    first_step, end_step = options.steps
    rows = row_hashes(
        config,
        open_corpus(config.data.all_sources, folders),
        first_step=first_step,
        end_step=end_step,
        world_size=options.world_size,
    )
    for row in rows:
        print(row.step, row.row, row.hash)
    return 0


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _steps(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not colon or not first.isdecimal() or not end.isdecimal() or int(first) >= int(end):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B with A below B, as in 0:10")
    return int(first), int(end)


if __name__ == "__main__":
    sys.exit(main())
