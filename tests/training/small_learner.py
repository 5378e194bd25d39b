"""A recognition module with a tiny network, and a few of its steps in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from distrib.config.learning import Train
from distrib.model.codec import Codec
from distrib.model.vgsl import VGSLNetwork, recognition_spec
from distrib.model.weights import RecognitionModel
from distrib.runtime.processes import Processes
from distrib.runtime.strategies.plain import SingleProcess
from distrib.runtime.topology import Topology
from distrib.stream.batches import LineBatch, StepBatch
from distrib.training.recognition import RecognitionModule
from distrib.training.schedules import Place

SPEC = "[1,12,0,1 Cr3,3,4 Mp2,2 S1(1x0)1,3 Lbx6]"
WIDTHS = (40, 28, 22)
LINES = len(WIDTHS)


def learner(*, seed: int = 7, **options: Any) -> RecognitionModule:
    """A module with these options of training; equal weights for equal seeds."""
    torch.manual_seed(seed)
    codec = Codec.from_alphabet("abcd")
    network = VGSLNetwork(recognition_spec(SPEC, codec.num_classes))
    network.init_weights()
    return RecognitionModule(
        RecognitionModel(network=network, codec=codec),
        replace(Train(), global_batch_size=LINES, **options),
        processes=Processes(Topology()),
        seed=seed,
    )


def lines(number: int = 0) -> LineBatch:
    """A micro-batch of three lines of different widths."""
    draw = torch.Generator().manual_seed(number)
    images = torch.zeros((LINES, 1, 12, max(WIDTHS)), dtype=torch.uint8)
    for image, width in zip(images, WIDTHS, strict=True):
        image[..., :width] = torch.randint(0, 256, (1, 12, width), generator=draw).byte()
    lengths = torch.tensor([5, 3, 2])
    return LineBatch(
        images=images,
        widths=torch.tensor(WIDTHS),
        labels=torch.randint(1, 5, (int(lengths.sum()),), generator=draw),
        label_lengths=lengths,
        required_steps=2 * lengths,
        lines=torch.arange(LINES) + LINES * number,
        texts=["", "", ""],
        bad=[],
    )


def place(*, samples: int = 0, epoch: int = 0) -> Place:
    """Where a step stands that begins with so many lines done."""
    return Place(epoch=epoch, step=0, steps=10, number=samples // LINES, samples=samples)


def train(
    module: RecognitionModule,
    steps: int,
    *,
    start: Callable[[], object] = lambda: None,
    done: Callable[[int], object] = lambda _: None,
) -> SingleProcess:
    """Take steps of three lines each; ``done`` is told the number of each, ``start`` is called before all."""
    strategy = SingleProcess(device=torch.device("cpu"))
    store: Any = SimpleNamespace(votes=lambda: [0, 0], settle=lambda *_: None, failures=0)
    strategy.store = store

    class Told(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            start()

        def on_train_batch_end(self, *_: Any) -> None:
            done(module.trainer.global_step)

    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Told()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [
        StepBatch(micro_batches=[lines(step)], epoch=0, step=step, steps=steps, number=step)
        for step in range(steps)
    ]
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return strategy


def weights(module: RecognitionModule) -> dict[str, Tensor]:
    """Copies of all that is trained."""
    return {name: tensor.clone() for name, tensor in module.trained.state_dict().items()}
