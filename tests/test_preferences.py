import pytest

from bezoar_utils.data.preferences import preference_pair, preference_pairs, turns

ONE = "\n\nHuman: Hi\n\nAssistant: {}"
TWO = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: {}"


def test_a_dialog_is_split_at_the_last_assistant_turn():
    pair, reason = preference_pair({"chosen": TWO.format("yes"), "rejected": TWO.format("no")})
    assert reason is None
    assert (pair["chosen"], pair["rejected"]) == ("yes", "no")
    assert pair["prompt"].endswith("### Instruction:\nHi\n\n### Response:Hello\n\n### Instruction:\nAnd?\n\n### Response:")


def test_markers_inside_a_line_are_text():
    assert turns("\n\nHuman: He said 'Assistant: hi'\n\nAssistant: ok") == [
        ("Human", "He said 'Assistant: hi'"),
        ("Assistant", "ok"),
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (ONE.format("a"), TWO.format("b"), "histories_differ"),
        (ONE.format("a"), ONE.format("a "), "identical_replies"),
        (ONE.format(""), ONE.format("b"), "empty_reply"),
        ("Human: Hi", ONE.format("b"), "malformed"),
        ("\n\nHuman: Hi\n\nHuman: Hi\n\nAssistant: a", ONE.format("b"), "malformed"),
        ("\n\nHuman: Hi", "\n\nHuman: Hi", "malformed"),
    ],
)
def test_each_unusable_row_has_its_reason(chosen, rejected, reason):
    assert preference_pair({"chosen": chosen, "rejected": rejected}) == (None, reason)


def test_every_row_is_a_pair_or_counted():
    rows = [{"chosen": ONE.format("a"), "rejected": ONE.format(r)} for r in ("b", "a", "")]
    pairs, dropped = preference_pairs(rows)
    assert len(pairs) == 1 and len(pairs) + sum(dropped.values()) == len(rows)


@pytest.mark.parametrize("n_turns", range(1, 7))
def test_any_number_of_turns_renders_every_turn_once_in_order(n_turns):
    history = "".join(f"\n\nHuman: q{i}\n\nAssistant: a{i}" for i in range(n_turns - 1))
    row = {k: f"{history}\n\nHuman: last\n\nAssistant: {k}" for k in ("chosen", "rejected")}
    prompt = preference_pair(row)[0]["prompt"]
    places = [prompt.index(f"{kind}{i}") for i in range(n_turns - 1) for kind in "qa"]
    assert places == sorted(places) and prompt.count("### Response:") == n_turns


@pytest.mark.parametrize("change", [str.lstrip, lambda text: text.replace("\n", "\r\n")], ids=["no first blank line", "CRLF"])
def test_dialogs_as_other_tools_save_them_are_the_same_dialogs(change):
    text = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: And?\n\nAssistant: Well."
    assert turns(change(text)) == turns(text) and len(turns(text)) == 4
