"""The paper's Tables 1 to 4 and the README's, in their layout: their values as printed, ours in the rows below.

Ours are scores of runs of 40_benchmark, a row a model and protocol, in percent with a 95 % interval in brackets where
there is one; a cell without a run is empty, a run on a part of a benchmark says so in a footnote. What contradicts
itself is marked where it stands (`footnotes`). The paper's values belong to models of 7 to 78 billion parameters and
mix protocols; ours name theirs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from vr1lib.analysis.footnotes import with_contradictions
from vr1lib.analysis.formats import Cell, Column, Row, Table, with_interval
from vr1lib.analysis.runs import ScoredModel
from vr1lib.analysis.scores import (
    Pick,
    Score,
    accuracy,
    by_protocol,
    group,
    hallusionbench_mean,
    mathverse_mean,
    mean_of,
    mme_sum,
    part_of,
)
from vr1lib.analysis.tables import PAPER_METHODS, paper_role, paper_rows, paper_value
from vr1lib.benchmarks.mathvista import SKILLS, TASKS
from vr1lib.data.audits import table_2 as counted_words

OURS = "Measured here"
AS_PRINTED = Cell("as printed")
PROTOCOL = Column("Protocol", number=False)
INTERVALS = "Measured here: 95 % bootstrap intervals over problems in brackets; a mean's from those of its benchmarks."


@dataclass
class Notes:
    """Footnotes of our own cells: letters, one for each text."""

    texts: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        if text not in self.texts.values():
            count = len(self.texts)
            self.texts[ascii_lowercase[count % 26] * (1 + count // 26)] = text
        return next(mark for mark, known in self.texts.items() if known == text)


# ---------------------------------------------------------------------------------------------------------------- ours


def our_rows(
    models: Iterable[ScoredModel],
    picks: Sequence[tuple[str, Pick]],
    notes: Notes,
    average: Sequence[int] = (),
    with_size: bool = False,
) -> list[Row]:
    """A row a model and protocol that has a score here; the last cell is the mean of the scores at `average`."""
    rows = []
    for model in models:
        for protocol, by_benchmark in by_protocol(model).items():
            found = [(by_benchmark.get(benchmark), pick) for benchmark, pick in picks]
            scores = [pick(row) if row else None for row, pick in found]
            if all(score is None for score in scores):
                continue
            cells = [_cell(score, [row], notes) for score, (row, _) in zip(scores, found)]
            if average:
                averaged = [found[place][0] for place in average]
                cells.append(_cell(mean_of([scores[place] for place in average]), averaged, notes))
            size = [Cell(in_billions(model.scores.get("parameters")))] if with_size else []
            rows.append(Row((Cell(model.label), *size, *cells, Cell(protocol)), OURS))
    return rows


def _cell(score: Score | None, rows: Sequence[Mapping[str, Any] | None], notes: Notes) -> Cell:
    """A score with marks for what it is only a part of."""
    if score is None:
        return Cell()
    texts = [text for row in rows if (text := part_of(row))]
    if score.of_first_samples and (samples := rows[0].get("samples", 1)) > 1:
        texts.append(f"Of the first of {samples} samples a problem.")
    marks = tuple(dict.fromkeys(notes.mark(text) for text in texts))
    return Cell(with_interval(score.value, score.low, score.high, score.digits), marks=marks)


def in_billions(parameters: int | None) -> str:
    """`7B`, `1.1M`; empty where it is not known."""
    if not parameters:
        return ""
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.3g}{letter}"
    return str(parameters)


# ------------------------------------------------------------------------------------------------ theirs, as printed


def printed(row: Mapping[str, str], key: str) -> Cell:
    """A value of the paper, bold or underlined as there."""
    text = "–" if row[key] == "-" else row[key]
    return Cell(text, key in row.get("bold", "").split(";"), key in row.get("underlined", "").split(";"))


def finished(table: Table, where: str, notes: Notes, sections: Iterable[str]) -> Table:
    """The table with the paper's contradictions, and a word on our rows or on their absence."""
    ours = any(row.section == OURS for row in table.rows)
    mark = notes.mark(INTERVALS if ours else "No run of ours has a score on these benchmarks.")
    table.marks = (*table.marks, mark)
    table.notes |= notes.texts
    return with_contradictions(table, where, list(sections))


