import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.topology import BatchPlan, Topology, plan_batches, topology_from_env

SIZES = st.integers(min_value=1, max_value=64)


def place(rank, world_size, *, num_stages=1):
    return Topology(
        rank=rank, local_rank=rank, world_size=world_size, local_world_size=world_size, num_stages=num_stages
    )


def test_ranks_count_pipe_major():
    places = [place(rank, 6, num_stages=2) for rank in range(6)]
    assert [(one.stage_id, one.dp_rank) for one in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert {one.dp_world_size for one in places} == {3}


@given(dp_world_size=SIZES, num_stages=st.integers(1, 8))
def test_stage_and_replica_name_each_rank_once(dp_world_size, num_stages):
    world_size = dp_world_size * num_stages
    places = [place(rank, world_size, num_stages=num_stages) for rank in range(world_size)]
    assert [one.stage_id * one.dp_world_size + one.dp_rank for one in places] == list(range(world_size))
    assert len({(one.stage_id, one.dp_rank) for one in places}) == world_size


def test_a_process_without_a_launcher_is_alone():
    assert topology_from_env({"PATH": "/bin"}) == Topology(rank=0, local_rank=0, world_size=1, local_world_size=1)


@pytest.mark.parametrize("local_size", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_both_launchers_variables_are_read(local_size):
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", local_size: "4"}
    found = topology_from_env(env, num_stages=2)
    assert found == Topology(rank=5, local_rank=1, world_size=8, local_world_size=4, num_stages=2)


def test_half_an_environment_names_what_is_missing():
    with pytest.raises(UserError, match="sets RANK, LOCAL_RANK but not WORLD_SIZE, LOCAL_WORLD_SIZE; "):
        topology_from_env({"RANK": "0", "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "4"}, "RANK=4 is not in [0, WORLD_SIZE=4)"),
        ({"RANK": "-1"}, "RANK=-1 is not in [0, WORLD_SIZE=4)"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not in [0, LOCAL_WORLD_SIZE=2)"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 exceeds WORLD_SIZE=4"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a whole number"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(changed, message):
    env = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **changed}
    with pytest.raises(UserError, match=re.escape(message)):
        topology_from_env(env)


@pytest.mark.parametrize(("num_stages", "fits"), [(4, "3 or 6"), (5, "3 or 6"), (7, "6"), (0, "1")])
def test_stages_that_do_not_divide_the_world_are_refused_with_those_that_do(num_stages, fits):
    with pytest.raises(
        UserError, match=f"num_stages={num_stages} does not divide world_size=6; use num_stages={fits}$"
    ):
        place(0, 6, num_stages=num_stages)


def test_a_global_batch_is_split_over_ranks_and_micro_batches():
    plan = plan_batches(global_batch_size=96, micro_batch_size=8, dp_world_size=4, lanes=960)
    assert plan == BatchPlan(global_batch_size=96, micro_batch_size=8, grad_accum_steps=3, dp_world_size=4)
    assert plan.rows_per_rank == 24


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (1000, 32, 8),
            "global_batch_size=1000 is not divisible by micro_batch_size=32 × dp_world_size=8 (=256); "
            "use global_batch_size=1024 or micro_batch_size=25",
        ),
        (
            (16, 4, 8),
            "global_batch_size=16 is not divisible by micro_batch_size=4 × dp_world_size=8 (=32); "
            "use global_batch_size=32 or micro_batch_size=2 or dp_world_size=4",
        ),
        (
            (10, 4, 4),
            "global_batch_size=10 is not divisible by micro_batch_size=4 × dp_world_size=4 (=16); "
            "use global_batch_size=16",
        ),
        ((96, 8, 7), "dp_world_size=7 does not divide data.lanes=960; use dp_world_size=6 or 8"),
        ((96, 8, 1000), "dp_world_size=1000 does not divide data.lanes=960; use dp_world_size=960"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_do(sizes, message):
    with pytest.raises(UserError) as caught:
        plan_batches(global_batch_size=sizes[0], micro_batch_size=sizes[1], dp_world_size=sizes[2], lanes=960)
    assert str(caught.value) == message


@given(micro_batch_size=SIZES, grad_accum_steps=SIZES, dp_world_size=SIZES)
def test_every_product_of_three_sizes_is_planned_back_into_them(micro_batch_size, grad_accum_steps, dp_world_size):
    plan = plan_batches(
        global_batch_size=micro_batch_size * grad_accum_steps * dp_world_size,
        micro_batch_size=micro_batch_size,
        dp_world_size=dp_world_size,
        lanes=dp_world_size * 3,
    )
    assert plan.grad_accum_steps == grad_accum_steps
    assert plan.rows_per_rank * dp_world_size == plan.global_batch_size


@given(global_batch_size=st.integers(1, 5000), micro_batch_size=SIZES, dp_world_size=SIZES, lanes=st.integers(1, 1000))
def test_every_size_that_a_refusal_proposes_does_fit(global_batch_size, micro_batch_size, dp_world_size, lanes):
    asked = {
        "global_batch_size": global_batch_size,
        "micro_batch_size": micro_batch_size,
        "dp_world_size": dp_world_size,
        "lanes": lanes,
    }
    assume(lanes % dp_world_size == 0)
    try:
        plan_batches(**asked)
    except UserError as error:
        advice = str(error).partition("; use ")[2]
        for name, first, second in re.findall(r"(\w+)=(\d+)(?: or (\d+)(?!\S))?", advice):
            for size in filter(None, (first, second)):
                plan_batches(**{**asked, name: int(size)})
