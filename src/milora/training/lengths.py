"""What tokenising a data set met: how long its rows are, and what became of those that are too long or too short."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Lengths:
    """What tokenising a data set met; lengths are in tokens.

    ``overlong`` rows are longer than ``limit``, ``over_context`` rows longer than the model's context,
    ``short`` rows are shorter than the least length, ``dropped`` rows were left out (the short ones among them),
    ``merged`` rows have a token across the end of the prompt.
    """

    rows: int
    kept: int
    longest: int
    limit: int | None
    overlong: int
    over_context: int
    short: int
    dropped: int
    merged: int
    tokens: int
    trained_tokens: int

    def as_dict(self) -> dict[str, int | None]:
        """The numbers under their names, for provenance and cards."""
        return asdict(self)

    def remarks(self, overlong: str, context: int | None) -> list[str]:
        """Sentences for the user about whatever is out of the ordinary; empty when nothing is."""
        said = []
        if self.over_context:
            said.append(
                f"{self.over_context} of {self.rows} rows are longer than the model's context of {context} tokens"
            )
        if self.overlong:
            done = "dropped" if overlong == "drop" else f"cut to {self.limit} tokens"
            said.append(
                f"{self.overlong} of {self.rows} rows are longer than {self.limit} tokens "
                f"(longest {self.longest}) and were {done}"
            )
        if self.short:
            said.append(f"{self.short} of {self.rows} rows are shorter than the least length and were dropped")
        empty = self.dropped - self.short - (self.overlong if overlong == "drop" else 0)
        if empty > 0:
            where = "" if overlong == "drop" else f" within {self.limit}"
            said.append(f"{empty} of {self.rows} rows have no token to train on{where} and were dropped")
        if self.merged:
            said.append(f"in {self.merged} of {self.rows} rows a token spans the end of the prompt; it is trained")
        return said
