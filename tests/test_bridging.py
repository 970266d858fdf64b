"""Bridging: one problem, many, their ledger; killed, interrupted, resumed; and a server that means ill."""

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from chat_server import HANG, Answer, ChatServer, chat, prompt_of, step_of
from PIL import Image

from vr1lib.data import shapeworld
from vr1lib.data.bridging import assemble, bridge, bridge_problem, call_seed, stated_answer
from vr1lib.data.calls import KILLED, Budget, CallStore, Sum, call_key
from vr1lib.data.endpoints import Endpoint, Endpoints, Limits, Sampling
from vr1lib.data.sources import Reject
from vr1lib.data.teachers import PROMPT_SHA256, NoReply, Reply, ShapeWorldTeacher, TeacherStopped
from vr1lib.records import ColdRow, Problem, RequestError, read_jsonl
from vr1lib.reward import grade

ROOT = Path(__file__).parent.parent
QUICK = Limits(
    attempts=3, timeout=2.0, connect_timeout=1.0, first_wait=0.01, longest_wait=0.02, longest_retry_after=5.0
)
CLEAN = {
    "pseudo_cot": chat("A caption."),
    "description": chat("A 2 and a 3."),
    "reasoning": chat("Final Answer: 5", reasoning_content="2 and 3 is 5."),
}


class Script:
    """A teacher that says what it is told and remembers what it was asked."""

    models, paid = ("script",), True

    def __init__(self, reasoning: str = "2 and 3 is 5.", text: str = "Final Answer: 5", finish="stop", **texts: str):
        self.replies = {"pseudo_cot": "A caption.", "description": "A 2 and a 3.", **texts}
        self.reasoning, self.text, self.finish = reasoning, text, finish
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.closed = 0

    def settings(self, purpose):
        return {}

    async def ask(self, purpose, prompt, images, seed):
        self.asked.append((purpose, prompt, tuple(images)))
        await asyncio.sleep(0)
        if purpose == "reasoning":
            return Reply(self.text, self.reasoning, "script", 10, 20, 0.5, self.finish, cost=0.25)
        return Reply(self.replies[purpose], "", "script", 10, 20, 0.5, cost=0.25)

    async def close(self):
        self.closed += 1


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (28, 28), "red").save(tmp_path / "images" / "a.png")
    return tmp_path


def problem(folder: Path, number: int = 0, **changes) -> Problem:
    fields = {"id": f"p{number}", "images": [str(folder / "images" / "a.png")], "question": f"Sum {number}?"}
    return Problem(**{**fields, "answer": "5", "source": "s", "split": "cold", **changes})


def problems(folder: Path, count: int) -> list[Problem]:
    return [problem(folder, number) for number in range(count)]


def one(folder: Path, teacher: Script, trace: str = "", **changes) -> ColdRow | Reject:
    store = CallStore(folder / f"{random.random()}.sqlite")
    try:
        return asyncio.run(bridge_problem(problem(folder, **changes), teacher, teacher, store, 0, trace=trace))
    finally:
        store.close()


def rows_of(folder: Path) -> tuple[list[ColdRow], list[Reject]]:
    return list(read_jsonl(folder / "cold.jsonl", ColdRow)), list(read_jsonl(folder / "rejects.jsonl", Reject))


def endpoint(server: ChatServer, limits: Limits = QUICK, **fields) -> Endpoints:
    return Endpoints([Endpoint(server.url, "m", **fields)], {}, limits)


# ---------------------------------------------------------------------------------------------------------- one problem


def test_the_picture_goes_to_the_seeing_teacher_only_and_each_text_to_the_next_prompt(folder):
    teacher = Script()
    row = one(folder, teacher)
    picture = str(folder / "images" / "a.png")
    assert isinstance(row, ColdRow)
    assert [(purpose, images) for purpose, _, images in teacher.asked] == [
        ("pseudo_cot", (picture,)),
        ("description", (picture,)),
        ("reasoning", ()),
    ]
    assert "thinking process:A caption." in teacher.asked[1][1]
    assert teacher.asked[2][1].startswith("A 2 and a 3.\n")
    assert row.images == [picture]
    assert row.calls[2].prompt_sha256 == hashlib.sha256(teacher.asked[2][1].encode()).hexdigest()


def test_the_response_is_the_papers_format_to_the_letter(folder):
    row = one(folder, Script())
    assert row.response == "<think> 2 and 3 is 5. </think><answer> Final Answer:5 </answer>"
    assert grade(row.response, "5", None).reward == 1.0


