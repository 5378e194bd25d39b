"""The network: shapes and names as kraken's, and lines that do not depend on their batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distrib.errors import InputError
from distrib.model.recurrent import SequenceLSTM
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import load_weights
from distrib.model.widths import LineWidths

# What kraken 7.1.1 builds: the output's shape (NCHW), the number of parameters, [line width, time steps].
FACTS = [json.loads(line) for line in Path(__file__).with_name("kraken_networks.jsonl").open()]
SPECS = [
    "[1,120,0,1 Cr3,13,8 Do0.1,2 Mp2,2 Cr3,9,8 Mp2,2 Cr3,9,8 Mp2,2 S1(1x0)1,3 Lbx12 Do0.1,2 Lbx12 Do O1c9]",
    "[1,48,0,1 Cr4,2,8,4,2 Gn4 Cr4,2,16,1,1 Gn4 Mp4,2,4,2 Cr3,3,16,1,1 Gn8 Mp1,2 S1(1x0)1,3 Lbx8 Cr9,1,5]",
    "[1,64,0,1 Cr3,3,8 Mp3,3 Lfys8 Lbx6 Do O1c7]",
    "[1,48,0,3 Cl3,3,4 Ct3,3,4,1,1,2,2 Cs1,1,4 Cm3,3,4 Clr3,4,4 Mp2,2 S1(1x0)1,3 Lfx6 Lrx6 O1c7]",
    "[1,30,0,1 (Cr3,3,4 Cr5,5,4) Mp2,2 (I [Cr3,3,8 Cr3,3,8]) A3,8 S1(1x0)1,3 Lbx5 O1c7]",
    "[1,32,0,1 CTr3,3,4,2,2 Cr3,3,4,2,2 Gbx4 S1(1x0)1,3 O1c9]",
    "[1,12,0,1 CTr4,5,4,1,2 CTm3,3,4 Mp3,2 Lby4 Gn2 S1(1x0)1,3 Lbxc4 O1ca5]",
    "[1,12,0,1 Cr3,3,4 S1(2x0)1,2 Cr3,3,4 S3(2x0)3,2 Mp2,2 S1(1x0)1,3 Lbx4 O1c5]",
    "[1,12,0,1 Cr3,3,4 S1(1x0)1,3 Cr1,3,4 A2,7 Lbx4 Lbxs4 O1c5]",
]


def trained_like(spec: str, seed: int = 0) -> VGSLNetwork:
    """A network with weights and biases of the size that training gives them."""
    torch.manual_seed(seed)
    network = VGSLNetwork(spec).eval()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return network


def batch_of(network: VGSLNetwork, widths: list[int], room: int = 5) -> tuple[Tensor, Tensor]:
    """Lines with noise, not zero, in the padding."""
    _, channels, height, _ = network.input_shape
    generator = torch.Generator().manual_seed(1)
    lines = torch.rand(len(widths), channels, height or 20, max(widths) + room, generator=generator)
    return lines, torch.tensor(widths)


def one_by_one(network: VGSLNetwork, lines: Tensor, widths: Tensor) -> Iterator[Tensor]:
    for line, width in zip(lines, widths.tolist(), strict=True):
        yield network(line[None, :, :, :width])[0]


@pytest.mark.oracle
def test_networks_are_krakens(oracle_dir: Path) -> None:
    """Weights could not be exchanged with kraken."""
    for case in json.loads((oracle_dir / "vgsl.json").read_text()):
        with torch.device("meta"):
            network = VGSLNetwork(case["spec"])
        assert network.spec == case["named_spec"]
        assert list(network.input_shape) == case["input_nchw"]
        assert list(network.output_shape) == case["output_nchw"]
        assert {name: list(value.shape) for name, value in network.state_dict().items()} == case["state_dict"]
        assert sum(parameter.numel() for parameter in network.parameters()) == case["parameters"]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact["spec"])
def test_more_networks_are_krakens(fact: dict[str, Any]) -> None:
    """A rarer block would be built otherwise than kraken builds it."""
    with torch.device("meta"):
        network = VGSLNetwork(fact["spec"])
    assert list(network.output_shape) == fact["output"]
    assert sum(parameter.numel() for parameter in network.parameters()) == fact["parameters"]
    widths = [width for width, _ in fact["steps"]]
    steps = [count for _, count in fact["steps"]]
    assert [network.output_width(width) for width in widths] == steps
    assert network.output_width(np.array(widths, dtype=np.int32)).tolist() == steps
    assert network.output_width(torch.tensor(widths)).tolist() == steps


@pytest.mark.oracle
def test_outputs_are_krakens(oracle_dir: Path) -> None:
    """The same weights would read other text than in kraken, or a line other text in another batch."""
    network = load_weights(oracle_dir / "small.safetensors").network
    facts = np.load(oracle_dir / "forward.npz")
    with torch.no_grad():
        scores, steps = network(torch.from_numpy(facts["x_single"]))
        np.testing.assert_allclose(scores.numpy(), facts["y_single"], atol=1e-5)
        assert steps.tolist() == facts["len_single"].tolist()
        lines, widths = torch.from_numpy(facts["x_batch"]), torch.from_numpy(facts["in_lens"])
        scores, steps = network(lines, widths)
    assert steps.tolist() == facts["len_batch"].tolist()
    for index, count in enumerate(steps.tolist()):
        np.testing.assert_allclose(
            scores[index : index + 1, :, :, :count].numpy(), facts[f"y_line_{index}"], atol=1e-5
        )


@pytest.mark.parametrize("spec", SPECS)
def test_a_line_does_not_depend_on_its_batch(spec: str) -> None:
    """Scores, widths or gradients of a line would change with the lines beside it."""
    network = trained_like(spec)
    lines, widths = batch_of(network, [91, 48, 70, 91])
    scores, steps = network(lines, widths)
    assert steps.tolist() == [network.output_width(width) for width in widths.tolist()]
    alone = list(one_by_one(network, lines, widths))
    together = [scores[index : index + 1, :, :, :count] for index, count in enumerate(steps.tolist())]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    gradients = [_gradients(network, outputs) for outputs in (together, alone)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max() + 1), rtol=1e-3)


def _gradients(network: VGSLNetwork, outputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    loss = sum((output * torch.randn(output.shape, generator=generator)).sum() for output in outputs)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)


@pytest.mark.oracle
def test_oracle_networks_do_not_depend_on_the_batch(oracle_dir: Path) -> None:
    """The networks people train would score a line by its neighbours."""
    for case in json.loads((oracle_dir / "vgsl.json").read_text()):
        network = trained_like(case["spec"])
        lines, widths = batch_of(network, [77, 51])
        with torch.no_grad():
            scores, steps = network(lines, widths)
            for index, alone in enumerate(one_by_one(network, lines, widths)):
                together = scores[index : index + 1, :, :, : int(steps[index])]
                torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_full_batches_are_neither_masked_nor_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of equal widths and single lines would pay for masks they do not need."""
    network = trained_like(SPECS[0])
    lines, _ = batch_of(network, [64, 64], room=0)
    expected = network(lines)[0]

    def forbidden(self: LineWidths, values: Tensor) -> None:
        raise AssertionError("a mask for a full batch")

    monkeypatch.setattr(LineWidths, "__init__", forbidden)
    torch.testing.assert_close(network(lines, torch.tensor([64, 64]))[0], expected)
    padded = torch.nn.functional.pad(lines, (0, 9), value=1.0)
    torch.testing.assert_close(network(padded, torch.tensor([64, 64]))[0], expected)


