"""A reward model where a judge stands: its numbers as verdicts of every kind."""

import pytest
from test_reward import save_reward_model

from bezoar_utils.calls import rewards
from bezoar_utils.calls.judge import Comparison, Equality, Grade, Judge, Preference, Verdict, judge_prompt, parse_verdict
from bezoar_utils.data.template import render_prompt
from bezoar_utils.study.profile import ProfileError, load_profile
from bezoar_utils.training import models, reward, tokens

FILTER = judge_prompt(Verdict, system="Be brief.", instruction="Name a colour.", response="Red.")
COMPARISON = judge_prompt(Comparison, question="Name a colour.", first="Red.", second="A chair, surely.")


def said(kind, prompt, numbers, accept_above=0.0):
    return parse_verdict(kind, rewards.verdict(prompt, numbers, accept_above))


def test_a_reply_is_scored_in_the_form_that_models_are_asked_in():
    assert rewards.to_score(FILTER) == [{"prompt": render_prompt("Name a colour.", "Be brief."), "reply": "Red."}]
    rendered = render_prompt("Name a colour.", history=[("Hello.", "Hello!")])
    [row] = rewards.to_score(judge_prompt(Preference, question=rendered, reply="Red."))
    assert row == {"prompt": rendered, "reply": "Red."}


def test_a_row_is_accepted_above_the_number_that_the_profile_names():
    accepted, refused = said(Verdict, FILTER, [1.5], accept_above=1.0), said(Verdict, FILTER, [0.9], accept_above=1.0)
    assert (accepted.status, refused.status) == ("Accept", "Reject") and accepted.rating > refused.rating
    assert "1.500" in accepted.reason


@pytest.mark.parametrize(("number", "rating"), [(-1e9, 1), (0.0, 6), (1e9, 10)])
def test_a_grade_grows_with_the_reward_and_stays_between_1_and_10(number, rating):
    assert said(Grade, judge_prompt(Grade, question="Name a colour.", answer="Red."), [number]).rating == pytest.approx(
        rating, abs=1
    )


@pytest.mark.parametrize(("numbers", "better"), [([2.0, 1.0], "first"), ([1.0, 2.0], "second"), ([1.0, 1.0], "tie")])
def test_of_two_replies_the_one_with_more_reward_is_better(numbers, better):
    assert said(Comparison, COMPARISON, numbers).better == better


def test_a_preference_needs_more_than_the_number_and_an_equality_looks_at_the_words():
    preference = judge_prompt(Preference, question="Name a colour.", reply="Red.")
    assert said(Preference, preference, [0.1]).preferred and not said(Preference, preference, [0.0]).preferred
    same, other = (judge_prompt(Equality, first="Name a colour.", second=text) for text in ("name a colour", "Name a fruit."))
    assert said(Equality, same, []).equality == "equal" and said(Equality, other, []).equality == "not equal"


class Stage:
    profile = "tiny"

    def note(self, *_):
        pass

    def spend(self, **counts):
        self.counts = counts

    def reporter(self, what):
        return lambda done, total: None


def test_a_judge_with_a_reward_model_answers_prompts_of_every_kind_in_order(model_folder, tokenizer, tmp_path):
    save_reward_model(model_folder, tokenizer, tmp_path, outputs=1)
    values = {"model": str(tmp_path), "licence": "ours", "batch_size": 2, "reward_model": {"accept_above": 0.0}}
    asked = load_profile("tiny").judge.model_copy().model_validate(values)
    prompts = [FILTER, COMPARISON, judge_prompt(Equality, first="a", second="a")]
    replies = Judge(Stage(), asked.model_dump()).reply(prompts, "verdicts")
    found = [parse_verdict(kind, reply.text) for kind, reply in zip((Verdict, Comparison, Equality), replies)]
    model, own = models.load_model(tmp_path, outputs=1), tokens.load_tokenizer(tmp_path)
    (number, first, second), _ = reward.score(model, own, rewards.to_score(FILTER) + rewards.to_score(COMPARISON))
    assert found[0].status == ("Accept" if number > 0 else "Reject") and f"{number:.3f}" in found[0].reason
    assert found[1].better == ("first" if first > second else "second") and found[2].equality == "equal"


def test_a_reward_model_at_an_endpoint_is_refused_when_the_profile_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: tiny\njudge: {reward_model: {accept_above: 0.0}}\n")
    for name in ("tiny", "mini"):
        (tmp_path / f"{name}.yaml").write_text((load_profile.__globals__["PROFILES"] / f"{name}.yaml").read_text())
    with pytest.raises(ProfileError, match="endpoint must be null"):
        load_profile("mine", tmp_path)


def test_a_prompt_of_no_known_task_is_refused():
    with pytest.raises(ValueError, match="no verdict of the kind 'poem'"):
        rewards.to_score(FILTER.replace("TASK filter", "TASK poem"))
