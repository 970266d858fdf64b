"""Rollouts from servers, against a server of our own that loads what it is sent and samples with the local sampler."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from grpo_case import SETTINGS, graded_by, make_case, odd_bytes, problems_of
from safetensors.torch import load_file

from vr1lib.loss import importance_weights
from vr1lib.models import rollout_vllm
from vr1lib.models.rollout_local import sample, seed_of
from vr1lib.models.rollout_vllm import SamplerLost, VllmSampler, messages, write_served
from vr1lib.models.vlm import load_vlm
from vr1lib.records import RequestError, read_jsonl
from vr1lib.schedule import Schedule
from vr1lib.training import rollouts
from vr1lib.training.checkpoint import Checkpoints
from vr1lib.training.grpo import prepare, train_grpo
from vr1lib.training.processes import TrainingStopped
from vr1lib.workbench.params import PtstGrpoParameters

LIMIT = 6
ONE_AT_A_TIME = threading.Lock()  # loading models in two threads leaves transformers patched


class FakeVllm:
    """Speaks the part of vLLM that is used. `faults`: answers to give before the first right one, by path."""

    def __init__(self, problems, base):
        self.problems, self.base = problems, load_vlm(base)
        self.models, self.paths, self.faults, self.requests = {}, [], {}, []
        self.born, self.shift, self.other_prompt, self.forced_logprob = 1.0, 0.0, False, 0.0
        self.served = {json.dumps(messages(self.base, problem)): problem for problem in problems}
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.answer(self, {})

            def do_POST(self):
                fake.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler, body):
        with ONE_AT_A_TIME:
            self.requests.append((handler.path, body))
            code, reply = (
                self.faults[handler.path].pop(0) if self.faults.get(handler.path) else self.reply(handler, body)
            )
        content = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def reply(self, handler, body):
        match handler.path:
            case "/v1/load_lora_adapter":
                self.models[body["lora_name"]] = load_vlm(body["lora_path"])
                self.paths.append(Path(body["lora_path"]).name)
                return 200, b"Success"
            case "/v1/unload_lora_adapter":
                del self.models[body["lora_name"]]
                return 200, b"Success"
            case "/collective_rpc":
                assert body["method"] == "reload_weights"
                self.base = load_vlm(body["kwargs"]["weights_path"])
                self.paths.append(Path(body["kwargs"]["weights_path"]).name)
                return 200, {"results": [None]}
            case "/v1/models":
                return 200, {"data": [{"id": "base"}]}
            case "/metrics":
                return 200, f"# TYPE x gauge\nprocess_start_time_seconds {self.born}\n".encode()
            case "/v1/chat/completions":
                return self.complete(body)
            case path if path.startswith("/reset_"):
                return 200, {"success": True}
        return 404, b"no such path"

    def complete(self, body):
        if "n" not in body:
            said = [{"token": "x", "logprob": self.forced_logprob}]
            return 200, {"choices": [{"logprobs": {"content": said}}]}
        vlm = self.base if body["model"] == "base" else self.models.get(body["model"])
        if vlm is None:
            return 404, {"error": f"The model {body['model']} does not exist."}
        problem = self.served[json.dumps(body["messages"])]
        prompt = vlm.encode_prompt(problem)
        (group,) = sample(
            vlm, [prompt], group_size=body["n"], max_completion_tokens=body["max_tokens"],
            temperature=body["temperature"], top_p=body["top_p"], seeds=[seed_of(body["model"], problem.question)],
        )  # fmt: skip
        choices = [
            {
                "index": index,
                "token_ids": each.token_ids,
                "finish_reason": each.finish,
                "logprobs": {"content": [{"logprob": logprob + self.shift} for logprob in each.logprobs]},
            }
            for index, each in enumerate(group)
        ]
        ids = prompt.input_ids.tolist()
        choices.reverse()  # they come in any order
        return 200, {"choices": choices, "prompt_token_ids": ids[1:] if self.other_prompt else ids}

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def problems(case):
    return problems_of(case)


@pytest.fixture
def server(case, problems):
    fake = FakeVllm(problems, case / "model")
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(rollout_vllm, "PAUSES", (0.01,))


def lora(case):
    torch.manual_seed(0)
    return load_vlm(case / "model", method="lora", lora_rank=4)


def sampler(vlm, server, tmp_path, wait=5.0):
    return VllmSampler(vlm, [server.url], tmp_path / "rollout", wait)


def draw(servers, vlm, problems, **how):
    prompts = [vlm.encode_prompt(problem) for problem in problems]
    how = {"group_size": 3, "max_completion_tokens": LIMIT} | how
    return list(servers.sample(problems, prompts, **how))


def session_of(vlm, server, tmp_path, **changes):
    session = prepare(vlm, replace(SETTINGS, **changes))
    session.servers = sampler(session.sampler, server, tmp_path)
    return session


def test_a_server_samples_from_the_adapter_of_the_version_it_names(case, problems, server, tmp_path):
    vlm = lora(case)
    servers = sampler(vlm, server, tmp_path)
    for version in (0, 3):
        for name, weight in vlm.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight.data, std=0.3)
        servers.update(vlm, version)
        groups = draw(servers, vlm, problems)
        seeds = [seed_of(f"version-{version}", problem.question) for problem in problems]
        prompts = [vlm.encode_prompt(problem) for problem in problems]
        here = sample(vlm, prompts, group_size=3, max_completion_tokens=LIMIT, seeds=seeds)
        for group, own in zip(groups, here, strict=True):
            assert [each.token_ids for each in group] == [each.token_ids for each in own]
            assert {each.version for each in group} == {version}
            for one, other in zip(group, own):
                assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)
    assert list(server.models) == ["version-3"]  # the one before is gone, there and on the disk
    assert [path.name for path in (tmp_path / "rollout").iterdir()] == ["version-000003"]


def test_full_weights_are_reloaded_and_the_caches_emptied(case, problems, server, tmp_path):
    vlm = load_vlm(case / "model")
    servers = sampler(vlm, server, tmp_path)
    vlm.model.get_output_embeddings().weight.data.mul_(1.5)
    servers.update(vlm, 1)
    assert [path for path, _ in server.requests[:4]] == [
        "/collective_rpc", "/reset_encoder_cache", "/reset_mm_cache", "/reset_prefix_cache",
    ]  # fmt: skip
    for (first, *_), problem in zip(draw(servers, vlm, problems), problems):
        (own,) = sample(
            vlm, [vlm.encode_prompt(problem)], group_size=3, max_completion_tokens=LIMIT,
            seeds=[seed_of("base", problem.question)],
        )  # fmt: skip
        assert first.token_ids == own[0].token_ids


def test_a_tied_head_is_served_as_a_tensor_of_its_own(tmp_path):
    folder = make_case(tmp_path, tie_word_embeddings=True)
    vlm = load_vlm(folder / "model")
    served = write_served(vlm, tmp_path / "rollout")
    weights = load_file(served / "model.safetensors")
    assert weights["lm_head.weight"].equal(vlm.model.get_input_embeddings().weight)
    assert json.loads((served / "config.json").read_text())["tie_word_embeddings"] is False
    assert vlm.model.config.tie_word_embeddings and load_vlm(folder / "model", method="lora").method == "lora"
    assert write_served(load_vlm(folder / "model", method="lora"), tmp_path / "other") is None


def test_an_unpacked_four_bit_base_is_served(case, tmp_path):
    vlm = load_vlm(case / "model", method="qlora", lora_rank=4)
    served = load_vlm(write_served(vlm, tmp_path / "rollout"))
    problem = problems_of(case)[0]
    prompt = [vlm.encode_prompt(problem)]
    how = {"group_size": 1, "max_completion_tokens": LIMIT, "temperature": 0.0, "seeds": [0]}
    (mine,), (theirs,) = sample(vlm, prompt, **how)[0], sample(served, prompt, **how)[0]
    assert mine.token_ids == theirs.token_ids
    assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_a_run_learns_through_a_server_as_it_does_alone(case, problems, server, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(odd_bytes))
    session, rows, kept = session_of(lora(case), server, tmp_path, evaluate_every=1), [], []
    train_grpo(
        session, problems, Schedule([(LIMIT, 4, 3)]), log=rows.append, evaluation_problems=problems[:2],
        log_completions=lambda graded, by_id: kept.extend(graded),
    )  # fmt: skip
    assert all(row["logprob_gap"] < 1e-5 and row["rollout/corrected_ratio"] == 0 for row in rows[1:])
    assert [row["eval/n"] for row in rows] == [2] * 4
    assert [row.version for row in kept] == [0] * 16 + [1] * 16 + [2] * 16
    assert server.paths == [f"version-{number:06d}" for number in range(4)]


def test_a_gap_is_shown_and_corrected(case, problems, server, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(odd_bytes))

    def first_step(shift, gap):
        server.shift, rows = shift, []
        session = session_of(lora(case), server, tmp_path, rollout_correction_gap=gap, kl_coefficient=0.0)
        train_grpo(session, problems, Schedule([(LIMIT, 4, 1)]), log=rows.append)
        return rows[1]

    plain, uncorrected, corrected = first_step(0.0, 0.1), first_step(-0.5, None), first_step(-0.5, 0.1)
    assert uncorrected["logprob_gap"] == pytest.approx(0.5, abs=1e-4) == corrected["logprob_gap"]
    assert [row["rollout/corrected_ratio"] for row in (plain, uncorrected, corrected)] == [0, 0, 1]
    assert uncorrected["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert corrected["grad_norm"] == pytest.approx(plain["grad_norm"] * 1.648721, rel=1e-3)  # e^0.5 for each token


def test_a_group_is_graded_while_others_are_sampled(case, problems, server, tmp_path):
    vlm = lora(case)
    servers = sampler(vlm, server, tmp_path)
    servers.update(vlm, 0)
    held = threading.Event()
    answer, waited = server.answer, []

    def answer_the_last_when_told(handler, body):
        if body.get("messages") == messages(vlm, problems[0]):
            waited.append(held.wait(20))
        answer(handler, body)

    server.answer = answer_the_last_when_told
    mine = [problem for problem in problems if problem.question != problems[0].question][:2] + [problems[0]]
    prompts = [vlm.encode_prompt(problem) for problem in mine]
    groups = servers.sample(mine, prompts, group_size=2, max_completion_tokens=LIMIT)
    assert len(next(groups)) == 2 and not held.is_set()
    held.set()
    assert len(list(groups)) == 2 and waited == [True]


def test_importance_weights_by_hand():
    policy = torch.tensor([[-1.0, -1.0, 9.0], [-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]])
    there = torch.tensor([[-1.1, -1.2, 0.0], [-1.5, -1.5, -3.5], [-1.01, -1.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    weights = importance_weights(policy, there, mask, gap=0.1, cap=1.5)
    expected = [[1.105171, 1.221403, 1.0], [1.5, 0.606531, 1.5], [1.0, 1.0, 1.0]]
    assert weights.tolist() == [pytest.approx(row, abs=1e-5) for row in expected]


def test_a_lost_server_ends_in_a_checkpoint_that_is_gone_on_from(case, problems, server, tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "grade_completion", graded_by(odd_bytes))
    schedule, checkpoints = Schedule([(LIMIT, 4, 4)]), Checkpoints(tmp_path / "checkpoints", every=100, keep_last=2)
    session, rows = session_of(lora(case), server, tmp_path), []
    session.servers.wait_seconds = 0.2
    session.servers.servers[0].wait_seconds = 0.2

    def log(row):
        rows.append(row)
        if row["step"] == 2:
            server.stop()

    with pytest.raises(TrainingStopped, match="before step 3.*no answer.*step 2 with --resume"):
        train_grpo(session, problems, schedule, log=log, checkpoints=checkpoints)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    fake = FakeVllm(problems, case / "model")
    session = session_of(lora(case), fake, tmp_path)
    train_grpo(session, problems, schedule, log=rows.append, checkpoints=checkpoints, resume_from=kept)
    fake.stop()
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]


def test_what_is_said_again_and_to_whom(case, problems, server, tmp_path):
    vlm = lora(case)
    other = FakeVllm(problems, case / "model")
    servers = VllmSampler(vlm, [server.url, other.url], tmp_path / "rollout", 5.0)
    servers.update(vlm, 0)
    path = "/v1/chat/completions"
    server.faults[path] = [(500, b"engine dead"), (429, b"busy"), (503, b"")]
    assert len(draw(servers, vlm, problems)) == len(problems)
    assert sum(asked == path for asked, _ in server.requests) + sum(asked == path for asked, _ in other.requests) == (
        len(problems) + 3 + 2  # and the probe of each
    )
    server.stop()
    assert len(draw(servers, vlm, problems)) == len(problems)
    other.stop()
    servers.wait_seconds = 0.1
    with pytest.raises(SamplerLost, match=f"{servers.servers[0].url}.*refused"):
        draw(servers, vlm, problems)


def test_a_server_started_anew_gets_its_weights_again(case, problems, server, tmp_path):
    vlm = lora(case)
    servers = sampler(vlm, server, tmp_path)
    servers.update(vlm, 4)
    server.models.clear()
    assert {each.version for group in draw(servers, vlm, problems) for each in group} == {4}
    assert list(server.models) == ["version-4"]
    full = load_vlm(case / "model")
    servers = sampler(full, server, tmp_path)
    servers.update(full, 5)
    server.born = 2.0
    with pytest.raises(SamplerLost, match="started anew"):
        draw(servers, full, problems)


def test_servers_that_would_deceive_are_refused(case, problems, server, tmp_path):
    vlm = lora(case)
    server.forced_logprob = -7.5
    with pytest.raises(RequestError, match="--logprobs-mode processed_logprobs"):
        sampler(vlm, server, tmp_path).update(vlm, 0)
    server.forced_logprob, server.other_prompt = 0.0, True
    servers = sampler(vlm, server, tmp_path)
    servers.update(vlm, 0)
    with pytest.raises(RequestError, match=f"reads problem {problems[0].id} as other tokens"):
        draw(servers, vlm, problems)
    server.faults["/v1/load_lora_adapter"] = [(400, b"rank 64 is greater than max_lora_rank 16")]
    with pytest.raises(RequestError, match="HTTP 400 rank 64 is greater"):
        servers.update(vlm, 1)


@pytest.mark.parametrize(
    "values, told",
    [
        ({"rollout": "vllm"}, "rollout_endpoints"),
        ({"rollout_endpoints": ["http://a:1"]}, "rollout: vllm"),
        ({"rollout": "vllm", "rollout_endpoints": ["http://a:1"]}, "checkpoint_every"),
        (
            {"rollout": "vllm", "rollout_endpoints": ["http://a:1"], "checkpoint_every": 5, "loss": "gspo"},
            "rollout_correction_gap",
        ),
    ],
)
def test_parameters_that_do_not_go_together(values, told):
    with pytest.raises(ValueError, match=told):
        PtstGrpoParameters(**values)


def test_completions_keep_their_version(tmp_path, case, problems, server):
    vlm = lora(case)
    session = session_of(vlm, server, tmp_path)
    session.update_sampler(2)
    (group,) = rollouts.roll_out(session, problems, [0], Schedule([(LIMIT, 2, 1)]).stages[0])
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(row.graded.model_dump_json() + "\n" for row in group))
    assert [row.version for row in read_jsonl(path, type(group[0].graded))] == [2, 2]
