import json
import os
import re
import subprocess
import sys

import pytest

from trainer.config import Config
from trainer.ds_config import build_ds_config
from trainer.ds_file import DS_CONFIGS_DIR, ZeroSection
from trainer.errors import UserError
from trainer.topology import Topology, plan_batches

SCALER = {"initial_scale_power": 12, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}
SHIPPED = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
PRECISIONS = ("fp32", "bf16", "fp16")


def config(*, ds_config="zero1", precision="auto", max_grad_norm=1.0, optimizer="adamw"):
    return Config.model_validate(
        {
            "name": "tiny",
            "data": {"shards": "somewhere"},
            "train": {"steps": 10, "global_batch_size": 24, "micro_batch_size": 4},
            "optimizer": {"name": optimizer, "max_grad_norm": max_grad_norm},
            "engine": {"ds_config": str(ds_config), "precision": precision},
        }
    )


def build(made, *, world_size=2, num_stages=1, device_type="cpu", half=("bf16", "fp16")):
    topology = Topology(rank=0, local_rank=0, world_size=world_size, local_world_size=world_size, num_stages=num_stages)
    batch_plan = plan_batches(global_batch_size=24, micro_batch_size=4, dp_world_size=topology.dp_world_size, lanes=960)
    return build_ds_config(
        made, topology=topology, batch_plan=batch_plan, device_type=device_type, half_precisions=frozenset(half)
    )


@pytest.fixture
def ds_file(tmp_path):
    def write(content):
        path = tmp_path / "own.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def refusal(path, **choices):
    with pytest.raises(UserError) as caught:
        build(config(ds_config=path, **choices))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_dict_is_exactly_the_file_joined_with_the_recipe():
    assert build(config(ds_config="zero1", precision="fp16", max_grad_norm=0.5)).config == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 0.5,
        "zero_optimization": {
            "stage": 1,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": 50000000,
            "allgather_bucket_size": 200000000,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
        "fp16": {**SCALER, "enabled": True},
    }


def test_shipped_files_hold_their_stage_and_one_scaler():
    assert {path.stem for path in DS_CONFIGS_DIR.glob("*.json")} == set(SHIPPED)
    for stage, name in zip((0, 1, 2, 3, 3), SHIPPED, strict=True):
        values = json.loads((DS_CONFIGS_DIR / f"{name}.json").read_text())
        assert values["zero_optimization"]["stage"] == stage
        assert values["fp16"] == SCALER
        assert values["communication_data_type"] == "fp32"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", range(4))
def test_half_precision_at_stage_0_runs_as_stage_1_and_says_so(stage, precision):
    plan = build(config(ds_config=f"zero{stage}", precision=precision))
    mapped = stage == 0 and precision != "fp32"
    assert plan.zero_stage == (1 if mapped else stage)
    assert plan.config["zero_optimization"]["stage"] == plan.zero_stage
    assert plan.precision == precision
    assert [note.startswith(f"ZeRO stage 0 in {precision} runs as stage 1") for note in plan.notes] == [True] * mapped
    for half in ("bf16", "fp16"):
        assert plan.config.get(half, {}).get("enabled", False) is (half == precision)


@pytest.mark.parametrize(
    ("device_type", "half", "precision"),
    [("cuda", {"bf16", "fp16"}, "bf16"), ("cuda", {"fp16"}, "fp32"), ("cpu", {"bf16", "fp16"}, "fp32")],
)
def test_auto_takes_bf16_only_where_a_cuda_device_has_it(device_type, half, precision):
    assert build(config(), device_type=device_type, half=half).precision == precision


def test_auto_follows_the_files_choice(ds_file):
    stage = {"zero_optimization": {"stage": 1}}
    assert build(config(ds_config=ds_file({**stage, "fp16": {"enabled": True}}))).precision == "fp16"
    path = ds_file({**stage, "bf16": {"enabled": False}})
    assert build(config(ds_config=path), device_type="cuda").precision == "fp32"


def test_a_scaler_that_the_file_leaves_out_is_the_shipped_one(ds_file):
    path = ds_file({"zero_optimization": {"stage": 1}})
    assert build(config(ds_config=path, precision="fp16")).config["fp16"] == {**SCALER, "enabled": True}


def test_whole_numbers_may_be_written_with_an_exponent(ds_file):
    path = ds_file('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e6}}')
    size = build(config(ds_config=path)).config["zero_optimization"]["reduce_bucket_size"]
    assert (size, type(size)) == (5000000, int)


@pytest.mark.parametrize(
    ("file", "precision", "message"),
    [
        ({"bf16": {"enabled": True}}, "fp16", "engine.precision='fp16' contradicts bf16.enabled=true in "),
        ({"bf16": {"enabled": False}}, "bf16", "engine.precision='bf16' contradicts bf16.enabled=false in "),
        ({"fp16": {"enabled": True}}, "fp32", "engine.precision='fp32' contradicts fp16.enabled=true in "),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "auto", "bf16.enabled and fp16.enabled are both true"),
        ({"communication_data_type": "fp16"}, "bf16", "does not go with precision bf16; use fp32 or bf16"),
    ],
)
def test_a_file_that_contradicts_the_recipe_is_refused(ds_file, file, precision, message):
    path = ds_file({"zero_optimization": {"stage": 1}, **file})
    assert message in refusal(path, precision=precision)


