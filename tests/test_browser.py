import json
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest
from PIL import Image
from synthetic_runs import completion_of, synthetic_problems, write_benchmark_run, write_training_run

from vr1lib.analysis import browser
from vr1lib.analysis.browser import browser_html, fewer, pick, pick_runs, srcdoc, write_browser
from vr1lib.analysis.page import write_page
from vr1lib.records import write_jsonl

HOSTILE = '</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & "quotes" \u2028'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return synthetic_problems(tmp_path_factory.mktemp("problems"), 12)


def by_id(problems):
    return {problem.id: problem for problem in problems}


def many(problems, count, right=0.9):
    """Right ones of 1 to 5 passes, a tenth wrong, one in a hundred cut."""
    rows = []
    for place in range(count):
        finish = "length" if place % 100 == 99 else "stop"
        row = completion_of(problems[place % len(problems)], place % 10 < 10 * right, 1 + place % 5, finish)
        rows.append(row.model_copy(update={"sample": place // len(problems)}))
    return rows


class Scripts(HTMLParser):
    """The scripts of a page as a browser would find them, and every address it would load from."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.sources, self.tags = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.tags.append("/" + tag)


class Attributes(HTMLParser):
    """The attributes of the first element."""

    def __init__(self, text):
        super().__init__()
        self.found = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found = self.found or attributes


def data_of(page):
    return json.loads(Scripts(page).scripts[0])


def test_no_text_of_a_completion_breaks_out(problems, tmp_path):
    problem = problems[0].model_copy(update={"question": HOSTILE, "answer": HOSTILE, "id": HOSTILE})
    row = completion_of(problem, False, 1).model_copy(update={"text": HOSTILE, "extracted": HOSTILE, "reason": HOSTILE})
    html = "".join(browser_html([pick(HOSTILE, [row], {HOSTILE: problem})]))
    page = Scripts(html)
    assert len(page.scripts) == 2 and "img" not in page.tags and page.sources == []
    assert not set("<>&") & set(page.scripts[0])
    (shown,) = json.loads(page.scripts[0])["rows"]
    assert shown["text"] == shown["model"] == shown["reason"] == HOSTILE
    assert "innerHTML" not in page.scripts[1] and "insertAdjacentHTML" not in page.scripts[1]


def test_a_row_tells_verdict_length_words_and_answer(problems):
    row = completion_of(problems[0], False, 3)
    (shown,) = data_of("".join(browser_html([pick("CI", [row], by_id(problems))])))["rows"]
    assert (shown["model"], shown["right"], shown["wellFormed"], shown["cut"]) == ("CI", False, True, False)
    assert (shown["tokens"], shown["extracted"], shown["words"]) == (45, "99", ["Wait", "Check"])


def test_a_picture_stands_in_the_page_once(problems):
    runs = [pick(label, many(problems, 24), by_id(problems)) for label in ("CI", "Vision-R1")]
    data = data_of("".join(browser_html(runs)))
    pictures = {open(problem.images[0], "rb").read() for problem in problems}
    assert len(data["rows"]) == 48 and len(data["problems"]) == 12
    assert len(data["pictures"]) == len(set(data["pictures"])) == len(pictures)
    for row in data["rows"]:
        assert data["pictures"][data["problems"][row["problem"]]["pictures"][0]].startswith("data:image/png;base64,")


def test_too_many_completions_are_drawn_evenly_over_verdict_and_length(problems):
    graded = many(problems, 2000)
    picked = pick("CI", graded, by_id(problems), count=120)
    assert (len(picked.graded), picked.total) == (120, 2000)
    assert sum(not row.format_ok for row in picked.graded) == 20  # all of a small part: one in a hundred
    assert 24 <= sum(row.format_ok and row.reward == 0 for row in picked.graded) <= 60  # one in ten of all
    places = [graded.index(row) for row in picked.graded]
    assert places == sorted(places)
    assert picked == pick("CI", graded, by_id(problems), count=120)
    assert picked.graded != pick("CI", graded, by_id(problems), count=120, seed=1).graded
    (few,) = fewer([picked], 30)
    assert (len(few.graded), few.total) == (30, 2000)
    html = "".join(browser_html([picked]))
    assert "120 of 2,000 completions are here, drawn evenly over verdict, length" in html


def test_every_third_by_length_has_as_many_places(problems):
    graded = [completion_of(problems[place % 12], True, 1 + place % 3) for place in range(600)]
    graded = [row.model_copy(update={"sample": place}) for place, row in enumerate(graded)]
    assert Counter(row.tokens for row in pick("CI", graded, count=30).graded) == {15: 10, 30: 10, 45: 10}


def test_two_models_show_the_same_problems(problems):
    samples = [
        row.model_copy(update={"problem_id": f"p{place}"}) for place, row in enumerate(many(problems, 900, right=1))
    ]
    first, second = (pick(label, samples, count=90) for label in ("CI", "Vision-R1"))
    assert {row.problem_id for row in first.graded} == {row.problem_id for row in second.graded}


def test_small_runs_leave_their_places_to_large_ones(problems):
    runs = [(f"run {count}", many(problems, count), by_id(problems)) for count in (400, 12, 300)]
    assert [(run.label, len(run.graded), run.total) for run in pick_runs(runs, most=212)] == [
        ("run 400", 100, 400),
        ("run 12", 12, 12),
        ("run 300", 100, 300),
    ]
    assert pick_runs([]) == []


def test_a_control_of_the_same_problem_shows_its_own_picture(problems, tmp_path):
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "blank.png")
    blind = problems[0].model_copy(update={"images": [str(tmp_path / "blank.png")]})
    row = completion_of(problems[0], True, 1)
    runs = [("asked", [row], by_id(problems)), ("blind", [row], {blind.id: blind})]
    data = data_of("".join(browser_html(pick_runs(runs))))
    pictures = [data["problems"][row["problem"]]["pictures"] for row in data["rows"]]
    assert len(data["problems"]) == 2 and pictures[0] != pictures[1]


def test_a_page_keeps_its_byte_budgets(problems, monkeypatch):
    monkeypatch.setattr(browser, "TEXT_BYTES", 200_000)
    monkeypatch.setattr(browser, "PICTURE_BYTES", 2_000)
    graded = [row.model_copy(update={"text": "é" * 20_000}) for row in many(problems, 12)]
    asked = [problem.model_copy(update={"question": "é" * 4_000}) for problem in problems]
    html = "".join(browser_html([pick("CI", graded, by_id(asked))]))
    data = data_of(html)
    assert sum(map(len, data["pictures"])) <= 2_000 and "beyond the size of a page)" in html
    assert 0 < len(data["rows"]) < 12 and f"{len(data['rows'])} of 12 completions" in html
    spent = sum(len(json.dumps(item)) for part in ("rows", "problems") for item in data[part])
    assert spent <= 200_000 + 200 * len(data["rows"])
    assert "[… 15,000 characters …]" in data["rows"][0]["text"]


def test_a_missing_picture_or_problem_is_said(problems, tmp_path):
    gone = problems[0].model_copy(update={"images": [str(tmp_path / "gone.png")]})
    rows = [completion_of(gone, True, 1), completion_of(problems[1], True, 1)]
    html = "".join(browser_html([pick("CI", rows, {gone.id: gone})]))
    data = data_of(html)
    assert [problem["leftOut"] for problem in data["problems"]] == [1, 0] and "beyond the size of a page): 1." in html
    assert data["problems"][1]["question"] == "(its problem is not found)"


def test_photographs_are_small(tmp_path, problems):
    Image.effect_noise((1500, 1000), 90).convert("RGB").save(tmp_path / "photo.png")
    problem = problems[0].model_copy(update={"images": [str(tmp_path / "photo.png")]})
    data = data_of("".join(browser_html([pick("CI", [completion_of(problem, True, 1)], {problem.id: problem})])))
    assert data["pictures"][0].startswith("data:image/jpeg;base64,") and len(data["pictures"][0]) < 60_000


def test_a_frame_holds_its_whole_page_in_an_attribute(problems):
    attribute = srcdoc([pick('C"I', many(problems, 3), by_id(problems))])
    (name, page), *rest = Attributes(f"<iframe {attribute}></iframe>").found
    assert name == "srcdoc" and not rest and data_of(page)["rows"][0]["model"] == 'C"I'


@pytest.fixture(scope="module")
def page(problems, tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    folders = [
        write_benchmark_run(root / "40_benchmark" / label, label, problems, right=right, passes=3)
        for label, right in (("CI", 0.4), ("Vision-R1", 0.9))
    ]
    training = write_training_run(root / "30_ptst_grpo/demo", [[64, 16, 5], [128, 8, 5]])
    rows = [row.model_copy(update={"step": 1 + place // 6}) for place, row in enumerate(many(problems, 12))]
    write_jsonl(training / "completions.jsonl", rows)
    return write_browser([*folders, training], root / "browser.html")


def test_run_folders_make_one_page(page):
    data = data_of(page.read_text(encoding="utf-8"))
    assert len(data["rows"]) == 36
    assert list(dict.fromkeys(row["model"] for row in data["rows"])) == ["CI", "Vision-R1", "30_ptst_grpo/demo"]
    assert any(group.startswith("family: ") for problem in data["problems"] for group in problem["groups"])


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_the_filters_filter(page, tmp_path):
    choose = "const f = document.querySelector('.filters'); f.verdict.value = 'wrong'; f.model.value = 'CI';"
    told = "f.dispatchEvent(new Event('input'))"
    text = page.read_text(encoding="utf-8")
    wrong = sum(row["model"] == "CI" and not row["right"] and row["wellFormed"] for row in data_of(text)["rows"])
    out = write_page(tmp_path / "page.html", "t", [text, f"<script>{choose}{told}</script>"])
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", out.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert f"{wrong} of 36 match." in dom and 0 < wrong < 12
    assert dom.count('<article class="example"') == wrong
