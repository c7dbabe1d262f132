"""Steps from tokens, names, and where each stage reads on."""

import pytest

from effarch.config import UserError
from effarch.distill.plan import plan
from effarch.distill.stages import Align, CrossEntropy, Logits, OnPolicy
from effarch.training.lora import LoRA
from effarch.training.trainable import All, Mixers

RUN = {"batch_size": 8, "seq_len": 64}


def test_tokens_are_shared_out():
    stages = (Align(share=0.25), Logits(), Logits(seq_len=256, batch_size=2), OnPolicy(share=0.25))
    places = plan(stages, **RUN, tokens=512 * 400)
    assert [place.stage.steps for place in places] == [100, 100, 100, 100]
    assert sum(place.tokens for place in places) == 512 * 400
    twice = plan(stages, **RUN, tokens=512 * 800)
    assert [place.stage.steps for place in twice] == [200] * 4
    assert [place.stage.steps for place in plan(stages, **RUN, tokens=1)] == [1] * 4  # at least one


def test_places_follow_each_other_in_steps_and_in_rows():
    stages = (Align(steps=10), Logits(steps=5, batch_size=3), Logits(steps=4, seq_len=128), CrossEntropy(steps=2))
    places = plan(stages, **RUN, tokens=None)
    assert [place.name for place in places] == ["align", "logits", "logits 2", "cross_entropy"]
    assert [(place.first, place.last) for place in places] == [(0, 10), (10, 15), (15, 19), (19, 21)]
    assert [(place.batch_size, place.seq_len) for place in places] == [(8, 64), (3, 64), (8, 128), (8, 64)]
    assert [place.batches_before for place in places] == [0, 27, 0, 12]  # 80 rows; none of 128; 80 + 15 rows
    assert [place.stage.transformation()[1](0) for place in places]


@pytest.mark.parametrize(
    ("shares", "tokens", "line"),
    [
        ((0.5, None), None, "a share is one of the run's tokens; expected a number of tokens, got null"),
        ((0.5, 0.4), 1000, "expected shares that are together 1, got 0.9"),
        ((0.5, 0.6), 1000, "expected shares that are together 1, got 1.1"),
        ((1.0, None), 1000, "expected shares that are together less than 1, for there are stages without one, got 1"),
    ],
)
def test_shares_that_do_not_fit(shares, tokens, line):
    with pytest.raises(UserError, match=line):
        plan(tuple(Logits(share=share) for share in shares), **RUN, tokens=tokens)


def test_what_stages_train():
    assert Align().trains == Mixers() and Logits().trains == All() == CrossEntropy().trains
    assert Logits(trains={"type": "lora", "rank": 4}).trains == LoRA(rank=4)
    with pytest.raises(ValueError, match="expected what align reaches, mixers, lora or named, got all"):
        Align(trains="all")
    stage = OnPolicy().ending_with(3)
    assert stage.end_token == 3 and OnPolicy(end_token=5).ending_with(3).end_token == 5
    assert Logits().ending_with(3) == Logits()
