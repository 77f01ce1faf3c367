import json
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmae.samplers import PERMUTATION_RULES, RULES, ComponentSampler, mask_from_permutation

FOUR = (0.5, 0.25, 0.125, 0.125)


def decaying(n=60):
    lam = np.arange(1, n + 1) ** -1.2
    return lam / lam.sum()


@cache
def many(rule):
    """20,000 masks at a ratio of 0.2."""
    return ComponentSampler(decaying(), 0.2, rule, min_masked=0, min_visible=0, seed=3).sample(20_000).numpy()


def chosen(rule, perm, ratio, shares=FOUR, **bounds):
    return set(np.flatnonzero(mask_from_permutation(shares, perm, ratio, rule, **bounds).numpy()))


# Worked by hand: π = (3, 1, 0, 2) gives S = .125, .375, .875, 1.
@pytest.mark.parametrize(
    ("rule", "ratio", "u", "hidden"),
    [
        ("paper", 0.3, 0.5, {3}),
        ("floor", 0.3, 0.5, {3}),
        ("nearest", 0.3, 0.5, {3, 1}),
        ("ceil", 0.3, 0.5, {3, 1}),
        ("unbiased", 0.3, 0.5, {3, 1}),  # one more with probability (.3 − .125) / .25 = .7
        ("unbiased", 0.3, 0.71, {3}),
        ("floor", 0.375, 0.5, {3, 1}),  # a share that is reached exactly counts
        ("ceil", 0.375, 0.5, {3, 1}),
        ("nearest", 0.25, 0.5, {3}),  # .125 and .375 are as close: the first
        ("paper", 0.25, 0.5, {3}),  # the empty set, but for min_masked = 1
        ("nearest", 0.9, 0.5, {3, 1, 0}),
        ("ceil", 0.9, 0.5, {3, 1, 0}),  # all four, but for min_visible = 1
    ],
)
def test_hand_worked_permutations(rule, ratio, u, hidden):
    assert chosen(rule, (3, 1, 0, 2), ratio, u=u) == hidden


def test_bounds_of_zero_allow_empty_and_full_masks():
    assert chosen("paper", (3, 1, 0, 2), 0.1, min_masked=0) == set()
    assert chosen("floor", (0, 1, 2, 3), 0.4, min_masked=0) == set()
    assert chosen("ceil", (3, 1, 0, 2), 0.9, min_visible=0) == {0, 1, 2, 3}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=30),
    st.randoms(use_true_random=False),
    st.floats(0.01, 0.99),
    st.floats(0, 0.999),
)
def test_rules_order_themselves_around_the_ratio(values, random, ratio, u):
    lam = np.array(values) / sum(values)
    perm = list(range(len(lam)))
    random.shuffle(perm)
    masks = {rule: mask_from_permutation(lam, perm, ratio, rule, u, 0, 0).numpy() for rule in PERMUTATION_RULES}
    share = {rule: lam[mask].sum() for rule, mask in masks.items()}
    k = {rule: int(mask.sum()) for rule, mask in masks.items()}
    for mask in masks.values():
        assert set(np.flatnonzero(mask)) == set(perm[: mask.sum()])
    assert share["floor"] <= ratio + 1e-12 <= share["ceil"] + 2e-12
    distance = abs(np.cumsum(lam[perm]) - ratio)
    assert k["nearest"] == int(distance.argmin()) + 1
    assert k["paper"] == k["nearest"] - 1
    assert k["unbiased"] in (k["floor"], k["floor"] + 1)
    bounded = mask_from_permutation(lam, perm, ratio, "paper", u).numpy()
    assert 1 <= bounded.sum() <= len(lam) - 1


@pytest.mark.parametrize("rule", ["unbiased", "balanced"])
def test_expected_share_is_the_ratio(rule):
    shares = many(rule) @ decaying()
    assert abs(shares.mean() - 0.2) < 4 * shares.std() / math.sqrt(len(shares))


