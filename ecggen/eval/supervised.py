"""The supervised control: the same network with a head, trained end to end on the labels."""

from __future__ import annotations

import contextlib
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
from ecggen.utils.display import track

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
    with contextlib.ExitStack() as stack:
        stack.enter_context(_seeding)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        fresh = renderer.random_copy(seed)
        torch.manual_seed(seed)
        network = _Classifier(fresh, folder, splits["train"])
        if not draws(network):  # else dropout reads torch's generator: no other thread may seed it meanwhile
            stack.close()
        _train(network, splits, epochs, batch_size, seed)
    return {name: network.scores(part, batch_size) for name, part in splits.items() if name != "train"}


class _Classifier(nn.Module):
    """features of the network, standardised by a batch-independent LayerNorm, and a head.

    Labels train the weights: no inner step, a fifth of the time.
    """

    def __init__(self, fresh: Renderer, folder: WindowFolder, train: Records) -> None:
        super().__init__()
        self.body: Any = fresh.model
        self.folder, self.device, config = folder, fresh.device, fresh.config.model
        self.body.eval()
        with torch.no_grad():
            size = int(self.body.features(*self.read(train.rows[:1]), steps=0).shape[1])
        self.norm = nn.LayerNorm(size)
        self.head: nn.Module = make_head(config.head, size, train.labels.shape[1], config.head_hidden)
        self.to(self.device)
        for parameter in self.parameters():
            parameter.data = parameter.data.contiguous()  # laid out for rendering, it slows learning
            parameter.requires_grad_(True)

    def read(self, rows: Array) -> tuple[Tensor, Tensor]:
        """ecg and observed of rows of the folder."""
        ecg, observed = recorded_windows(self.folder, rows)
        return torch.as_tensor(ecg).to(self.device), torch.as_tensor(observed).to(self.device)

    def forward(self, ecg: Tensor, observed: Tensor) -> Tensor:
        return self.head(self.norm(self.body.features(ecg, observed, steps=0)))

    def scores(self, records: Records, batch_size: int) -> Array:
        """[m, C], the mean logits over the windows of each record."""
        self.eval()
        cuts = [records.rows[at : at + batch_size] for at in range(0, len(records.rows), batch_size)]
        with torch.no_grad():
            logits = torch.cat([self(*self.read(rows)).cpu() for rows in cuts])
        return records.average(logits.numpy().astype(np.float64))


def _train(network: _Classifier, splits: dict[str, Records], epochs: int, batch_size: int, seed: int) -> None:
    """Leaves the weights of the best epoch in the network."""
    best, highest, waited = copy.deepcopy(network.state_dict()), -np.inf, 0
    train, validation = splits["train"], splits["validation"]
    targets, positive = train.labels[train.code], validation.labels > 0
    turns = max(1, FEWEST_STEPS * BATCH // max(1, len(train.rows)))
    steps = epochs * turns * -(-len(train.rows) // BATCH)
    parameters = list(network.parameters())
    fused = network.device.type in ("cpu", "cuda")  # one operation instead of one for each parameter
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    generator = np.random.default_rng(seed)
    for _ in track("supervised epochs", range(epochs), epochs):
        network.train()
        for order in (generator.permutation(len(train.rows)) for _ in range(turns)):
            for at in range(0, len(order), BATCH):
                batch = np.sort(order[at : at + BATCH])
                logits = network(*network.read(train.rows[batch]))
                wanted = torch.as_tensor(targets[batch]).to(network.device)
                optimiser.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits, wanted).backward()
                nn.utils.clip_grad_norm_(parameters, CLIP)
                optimiser.step()
                schedule.step()
        scores = network.scores(validation, batch_size)
        area = nanmean(np.array([auroc(positive[:, c], of_class)[0] for c, of_class in enumerate(scores.T)]))
        waited += 1
        if area > highest:
            best, highest, waited = copy.deepcopy(network.state_dict()), area, 0
        if waited >= PATIENCE:
            break
    network.load_state_dict(best)
