"""The house's import order, read from the sources: a module imports its own level and those below, never above."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("trainer", "data_pipeline", "cluster")

# One line a level, lowest first. A name ending in .* is a whole folder, except for what is named by itself.
LEVELS = (
    ("trainer", "data_pipeline", "cluster", "trainer.errors"),
    (
        "trainer.strict_model",
        "trainer.optimizer_config",
        "trainer.schedule_config",
        "trainer.objective_config",
        "trainer.model_config",
        "trainer.augmentation_config",
        "trainer.matching_config",
        "trainer.places",
    ),
    (
        "trainer.data_config",
        "trainer.train_config",
        "trainer.config",
        "trainer.encoder_config",
        "trainer.topology",
        "trainer.phases",
        "trainer.events",
        "trainer.ranks",
        "trainer.strict_yaml",
        "trainer.setting_errors",
        "trainer.recipe",
        "trainer.seq2seq_config",
        "trainer.finetune_config",
        "trainer.finetune_plan",
    ),
    ("data_pipeline.*", "trainer.model.*", "cluster.*"),
    (
        "trainer.tasks.*",
        "trainer.recipes.*",
        "trainer.schedule",
        "trainer.optim",
        "trainer.metrics",
        "trainer.tensorboard_page",
        "trainer.throughput",
        "trainer.progress",
        "trainer.part_clock",
        "trainer.collectives",
        "trainer.flops",
        "trainer.device_peak",
        "trainer.device_figures",
        "trainer.half_precision",
        "trainer.memory",
        "trainer.ds_file",
        "trainer.ds_config",
        "trainer.meeting",
        "trainer.runtime",
        "trainer.preemption",
        "trainer.stall",
        "trainer.prepare",
    ),
    (
        "trainer.fragments",
        "trainer.ema",
        "trainer.layer_norms",
        "trainer.nonfinite",
        "trainer.forward_timer",
        "trainer.rank_health",
        "trainer.spikes",
        "trainer.checkpoint_files",
        "trainer.checkpoint",
        "trainer.checkpoint_writer",
        "trainer.step_sums",
        "trainer.step*",
        "trainer.evaluate",
        "trainer.example_fills",
        "trainer.run_folder",
        "trainer.state",
        "trainer.skip_report",
        "trainer.imported",
        "trainer.parity",
        "trainer.show_config",
        "trainer.activation_memory",
        "trainer.memory_plan",
        "trainer.communication_volume",
        "trainer.processor_figures",
        "trainer.time_model",
        "trainer.layout_candidates",
        "trainer.schedule_plot",
    ),
    (
        "trainer.resume",
        "trainer.export",
        "trainer.training_run",
        "trainer.pretraining_run",
        "trainer.task_evaluate",
        "trainer.task_start",
        "trainer.task_model",
        "trainer.task_export",
    ),
    ("trainer.setup", "trainer.finetune_data", "trainer.finetune_setup"),
    (
        "trainer.check",
        "trainer.check_text",
        "trainer.layout_plan",
        "trainer.plan_text",
        "trainer.loop",
        "trainer.fabric",
        "trainer.evaluate_run",
        "trainer.parity_run",
        "trainer.task_predict",
    ),
    (
        "trainer.pretrain",
        "trainer.finetune",
        "trainer.profile_run",
        "trainer.profile_text",
        "trainer.sweep",
        "trainer.suites.*",
        "trainer.serving.*",
    ),
    ("trainer.commands.*",),
    ("trainer.__main__", "trainer.demo", "data_pipeline.__main__", "cluster.__main__"),
)
STRANGERS = (("data_pipeline", "trainer.model"), ("data_pipeline", "cluster"), ("trainer.model", "cluster"))
MAY_IMPORT_DEEPSPEED = ("trainer.model.pipeline*", "trainer.runtime", "trainer.step*")
WITHOUT_TORCH = (
    "trainer.config",
    "trainer.phases",
    "trainer.topology",
    "trainer.recipe",
    "trainer.errors",
    "cluster",
    "cluster.*",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree):
    """Every dotted name that a source imports anywhere, in functions and for type checking too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


SOURCES = {
    module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.is_file()
}
IMPORTS = {name: set(imported_names(ast.parse(path.read_text()))) for name, path in SOURCES.items()}


def inside(name):
    """The project's own module that an imported name is in, if any: `trainer.errors.UserError` → trainer.errors."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


OWN_IMPORTS = {name: {inside(found) for found in names} - {None, name} for name, names in IMPORTS.items()}


def imports_package(name, package):
    return any(found == package or found.startswith(f"{package}.") for found in IMPORTS[name])


def level_of(name):
    """A module's level; one that has no place yet stands above all others."""
    exact = [level for level, patterns in enumerate(LEVELS) if name in patterns]
    by_pattern = [
        level
        for level, patterns in enumerate(LEVELS)
        for pattern in patterns
        if fnmatch(name, pattern) or f"{name}.*" == pattern
    ]
    return [*exact, *by_pattern, len(LEVELS)][0]


def reachable(name, *, packages):
    """What a module imports, and what that imports, and so on; with the packages around each, if wanted."""
    found, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        parent = current.rpartition(".")[0]
        new = OWN_IMPORTS[current] | ({parent} if packages and parent in SOURCES else set())
        waiting += new - found
        found |= new
    return found


def matching(patterns):
    return [name for name in SOURCES if any(fnmatch(name, pattern) for pattern in patterns)]


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_has_its_level(name):
    assert level_of(name) < len(LEVELS), f"{name} is in no level: place it in LEVELS of {Path(__file__).name}"


@pytest.mark.parametrize("name", SOURCES)
def test_no_module_imports_from_above(name):
    above = {found: level_of(found) for found in OWN_IMPORTS[name] if level_of(found) > level_of(name)}
    assert not above, f"{name} (level {level_of(name)}) imports from above: {above}"


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_neighbours_of_a_level_do_not_know_each_other(one, other):
    for name in matching([one, f"{one}.*"]):
        assert not imports_package(name, other), f"{name} imports {other}"
    for name in matching([other, f"{other}.*"]):
        assert not imports_package(name, one), f"{name} imports {one}"


@pytest.mark.parametrize("name", SOURCES)
def test_no_imports_go_in_a_circle(name):
    assert name not in reachable(name, packages=False), f"{name} imports something that imports it again"


def test_only_three_subjects_know_deepspeed():
    knowing = [name for name in SOURCES if imports_package(name, "deepspeed")]
    strangers = set(knowing) - set(matching(MAY_IMPORT_DEEPSPEED))
    assert not strangers, f"{sorted(strangers)} import deepspeed; only {MAY_IMPORT_DEEPSPEED} may"


def test_the_data_pipeline_knows_nothing_of_processes():
    for name in matching(["data_pipeline", "data_pipeline.*"]):
        assert not imports_package(name, "torch.distributed"), f"{name} imports torch.distributed"
        assert not imports_package(name, "deepspeed"), f"{name} imports deepspeed"


@pytest.mark.parametrize("name", matching(WITHOUT_TORCH))
def test_a_login_node_needs_no_torch(name):
    with_torch = sorted(found for found in {name} | reachable(name, packages=True) if imports_package(found, "torch"))
    assert not with_torch, f"{name} loads torch through {with_torch}"
