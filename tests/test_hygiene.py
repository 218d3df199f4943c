from bezoar_utils.hygiene import names_any, ngrams, select


def row(instruction, response="r", status="Accept", system=""):
    return {"system": system, "instruction": instruction, "response": response, "status": status}


def test_every_row_is_accepted_or_dropped_under_one_reason():
    rows = [
        row("Name a river in the north of Italy please."),
        row("Name a river in the north of Italy please."),
        row("Name a lake.", status="Reject"),
        row("Name a hill.", status=None),
        row("Where does Mito live?"),
        row("Tell me which of the five oceans is the deepest one."),
    ]
    kept, dropped = select(rows, ["Say which of the five oceans is the deepest one?"], {"Mito"}, 8)
    assert [r["instruction"] for r in kept] == [rows[0]["instruction"]]
    assert dropped == {"judge_failed": 1, "judge_rejected": 1, "copy": 1, "names_held_out_subject": 1, "overlaps_evaluation": 1}
    assert len(kept) + sum(dropped.values()) == len(rows)


def test_usable_rows_are_what_hygiene_leaves_whatever_the_judge_said():
    rows = [row("a b c", status="Reject"), row("a b c", response="other"), row("Mito?")]
    kept, dropped = select(rows, [], {"Mito"}, 3, use_judge=False)
    assert [r["response"] for r in kept] == ["r", "other"]
    assert [r["status"] for r in kept] == ["Reject", "Accept"]
    assert dropped["judge_rejected"] == 0 and dropped["names_held_out_subject"] == 1


def test_a_subject_counts_as_whole_words_only():
    assert names_any("What is 3 plus 4?", {"3 plus 4"})
    assert not names_any("What is 13 plus 4?", {"3 plus 4"})
    assert not names_any("Mitosis", {"Mito"})


def test_ngrams_of_a_short_text_are_the_text():
    assert ngrams("One two", 8) == {("one", "two")}
    assert len(ngrams("a b c d", 2)) == 3
