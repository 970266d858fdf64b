"""Two processes do what one does on the same global batch: samples, metrics, weights; with DDP and with FSDP2."""

import pytest
import torch
from grpo_case import is_refused, make_case, read_lines, run_in_processes, train, without_times
from safetensors.torch import load_file

STAGES = ((6, 4, 2), (9, 2, 1))
ENDINGS = ("json", "safetensors")
SHARDING = {"ddp": {}, "fsdp2": {"sharding": "fsdp2"}}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


def compare(case, folder, spread, weights="model.safetensors", stages=STAGES, **options):
    """One process and two, spread as named, end with the same metrics, completions and weights."""
    one, two = folder / "one", folder / spread
    if not one.exists():
        assert run_in_processes(train, case, one, stages=stages, evaluate_every=2, **options) == [0]
    options = {**options, **SHARDING[spread]}
    assert run_in_processes(train, case, two, processes=2, stages=stages, evaluate_every=2, **options) == [0, 0]
    ours, theirs = ([without_times(row) for row in read_lines(out / "metrics.jsonl")] for out in (one, two))
    assert len(ours) == 1 + sum(steps for *_, steps in stages) and all(row["grad_norm"] > 0 for row in ours[1:])
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-5, nan_ok=True)
    texts = [
        [(row["step"], row["problem_id"], row["sample"], row["text"]) for row in read_lines(out / name)]
        for out in (one, two)
        for name in ("completions.jsonl", "evaluation.jsonl")
    ]
    assert texts[:2] == texts[2:]
    mine, other = (load_file(out / "model" / weights) for out in (one, two))
    assert mine.keys() == other.keys()
    for name in mine:
        assert torch.allclose(mine[name], other[name], atol=1e-5), name


@pytest.mark.parametrize("spread", SHARDING)
def test_full(case, tmp_path_factory, spread):
    compare(case, tmp_path_factory.getbasetemp() / "full", spread)


@pytest.mark.parametrize("spread", SHARDING)
def test_lora(case, tmp_path_factory, spread):
    compare(case, tmp_path_factory.getbasetemp() / "lora", spread, "adapter_model.safetensors", method="lora")


@pytest.mark.parametrize("spread", SHARDING)
def test_unequal_micro_batches_several_updates_and_refills(tied, tmp_path_factory, spread):
    compare(
        tied, tmp_path_factory.getbasetemp() / "unequal", spread, stages=((30, 5, 2),), updates_per_step=2,
        micro_batch_tokens=200,
        dynamic_sampling_refills=2, mask_truncated=True, temperature=1.5, loss="gspo", kl_coefficient=0.02,
    )  # fmt: skip


@pytest.mark.parametrize("spread", SHARDING)
def test_a_vision_tower_that_trains_while_some_rows_have_no_picture(case, tmp_path_factory, spread):
    compare(
        case, tmp_path_factory.getbasetemp() / "vision", spread, train_vision=True, micro_batch_tokens=60,
        prompts_per_step=6,
    )  # fmt: skip


def test_qlora_under_ddp(case, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "qlora"
    compare(case, folder, "ddp", "adapter_model.safetensors", method="qlora")


def test_bf16_sharded_samples_from_whole_copies_that_agree(case, tmp_path):
    """In bf16 two processes round otherwise than one; they still sample alike at first, and learn."""
    for name, processes, options in [("one", 1, {}), ("two", 2, {"sharding": "fsdp2"})]:
        codes = run_in_processes(train, case, tmp_path / name, processes=processes, bfloat16=True, **options)
        assert codes == [0] * processes
    one, two = (read_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert one[1]["reward/mean"] == two[1]["reward/mean"] and one[1]["length/mean"] == two[1]["length/mean"]
    assert two[1]["loss"] == pytest.approx(one[1]["loss"], abs=1e-3) and two[2]["grad_norm"] > 0
    assert two[1]["logprob_gap"] < 0.05 and two[1]["kl"] < 1e-3
    assert load_file(tmp_path / "two/model/model.safetensors")["lm_head.weight"].dtype == torch.float32


@pytest.mark.parametrize("spread", SHARDING)
def test_one_process_whose_gradient_is_nan_makes_all_of_them_skip_and_stop(case, tmp_path, spread):
    options = {"stages": ((4, 4, 5),), "max_bad_steps": 2, "nan_in_process": 1, **SHARDING[spread]}
    assert run_in_processes(train, case, tmp_path, processes=2, **options) == [1, 1]
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [row.get("bad_steps") for row in rows] == [None, 1, 2]
    for step in ("step-000001", "step-000002"):
        names = {path.name for path in (tmp_path / "bad_steps" / step).iterdir()}
        assert names == {"step.json", *(f"rows-{process}.{ending}" for process in (0, 1) for ending in ENDINGS)}


def test_settings_that_do_not_fit_the_processes_are_wrong_requests(case):
    options = {"prompts_per_step": 3}
    fault = "prompts_per_step = 3: not divisible by 2 processes; give a multiple"
    assert run_in_processes(is_refused, case, fault, processes=2, **options) == [0, 0]
    fault = "sharding = 'fsdp2': 4-bit weights can't be sharded; set sharding: none"
    assert run_in_processes(is_refused, case, fault, processes=2, method="qlora", sharding="fsdp2") == [0, 0]
