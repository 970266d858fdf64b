"""Muon for matrices and AdamW for the rest: every weight has one, both follow the schedule, both are saved."""

import torch

from vr1lib.training.optimizers import MuonWithAdamW


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(7, 6)
        self.hidden = torch.nn.Linear(6, 5)
        self.frozen = torch.nn.Linear(5, 5).requires_grad_(False)
        self.lm_head = torch.nn.Linear(5, 7, bias=False)

    def forward(self, ids):
        return self.lm_head(self.frozen(self.hidden(self.embed_tokens(ids))).tanh())


def train(model, optimizer, steps=1):
    ids = torch.arange(7)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def small(seed=0):
    torch.manual_seed(seed)
    return Small()


def test_hidden_matrices_go_to_muon_and_everything_else_that_trains_to_adamw():
    model = small()
    muon, adamw = MuonWithAdamW(model, 1e-2).parts
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [[names[id(p)] for group in part.param_groups for p in group["params"]] for part in (muon, adamw)]
    assert held == [["hidden.weight"], ["embed_tokens.weight", "hidden.bias", "lm_head.weight"]]
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (5e-2, 1e-2)


def test_a_schedule_moves_both_rates_and_training_moves_both_parts():
    model = small()
    optimizer = MuonWithAdamW(model, 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    train(model, optimizer)
    schedule.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [2.5e-2, 5e-3]
    moved = {name for name, weights in model.named_parameters() if not torch.equal(weights, before[name])}
    assert moved == set(before) - {"frozen.weight", "frozen.bias"}


def test_it_learns():
    model = small()
    optimizer = MuonWithAdamW(model, 1e-2)
    assert train(model, optimizer, 150) < 0.3 * train(small(), MuonWithAdamW(small(), 1e-2))


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened():
    straight, resumed = small(), small()
    first, second = MuonWithAdamW(straight, 1e-2), MuonWithAdamW(resumed, 1e-2)
    train(straight, first, 6)
    train(resumed, second, 3)
    again = MuonWithAdamW(resumed, 1e-2)
    again.load_state_dict(second.state_dict())
    train(resumed, again, 3)
    for one, other in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(one, other)
