"""The sanity check: what gets new weights, whom it is asked about, what the correlation means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from attention.perturbation import Found
from attention.randomisation import closest, randomise, rank_correlation
from data.errors import UserError
from models.baselines import TorchvisionDetector
from models.detector import build_detector
from tests.support.models import images, shake, tiny_config
from tests.support.text_fusion import section, texts

PARTS = {"heads": "decoder.", "neck": "encoder.", "backbone": "backbone."}


def test_parts_get_new_weights_one_after_the_other_and_the_texts_stay() -> None:
    config = tiny_config(MultimodalFusion=section())
    model = build_detector(config)
    assert not isinstance(model, TorchvisionDetector)
    assert model.text_fusion is not None
    model.text_fusion.texts.set(*texts())
    shake(model)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    copies = randomise(model, config, seed=3)
    assert torch.equal(random_state, torch.get_rng_state())
    assert [one.name for one in copies] == list(PARTS)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    done: list[str] = ["text_fusion."]
    for name, other in copies:
        done.append(PARTS[name])
        after = other.state_dict()
        same = {key for key in learned if torch.equal(after[key], before[key])}
        assert same == {key for key in learned if not key.startswith(tuple(done))}
        assert torch.equal(after["text_fusion.texts.embeds"], before["text_fusion.texts.embeds"])
        assert bool(torch.isfinite(other(images(1))["pred_logits"]).all())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = randomise(model, config, seed=3)[-1].model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in copies[-1].model.state_dict().items())


def test_only_detectors_have_parts() -> None:
    with pytest.raises(UserError, match="not for a model of type Linear"):
        randomise(nn.Linear(1, 1), tiny_config(), 0)


def test_the_nearest_detection_is_asked_about() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.7, 0.7]])
    found = Found(boxes, torch.tensor([[0.9, 0.0], [0.2, 0.1]]))
    assert closest(found, torch.tensor([0.55, 0.5, 0.7, 0.7]), 1) == (1, 1)
    assert closest(found, torch.tensor([0.3, 0.3, 0.34, 0.34]), 0) == (0, 0)  # none overlaps: the nearer one
    assert closest(found, boxes[0], 1) == (0, 0)  # a baseline's detection has its own class only
    assert closest(Found(torch.zeros(0, 4), torch.zeros(0, 2)), boxes[0], 1) is None


@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), st.floats(0.5, 3))
def test_only_ranks_count(values: list[float], power: float) -> None:
    one = torch.tensor(values).reshape(2, 3)
    assert rank_correlation(one, one) == 1
    order = torch.arange(6.0).reshape(2, 3)
    assert rank_correlation(order, order**power) == pytest.approx(1)
    assert rank_correlation(order, -order) == pytest.approx(-1)
    assert -1 <= rank_correlation(one, order) <= 1
    assert rank_correlation(torch.full((2, 3), 2.0), order) == 0
    assert not np.isnan(rank_correlation(torch.zeros(2, 3), torch.ones(2, 3)))
