"""MetaMathQA: query, response.

Source: MetaMath's train_math.py, used unchanged by PiSSA and MiLoRA; its prompt is Alpaca's without input.

A row (`type` and `original_question` are not used):

    {"query": "Tom broke his leg and needed to go to the doctor.  The visit cost $300 and the cast cost $200.
    If insurance covered 60% how much was Tom's out-of-pocket cost?", "response": "The cost was
    300+200=$500\\nSo insurance paid for 500*.6=$300\\nThat means he had to pay 500-300=$200 out of
    pocket\\n#### 200\\nThe answer is: 200", "type": "GSM_Original"}

Template. No line has a space at its end; the response follows the last colon directly:

    Below is an instruction that describes a task. Write a response that appropriately completes the request.

    ### Instruction:
    {query}

    ### Response:{response}

MetaMath's script appends the end-of-sequence token to the response; here the trainer does. The evaluation
prompt of the protocol adds " Let's think step by step." after the last colon: it belongs to the evaluation
task.
"""

from milora.data.form import Format, Row, Turn, text
from milora.data.formats.alpaca import prompt


def read(row: Row) -> Turn:
    """One MetaMathQA row."""
    return Turn(text(row, "query"), "", text(row, "response"))


FORMAT = Format("metamath", ("query", "response"), read, prompt)