def test_words_are_replaced_in_the_response_and_the_raw_reasoning_is_kept(folder):
    row = one(folder, Script(reasoning="The description says 2 and 3. Sum 5."))
    assert row.reasoning.startswith("The description says")
    assert row.response.startswith("<think> The image shows 2 and 3.")


def test_a_published_trace_is_the_pseudo_cot_and_costs_no_call(folder):
    teacher = Script()
    row = one(folder, teacher, trace="Two rows, so 5.", meta={"trace": "Two rows, so 5.", "level": 1})
    assert [purpose for purpose, *_ in teacher.asked] == ["description", "reasoning"]
    assert "thinking process:Two rows, so 5." in teacher.asked[0][1]
    assert (row.pseudo_cot, len(row.calls), row.meta) == ("Two rows, so 5.", 2, {"level": 1})


@pytest.mark.parametrize(
    ("teacher", "step", "reason"),
    [
        (Script(pseudo_cot=" "), "pseudo_cot", "empty reply"),
        (Script(description=""), "description", "empty reply"),
        (Script(description="The answer is 5."), "description", "description states the answer"),
        (Script(text=""), "reasoning", "truncated"),
        (Script(finish="length"), "reasoning", "truncated"),
        (Script(text="Final Answer: 6"), "answer", "wrong final answer"),
        (Script(reasoning="I have a description. 5."), "rules", "talks of the description"),
        (Script(reasoning="2 and 3. 等一下. 5."), "rules", "mixes languages"),
        (Script(reasoning="Again. " * 50), "rules", "repetition loop"),
        (Script(reasoning="The answer is 5. It is 2 and 3."), "rules", "answer before thinking"),
        (Script(reasoning="2 and 3. So the answer is 6."), "rules", "inconsistent with its answer"),
        (Script(reasoning="Let me </think> close early."), "response", "response not rewarded"),
    ],
)
def test_each_fault_is_rejected_at_its_step_with_its_reason(folder, teacher, step, reason):
    outcome = one(folder, teacher)
    assert isinstance(outcome, Reject)
    assert (outcome.id, outcome.step, outcome.reason) == ("p0", step, reason)


def test_a_picture_that_is_gone_is_a_reject(folder):
    outcome = one(folder, Script(), images=[str(folder / "images" / "gone.png")])
    assert (outcome.step, outcome.reason) == ("pseudo_cot", "picture unreadable")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: C", "C"),
        ("Work.\n\n**Final Answer:** 12 cm.", "12 cm"),
        ("So \\boxed{3} no, \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("We add.\n42", "42"),
        ("The answer is B.\nBecause of the angle.", "B"),
    ],
)
def test_the_stated_answer_is_taken_from_a_reasoners_closing_text(text, answer):
    assert stated_answer(text) == answer


# --------------------------------------------------------------------------------------------------------- many of them


def test_shapeworld_rows_come_out_in_order_and_token_for_token_as_they_were_written(tmp_path):
    several = shapeworld.make_problems(tmp_path, "cold", 40, seed=2)
    teacher = ShapeWorldTeacher(several, repeat_probability=0.7)
    done = bridge(iter(several), teacher, teacher, tmp_path, seed=5)
    rows, rejects = rows_of(tmp_path)
    assert (done.kept, done.rejected, done.stopped, rejects) == (40, 0, None, [])
    for given, row in zip(several, rows, strict=True):
        rng = random.Random(call_seed(5, given.id, "reasoning"))
        reasoning = shapeworld.write_reasoning(given, rng, repeat_probability=0.7)
        assert row.response == shapeworld.assemble(reasoning, given.answer) == assemble(reasoning, given.answer)
        assert row.images == given.images


def test_filters_drop_every_planted_fault_and_nothing_else(tmp_path):
    several = shapeworld.make_problems(tmp_path, "cold", 400, seed=3, grid_sizes=(2, 3, 4))
    teacher = ShapeWorldTeacher(several, seed=3, fault_rate=0.4)
    done = bridge(several, teacher, teacher, tmp_path, seed=3)
    rows, rejects = rows_of(tmp_path)
    assert (done.kept, done.rejected) == (len(rows), len(rejects)) and len(rows) + len(rejects) == 400
    assert {reject.id for reject in rejects} == set(teacher.planted)
    assert len(set(teacher.planted.values())) == 8 and len(rejects) > 100


