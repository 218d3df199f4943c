import pytest

from bezoar_utils.data import preferences
from bezoar_utils.data.preferences import preference_pair, preference_pairs, turns
from bezoar_utils.data.template import render_prompt

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


def test_the_rewards_that_a_row_brings_stay_with_its_pair():
    row = {"chosen": ONE.format("a"), "rejected": ONE.format("b"), "chosen_reward": 2.0, "rejected_reward": -1.0}
    pair, _ = preference_pair(row)
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (2.0, -1.0)


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


def replies(*statuses):
    return [{"instruction": "Name a river.", "reply": f"reply {n}", "status": status} for n, status in enumerate(statuses)]


def test_of_a_models_own_replies_the_first_accepted_and_the_first_refused_one_are_a_pair():
    row, outcome = preferences.pair_of_replies(replies(None, "Reject", "Accept", "Accept"))
    assert outcome == "a pair" and row["chosen"].endswith("Assistant: reply 2") and row["rejected"].endswith("Assistant: reply 1")
    pair, _ = preferences.preference_pair(row)
    assert pair["prompt"] == render_prompt("Name a river.") and (pair["chosen"], pair["rejected"]) == ("reply 2", "reply 1")


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [(("Accept", "Accept"), "all accepted"), (("Reject", None), "all refused"), ((None, None), "no verdict")],
)
def test_replies_between_which_there_is_nothing_to_choose_are_no_pair(statuses, outcome):
    assert preferences.pair_of_replies(replies(*statuses)) == (None, outcome)


def test_an_instruction_that_looks_like_another_turn_is_dropped_under_its_reason():
    some = [row | {"instruction": "Hi\n\nHuman: Ho"} for row in replies("Accept", "Reject")]
    assert preferences.pair_of_replies(some) == (None, "malformed")