@pytest.mark.parametrize(
    ("device_type", "half", "precision", "message"),
    [
        ("cuda", {"fp16"}, "bf16", "engine.precision='bf16': this GPU has no bf16 arithmetic; use 'fp16' or 'fp32'"),
        (
            "cpu",
            {"bf16"},
            "fp16",
            "engine.precision='fp16': this processor has no fp16 arithmetic; use 'bf16' or 'fp32'",
        ),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(device_type, half, precision, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        build(config(precision=precision), device_type=device_type, half=half)


@pytest.mark.parametrize("optimizer", ["lamb", "stable_adamw", "muon"])
def test_an_optimizer_over_whole_tensors_is_refused_where_zero_cuts_them(optimizer):
    assert build(config(ds_config="zero0", precision="fp32", optimizer=optimizer)).zero_stage == 0
    for stage in (1, 2, 3):
        found = refusal(f"zero{stage}", precision="fp32", optimizer=optimizer)
        assert f"optimizer.name={optimizer!r} needs " in found
        assert f"which ZeRO stage {stage} of " in found
        assert "use engine.ds_config: zero0 with engine.precision: fp32, or another optimizer" in found
    assert "fp32 (bf16 at stage 0 runs as stage 1)" in refusal("zero0", precision="bf16", optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_an_optimizer_of_single_elements_goes_with_every_stage(optimizer):
    assert [build(config(ds_config=name, optimizer=optimizer)).zero_stage for name in SHIPPED] == [0, 1, 2, 3, 3]


def test_a_pipeline_takes_stage_0_or_1_only():
    assert build(config(ds_config="zero1"), num_stages=2).zero_stage == 1
    with pytest.raises(UserError, match=r"zero_optimization.stage=2 cannot be joined with parallel.num_stages=2"):
        build(config(ds_config="zero2"), num_stages=2)


def test_a_pipeline_overlaps_no_communication(ds_file):
    path = ds_file({"zero_optimization": {"stage": 1, "overlap_comm": True}})
    assert build(config(ds_config=path)).zero_stage == 1
    with pytest.raises(UserError, match=r"overlap_comm=true has no effect with parallel.num_stages=2: a pipeline"):
        build(config(ds_config=path), num_stages=2)


def test_the_optimisers_state_may_lie_in_host_memory():
    section = build(config(ds_config="zero3_offload")).config["zero_optimization"]
    assert (section["stage"], section["offload_optimizer"]) == (3, {"device": "cpu", "pin_memory": True})
    assert "offload_optimizer" not in build(config(ds_config="zero3")).config["zero_optimization"]


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("train_batch_size", "train.global_batch_size"),
        ("gradient_clipping", "optimizer.max_grad_norm"),
        ("scheduler", "schedule section"),
        ("tensorboard", "run folder"),
    ],
)
def test_what_the_recipe_decides_does_not_belong_in_the_file(ds_file, key, field):
    found = refusal(ds_file({"zero_optimization": {"stage": 1}, key: 1}))
    assert f"own.json: {key} does not belong in a DeepSpeed file" in found
    assert field in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimisation": {"stage": 1}}, "zero_optimisation is not a known key; did you mean zero_optimization?"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 1, "overlap": 1}},
            "zero_optimization.overlap is not a known key; did you mean",
        ),
        (
            {"zero_optimization": {"stage": 1, "overlap_comm": "auto"}},
            "overlap_comm='auto' is text and must be true or",
        ),
        ({"zero_optimization": {"stage": 1, "stage3_max_reuse_distance": 1}}, "has no effect here at stage 1"),
        ({"zero_optimization": {"stage": 1, "offload_param": {}}}, "zero_optimization.offload_param is not a"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer has no effect here at stage 2; remove it or use stage 3",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device='nvme' must be 'cpu'",
        ),
        ({"fp16": {"enabled": False}}, "zero_optimization is missing and has no default"),
        ('{"zero_optimization": {"stage": 1},\n}', "own.json:2: not JSON: "),
        ('{"fp16": {}, "fp16": {}}', "own.json: not readable as JSON: the key fp16 stands twice; remove one"),
        ("[]", "a DeepSpeed file is a mapping of keys to values, found a list"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(ds_file, content, message):
    assert message in refusal(ds_file(content))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero4", "is neither a .json file nor a name in ds_configs/; did you mean zero3?"),
        ("qqq", "there are zero0, zero1, zero2, zero3, zero3_offload"),
        ("missing/own.json", "engine.ds_config='missing/own.json': no such file"),
    ],
)
def test_a_file_that_is_not_there_is_refused(name, message):
    assert message in refusal(name)


def test_deepspeed_accepts_every_stage_and_precision_and_knows_every_zero_key():
    """In a process of its own: importing DeepSpeed takes seconds and changes logging."""
    plans = [build(config(ds_config=name, precision=kind), world_size=1) for name in SHIPPED for kind in PRECISIONS]
    script = (
        "import json, sys\n"
        "from deepspeed.runtime.config import DeepSpeedConfig\n"
        "from deepspeed.runtime.zero.config import DeepSpeedZeroConfig\n"
        "read = [DeepSpeedConfig(values) for values in json.load(sys.stdin)]\n"
        "found = [[int(one.zero_optimization_stage), one.bfloat16_config.enabled, one.float16_config.enabled,\n"
        "          one.grad_accum_dtype, str(one.communication_data_type), one.timers_config.enabled]\n"
        "         for one in read]\n"
        "fields = DeepSpeedZeroConfig.model_fields\n"
        "print(json.dumps([found, [field.alias or name for name, field in fields.items()]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([plan.config for plan in plans]),
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, zero_keys = json.loads(done.stdout.splitlines()[-1])
    assert found == [
        [plan.zero_stage, plan.precision == "bf16", plan.precision == "fp16", "fp32", "torch.float32", False]
        for plan in plans
    ]
    assert set(ZeroSection.model_fields) <= set(zero_keys)