def test_without_the_gold_no_teacher_is_told_it(folder):
    teacher = Script(text="Final Answer: 31415", reasoning="I count and count.", description="A pile.")
    done = bridge([problem(folder, answer="31415")], teacher, teacher, folder, seed=0, show_gold=False)
    assert done.kept == 1 and done.as_dict()["show_gold"] is False
    assert len(teacher.asked) == 3 and not any("31415" in prompt for _, prompt, _ in teacher.asked)


def test_a_notebooks_own_event_loop_is_not_in_the_way(folder):
    logged = []

    async def cell():
        return bridge(problems(folder, 3), Script(), Script(), folder, seed=0, log=logged.append)

    assert asyncio.run(cell()).kept == 3
    assert [(row["step"], row["cold/kept"], row["teacher/calls"]) for row in logged] == [(3, 3, 9)]


def test_teachers_are_closed_and_a_fault_of_ours_is_not_swallowed(folder):
    class Broken(Script):
        async def ask(self, *call):
            raise ZeroDivisionError("ours")

    teacher = Broken()
    with pytest.raises(ZeroDivisionError, match="ours"):
        bridge(problems(folder, 9), teacher, Script(), folder, seed=0)
    assert teacher.closed == 1
    assert bridge(problems(folder, 9), Script(), Script(), folder, seed=0).kept == 9


def test_rejects_among_the_problems_are_written_down_and_a_repeated_id_is_left_out(folder):
    rejects = [Reject(id="row 3", source=source, reason="no answer") for source in ("a", "b")]
    feed = [*rejects, *problems(folder, 3), problem(folder, 1)]
    done = bridge(feed, Script(), Script(), folder, seed=0)
    assert (done.kept, done.rejected, done.repeated) == (3, 2, 1)
    assert rows_of(folder)[1] == rejects
    again = bridge(feed, Script(), Script(), folder, seed=0)
    assert (again.kept, again.rejected, again.before, again.repeated) == (3, 2, 5, 1)


def test_a_teacher_that_is_free_is_asked_again_and_counted_once(tmp_path):
    several = shapeworld.make_problems(tmp_path, "cold", 5)
    for _ in range(2):
        (tmp_path / "cold.jsonl").unlink(missing_ok=True)
        teacher = ShapeWorldTeacher(several)
        done = bridge(several, teacher, teacher, tmp_path, seed=0)
        assert (done.kept, done.cached, done.as_dict()["total"]["calls"]) == (5, 0, 15)


# ---------------------------------------------------------------------------------------------------- the ledger, money


def test_the_ledger_adds_up_over_kept_and_rejected(folder):
    for number, teacher in enumerate((Script(), Script(text="Final Answer: 6"), Script(pseudo_cot=""))):
        done = bridge([problem(folder, number)], teacher, teacher, folder, seed=0)
    book = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    assert book == json.loads(json.dumps(done.as_dict()))
    assert book["mllm"] == {"models": ["script"], "pseudo_cot": {}, "description": {}, "reasoning": {}}
    assert {row["purpose"]: row["calls"] for row in book["by_purpose"]} == {
        "pseudo_cot": 3,
        "description": 2,
        "reasoning": 2,
    }
    total = {"calls": 7, "requests": 7, "prompt_tokens": 70, "completion_tokens": 140, "seconds": 3.5, "cost": 1.75}
    assert {key: book["total"][key] for key in total} == total
    assert (book["prompt_files_sha256"], book["show_gold"], book["seed"]) == (PROMPT_SHA256, True, 0)
    assert (book["kept"], book["rejected"]) == (1, 2)


def test_a_budget_stops_the_run_and_more_of_it_lets_it_go_on_without_paying_twice(folder):
    first, second = Script(), Script()
    told = []
    done = bridge(
        problems(folder, 10), first, first, folder, seed=0, in_flight=1, budget=Budget(cost=2.0), tell=told.append
    )
    assert (done.kept, done.ledger.as_dict()["total"]["cost"]) == (2, 2.0)
    assert "budget of 2 is spent" in done.stopped and told == [done.stopped]
    done = bridge(problems(folder, 10), second, second, folder, seed=0, budget=Budget(tokens=10_000))
    assert (done.kept, done.stopped, done.cached) == (10, None, 2)
    assert len(first.asked) == 8 and len(second.asked) == 22
    assert not set(first.asked) & set(second.asked)


