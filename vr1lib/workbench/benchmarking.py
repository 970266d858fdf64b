"""Who answers and who judges in 40_benchmark: its parameters as a model here or behind endpoints, and a judge."""

from pathlib import Path

from vr1lib.benchmarks.generation import TRIES, Answerer, LocalModel, ServedModel
from vr1lib.benchmarks.judge import Judge, sampling_of_judge
from vr1lib.benchmarks.protocol import Sampling
from vr1lib.benchmarks.server import ModelServer, check_reachable
from vr1lib.benchmarks.shards import Conditions, made_by
from vr1lib.data import endpoints as served
from vr1lib.models.vlm import Vlm
from vr1lib.workbench.params import BenchmarkParameters
from vr1lib.workbench.teachers import endpoints


def sampling_of(params: BenchmarkParameters) -> Sampling:
    return Sampling(params.temperature, params.top_p, params.max_completion_tokens, params.seed)


def load_answerer(params: BenchmarkParameters, vlm: Vlm, folder: Path) -> Answerer:
    """The model in this process, or behind `endpoints`; `vlm` then only says how pictures and prompts are shown."""
    sampling = sampling_of(params)
    if not params.endpoints:
        return LocalModel(vlm, sampling, params.batch_size)
    extra = {
        "logit_bias": {str(token): -100 for token in vlm.vision_token_ids},  # as our sampler: never written
        "skip_special_tokens": False,  # vLLM's and SGLang's: what a model says besides words fails the format here too
        **({} if params.send_seed else {"seed": None}),
    }
    asked = served.Sampling(params.temperature, params.top_p, params.max_completion_tokens, extra)
    places = endpoints(params.endpoints, "endpoints", {}).endpoints
    if not params.shards_of:
        check_reachable(places)
    return ServedModel(ModelServer(places, asked, vlm.image_spec, vlm.prompt_spec), sampling, folder, params.in_flight)


def load_judge(params: BenchmarkParameters, folder: Path) -> Judge | None:
    if params.judge is None:
        return None
    model = endpoints([params.judge], "judge", sampling_of_judge(params.send_seed))
    check_reachable(model.endpoints)
    return Judge(model, params.judge_asks, folder, params.in_flight)


def conditions_of(
    params: BenchmarkParameters, vlm: Vlm, model: str, answerer: Answerer, judge: Judge | None
) -> Conditions:
    """What every part of this score must share. `model`: the sha256 of its folder, or its name on the hub."""
    return Conditions(
        model=model,
        generated_by=made_by(params.shards_of[0]) if params.shards_of else answerer.generated_by,
        sampling=sampling_of(params),
        samples=params.samples,
        tries=TRIES if "authors" in params.protocols and params.temperature > 0 else 1,
        control=params.control,
        prompt=params.prompt,
        image_spec=vlm.image_spec.sha256,
        prompt_spec=vlm.prompt_spec.sha256,
        judge=judge and judge.identity(),
    )
