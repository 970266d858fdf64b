"""PTST's schedule: stage boundaries, budgets and refusals."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vr1lib.records import RequestError
from vr1lib.schedule import PTST_PAPER, PTST_PAPER_THIRD_STAGE, Schedule, Stage

triples = st.tuples(st.integers(1, 20000), st.integers(1, 64), st.integers(1, 50))


def test_paper_schedule_has_two_stages_of_equal_budget():
    schedule = Schedule(PTST_PAPER)
    assert schedule.stages == ((4096, 16, 100), (8192, 8, 100))
    assert schedule.total_steps == 200
    assert [schedule.token_budget(stage) for stage in schedule.stages] == [65536, 65536]
    assert schedule.equal_budget


def test_optional_third_stage_keeps_the_budget():
    assert Schedule((*PTST_PAPER, PTST_PAPER_THIRD_STAGE)).equal_budget
    assert PTST_PAPER_THIRD_STAGE == (16384, 4, 100)


def test_section_4_1_stage_one_of_8k_would_double_the_budget():
    assert not Schedule([[8192, 16, 100], [8192, 8, 100]]).equal_budget


@pytest.mark.parametrize(("step", "index"), [(0, 0), (99, 0), (100, 1), (199, 1)])
def test_stage_changes_after_its_last_step(step, index):
    assert Schedule(PTST_PAPER).stage_at(step) == (index, PTST_PAPER[index])


@pytest.mark.parametrize("step", [-1, 200])
def test_step_outside_the_schedule_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} .* 0 … 199"):
        Schedule(PTST_PAPER).stage_at(step)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"stages = \[\]"),
        ([[4096, 16]], r"stages\[0\] = \[4096, 16\]: give three:"),
        ([[64, 16, 30], "abc"], r"stages\[1\] = 'abc': give three:"),
        ([7], r"stages\[0\] = 7: give three:"),
        ([[64, 16, 30], [128, 0, 20]], r"stages\[1\], group_size = 0"),
        ([[64.5, 16, 30]], r"stages\[0\], max_completion_tokens = 64.5"),
        ([[64, 16, True]], r"stages\[0\], steps = True"),
    ],
)
def test_wrong_stage_is_named_in_one_line(stages, message):
    with pytest.raises(RequestError, match=message) as caught:
        Schedule(stages)
    assert "\n" not in str(caught.value)


@given(st.lists(triples, min_size=1, max_size=6))
def test_every_step_lies_in_one_stage_and_stages_get_their_steps_in_order(stages):
    schedule = Schedule(stages)
    indices = [schedule.stage_at(step)[0] for step in range(schedule.total_steps)]
    assert indices == sorted(indices)
    assert [indices.count(index) for index in range(len(stages))] == [steps for _, _, steps in stages]
    assert schedule.stages == tuple(Stage(*stage) for stage in stages)


@given(st.lists(triples, min_size=1, max_size=4))
def test_budget_is_equal_exactly_when_all_products_are(stages):
    assert Schedule(stages).equal_budget == (len({length * size for length, size, _ in stages}) == 1)


def test_schedule_imports_without_torch():
    code = "import vr1lib.schedule, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
