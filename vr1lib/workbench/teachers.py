"""Who speaks in 10_data_building: its parameters as teachers. No torch here, so that data building starts at once."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vr1lib.data.endpoints import Endpoint, Endpoints, Sampling
from vr1lib.data.teachers import ReferenceTeacher, ShapeWorldTeacher, Teacher
from vr1lib.records import Problem, RequestError
from vr1lib.workbench.params import SECRET_NAME, DataBuildingParameters


def load_teachers(params: DataBuildingParameters, problems: Sequence[Problem]) -> tuple[Teacher, Teacher]:
    """Who sees and who reasons: one embedded teacher for both, or the endpoints of two models."""
    if params.teacher == "endpoints":
        extra = {} if params.send_seed else {"seed": None}
        seeing = Sampling(params.mllm_temperature, max_tokens=params.mllm_max_tokens, extra=extra)
        reasoning = Sampling(params.reasoner_temperature, max_tokens=params.reasoner_max_tokens, extra=extra)
        sampling = {"pseudo_cot": seeing, "description": seeing, "reasoning": reasoning}
        return endpoints(params.mllm, "mllm", sampling), endpoints(params.reasoner, "reasoner", sampling)
    if params.teacher == "reference":
        voice = ReferenceTeacher(problems)
    else:
        names = ("fault_rate", "repeat_probability", "slip_probability", "max_passes")
        voice = ShapeWorldTeacher(problems, params.seed, **{name: getattr(params, name) for name in names})
    return voice, voice


def endpoints(rows: Sequence[dict[str, Any]], key: str, sampling: dict[str, Sampling]) -> Endpoints:
    """The endpoints of one model. Raises RequestError for a field that is missing or unknown, or none at all."""
    if not rows:
        raise RequestError(f"{key} = []: teacher 'endpoints' needs at least one, such as {{url: …/v1, model: NAME}}")
    known = {field.name: field for field in fields(Endpoint)}
    found = []
    for place, row in enumerate(rows):
        where = f"{key}[{place}]"
        if odd := sorted(row.keys() - known.keys()):
            hint = "name the key's environment variable in api_key_env" if SECRET_NAME.search(odd[0]) else ""
            raise RequestError(f"{where}: unknown field {odd[0]!r}; {hint or 'known are ' + ', '.join(known)}")
        if missing := [name for name in ("url", "model") if not isinstance(row.get(name), str)]:
            raise RequestError(f"{where}: no {missing[0]}; give it as text")
        try:
            prices = {name: float(row[name]) for name in ("prompt_price", "completion_price") if name in row}
        except (TypeError, ValueError):
            raise RequestError(f"{where}: a price that is no number; give it per million tokens") from None
        found.append(Endpoint(**{**row, **prices, "answers_as": tuple(row.get("answers_as") or ())}))
    return Endpoints(found, sampling)
