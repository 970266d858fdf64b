"""Group-relative advantage: how much better a completion did than its group (Section 3.4).

A_i = (r_i − mean(r)) / (std(r) + epsilon) over the group of one problem's completions. Std is unbiased (n − 1) and
epsilon 1e-6, as in EasyR1, on which the authors trained; the paper names neither. Without the division it is Dr.
GRPO's advantage.
"""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, epsilon: float = 1e-6, normalise_by_std: bool = True) -> Tensor:
    """Advantages [groups, group_size], float32, of `rewards` [groups, group_size].

    A group whose rewards are all equal teaches nothing: its advantages are exactly 0, as is that of a group of one.
    """
    if rewards.dim() != 2 or rewards.shape[1] == 0:
        raise ValueError(f"rewards must be [groups, group_size], got {tuple(rewards.shape)}")
    if not torch.isfinite(rewards).all():
        raise ValueError("rewards must be finite numbers")
    rewards = rewards.double()
    all_equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # [groups, 1]
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if normalise_by_std and rewards.shape[1] > 1:
        advantages = advantages / (rewards.std(dim=1, keepdim=True, unbiased=True) + epsilon)
    return advantages.masked_fill(all_equal, 0.0).float()
