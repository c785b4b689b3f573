"""easy-VQA (V. Zhou, MIT; `pip install easy-vqa`) as rows in LLaVA's form: 64 x 64 pictures of one coloured shape.

    python examples/easy_vqa_rows.py easy-vqa --train 2000 --test 500

writes train.jsonl, in which up to four questions about a picture are one conversation, pictures.jsonl, in which each
row is one question about a test picture with its choices (for `milora eval --tasks milora_pictures`), and the pictures.
Three of four questions are answered by yes or no; --named keeps those that ask for the colour or the shape.
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

# A question's choices are the answers of its kind.
KINDS = [
    ["yes", "no"],
    ["circle", "rectangle", "triangle"],
    ["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"],
]


def main() -> None:
    """Read the command line and write the folder."""
    import easy_vqa

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="pictures to train on, of 4,000")
    parser.add_argument("--test", type=int, default=500, help="questions to test on, of 9,673")
    parser.add_argument("--questions", type=int, default=4, help="of a picture to train on, of about 10")
    parser.add_argument("--named", action="store_true", help="only questions for a colour or a shape")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of both")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    asked, held_out = (
        [row for row in zip(*rows, strict=True) if not (given.named and row[1] in KINDS[0])]
        for rows in (easy_vqa.get_train_questions(), easy_vqa.get_test_questions())
    )
    chosen = draw.sample(sorted({picture for _, _, picture in asked}), given.train)
    talks = [[(q, a) for q, a, picture in asked if picture == number] for number in chosen]
    talks = [draw.sample(talk, min(given.questions, len(talk))) for talk in talks]
    train = [conversation(f"train-{n}", talk) for n, talk in zip(chosen, talks, strict=True)]
    tested = draw.sample(held_out, given.test)
    test = [conversation(f"test-{n}", [(q, a)]) | choices(q, a) for q, a, n in tested]
    copy(easy_vqa.get_train_image_paths(), chosen, given.output / "images" / "train")
    copy(easy_vqa.get_test_image_paths(), [n for *_, n in tested], given.output / "images" / "test")
    for name, rows in (("train.jsonl", train), ("pictures.jsonl", test)):
        (given.output / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(given.output / name, len(rows), "rows")


def conversation(name: str, talk: list[tuple[str, str]]) -> dict[str, Any]:
    """One row: a picture, its questions and answers."""
    turns = [{"from": who, "value": text} for pair in talk for who, text in zip(("human", "gpt"), pair, strict=True)]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    split, number = name.split("-")
    return {"id": name, "image": f"images/{split}/{number}.png", "conversations": turns}


def choices(question: str, answer: str) -> dict[str, Any]:
    """The answers that a question could have, and which of them it has."""
    kind = next(kind for kind in KINDS if answer in kind)
    return {"mc_question": question, "mc_choices": kind, "mc_answer": kind.index(answer)}


def copy(files: dict[int, str], numbers: list[int], folder: Path) -> None:
    """Copy pictures under their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        shutil.copyfile(files[number], folder / f"{number}.png")


if __name__ == "__main__":
    main()
