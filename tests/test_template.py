from bezoar_utils.data.template import DEFAULT_SYSTEM, clean_response, render_prompt


def test_prompt_is_the_released_checkpoints_template_to_the_letter():
    assert render_prompt("Say hello.", "Be brief.") == "### System:\nBe brief.\n\n### Instruction:\nSay hello.\n\n### Response:"


def test_empty_system_message_means_the_default_one():
    assert render_prompt("x").startswith(f"### System:\n{DEFAULT_SYSTEM}\n\n### Instruction:\nx")
    assert DEFAULT_SYSTEM.startswith("Below is an instruction that describes a task, optionally paired with an input that provides")
    assert DEFAULT_SYSTEM.endswith("Write a response that appropriately completes the request.")


def test_history_repeats_instruction_and_response_under_one_system_message():
    text = render_prompt("third", history=[("first", "one"), ("second", "two")])
    assert text.count("### System:") == 1
    assert text.endswith(
        "### Instruction:\nfirst\n\n### Response:one\n\n### Instruction:\nsecond\n\n### Response:two"
        "\n\n### Instruction:\nthird\n\n### Response:"
    )


def test_a_response_ends_where_the_model_starts_another_turn():
    assert clean_response(" Kalo \n\n### System:\nmore") == "Kalo"
    assert clean_response("Kalo\n\n### Instruction:\nmore") == "Kalo"
