"""The files: the same bytes for the same folders, the same numbers in each format, nothing overwritten unasked."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from milora.cli.app import main
from milora.errors import MiloraError
from milora.report import write_report
from milora.report.twins import _text
from report import synthetic, synthetic_comparison

NAMES = ["report.html", "report.md", "report.json", "report.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("write") / "c"
    return synthetic_comparison.make(made, ("lora", "milora"), (0, 1), layers=1, hostile=synthetic.HOSTILE)


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, str]:
    written = write_report([folder])
    assert [file.name for file in written] == NAMES and all(file.parent == folder for file in written)
    return {file.suffix[1:]: file.read_text(encoding="utf-8") for file in written}


class Tables(HTMLParser):
    """The texts of the cells of each table, by its id."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.rows = self.found.setdefault(str(dict(attrs)["id"]), [])
        elif tag == "tr" and self.rows is not None:
            self.rows.append([])
        elif tag in ("td", "th") and self.rows is not None:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.rows = None if tag == "table" else self.rows

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


@pytest.mark.slow
def test_the_same_folders_give_the_same_bytes(folder: Path, files: dict[str, str]):
    again = write_report([folder], overwrite=True)
    assert {file.suffix[1:]: file.read_text(encoding="utf-8") for file in again} == files


def test_every_format_holds_the_same_cells(files: dict[str, str]):
    html, record = Tables(files["html"]).found, json.loads(files["json"])["tables"]
    assert set(html) == set(record) and len(html) >= 12
    lines = files["md"].splitlines()
    for id, rows in html.items():
        assert len(rows) - 1 == len(record[id]["rows"]), id
        for row in rows[1:]:
            cells = "| " + " | ".join(_text(cell) for cell in row) + " |"
            assert any(line.replace("**", "") == cells for line in lines), (id, row)
    at = record["results-table"]["columns"].index("validation loss ↓")
    by_arm = {row["arm"]: row for row in csv.DictReader(io.StringIO(files["csv"]))}
    for row, shown in zip(record["results-table"]["rows"][:-1], html["results-table"][1:], strict=False):
        mean, stderr = row[at]["mean"], row[at]["stderr"]
        assert (float(by_arm[row[0]]["validation_loss"]), float(by_arm[row[0]]["validation_loss stderr"])) == (
            mean,
            stderr,
        )
        assert abs(float(shown[at].split(" ")[0]) - mean) <= stderr / 10
    assert by_arm["milora r=8"]["kl against lora low"] and not by_arm["lora"]["kl against lora low"]


def test_what_is_not_measured_is_null_and_empty(tmp_path: Path):
    made = synthetic_comparison.make(tmp_path / "c", ("lora", "random_components"), (0,), layers=1)
    for file in write_report([made], formats=["json", "csv"]):
        if file.suffix == ".json":
            tables = json.loads(file.read_text())["tables"]
            at = tables["results-table"]["columns"].index("gsm8k: exact_match ↑")
            assert [row[at] is None for row in tables["results-table"]["rows"]] == [False, True, False]
        else:
            rows = list(csv.DictReader(io.StringIO(file.read_text())))
            assert [row["gsm8k:exact_match"] == "" for row in rows] == [False, True]
            assert all(row["kl stderr"] == "" for row in rows)


def test_nothing_of_the_folders_is_markup(files: dict[str, str]):
    assert (
        files["html"].count("<script") == 1 and "<img" not in files["html"] and "<script" not in _unfenced(files["md"])
    )
    assert "&lt;script&gt;alert(&#34;x&#34;)" in files["html"]
    svgs = re.findall(r"<svg.*?</svg>", files["html"], flags=re.DOTALL)
    assert len(svgs) >= 6 and not any("http" in svg or "<metadata" in svg or "mathdefault" in svg for svg in svgs)


def _unfenced(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_no_address_is_in_the_page(files: dict[str, str]):
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", files["html"]) and "url(http" not in files["html"]
    assert "default-src 'none'" in files["html"]


def test_files_are_replaced_only_when_asked(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    (tmp_path / "out.md").write_text("mine")
    with pytest.raises(MiloraError, match=r"out\.md exists; --overwrite"):
        write_report([run], output=tmp_path / "out.html", formats=["csv", "md"])
    assert (tmp_path / "out.md").read_text() == "mine" and not (tmp_path / "out.csv").exists()
    written = write_report([run], output=tmp_path / "out.html", formats=["csv", "md"], overwrite=True, title="A | <b>")
    assert [file.name for file in written] == ["out.csv", "out.md"]
    assert (tmp_path / "out.md").read_text().startswith("# A \\| &lt;b&gt;\n")


def test_wrong_calls_are_refused(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    for call, words in (
        ({"formats": ["pdf"]}, "got pdf, allowed html, md, json, csv"),
        ({"formats": []}, "got none"),
        ({"output": tmp_path}, "allowed the name of a file"),
    ):
        with pytest.raises(MiloraError, match=words):
            write_report([run], **call)


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    runs = [str(synthetic.run(tmp_path / name, name, layers=1)) for name in ("lora", "milora")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *runs, "--formats", "md, csv", "--title", "Two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"files": ["report.md", "report.csv"]}
    assert (tmp_path / "report.md").read_text().startswith("# Two\n")
    assert main(["report", *runs, "--formats", "md,csv"]) == 2
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    assert main(["report", runs[0], "--formats", "csv", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "lora" / "report.csv")


def test_what_is_written_into_a_folder_goes_when_it_is_overwritten():
    from milora.comparison import folder as comparison
    from milora.runs import folder as run

    assert set(NAMES) <= set(run.WRITTEN) and set(NAMES) <= set(comparison.WRITTEN)
