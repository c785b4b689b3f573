"""Raw text: one field `text` a row, or a .txt file whose paragraphs are the rows.

Source: TRL, "Dataset formats and types", the standard language-modeling type. Every token counts in the loss.
Paragraphs are parted by blank lines; a text without a blank line has one a line, as WikiText does.

A row (the first paragraph of prose in W. H. Holmes, "Ancient Art of the Province of Chiriqui", 1888):

    {"text": "Until comparatively recent times the province of Chiriqui has remained almost unknown to the
    world at large. The isthmus was traversed a number of times by the conquerors, who published accounts of
    their discoveries, ..."}

Template: {text}
"""

from milora.data.form import Example, Format, Row, text


def read(row: Row) -> Example:
    """One row of raw text."""
    return {"text": text(row, "text")}


FORMAT = Format("text", ("text",), read)
