"""Rows -> tensors: every row has the same length, so a batch is a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks rows into a batch of tensors with the keys that the rows have.

    >>> batch = collate([{"input_ids": np.array([1, 2]), "is_pretrain": np.bool_(False)}])
    >>> batch["input_ids"].shape, batch["is_pretrain"].dtype
    (torch.Size([1, 2]), torch.bool)
    """
    import torch  # deferred: rows can be made and looked at without it

    return {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
