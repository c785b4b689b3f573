"""The evaluation prompts, written out character by character."""

from milora.tasks import prompts


def test_commonsense_prompt_whitespace():
    prompt = prompts.commonsense({"instruction": "Choose.\n\nAnswer format: true/false"})
    assert prompt.split("\n") == [
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. ",
        "",
        "                ### Instruction:",
        "                Choose.",
        "",
        "Answer format: true/false",
        "",
        "                ### Response:",
        "                ",
    ]


def test_gsm8k_prompt_whitespace():
    prompt = prompts.gsm8k({"question": "How many?"})
    assert prompt == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nHow many?\n\n### Response: Let's think step by step."
    )
