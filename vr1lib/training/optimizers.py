"""Muon for matrices, AdamW for the rest, as one optimizer that `transformers.Trainer` can take.

Only the tiny base is trained from scratch, and there Muon pays: on ShapeWorld it learns to see in 300 steps of 32
rows, where AdamW at its best learning rate has not after 600 (our choice; EXPERIMENTS.md has the runs). Fine-tuning
keeps AdamW, as the paper does.
"""

from collections.abc import Callable

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the hidden matrices, `torch.optim.AdamW` on embeddings, head, vectors and convolutions.

    `learning_rate` is AdamW's; matrices move five times faster, because Muon's orthogonal update has a fixed size.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float = 0.0) -> None:
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        matrices = [parameter for name, parameter in trained if is_hidden_matrix(name, parameter)]
        others = [parameter for name, parameter in trained if not is_hidden_matrix(name, parameter)]
        self.parts = [
            torch.optim.Muon(matrices, lr=5 * learning_rate, weight_decay=weight_decay, adjust_lr_fn="original"),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.95)),
        ]
        super().__init__([{"params": matrices}, {"params": others}], {})
        self.param_groups = [
            group for part in self.parts for group in part.param_groups
        ]  # shared: a scheduler sets both

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def is_hidden_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