def table_1(models: Sequence[ScoredModel] = ()) -> Table:
    """Table 1: MathVista with four sub-tasks, MathVerse, MM-Math, and the mean of ALL, MathVerse and MM-Math.

    Ours have both readings of ARI: algebraic as the paper's caption has it, and MathVista's own arithmetic.
    """
    keys = [f"mathvista_{name}" for name in ("geo", "ari", "gps", "mwp", "all")] + ["mathverse", "mm_math", "avg"]
    notes = Notes()
    reading = notes.mark(
        "Ours under ARI: the algebraic skill, as the paper captions it; under ARI, arithmetic: MathVista's own reading."
    )
    names = ("GEO", "ARI", "ARI, arithmetic", "GPS", "MWP", "ALL")
    columns = [Column("Model", number=False), Column("Params")]
    columns += [Column(name, "%", "MathVista", marks=(reading,) if "," in name else ()) for name in names]
    columns += [Column("MathVerse", "%"), Column("MM-Math", "%"), Column("Avg.", "%"), PROTOCOL]
    rows = []
    for row in paper_rows("paper_table1"):
        cells = [printed(row, key) for key in keys]
        if row["note"].startswith("dagger"):
            cells[4] = Cell(cells[4].text, cells[4].bold, cells[4].underlined, ("†",))
        cells = [*cells[:2], Cell(), *cells[2:]]
        rows.append(Row((Cell(row["model"]), printed(row, "params"), *cells, AS_PRINTED), row["section"]))
    sections = dict.fromkeys(row.section for row in rows)
    picks = [("mathvista", group("skills", SKILLS[skill])) for skill in ("GEO", "ALG", "ARI")]
    picks += [("mathvista", group("task", TASKS[task])) for task in ("GPS", "MWP")]
    picks += [("mathvista", accuracy), ("mathverse", mathverse_mean), ("mmmath", accuracy)]
    rows += our_rows(models, picks, notes, average=(5, 6, 7), with_size=True)
    title = "Table 1: multimodal mathematics, the paper's values and ours"
    dagger = {"†": "From MathVista's official leaderboard, as the paper marks it."}
    return finished(Table(title, columns, rows, notes=dagger), "table_1", notes, sections)


def table_2(cold: Mapping[str, Mapping[str, Any]] | None = None) -> Table:
    """Table 2: reflection words of the cold-start sets. `cold`: name → what `vr1 stats` (`audits.stats`) finds in a
    cold-start file of ours, counted as whole words and as pieces of words."""
    sets = {
        "llava_cot_100k": "LLaVA-CoT 100K",
        "mulberry_260k": "Mulberry 260K",
        "vision_r1_cold_200k": "Vision-R1-cold 200K",
    }
    notes = Notes()
    rule = notes.mark(
        "The paper does not say how it counts (case, whole words or pieces); ours ignore case. Per 1,000: texts of the "
        "set, by the size in its name."
    )
    printed_rows = paper_rows("paper_table2")
    counted = {name: counted_words(found, printed_rows) for name, found in (cold or {}).items()}
    columns = [Column("Word", number=False)]
    for name in sets.values():
        columns += [Column(name, group="As printed"), Column(f"{name}, per 1,000", group="As printed")]
    for name in counted:
        columns += [Column(f"{name}{how}", group=OURS) for how in ("", ", in words", ", per 1,000")]
    rows = []
    for at, row in enumerate(printed_rows):
        cells = [Cell(row["word"])]
        for key in sets:
            count = int(row[key])
            cells += [Cell(f"{count:,}"), Cell(f"{count / int(key.rsplit('_', 1)[1][:-1]):,.1f}")]
        for table in counted.values():
            ours = table[at]
            cells += [Cell(f"{ours[key]:,}") for key in ("ours", "ours_substring")]
            cells.append(Cell(f"{ours['ours_per_1000']:,.1f}"))
        rows.append(Row(tuple(cells)))
    title = "Table 2: reflection words in cold-start data, the paper's counts and ours"
    table = Table(title, columns, rows, marks=(rule,), notes=notes.texts)
    return with_contradictions(table, "table_2", [""])


def table_3(models: Sequence[ScoredModel] = ()) -> Table:
    """Table 3: general benchmarks and mathematics; MME is in points, HallBench the mean of its three accuracies."""
    general = {"mmstar": "MMStar", "chartqa": "ChartQA", "mme_sum": "MME_sum", "hallbench": "HallBench"}
    maths = {"mathvista": "MathVista", "mathverse": "MathVerse", "mm_math": "MM-Math"}
    notes = Notes()
    hall = notes.mark(
        "The paper does not define this number; ours is the mean of aAcc, fAcc and qAcc over questions with a picture."
    )
    columns = [Column("Method", number=False)]
    for key, name in general.items():
        marks = (hall,) if key == "hallbench" else ()
        columns.append(Column(name, "points" if key == "mme_sum" else "%", "General", marks=marks))
    columns += [*(Column(name, "%", "Mathematics") for name in maths.values()), PROTOCOL]
    section = "As printed"
    rows = [
        Row((Cell(row["method"]), *(printed(row, key) for key in (general | maths)), AS_PRINTED), section)
        for row in paper_rows("paper_table3")
    ]
    picks = [("mmstar", accuracy), ("chartqa", accuracy), ("mme", mme_sum), ("hallusionbench", hallusionbench_mean)]
    picks += [("mathvista", accuracy), ("mathverse", mathverse_mean), ("mmmath", accuracy)]
    rows += our_rows(models, picks, notes)
    title = "Table 3: what the cold-start data does to another base, the paper's values and ours"
    return finished(Table(title, columns, rows), "table_3", notes, [section])


