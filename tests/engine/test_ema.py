import torch
from torch import nn

from engine.optim import ModelEma, ema_decay


class Toy(nn.Module):
    """Parameters, BatchNorm, a frozen scalar listed twice, constants: all that a detector has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.alias = nn.Module()
        self.alias.up = self.up
        self.register_buffer("periods", torch.rand(4))


def train_a_little(model: Toy) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.train()
    model.norm(torch.randn(8, 3))


def test_update_averages_weights_and_batch_norm_statistics() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.9, warmups=5)
    weight, mean = model.linear.weight.detach().clone(), model.norm.running_mean.clone()
    for update in (1, 2, 3):
        train_a_little(model)
        ema.update(model)
        d = ema_decay(update, 0.9, 5)
        weight = d * weight + (1 - d) * model.linear.weight.detach()
        mean = d * mean + (1 - d) * model.norm.running_mean
    torch.testing.assert_close(ema.module.linear.weight, weight)
    torch.testing.assert_close(ema.module.norm.running_mean, mean)
    assert ema.updates == 3


def test_constants_never_drift_and_counters_follow() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.9999, warmups=1000)
    for _ in range(50):
        train_a_little(model)
        ema.update(model)
    assert torch.equal(ema.module.periods, model.periods)
    assert torch.equal(ema.module.up, model.up)
    assert int(ema.module.norm.num_batches_tracked) == 50


def test_frozen_parameters_are_copied() -> None:
    model = Toy()
    model.linear.requires_grad_(False)
    ema = ModelEma(model, decay=0.9, warmups=0)
    model.linear.weight.data.fill_(3.0)
    ema.update(model)
    assert torch.equal(ema.module.linear.weight, model.linear.weight)


def test_the_decay_is_read_at_every_update() -> None:
    model = Toy()
    ema = ModelEma(model, decay=1.0, warmups=0)
    train_a_little(model)
    ema.update(model)
    assert not torch.allclose(ema.module.linear.weight, model.linear.weight)
    ema.decay = 0.0
    ema.update(model)
    torch.testing.assert_close(ema.module.linear.weight, model.linear.weight)


def test_start_skips_the_first_updates() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.0, warmups=0, start=1)
    before = model.linear.weight.detach().clone()
    train_a_little(model)
    ema.update(model)
    assert torch.equal(ema.module.linear.weight, before)
    ema.update(model)
    torch.testing.assert_close(ema.module.linear.weight, model.linear.weight)
