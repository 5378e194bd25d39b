"""Where a process stands among the others, from what its launcher says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrib.errors import InputError
from distrib.runtime.topology import Topology, topology_of

MANY = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1"}


def test_without_a_launcher_there_is_one_process() -> None:
    alone = topology_of({"PATH": "/bin", "LOCAL_RANK": "3"})
    assert alone == Topology()
    assert alone.first
    assert alone.nodes == 1


def test_torchrun_says_all_there_is_to_know() -> None:
    found = topology_of(MANY)
    assert found == Topology(rank=5, world_size=8, local_rank=1, local_world_size=4, node_rank=1)
    assert not found.first
    assert found.nodes == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "8"},
        {"RANK": "-1"},
        {"RANK": "one"},
        {"RANK": ""},
        {"RANK": "1.0"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "6"},
        {"LOCAL_RANK": "4"},
        {"LOCAL_WORLD_SIZE": "0"},
        {"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"},
        {"GROUP_RANK": "x"},
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_with_its_value(changes: dict[str, str]) -> None:
    """A job would otherwise wait half an hour for processes that were never started."""
    with pytest.raises(InputError) as refused:
        topology_of({**MANY, **changes})
    assert next(iter(changes.values())) in str(refused.value)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
def test_half_of_a_launcher_is_none(name: str) -> None:
    """Several processes that each believe to be alone would overwrite each other's run."""
    with pytest.raises(InputError, match="unset"):
        topology_of({name: MANY[name]})


@given(st.dictionaries(st.sampled_from(sorted(MANY)), st.text(max_size=3)))
def test_whatever_the_variables_hold_there_is_a_sane_topology_or_a_sentence(
    variables: dict[str, str],
) -> None:
    try:
        found = topology_of(variables)
    except InputError:
        return
    assert 0 <= found.rank < found.world_size
    assert 0 <= found.local_rank < found.local_world_size
    assert found.nodes * found.local_world_size == found.world_size


@pytest.mark.parametrize("tasks", ["2,1", "3(x2),2", "2(x2),1(x3)"])
def test_nodes_with_different_numbers_of_tasks_are_refused(tasks: str) -> None:
    """Which GPUs of a node are whose would be guessed."""
    with pytest.raises(InputError, match=r"not every node has the same number .* --ntasks-per-node"):
        topology_of(
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "9",
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_TASKS_PER_NODE": tasks,
            }
        )


def test_srun_says_all_there_is_to_know() -> None:
    found = topology_of(
        {
            "SLURM_PROCID": "5",
            "SLURM_STEP_NUM_TASKS": "8",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            "SLURM_NODEID": "1",
            "SLURM_STEP_ID": "0",
        }
    )
    assert found == Topology(rank=5, world_size=8, local_rank=1, local_world_size=4, node_rank=1)
