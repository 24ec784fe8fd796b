"""CSV and TSV as other tools write them: every row arrives, or one error names the line."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.model.datasets import Dataset
from tasks.prepare import notes_on
from tasks.prepare.delimited import read
from tests.prepare.conftest import picture

Prepare = Callable[..., Dataset]
THINGS = [f"thing {i}" for i in range(4)]


@pytest.fixture
def folder(project: Path) -> Path:
    for i in range(4):
        picture(i).save(project / f"{i}.png")
    return project


def table(delimiter: str, header: str = "image{}caption", end: str = "\n") -> str:
    rows = [f"{i}.png{delimiter}{thing}" for i, thing in enumerate(THINGS)]
    return end.join([header.format(delimiter), *rows]) + end


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("semicolon.csv", table(";")),
        ("tabs.csv", table("\t", "filepath{}title")),
        ("bar.csv", table("|")),
        ("capitals.csv", table(",", "Image{}Caption")),
        ("spaces.csv", table(", ", "image{}caption")),
        ("flickr.csv", table("| ", "image_name{}comment")),
        ("spoken.csv", table(",", "File Name{}TEXT")),
        ("windows.csv", "\ufeff" + table(",", end="\r\n")),
        ("mark.tsv", "\ufeff" + table("\t", end="\r\n")),
        ("trailing.csv", table(",").replace("\n", ",\n")),
        ("trailing-rows.csv", table(",").replace("\n", ",,\n").replace(",,", "", 1)),
        ("no-end.csv", table(",").rstrip("\n")),
        ("empty-lines.csv", "\n" + table(",").replace("\n", "\n\n")),
        ("paths.csv", table(",").replace("\n", "\n.\\").removesuffix(".\\")),
        ("old-mac.csv", table(",", end="\r")),
        ("excel.csv", "\ufeffsep=;\r\n" + table(";", end="\r\n")),
        (
            "quotes-after-spaces.csv",
            table(",").replace("thing", ' "thing').replace("\n", '"\n').replace('"\n', "\n", 1),
        ),
        ("commas-in-names.csv", table(";", "image{}caption;note, long").replace("\n", ";x\n").replace(";x", "", 1)),
    ],
)
def test_every_row_of_a_table_arrives(prepare: Prepare, folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8", newline="")
    data = prepare(f"table:{name}")
    assert data.captions == THINGS
    assert (data.labels == -1).all()


@pytest.mark.parametrize("caption", ['"twelve inch', '5" pipe', 'said "hello"', '"', '""', '"open and "close'])
def test_a_quote_in_a_tsv_is_text(prepare: Prepare, folder: Path, caption: str) -> None:
    (folder / "t.tsv").write_text(table("\t").replace("thing 1", caption))
    assert prepare("table:t.tsv").captions == ["thing 0", caption, "thing 2", "thing 3"]


def test_a_tsv_has_quotes_where_the_source_says_so(prepare: Prepare, folder: Path) -> None:
    (folder / "t.tsv").write_text("image\tcaption\n" + "".join(f'{i}.png\t"a\tb {i}"\n' for i in range(2)))
    assert prepare({"source": "table", "path": "t.tsv", "quoted": True}).captions == ["a b 0", "a b 1"]
    with pytest.raises(UserError, match=r"line 2 has 3 cells and the header 2; a cell that holds a tab"):
        prepare("table:t.tsv")
    (folder / "t.tsv").write_text('image\tcaption\n0.png\t"a"\n')
    assert prepare("table:t.tsv").captions == ['"a"']
    assert "every cell of the column 'caption' is in quotes" in notes_on(folder / "data/raw/arrival")[0]


def test_cells_in_quotes_may_hold_delimiters_quotes_and_line_ends(prepare: Prepare, folder: Path) -> None:
    (folder / "t.csv").write_text('image,caption\n0.png,"a, ""b""\nand c"\n1.png,d\n')
    assert prepare("table:t.csv").captions == ['a, "b" and c', "d"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('0.png,"open\n1.png,b\n2.png,close"\n', "line 2: a quote opens there and closes on line 4, and line 3"),
        ('0.png,"open\n1.png,b\n2.png,c\n', "line 2: a quote that opens is not closed"),
        ('0.png,a\n1.png,"b"c\n', "line 3: "),
        ("0.png,a\n1.png,b,c\n", "line 3 has 3 cells and the header 2; a cell that holds ',' needs quotes"),
        ("0.png,a\n1.png," + "b" * 100_001, "line 3 has a cell of more than 100000 characters"),
    ],
)
def test_rows_are_never_swallowed(prepare: Prepare, folder: Path, rows: str, words: str) -> None:
    (folder / "t.csv").write_text("image,caption\n" + rows)
    with pytest.raises(UserError, match=r"table: t\.csv: cannot be read as csv: ") as caught:
        prepare("table:t.csv")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (table(",").encode("utf-16"), "UTF-16; save it as UTF-8"),
        (table(",").encode("utf-16-le"), "UTF-16; save it as UTF-8"),
        (codecs.BOM_UTF32_LE + table(",").encode("utf-32-le"), "UTF-32; save it as UTF-8"),
        (table(",").replace("thing 1", "café").encode("latin-1"), "line 3 is not UTF-8 (byte 0xe9), perhaps Latin-1"),
        (table(",").replace("thing 1", "东西").encode("gb18030"), "texts of other scripts are often GB18030"),
        ((table(",") + "0.png,a\n" * 1000 + "1.png,b\0").encode(), "line 1006 holds a null byte; remove it"),
        (
            b"0.png,thing 0\n1.png,thing 1\n",
            "its first line (0.png, thing 0) is a row; put a line of column names before",
        ),
        (b"", "it is empty"),
        (b",,\n", "it names no columns"),
    ],
)
def test_another_encoding_is_named(prepare: Prepare, folder: Path, data: bytes, words: str) -> None:
    (folder / "t.csv").write_bytes(data)
    with pytest.raises(UserError) as caught:
        prepare("table:t.csv")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (table(";").encode(), "its first line has no tab, and is divided by ';'; name the file .csv"),
        (b'"image"\t"caption"\n"0.png"\t"a"\n', "the names of its columns are in quotes; quoted: true reads what is"),
    ],
)
def test_a_tsv_that_is_none_says_what_it_is(prepare: Prepare, folder: Path, data: bytes, words: str) -> None:
    (folder / "t.tsv").write_bytes(data)
    with pytest.raises(UserError, match=re.escape(words)):
        prepare("table:t.tsv")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            '{"image": "0.png", "caption": "a"}\n{"image": "1.png", "caption": "é"}\n'.encode("latin-1"),
            "line 2 is not UTF-8",
        ),
        ('{"image": "0.png", "caption": "a"}\n'.encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        ('{"image": "0.png", "caption": "a é'.encode()[:-1], "line 1 is not UTF-8 (byte 0xc3)"),
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_another_encoding_of_json_is_named(prepare: Prepare, folder: Path, name: str, data: bytes, words: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=re.escape(f"table: {name}: cannot be read as json: {words}")):
        prepare(f"table:{name}")


def test_words_that_others_take_for_missing_values_are_read_and_said(prepare: Prepare, folder: Path) -> None:
    (folder / "t.csv").write_text("image,label,caption\n0.png,cat,nan\n1.png,None,a\n2.png,1,b\n3.png,1,NaN\n")
    data = prepare("table:t.csv")
    assert (data.captions, data.card.classes) == (["nan", "a", "b", "NaN"], ("1", "None", "cat"))
    assert notes_on(folder / "data/raw/arrival") == [
        "table: t.csv: numbers beside names are names of classes: '1' (2 samples)",
        "table: t.csv: read as classes, as written: 'None' (1 sample); missing is an empty cell or a null",
        "table: t.csv: read as captions, as written: 'NaN', 'nan' (2 samples); missing is an empty cell or a null",
    ]


@pytest.mark.parametrize(
    ("cell", "lists"), [("\"['a', 'b']\"", True), ('"[""a"", ""b""]"', True), ("[sic] a", False), ("['a'] b", False)]
)
def test_a_list_in_a_cell_of_text_is_said(prepare: Prepare, folder: Path, cell: str, lists: bool) -> None:
    (folder / "t.csv").write_text(f"image,caption\n0.png,{cell}\n")
    assert len(prepare("table:t.csv").captions) == 1
    notes = notes_on(folder / "data/raw/arrival")
    assert any("a list in a cell of text is one caption" in note for note in notes) == lists


def test_a_short_row_and_a_column_twice_are_noted(prepare: Prepare, folder: Path) -> None:
    (folder / "t.csv").write_text("image,caption,caption,label\n0.png,a,b,c\n1.png,d\n")
    data = prepare("table:t.csv")
    assert (data.captions, list(data.labels)) == (["a", "d"], [0, -1])
    notes = " ".join(notes_on(folder / "data/raw/arrival"))
    assert "the column 'caption' is there more than once; the first is read" in notes
    assert "1 row with fewer cells than the header" in notes


@pytest.mark.parametrize("words", [["2019", "2020", "7"], ["NaN", "null", "NA"], ["True", "1e5", "007"]])
def test_words_and_numbers_are_captions(prepare: Prepare, folder: Path, words: list[str]) -> None:
    rows = "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    (folder / "t.csv").write_text("image,caption\n" + rows)
    (folder / "p").mkdir()
    for i in range(3):
        picture(i).save(folder / f"p/{i}.png")
    (folder / "p/metadata.csv").write_text("file_name,caption\n" + rows)
    assert prepare("table:t.csv").captions == words
    assert prepare("images:p").captions == words


@pytest.mark.parametrize("labels", ["1 2 1", "0.0 1.0 0.0", "01 02 03", "-1 1 2", "+1 2 3", "1e0 2 3"])
def test_numbers_are_no_class_names(prepare: Prepare, folder: Path, labels: str) -> None:
    (folder / "t.csv").write_text(
        "image,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels.split()))
    )
    with pytest.raises(UserError, match=r"column 'label' holds numbers; give their names, in order, as classes"):
        prepare("table:t.csv")


def test_columns_of_names_alike_are_refused(prepare: Prepare, folder: Path) -> None:
    (folder / "t.csv").write_text("image,Caption,CAPTION\n0.png,a,b\n")
    with pytest.raises(UserError, match="the columns 'Caption' and 'CAPTION' have the same name; rename one"):
        prepare("table:t.csv")
    (folder / "t.csv").write_text("image,caption,CAPTION\n0.png,a,b\n")
    assert prepare("table:t.csv").captions == ["a"]
    assert prepare({"source": "table", "path": "t.csv", "caption": "CAPTION"}).captions == ["b"]


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200) | st.text(alphabet='ab,;\t"\n\r\0é|.png', max_size=80).map(str.encode))
def test_any_bytes_are_a_table_or_one_error(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(data)
    for quoted in (True, False):
        try:
            rows = read(path, "t", 1000, quoted=quoted)
        except UserError:
            continue
        assert len({len(cells) for cells in rows.cells.values()}) == 1