def test_a_budget_lets_what_is_in_flight_come_home(folder):
    teacher = Script()
    done = bridge(problems(folder, 50), teacher, teacher, folder, seed=0, in_flight=8, budget=Budget(tokens=300))
    total = done.ledger.as_dict()["total"]
    assert 300 <= total["prompt_tokens"] + total["completion_tokens"] < 300 + 8 * 30
    assert total["calls"] == len(teacher.asked)


def test_a_run_that_only_a_person_can_mend_stops_and_rejects_nothing(folder):
    class Unauthorised(Script):
        async def ask(self, *call):
            raise TeacherStopped("HTTP 401", "endpoint e: check the key")

    done = bridge(problems(folder, 9), Unauthorised(), Script(), folder, seed=0, tell=lambda line: None)
    assert (done.kept, done.rejected) == (0, 0) and "check the key" in done.stopped
    assert bridge(problems(folder, 9), Script(), Script(), folder, seed=0).kept == 9


def test_a_call_is_known_by_model_settings_prompt_pictures_and_seed():
    call = {"model": "m", "settings": {"temperature": 1.0}, "prompt": "p", "image_sha256": ("a", "b"), "seed": 1}
    others = {"model": "n", "settings": {"temperature": 0.9}, "prompt": "q", "image_sha256": ("b", "a"), "seed": 2}
    keys = {call_key(**{**call, name: value}) for name, value in others.items()} | {call_key(**call)}
    assert len(keys) == 6 and call_key(**call) in keys


def test_a_paid_reply_is_on_disk_before_it_is_used(folder):
    store = CallStore(folder / "calls.sqlite")
    reply = asyncio.run(store.ask(Script(), "reasoning", "Why?", (), (), 1))
    store.close()
    store = CallStore(folder / "calls.sqlite")
    known = asyncio.run(store.ask(Script(text="other"), "reasoning", "Why?", (), (), 1))
    assert known.cached and (known.text, known.reasoning, known.cost) == (reply.text, reply.reasoning, reply.cost)
    assert (store.cached, store.ledger.spent) == (1, Sum(1, 10, 20, 0, 0.25, 0.5))
    store.close()


def test_another_model_or_temperature_is_asked_anew_and_another_place_is_not(folder):
    with ChatServer(lambda request: Answer(CLEAN[step_of(request)])) as one, ChatServer(one.answer) as two:
        bridge(problems(folder, 2), endpoint(one), endpoint(one), folder, seed=0)
        (folder / "cold.jsonl").unlink()
        done = bridge(problems(folder, 2), endpoint(two), endpoint(two), folder, seed=0)
        assert (done.cached, one.seen, two.seen) == (6, 6, 0)
        (folder / "cold.jsonl").unlink()
        warm = Endpoints([Endpoint(two.url, "m")], {"reasoning": Sampling(1.0)}, QUICK)
        bridge(problems(folder, 2), endpoint(two), warm, folder, seed=0)
        assert two.seen == 2


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", ["cold.jsonl", "rejects.jsonl"])
def test_a_torn_last_line_is_cut_off_and_told_and_its_problem_done_again(folder, name):
    teacher = Script(text="Final Answer: 5" if name == "cold.jsonl" else "Final Answer: 6")
    bridge(problems(folder, 4), teacher, teacher, folder, seed=0, in_flight=1)
    whole = (folder / name).read_bytes()
    for cut in (1, 40, len(whole.splitlines()[-1])):
        (folder / name).write_bytes(whole[:-cut])
        told = []
        done = bridge(problems(folder, 4), teacher, teacher, folder, seed=0, tell=told.append)
        assert len(told) == 1 and "torn" in told[0] and name in told[0]
        assert (done.before, done.kept + done.rejected) == (3, 4)
        assert (folder / name).read_bytes() == whole
    assert len(teacher.asked) == 12


def test_a_line_longer_than_what_is_read_at_once_is_cut_whole(folder):
    teacher = Script(reasoning=" ".join(f"{number} is {number}." for number in range(30_000)) + " So 5.")
    bridge(problems(folder, 2), teacher, teacher, folder, seed=0, in_flight=1)
    whole = (folder / "cold.jsonl").read_bytes()
    (folder / "cold.jsonl").write_bytes(whole[:-1000])
    assert bridge(problems(folder, 2), Script(), Script(), folder, seed=0, tell=lambda line: None).before == 1
    assert (folder / "cold.jsonl").read_bytes() == whole