def table_4(models: Sequence[ScoredModel] = ()) -> Table:
    """Table 4: what each part of the training does, ours beside theirs where a run's label means one of its models.

    The base's accuracy, which Table 4 lacks, is Table 1's. Other runs follow by themselves.
    """
    models = [model for model in models if by_protocol(model)]  # a control is not a score
    by_role = {paper_role(model.label): model for model in models if paper_role(model.label)}
    parts = {row["method"]: row for row in paper_rows("paper_table4")}
    notes = Notes()
    length = notes.mark(
        "The paper's lengths are over its RL problems, its accuracies over MathVista, MathVerse and MM-Math; ours are "
        "over the benchmarks named in the row."
    )
    base = notes.mark("Not in Table 4; its accuracy is from Table 1.")
    columns = [Column("Method", number=False)]
    columns += [Column(name, number=False) for name in ("Cold start", "GRPO", "PTST")]
    columns += [
        Column("Avg. Len.", "tokens", "As printed", marks=(length,)),
        Column("Avg. Acc.", "%", "As printed"),
        Column("Run", group=OURS, number=False),
        Column("Our Len.", "tokens", OURS),
        Column("Our Acc.", "%", OURS),
        Column("Benchmarks", group=OURS, number=False),
    ]
    rows = []
    for role, method in PAPER_METHODS.items():
        ticks = parts.get(method, {"cold_start": "0", "grpo": "0", "ptst": "0"})
        tokens, percent = paper_value(role)
        cells = [Cell(method, marks=() if method in parts else (base,))]
        cells += [Cell("✓" if ticks[part] == "1" else "–") for part in ("cold_start", "grpo", "ptst")]
        cells += [Cell("–" if tokens is None else str(tokens)), Cell(f"{percent:.1f}")]
        rows.append(Row((*cells, *_measured(by_role.get(role), notes))))
    others = [model for model in models if model not in by_role.values()]
    rows += [Row((Cell("–"), *[Cell()] * 5, *_measured(model, notes)), "Other runs") for model in others]
    title = "Table 4: what each part of the training does, the paper's values and ours"
    table = Table(title, columns, rows, notes=notes.texts)
    return with_contradictions(table, "table_4", [""])


def _measured(model: ScoredModel | None, notes: Notes) -> list[Cell]:
    if model is None:
        return [Cell()] * 4
    mean = model.accuracy
    parts = [part for row in model.scores["benchmarks"] if (part := part_of(row))]
    named = ", ".join(f"{name} ({len(problems):,})" for name, problems in model.by_problem.items())
    percents = [100 * value for value in (mean.mean, mean.low, mean.high)]
    marks = tuple(notes.mark(part) for part in parts)
    return [
        Cell(model.label),
        Cell(f"{model.mean_length:.0f}"),
        Cell(with_interval(*percents), marks=marks),
        Cell(named),
    ]


def readme_table(models: Sequence[ScoredModel] = ()) -> Table:
    """The README's results: five columns and their mean, in which MathVerse enters twice (all, Vision-Only)."""
    names = {
        "mathvista": "MathVista",
        "mathverse": "MathVerse",
        "mathverse_mini_vision_only": "Vision-Only",
        "mm_math": "MM-Math",
        "dynamath_overall_avg": "DynaMath",
        "avg": "AVG.",
    }
    notes = Notes()
    five = notes.mark(
        "The mean of the five columns; Vision-Only is a fifth of MathVerse, which so enters twice. Ours is without an "
        "interval, for the two are not independent."
    )
    columns = [Column("Model", number=False), Column("Params")]
    columns += [Column(name, "%", marks=(five,) if key == "avg" else ()) for key, name in names.items()]
    columns.append(PROTOCOL)
    section = "As printed (brackets: against the base of the same size)"
    rows = []
    for row in paper_rows("readme_results"):
        cells = []
        for key in names:
            delta = row[f"{key}_delta"].replace("-", "")
            cells.append(Cell(f"{row[key]} ({delta})" if delta else row[key]))
        rows.append(Row((Cell(row["model"]), Cell(), *cells, AS_PRINTED), section))
    vision_only = group("version", "Vision Only")
    picks = [("mathvista", accuracy), ("mathverse", mathverse_mean), ("mathverse", vision_only), ("mmmath", accuracy)]
    picks += [("dynamath", accuracy)]
    ours = our_rows(models, picks, notes, average=range(5), with_size=True)
    rows += [Row((*row.cells[:7], _without_interval(row.cells[7]), row.cells[8]), row.section) for row in ours]
    title = "The README's results, printed values and ours"
    return finished(Table(title, columns, rows), "readme", notes, [section])


def _without_interval(cell: Cell) -> Cell:
    return Cell(cell.text.split(" ")[0], marks=cell.marks)


def paper_tables(
    models: Sequence[ScoredModel] = (), cold: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Table]:
    """All five, by the name of their files."""
    return {
        "table_1": table_1(models),
        "table_2": table_2(cold),
        "table_3": table_3(models),
        "table_4": table_4(models),
        "readme": readme_table(models),
    }
