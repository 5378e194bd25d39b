"""Which device a process computes on, and what Lightning is told."""

from __future__ import annotations

import pytest
import torch

from distrib.errors import InputError
from distrib.runtime.cluster_environment import PlacedEnvironment
from distrib.runtime.devices import lightning_device, process_device
from distrib.runtime.strategies.plain import DataParallel
from distrib.runtime.topology import Topology

SECOND = Topology(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Torch sees as many GPUs as the parameter says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_each_gpu_of_a_node_serves_one_process(gpus: None) -> None:
    assert process_device("cuda", SECOND) == "cuda:1"
    assert lightning_device("auto", SECOND) == {"accelerator": "gpu", "devices": 2, "num_nodes": 2}
    environment = PlacedEnvironment(SECOND, device="auto")
    assert (environment.local_rank(), environment.node_rank()) == (1, 1)


@pytest.mark.parametrize("gpus", [1], indirect=True)
@pytest.mark.parametrize("device", ["auto", "cuda", "gpu"])
def test_a_process_bound_to_a_gpu_by_its_scheduler_takes_it(gpus: None, device: str) -> None:
    """--gpus-per-task and Ray show each process one GPU, which is its number 0, whatever its local rank."""
    assert process_device(device, SECOND) == "cuda:0"
    told = lightning_device(device, SECOND)
    assert told == {"accelerator": "gpu", "devices": [0], "num_nodes": 4}
    strategy = DataParallel()
    strategy.parallel_devices = [torch.device("cuda", 0)]
    strategy.num_nodes = told["num_nodes"]
    strategy.cluster_environment = PlacedEnvironment(SECOND, device=device)
    assert strategy.root_device == torch.device("cuda", 0)
    strategy.set_world_ranks()
    assert (strategy.global_rank, strategy.world_size) == (3, 4)
    assert strategy.distributed_sampler_kwargs == {"num_replicas": 4, "rank": 3}


@pytest.mark.parametrize("gpus", [1], indirect=True)
def test_on_the_cpu_nothing_is_bound(gpus: None) -> None:
    assert process_device("cpu", SECOND) == "cpu"
    assert lightning_device("cpu", SECOND) == {"accelerator": "cpu", "devices": 2, "num_nodes": 2}
    assert PlacedEnvironment(SECOND).local_rank() == 1


@pytest.mark.parametrize("gpus", [3], indirect=True)
def test_fewer_gpus_than_processes_are_refused(gpus: None) -> None:
    four = Topology(rank=0, world_size=4, local_rank=0, local_world_size=4)
    with pytest.raises(InputError, match=r"4 processes on a machine with 3 GPU\(s\)"):
        process_device("cuda", four)


@pytest.mark.parametrize("gpus", [2], indirect=True)
def test_all_processes_cannot_be_sent_to_one_gpu(gpus: None) -> None:
    with pytest.raises(InputError, match="cannot share it"):
        process_device("cuda:0", SECOND)


@pytest.mark.parametrize("gpus", [0], indirect=True)
def test_without_a_gpu_auto_is_the_cpu(gpus: None) -> None:
    assert process_device("auto", SECOND) == "cpu"
    with pytest.raises(InputError, match="no GPU"):
        process_device("cuda", SECOND)