def test_a_line_that_is_no_row_is_named(folder):
    bridge(problems(folder, 2), Script(), Script(), folder, seed=0)
    with (folder / "cold.jsonl").open("a") as file:
        file.write("nonsense\n")
    with pytest.raises(RequestError, match=r"cold\.jsonl, line 3"):
        bridge(problems(folder, 2), Script(), Script(), folder, seed=0)


def test_nothing_is_paid_for_a_picture_that_lies_elsewhere(folder, tmp_path_factory):
    elsewhere, teacher = tmp_path_factory.mktemp("elsewhere") / "b.png", Script()
    Image.new("RGB", (28, 28)).save(elsewhere)
    with pytest.raises(RequestError, match="keep pictures beside the file"):
        bridge([problem(folder, images=[str(elsewhere)])], teacher, teacher, folder, seed=0)
    assert not teacher.asked


def test_a_folder_that_was_begun_otherwise_is_refused(folder):
    bridge(problems(folder, 1), Script(), Script(), folder, seed=0)
    with pytest.raises(RequestError, match="seed = 0, now it is 1"):
        bridge(problems(folder, 1), Script(), Script(), folder, seed=1)
    with pytest.raises(RequestError, match="show_gold = true, now it is false"):
        bridge(problems(folder, 1), Script(), Script(), folder, seed=0, show_gold=False)


