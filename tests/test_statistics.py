import time
import tracemalloc

import numpy as np
import pytest

from vr1lib.analysis.statistics import (
    accuracy_interval,
    bootstrap_mean,
    bootstrap_mean_of_strata,
    clustered_accuracy,
    count_words,
    length_bins,
    length_thirds,
    mcnemar_exact,
    mean_accuracy,
    paired_difference,
    round_edges,
    stratified_difference,
    unpaired_difference,
)


def test_interval_of_a_share_is_the_binomials():
    # 100 of 400 right: standard error sqrt(.25 * .75 / 400) = .02165, so the ends lie 1.96 of it from .25.
    interval = bootstrap_mean([1] * 100 + [0] * 300)
    assert interval.mean == 0.25 and interval.n == 400
    assert interval.low == pytest.approx(0.25 - 0.0424, abs=0.004)
    assert interval.high == pytest.approx(0.25 + 0.0424, abs=0.004)


def test_multinomial_resampling_equals_drawing_rows():
    values = np.array([3, 3, 8, 20, 41, 41, 41, 77.0])
    rows = np.random.default_rng(1).choice(values, size=(20_000, 8)).mean(axis=1)
    interval = bootstrap_mean(values, resamples=20_000)
    assert interval.low == pytest.approx(np.quantile(rows, 0.025), abs=1.0)
    assert interval.high == pytest.approx(np.quantile(rows, 0.975), abs=1.0)


def test_the_same_seed_gives_the_same_interval():
    values = [0, 1, 1, 0, 1, 0, 0, 1, 1]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(np.arange(50), seed=3) != bootstrap_mean(np.arange(50), seed=4)


def test_many_rows_cost_no_more_than_few():
    interval = bootstrap_mean(np.arange(200_000) % 5000)
    assert interval.mean == pytest.approx(2499.5)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 5000 / np.sqrt(12 * 200_000), rel=0.1)


def test_strata_count_alike_whatever_their_size():
    # the paper's average over benchmarks: (1/4 + 3/4) / 2, not (1 + 75) / 104
    assert bootstrap_mean_of_strata([[1, 0, 0, 0], [1] * 75 + [0] * 25]).mean == 0.5


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_mean_of_strata([[1], []])


def test_none_right_is_not_certainty():
    # Clopper-Pearson: 1 - .025 ** (1 / 30) = .1157
    none = accuracy_interval([0] * 30)
    assert (none.mean, none.low) == (0, 0) and none.high == pytest.approx(0.1157, abs=1e-4)
    every = accuracy_interval([1] * 30)
    assert (every.mean, every.high) == (1, 1) and every.low == pytest.approx(0.8843, abs=1e-4)


def test_none_right_on_several_benchmarks_is_not_certainty_either():
    # exact ends: 1 - .025 ** (1 / 30) = .1157 and 1 - .025 ** (1 / 10) = .3085
    interval = mean_accuracy([[0] * 30, [0] * 10])
    assert (interval.mean, interval.low, interval.n) == (0, 0, 40)
    assert interval.high == pytest.approx((0.1157 + 0.3085) / 2, abs=1e-4)
    assert mean_accuracy([[1, 0]]) == accuracy_interval([1, 0])


def test_pairs_are_resampled_together():
    first, second = [1, 0] * 50, [1, 1] * 50  # second wins exactly where first fails
    difference = paired_difference(first, second)
    assert difference.mean == 0.5 and difference.excludes_zero
    same = paired_difference(first, first)
    assert (same.mean, same.low, same.high) == (0, 0, 0) and not same.excludes_zero


def test_unpaired_difference_adds_both_spreads():
    # .5 of 100 against .8 of 100: standard error sqrt(.0025 + .0016) = .064
    difference = unpaired_difference([1] * 50 + [0] * 50, [1] * 80 + [0] * 20)
    assert difference.mean == pytest.approx(0.3) and difference.n == 200
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * 0.064, rel=0.08)


def test_strata_take_out_what_differs_between_them():
    # pooled: 90 easy (all right) first, 90 hard (all wrong) second: a difference of -.8 that no stratum shows
    easy, hard = ([1] * 90, [1] * 10), ([0] * 10, [0] * 90)
    assert unpaired_difference([*easy[0], *hard[0]], [*easy[1], *hard[1]]).mean == pytest.approx(-0.8)
    assert stratified_difference([easy, hard]).mean == 0


def test_strata_count_by_their_smaller_side():
    # weights 2·2/4 = 1 and 1·3/4 = .75; differences 1 and 0: 1 / 1.75
    assert stratified_difference([([0, 0], [1, 1]), ([1], [1, 1, 1])]).mean == pytest.approx(1 / 1.75)


