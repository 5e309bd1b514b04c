"""Classification heads on frozen or trained features."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """features [B, F] -> logits [B, C]."""

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, classes)

    def forward(self, features: Tensor) -> Tensor:
        assert features.ndim == 2, features.shape
        return self.linear(features)


class MLPHead(nn.Module):
    """features [B, F] -> logits [B, C] through one hidden layer."""

    def __init__(self, in_features: int, classes: int, hidden: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.hidden = nn.Linear(in_features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        assert features.ndim == 2, features.shape
        return self.out(self.dropout(torch.nn.functional.gelu(self.hidden(self.norm(features)))))


def make_head(kind: str, in_features: int, classes: int, hidden: int = 64) -> nn.Module:
    """The head that `model.head` names: "linear" or "mlp"."""
    if kind == "linear":
        return LinearHead(in_features, classes)
    if kind == "mlp":
        return MLPHead(in_features, classes, hidden)
    raise ValueError(f"model.head is {kind!r}: use linear or mlp.")