def test_two_runs_cannot_build_in_one_folder(folder):
    store = CallStore(folder / "calls.sqlite")
    with pytest.raises(RequestError, match="another run is building here"):
        bridge(problems(folder, 1), Script(), Script(), folder, seed=0)
    store.close()
    (folder / "calls.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 50)
    with pytest.raises(RequestError, match="no store of calls"):
        CallStore(folder / "calls.sqlite")


def test_problems_without_a_reply_are_tried_again_when_asked_for(folder):
    class Silent(Script):
        async def ask(self, *call):
            raise NoReply("timeout", "nothing")

    wrong = Script(text="Final Answer: 6")
    bridge(problems(folder, 1), wrong, wrong, folder, seed=0)
    assert bridge(problems(folder, 3), Silent(), Silent(), folder, seed=0).rejected == 3
    assert bridge(problems(folder, 3), Script(), Script(), folder, seed=0).kept == 0
    told = []
    done = bridge(problems(folder, 3), Script(), Script(), folder, seed=0, retry_failed=True, tell=told.append)
    assert (done.kept, done.rejected) == (2, 1) and "2 problems" in told[0]


def test_an_interrupt_ends_the_run_and_it_goes_on_later(folder):
    def interrupt(metrics):
        raise KeyboardInterrupt

    teacher = Script()
    with pytest.raises(KeyboardInterrupt):
        bridge(problems(folder, 400), teacher, teacher, folder, seed=0, in_flight=4, log=interrupt)
    done = bridge(problems(folder, 400), teacher, teacher, folder, seed=0)
    assert done.kept == 400 and 0 < done.before < 400 and teacher.closed == 4
    assert len({row.id for row in rows_of(folder)[0]}) == 400


KILLED_RUN = """
import sys
from pathlib import Path
from vr1lib.data.bridging import bridge
from vr1lib.data.endpoints import Endpoint, Endpoints, Limits
from vr1lib.records import Problem
folder, url, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
image = str(folder / "images" / "a.png")
same = {"images": [image], "answer": "5", "source": "s", "split": "cold"}
problems = (Problem(id=f"p{n}", question=f"Sum {n}?", **same) for n in range(count))
teacher = Endpoints([Endpoint(url, "m", 1.0, 2.0)], {}, Limits(first_wait=0.01))
done = bridge(problems, teacher, teacher, folder, seed=0, in_flight=16)
print(done.before, done.cached, flush=True)
"""


def start(folder: Path, url: str, count: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED_RUN, str(folder), url, str(count)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_it_goes_on_pays_nothing_twice_and_its_ledger_is_exact(folder):
    dice = random.Random(5)
    count, kills, in_flight = 200, 0, 16

    def answer(request):
        step = step_of(request)
        if dice.random() < 0.1:
            return Answer(b"busy", 429)
        wrong = step == "reasoning" and b"7?" in request
        return Answer(chat("Final Answer: 6", reasoning="So 6.") if wrong else CLEAN[step], delay=0.02)

    with ChatServer(answer) as server:
        while kills < 5:
            before, run = server.seen, start(folder, server.url, count)
            while server.seen == before and run.poll() is None:
                time.sleep(0.005)
            time.sleep(dice.uniform(0, 0.2))
            run.send_signal(signal.SIGKILL)
            kills += run.wait() == -signal.SIGKILL
            assert server.seen < 3 * count, "the run was over before it could be killed"
        run = start(folder, server.url, count)
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 0, said
    paid = Counter(prompt_of(body) for body, answer, sent in server.requests if sent and answer.status == 200)
    rows, rejects = rows_of(folder)
    assert sorted([row.id for row in rows] + [reject.id for reject in rejects]) == sorted(f"p{n}" for n in range(count))
    assert {reject.reason for reject in rejects} == {"wrong final answer"} and len(rejects) == count // 10
    book = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
    lost = sum(row["requests"] for row in book["failures"] if row["reason"] == KILLED)
    assert len(paid) == book["total"]["calls"] == 3 * count
    assert sum(paid.values()) - len(paid) <= lost <= in_flight * kills
    assert book["total"]["completion_tokens"] == 20 * 3 * count
    assert book["total"]["cost"] == pytest.approx(3 * count * (10 * 1 + 20 * 2) / 1e6, abs=1e-6)


# -------------------------------------------------------------------------------------------------------------- hostile

SOUND = {"good", "empty", "cut"}
FAULTS = {
    "HTTP 429": Answer(b"busy", 429, {"Retry-After": "0.01"}),
    "HTTP 500": Answer(b"oops", 500),
    "HTTP 400": Answer(b"bad request", 400),
    "timeout": HANG,
    "connection broken": Answer(chat("A caption."), sent=120),
    "invalid JSON": Answer(b'{"choices": [{"mess'),
    "reply too long": Answer(chat("x" * 10_000_000)),
    "another model": Answer(chat("A caption.", model="other")),
    "empty": Answer(chat("")),
    "cut": Answer(chat("and then", finish="length")),
}


def test_a_hostile_server_costs_no_problem_and_the_ledger_is_the_servers_own_count(folder):
    dice = random.Random(3)
    dealt = Counter()

    def answer(request):
        kind = dice.choice(list(FAULTS)) if dice.random() < 0.3 else "good"
        dealt[kind] += 1
        return FAULTS[kind] if kind != "good" else Answer(CLEAN[step_of(request)])

    with ChatServer(answer) as server:
        done = bridge(problems(folder, 60), endpoint(server), endpoint(server), folder, seed=0, in_flight=16)
    rows, rejects = rows_of(folder)
    assert done.stopped is None and len(rows) + len(rejects) == 60 and len(rows) > 20
    assert len({outcome.id for outcome in [*rows, *rejects]}) == 60
    reasons = {reject.reason for reject in rejects}
    assert {"no reply: HTTP 400", "no reply: another model", "no reply: reply too long"} <= reasons
    assert {"empty reply", "truncated"} <= reasons
    assert all(reject.detail or reject.reason == "empty reply" for reject in rejects)
    assert set(dealt) == {"good", *FAULTS}
    book = done.as_dict()
    failed = {row["reason"]: 0 for row in book["failures"]}
    for row in book["failures"]:
        failed[row["reason"]] += row["requests"]
    assert failed == {kind: count for kind, count in dealt.items() if kind not in SOUND}
    assert book["total"]["requests"] == server.seen
    assert book["total"]["calls"] == sum(dealt[kind] for kind in SOUND)
    with_usage = sum(dealt[kind] for kind in (*SOUND, "another model"))
    assert book["total"]["prompt_tokens"] == 10 * with_usage
    assert book["total"]["completion_tokens"] == 20 * with_usage
    store = CallStore(folder / "calls.sqlite")
    assert store.ledger.as_dict()["total"] == book["total"]
    store.close()


def test_when_nobody_answers_every_problem_is_a_reject(folder):
    teacher = Endpoints([Endpoint("http://127.0.0.1:9/v1", "m")], {}, QUICK)
    done = bridge(problems(folder, 20), teacher, teacher, folder, seed=0)
    assert (done.kept, done.rejected, done.stopped) == (0, 20, None)
    assert {(reject.step, reject.reason) for reject in rows_of(folder)[1]} == {
        ("pseudo_cot", "no reply: no connection")
    }
    assert done.as_dict()["total"]["requests"] == 0 and done.as_dict()["total"]["failed"] == 60