def test_unequal_lists_cannot_be_paired():
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        paired_difference([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="3 values cannot be paired with 2"):
        mcnemar_exact([1, 0, 1], [1, 0])


def test_mcnemar_by_hand():
    # 1 against 5 discordant pairs: 2 * (C(6,0) + C(6,1)) / 64 = 14/64
    test = mcnemar_exact([1, 0, 0, 0, 0, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0])
    assert (test.only_first, test.only_second) == (1, 5)
    assert test.p_value == pytest.approx(14 / 64)


def test_mcnemar_without_disagreement_or_with_an_even_one_has_p_one():
    assert mcnemar_exact([1, 0], [1, 0]).p_value == 1
    assert mcnemar_exact([1, 0], [0, 1]).p_value == 1


def test_mcnemar_holds_for_many_pairs():
    test = mcnemar_exact([0] * 60_000 + [1] * 59_000, [1] * 60_000 + [0] * 59_000)
    assert test.p_value == pytest.approx(0.00377, abs=0.0002)  # normal: (999 / sqrt(119000)) = 2.896 → .00378


def test_fixed_bins_have_share_and_accuracy():
    lengths = [10, 63, 64, 100, 128, 300]
    bins = length_bins(lengths, [1, 1, 1, 0, 0, 0], edges=[0, 64, 128])
    assert [item.n for item in bins] == [2, 2, 2]
    assert [item.accuracy.mean for item in bins] == [1, 0.5, 0]
    assert [item.share for item in bins] == [pytest.approx(1 / 3)] * 3
    assert [item.label for item in bins] == ["0–63", "64–127", "128+"]


def test_an_empty_bin_has_no_accuracy():
    bins = length_bins([1, 2], [1, 0], edges=[0, 64])
    assert bins[1].n == 0 and bins[1].accuracy is None and bins[1].share == 0


def test_thirds_are_equal_when_lengths_differ():
    lengths = [9, 1, 2, 3, 4, 5, 6, 7, 8]
    bins = length_thirds(lengths, [0, 1, 1, 1, 1, 0, 0, 0, 0])
    assert [item.n for item in bins] == [3, 3, 3]
    assert [item.accuracy.mean for item in bins] == [1, pytest.approx(1 / 3), 0]
    assert [item.label for item in bins] == ["1–3", "4–6", "7–9"]


def test_equal_lengths_stay_together_and_cuts_move_to_their_nearer_end():
    # two of 40, six of 45, four of 90: the cuts at 4 and 8 of 12 fall among and after the 45s
    bins = length_thirds([40] * 2 + [45] * 6 + [90] * 4, [1] * 8 + [0] * 4)
    assert [(item.n, item.label) for item in bins] == [(2, "40–44"), (6, "45–89"), (4, "90")]
    bins = length_thirds([46] * 8 + [90], [1] * 8 + [0])
    assert [(item.n, item.label, item.accuracy.mean) for item in bins] == [(8, "46–89", 1), (1, "90", 0)]
    assert len(length_thirds([46] * 9, [1] * 9)) == 1
    assert length_thirds([], []) == []


def test_words_are_whole_and_in_any_case():
    counts = count_words(["Wait, wait. Waiting awaits.", "Hmm. ALTERNATIVELY, check the checklist"])
    assert counts == {"Wait": 2, "Hmm": 1, "Alternatively": 1, "Mistake": 0, "Check": 1}


def test_two_hundred_thousand_values_take_under_a_second_and_little_memory():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 200_000)
    tracemalloc.start()
    for values in (right, rng.normal(size=200_000), rng.normal(size=4_999)):
        start = time.process_time()
        bootstrap_mean(values)
        assert time.process_time() - start < 1.5  # measured: 0.05, 0.02 and 0.4 s
    start = time.process_time()
    clustered_accuracy(right, np.repeat(np.arange(12_500), 16))
    assert time.process_time() - start < 1.5
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_rows_drawn_one_by_one_have_the_means_spread():
    values = np.random.default_rng(2).exponential(size=600)  # all distinct: rows are drawn
    interval = bootstrap_mean(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(600), rel=0.05)


def test_completions_of_one_problem_count_as_one_witness():
    # 40 problems with 10 equal completions each: the spread of 40 values, not of 400
    right, problems = np.repeat([1, 0] * 20, 10), np.repeat(np.arange(40), 10)
    interval = clustered_accuracy(right, problems)
    assert (interval.mean, interval.n) == (0.5, 400)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 40), rel=0.06)


def test_unequal_problems_weigh_by_their_completions():
    # problem a: 1 of 1 right, b: 0 of 3: a share of 1/4, whose resamples are 0 (b, b), 1/4 and 1 (a, a)
    interval = clustered_accuracy([1, 0, 0, 0], ["a", "b", "b", "b"])
    assert (interval.mean, interval.low, interval.high) == (0.25, 0, 1)


def test_none_right_is_as_unsure_as_there_are_problems():
    # Clopper-Pearson of 0 of 4 problems, not of 0 of 8 completions: 1 - .025 ** (1 / 4)
    none = clustered_accuracy([0] * 8, list("aabbccdd"))
    assert (none.mean, none.low, none.n) == (0, 0, 8) and none.high == pytest.approx(1 - 0.025**0.25)


def test_one_completion_a_problem_is_the_plain_interval():
    assert clustered_accuracy([1, 0, 1], ["a", "b", "c"]) == accuracy_interval([1, 0, 1])


def test_bins_know_whose_completions_they_hold():
    lengths, right = [10] * 40 + [90] * 40, [1, 1, 0, 0] * 20
    problems = [f"p{number // 4}" for number in range(80)]  # of every problem two right and two wrong
    plain, clustered = length_bins(lengths, right, [0, 64]), length_bins(lengths, right, [0, 64], problems)
    assert [part.n for part in clustered] == [40, 40]
    assert clustered[0].accuracy.high == clustered[0].accuracy.low == 0.5 < plain[0].accuracy.high


@pytest.mark.parametrize(
    "lengths, edges",
    [
        (range(101), [0, 20, 40, 60, 80]),  # 5th to 95th percentile: 5 to 95
        ([45] * 30, [0]),
        (range(1000, 9000), [0, 2000, 4000, 6000, 8000]),
        ([300, 310, 320, 330, 340], [0, 310, 320, 330]),
        ([0], [0]),
        ([], [0]),
    ],
)
def test_round_edges_hold_most_lengths_between_them(lengths, edges):
    assert round_edges(list(lengths)) == edges
