"""Rows -> tensors: every row has the same length, so a batch is a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def collate(rows: Sequence[dict[str, Any]] | Mapping[str, Any]) -> dict[str, Any]:
    """Rows, one by one or stacked already, as a batch of tensors with the keys that they have.

    >>> batch = collate([{"input_ids": np.array([1, 2]), "is_pretrain": np.bool_(False)}])
    >>> batch["input_ids"].shape, batch["is_pretrain"].dtype
    (torch.Size([1, 2]), torch.bool)
    """
    import torch  # deferred: rows can be made and looked at without it

    if not isinstance(rows, Mapping):
        rows = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return {key: torch.from_numpy(values) for key, values in rows.items()}
