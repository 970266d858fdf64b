from vr1lib.data.audits import audit_leaks, count_words, length_distribution, mentions
from vr1lib.records import ColdRow


def row(id: str, description: str, answer: str = "3") -> ColdRow:
    texts = {"pseudo_cot": "", "description": description, "reasoning": "", "response": ""}
    return ColdRow(id=id, images=[], question="?", answer=answer, source="s", split="cold", calls=[], **texts)


def test_words_are_counted_whole_and_as_substrings_whatever_their_case():
    counts = count_words(["Wait, wait! I am waiting. Check the checkbox.", "Hmm.", "waiter"])
    assert (counts["wait"].word, counts["wait"].substring, counts["wait"].rows) == (2, 4, 1)
    assert (counts["check"].word, counts["check"].substring, counts["check"].rows) == (1, 2, 1)
    assert (counts["hmm"].word, counts["mistake"].word, counts["alternatively"].substring) == (1, 0, 0)


def test_lengths_are_in_words():
    lengths = length_distribution(["a b", "a", "a b c", ""])
    assert lengths == {"texts": 4, "mean": 1.5, "median": 1.5, "p90": 2.7, "max": 3.0}
    assert length_distribution([])["texts"] == 0


def test_a_stated_gold_is_a_leak_and_a_mentioned_one_is_told_apart():
    rows = [
        row("a", "Three bars. The answer is 3."),
        row("b", "The bar is 3 cm."),
        row("c", "The bar is 3.5 or 13 cm."),
    ]
    audit = audit_leaks(rows)
    assert (audit.rows, audit.stated, audit.mentioned) == (3, ("a",), ("a", "b"))


def test_a_gold_is_mentioned_as_a_word_of_its_own_only():
    assert mentions("of $2\\pi$, or", "2\\pi")
    assert not mentions("Cylinder", "C")
