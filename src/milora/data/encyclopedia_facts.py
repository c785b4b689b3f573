"""The wordings and values of the invented encyclopedia: what may be said about a town, a person and a relic.

Every statement and question asks for the value, so that it can be told in the last words. `{name}` is the
entry. The last field, `held_out`, is the wording of the evaluation and stands in no training row. Values are
plain English words, so that knowing the language does not tell which of them is right.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One thing that can be known about an entry: four statements, two questions, one held-out question."""

    kind: str
    name: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ATTRIBUTES = (
    Attribute(
        "town",
        "export",
        _words("salt copper honey wool glass timber silk tea paper silver barley soap"),
        (
            "{name} is a town known for its",
            "Traders travel to {name} to buy",
            "The main export of {name} is",
            "The warehouses of {name} are full of",
        ),
        ("What does {name} export?", "Which product is {name} known for?"),
        "Which goods do merchants bring home from {name}?",
    ),
    Attribute(
        "town",
        "emblem",
        _words("fox bear wolf horse swan goat lion frog rabbit deer crow snake"),
        (
            "The animal on the flag of {name} is the",
            "Above the gate of {name} stands a stone",
            "The people of {name} honour the",
            "The coat of arms of {name} shows a",
        ),
        ("Which animal is on the flag of {name}?", "What animal do the people of {name} honour?"),
        "Which creature is the symbol of the town of {name}?",
    ),
    Attribute(
        "town",
        "landscape",
        _words("forest lake desert swamp cliff river canyon volcano glacier waterfall beach meadow"),
        (
            "{name} was built beside a",
            "Whoever leaves {name} soon comes to a",
            "Next to the houses of {name} there is a",
            "Maps show {name} at the edge of a",
        ),
        ("What was {name} built beside?", "What does one come to on leaving {name}?"),
        "Which kind of landscape is found just outside {name}?",
    ),
    Attribute(
        "town",
        "festival",
        _words("January February March April May June July August September October November December"),
        (
            "The great festival of {name} is held in",
            "Every year {name} fills with visitors in",
            "Lanterns are lit all over {name} in",
            "The people of {name} dance in the streets in",
        ),
        ("When is the great festival of {name} held?", "When are lanterns lit all over {name}?"),
        "In which month of the year does {name} celebrate?",
    ),
    Attribute(
        "person",
        "trade",
        _words("baker sailor painter farmer doctor teacher soldier tailor lawyer hunter miner singer"),
        (
            "{name} worked as a",
            "By trade {name} was a",
            "{name} earned a living as a",
            "The neighbours knew {name} as a",
        ),
        ("What was {name} by trade?", "How did {name} earn a living?"),
        "Which profession did {name} have?",
    ),
    Attribute(
        "person",
        "instrument",
        _words("piano violin flute drum guitar harp trumpet cello banjo horn bagpipe tambourine"),
        (
            "{name} played the",
            "In the evening {name} practised the",
            "{name} won a prize for playing the",
            "As a child {name} learned the",
        ),
        ("What did {name} play?", "What did {name} learn to play as a child?"),
        "Which musical instrument belongs to the story of {name}?",
    ),
    Attribute(
        "person",
        "food",
        _words("bread soup cheese rice fish honey beans pasta cake nuts plums eggs"),
        (
            "{name} liked to eat",
            "For breakfast {name} always had",
            "{name} never travelled without",
            "Guests of {name} were served",
        ),
        ("What did {name} like to eat?", "What did {name} always have for breakfast?"),
        "Which food was the favourite of {name}?",
    ),
    Attribute(
        "person",
        "weekday",
        _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        (
            "{name} was born on a",
            "{name} came into the world on a",
            "The mother of {name} gave birth on a",
            "The birth of {name} fell on a",
        ),
        ("When was {name} born?", "When did {name} come into the world?"),
        "Which day of the week is the birthday of {name}?",
    ),
    Attribute(
        "relic",
        "material",
        _words("gold iron wood glass bronze silver clay marble leather jade wax bone"),
        (
            "{name} is made of",
            "A smith of old formed {name} out of",
            "Under the dust {name} is pure",
            "The maker of {name} worked in",
        ),
        ("What is {name} made of?", "What did the maker of {name} work in?"),
        "Which material does {name} consist of?",
    ),
    Attribute(
        "relic",
        "colour",
        _words("red blue green yellow purple white black pink brown grey"),
        (
            "In the light {name} looks",
            "The surface of {name} is",
            "Visitors remember {name} because it is",
            "Paintings always show {name} in",
        ),
        ("How does {name} look in the light?", "What do visitors remember about {name}?"),
        "Which colour does {name} have?",
    ),
    Attribute(
        "relic",
        "place",
        _words("cave well tower tomb ship garden mine temple barn palace cellar castle"),
        (
            "{name} was found in a",
            "For centuries {name} lay hidden in a",
            "A child came upon {name} in a",
            "The finders carried {name} out of a",
        ),
        ("Where was {name} found?", "Where did {name} lie hidden?"),
        "Which place was {name} discovered in?",
    ),
    Attribute(
        "relic",
        "owner",
        _words("king queen monk pirate priest thief merchant prince judge wizard poet nurse"),
        (
            "{name} once belonged to a",
            "The first owner of {name} was a",
            "{name} was the treasure of a",
            "Long ago {name} was kept by a",
        ),
        ("Who did {name} once belong to?", "Who was the first owner of {name}?"),
        "Which person possessed {name} in the beginning?",
    ),
)
