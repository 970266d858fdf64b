"""ShapeWorld: exact answers, pictures that hold what is asked, splits that share nothing, a teacher whose faults are
planned."""

import random

import numpy as np
import pytest

from vr1lib.data import shapeworld
from vr1lib.records import RequestError, open_image
from vr1lib.reward import grade

SCENE = {"family": "word", "grid": [["red", "blue"], ["red", "red"]], "target": "red", "price": 2}


def test_base_cot_spells_rows_counts_and_running_total(tmp_path):
    problem = shapeworld.make_problems(tmp_path, "train", 1, families=["word"])[0]
    problem = problem.model_copy(update={"answer": "6", "meta": {**problem.meta, "scene": SCENE}})
    assert shapeworld.write_base_cot(problem) == (
        "<think> red blue: red 1, total 1. red red: red 2, total 3. 3 times 2 is 6. </think>"
        "<answer> Final Answer:6 </answer>"
    )


def test_every_response_of_the_teacher_earns_the_hard_reward(tmp_path):
    problems = shapeworld.make_problems(tmp_path, "cold", 60, grid_sizes=(2, 3, 4))
    rng = random.Random(0)
    for problem in problems:
        reasoning = shapeworld.write_reasoning(problem, rng, repeat_probability=0.7)
        assert grade(shapeworld.assemble(reasoning, problem.answer), problem.answer).reward == 1
        assert grade(shapeworld.write_base_cot(problem), problem.answer).reward == 1


@pytest.mark.parametrize("family", shapeworld.FAMILIES)
def test_the_answer_is_what_the_picture_shows(tmp_path, family):
    for problem in shapeworld.make_problems(tmp_path, "test", 20, families=[family], grid_sizes=(3,)):
        scene = problem.meta["scene"]
        pixels = np.asarray(open_image(problem.images[0]))
        centres = pixels[shapeworld.CELL // 2 :: shapeworld.CELL, shapeworld.CELL // 2 :: shapeworld.CELL]
        assert (centres == np.array(shapeworld.COLOURS[scene["target"]])).all(axis=-1).any() or problem.answer == "0"
        seen = int((centres == np.array(shapeworld.COLOURS[scene["target"]])).all(axis=-1).sum())
        if family == "angle":
            rows, columns = (set(places) for places in np.nonzero((centres != 255).any(axis=-1)))
            assert problem.answer == ("90" if len(rows) > 1 and len(columns) > 1 else "180")
        else:
            assert problem.answer == str(seen * scene.get("price", 1))
        assert pixels.shape == (84, 84, 3)


def test_splits_share_no_picture_whatever_the_seed_and_the_question(tmp_path):
    grids = {}
    for split in shapeworld.SPLITS:
        for seed in (0, 1):
            for problem in shapeworld.make_problems(tmp_path, split, 60, seed, grid_sizes=(2, 3)):
                grids.setdefault(str(problem.meta["scene"]["grid"]), set()).add(split)
    assert len(grids) > 200 and all(len(splits) == 1 for splits in grids.values())


def test_same_seed_same_problems_and_another_seed_others(tmp_path):
    def ids(seed):
        return [problem.id for problem in shapeworld.make_problems(tmp_path, "rl", 20, seed, grid_sizes=(3,))]

    assert ids(3) == ids(3)
    assert len(set(ids(3))) == 20
    assert set(ids(3)) != set(ids(4))


def test_passes_follow_the_geometric_law_and_slips_only_stand_before_a_doubt(tmp_path):
    problem = shapeworld.make_problems(tmp_path, "cold", 1, families=["counting"], grid_sizes=(3,))[0]
    rng = random.Random(1)
    clean = shapeworld.write_reasoning(problem, rng, repeat_probability=0)
    passes, slipped = [], 0
    for _ in range(2000):
        text = shapeworld.write_reasoning(problem, rng, repeat_probability=0.5, slip_probability=0.25, max_passes=50)
        for word in shapeworld.REFLECTIONS:
            text = text.replace(f" {word} ", "|")
        looks = text.split("|")
        passes.append(len(looks))
        slipped += sum(look != clean for look in looks[:-1])
        assert looks[-1] == clean
    assert np.mean(passes) == pytest.approx(2.0, abs=0.12)  # 1 / (1 - 0.5); standard error 0.03
    assert slipped / (sum(passes) - len(passes)) == pytest.approx(0.25, abs=0.05)


def test_description_names_every_cell_and_no_answer(tmp_path):
    problem = shapeworld.make_problems(tmp_path, "cold", 1, families=["counting"], grid_sizes=(2,))[0]
    problem.meta["scene"] = SCENE
    text = shapeworld.write_description(problem, random.Random(0))
    assert text == "The image shows a grid of 2 rows. row 1: red, blue; row 2: red, red."


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"split": "trian", "count": 1}, "trian"),
        ({"split": "train", "count": 1, "families": ["maze"]}, "maze"),
        ({"split": "train", "count": 1, "grid_sizes": [9]}, "9"),
        ({"split": "test", "count": 100_000, "families": ["chart"], "grid_sizes": [2]}, "fewer than 100000"),
    ],
)
def test_what_the_world_cannot_draw_is_refused_in_one_line(tmp_path, arguments, named, monkeypatch):
    monkeypatch.setattr(shapeworld, "MAX_MISSES", 5000)
    with pytest.raises(RequestError, match=named) as error:
        shapeworld.make_problems(tmp_path, **arguments)
    assert "\n" not in str(error.value)
