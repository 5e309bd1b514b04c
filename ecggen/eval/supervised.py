"""The supervised control: the same network with a head, trained end to end on the labels."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ecggen.eval.lead_sets import recorded_windows
from ecggen.eval.metrics import auroc, nanmean
from ecggen.eval.probe_features import Records
from ecggen.eval.result import Array, Renderer, WindowFolder
from ecggen.models.heads import make_head
from ecggen.training.devices import draws

LEARNING_RATE, WEIGHT_DECAY, BATCH, PATIENCE, CLIP = 1e-3, 0.01, 64, 3, 1.0
FEWEST_STEPS = 10  # an epoch has about so many, or more
_seeding = threading.Lock()  # torch's generator belongs to all threads


def supervised_scores(
    renderer: Renderer,
    folder: WindowFolder,
    splits: dict[str, Records],
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Array]:
    """Record logits {"validation": [m, C], "test": [m, C]} of the epoch with the best validation macro AUROC.

    AdamW, one cycle, binary cross-entropy per window; a record's score is the mean over its windows. Where
    there are few windows, an epoch goes through each several times.
    """
    with _seeding, torch.random.fork_rng(devices=[]):
        fresh = renderer.random_copy(seed)
        torch.manual_seed(seed)
        network = _Classifier(fresh.model, fresh.config.model, folder, splits["train"], fresh.device)
        if draws(network):  # dropout reads torch's generator: no other thread may seed it meanwhile
            return _trained_scores(network, folder, splits, epochs, batch_size, seed)
    return _trained_scores(network, folder, splits, epochs, batch_size, seed)


def _trained_scores(
    network: _Classifier,
    folder: WindowFolder,
    splits: dict[str, Records],
    epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Array]:
    device = next(network.parameters()).device
    best, score, waited = copy.deepcopy(network.state_dict()), -np.inf, 0
    train = splits["train"]
    targets = train.labels[train.code]
    turns = max(1, FEWEST_STEPS * BATCH // max(1, len(train.rows)))
    steps = epochs * turns * -(-len(train.rows) // BATCH)
    fused = device.type in ("cpu", "cuda")  # one operation instead of one for each parameter
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        for _ in range(turns):
            _epoch(network, folder, train.rows, targets, optimiser, schedule, generator)
        validation = splits["validation"]
        logits = validation.average(_logits(network, folder, validation.rows, batch_size, device))
        positive = validation.labels > 0
        now = nanmean(np.array([auroc(positive[:, c], s)[0] for c, s in enumerate(logits.T)]))
        waited += 1
        if now > score:
            best, score, waited = copy.deepcopy(network.state_dict()), now, 0
        if waited >= PATIENCE:
            break
    network.load_state_dict(best)
    return {
        name: part.average(_logits(network, folder, part.rows, batch_size, device))
        for name, part in splits.items()
        if name != "train"
    }


class _Classifier(nn.Module):
    """features of the network, standardised by a batch-independent LayerNorm, and a head.

    Labels train the weights: no inner step, a fifth of the time.
    """

    def __init__(self, body: Any, config: Any, folder: WindowFolder, train: Records, device: Any) -> None:
        super().__init__()
        self.body: Any = body
        ecg, observed = _read(folder, train.rows[:1], device)
        body.eval()
        with torch.no_grad():
            size = int(body.features(ecg, observed, steps=0).shape[1])
        self.norm = nn.LayerNorm(size)
        self.head: nn.Module = make_head(config.head, size, train.labels.shape[1], config.head_hidden)
        self.to(device)
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous()  # laid out for rendering, it slows learning
            parameter.requires_grad_(True)

    def forward(self, ecg: Tensor, observed: Tensor) -> Tensor:
        return self.head(self.norm(self.body.features(ecg, observed, steps=0)))


def _read(folder: WindowFolder, rows: Array, device: Any) -> tuple[Tensor, Tensor]:
    ecg, observed = recorded_windows(folder, rows)
    return torch.as_tensor(ecg).to(device), torch.as_tensor(observed).to(device)


def _epoch(
    network: _Classifier,
    folder: WindowFolder,
    rows: Array,
    targets: Array,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: np.random.Generator,
) -> None:
    network.train()
    device = next(network.parameters()).device
    order = generator.permutation(len(rows))
    parameters = list(network.parameters())
    for at in range(0, len(order), BATCH):
        batch = np.sort(order[at : at + BATCH])
        wanted = torch.as_tensor(targets[batch]).to(device)
        loss = nn.functional.binary_cross_entropy_with_logits(
            network(*_read(folder, rows[batch], device)), wanted
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        schedule.step()


def _logits(network: _Classifier, folder: WindowFolder, rows: Array, batch_size: int, device: Any) -> Array:
    """[n, C]."""
    network.eval()
    cuts = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    with torch.no_grad():
        logits = [network(*_read(folder, part, device)).cpu() for part in cuts]
    return torch.cat(logits).numpy().astype(np.float64)