def test_packed_and_padded_sequences_agree() -> None:
    """A network would give other scores on a GPU, which packs, than on a CPU, which does not."""
    torch.manual_seed(0)
    for bidirectional, bias in ((True, True), (False, False)):
        lstm = SequenceLSTM(3, 4, bidirectional=bidirectional, bias=bias)
        rows, lengths = torch.randn(4, 9, 3), torch.tensor([9, 1, 5, 9])
        torch.testing.assert_close(lstm._padded(rows, lengths), lstm._packed(rows, lengths))


def test_bfloat16_and_channels_last() -> None:
    """Mixed precision or the faster memory order would stop with an error or change the result."""
    for spec in SPECS[:3]:
        network = trained_like(spec)
        lines, widths = batch_of(network, [64, 48])
        plain = network(lines, widths)[0].detach()
        last = trained_like(spec).to(memory_format=torch.channels_last)
        scores = last(lines.to(memory_format=torch.channels_last), widths)[0]
        torch.testing.assert_close(scores, plain, atol=1e-4, rtol=1e-3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = last.train()(lines, widths)[0]
        scores.float().sum().backward()
        last.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            assert float((last(lines, widths)[0] - plain).abs().max()) < 0.3
        assert all(parameter.grad is not None for parameter in last.parameters())


def test_too_narrow_lines_are_refused() -> None:
    """A sliver of a line would end in a traceback from inside a layer."""
    network = trained_like(SPECS[1])
    lines, widths = batch_of(network, [64, 3])
    with pytest.raises(InputError, match="3 pixels wide"):
        network(lines, widths)
    assert network.output_width(3) == 0
    assert network.output_width(torch.tensor([0, 3, 64])).tolist() == [0, 0, 7]


def test_initial_weights() -> None:
    """Training would start from weights that kraken's published settings were not made for."""
    torch.manual_seed(0)
    network = VGSLNetwork("[1,8,0,1 Cr3,3,64 CTr3,3,64 Gn8 S1(1x0)1,3 Lbx32 O1c20]")
    network.init_weights()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            for parameter in module.parameters():
                assert 0.09 < float(parameter.detach().abs().max()) <= 0.1
        elif isinstance(module, nn.LSTM):
            for name, value in module.named_parameters():
                parameter = value.detach()
                if name.startswith("weight"):
                    wide = parameter if len(parameter) <= parameter.shape[1] else parameter.T
                    gram = wide @ wide.T
                    torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
                else:
                    assert bool((parameter[32:64] == 1).all())
                    assert float(parameter[:32].abs().max()) <= 32**-0.5
        elif isinstance(module, nn.Linear):
            bound = (6 / (64 + 20)) ** 0.5
            assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("[1,48,0,1 Cr3,3,4 Gn3]", ("block 2 `Gn3`", "3 groups")),
        ("[1,48,0,1 Mp2,2 Mp25,2]", ("block 2 `Mp25,2`", "24 pixels high")),
        ("[1,48,0,1 S1(5x0)1,3]", ("block 1 `S1(5x0)1,3`", "48")),
        ("[1,0,0,1 S1(1x0)1,3]", ("block 1", "variable")),
        ("[1,48,0,1 S2(1x0)2,3]", ("block 1", "width", "variable")),
        ("[1,48,0,1 Cr3,3,4 A3,5]", ("block 2 `A3,5`", "larger")),
        ("[1,48,0,1 (I [Cr3,3,4 Mp2,2])]", ("parallel block", "height")),
        ("[1,48,0,1 (Mp1,2 Cr1,3,1,1,2)]", ("parallel block", "width")),
        ("[1,48,0,1 O1c4 Lbx3]", ("block 1 `O1c4`", "last")),
        ("[1,48,0,1 Cr{forward}3,3,4]", ("block 1", "cannot be a name")),
    ],
)
def test_impossible_networks_name_the_block(spec: str, words: tuple[str, ...]) -> None:
    """A spec that cannot work would fail in the first step, far from its cause."""
    with pytest.raises(InputError) as caught:
        VGSLNetwork(spec)
    assert all(word in str(caught.value) for word in words)


def test_recognition_spec() -> None:
    """Training would put the output layer outside the brackets or onto an image of several rows."""
    assert recognition_spec("[1,48,0,1 S1(1x0)1,3 Lbx4 ]", 7) == "[1,48,0,1 S1(1x0)1,3 Lbx4 O1c7]"
    with pytest.raises(InputError, match="48 pixels high"):
        recognition_spec("[1,48,0,1 Lbx4]", 7)
    with pytest.raises(InputError, match="block 2 `O1c9`"):
        recognition_spec("[1,48,0,1 S1(1x0)1,3 O1c9]", 7)