@pytest.mark.parametrize("rule", ["balanced", "bernoulli", "count"])
def test_every_component_is_hidden_equally_often(rule):
    n, r = 20_000, 0.2
    often = many(rule).mean(0)
    assert (abs(often - r) < 5 * math.sqrt(r * (1 - r) / n)).all()


def test_balanced_masks_hold_the_share_up_to_one_component():
    lam = decaying()
    shares = ComponentSampler(lam, 0.3, "balanced", min_masked=0, seed=1).sample(2000).numpy() @ lam
    assert (abs(shares - 0.3) <= lam.max() + 1e-6).all()


def test_floor_never_hides_a_component_larger_than_the_ratio():
    assert decaying()[0] > 0.15
    assert not ComponentSampler(decaying(), 0.15, "floor").sample(3000)[:, 0].any()
    assert ComponentSampler(decaying(), 0.15, "balanced").sample(300)[:, 0].any()


def test_the_papers_rule_hides_less_than_it_says():
    sampler = ComponentSampler(decaying(), 0.15, "paper")
    assert sampler.masked_share(sampler.sample(5000)) < 0.13


def test_a_range_of_ratios_is_drawn_evenly():
    lam = np.full(400, 1 / 400)
    shares = ComponentSampler(lam, (0.1, 0.9), seed=2).sample(4000).numpy() @ lam
    assert abs(shares.mean() - 0.5) < 4 * shares.std() / math.sqrt(4000)
    assert abs(shares.std() - 0.8 / math.sqrt(12)) < 0.01


def test_radial_masks_are_the_low_or_the_high_frequencies():
    radii = np.arange(50.0)
    low = high = 0
    for mask in ComponentSampler(np.full(50, 0.02), 0.3, "radial", radii=radii).sample(200).numpy():
        hidden = np.flatnonzero(mask)
        assert len(hidden) == hidden[-1] - hidden[0] + 1
        low += hidden[0] == 0
        high += hidden[-1] == 49
    assert low + high == 200
    assert 60 < low < 140


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "radial"])
def test_masks_are_never_trivial_and_continue_from_a_saved_state(rule):
    lam = decaying(20)
    sampler = ComponentSampler(lam, 0.15, rule, seed=9)
    sampler.sample(7)
    state = json.loads(json.dumps(sampler.state_dict()))
    after = sampler.sample(500)
    assert after.sum(1).min() >= 1
    assert after.sum(1).max() <= 19
    other = ComponentSampler(lam, 0.15, rule, seed=1)
    other.load_state_dict(state)
    assert (other.sample(500) == after).all()
    assert sampler.sample().shape == (20,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ratio": 0.0}, "ratio=0"),
        ({"ratio": 1.0}, "ratio=1"),
        ({"ratio": (0.5, 0.2)}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"rule": "random"}, "floor, ceil"),
        ({"shares": (0.05, 0.05)}, "sum to"),
        ({"shares": (0.5, -0.5)}, "shares"),
        ({"shares": ()}, "shares"),
        ({"min_masked": 3, "min_visible": 2}, "leave no mask"),
        ({"rule": "radial"}, "radii"),
    ],
)
def test_impossible_samplers_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        ComponentSampler(**({"shares": FOUR, "ratio": 0.2} | change))


def test_what_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match="no permutation"):
        mask_from_permutation(FOUR, (0, 0, 1, 2), 0.2, "floor")


def test_a_ratio_is_one_number_or_a_pair():
    with pytest.raises(ValueError, match="one hidden share, or a pair"):
        ComponentSampler([0.5, 0.3, 0.2], ratio=(0.1, 0.2, 0.3))


def test_a_single_group_is_named_as_the_cause():
    with pytest.raises(ValueError, match="leave no mask of 1 groups: all images are mixtures of two"):
        ComponentSampler([1.0], ratio=0.2)
