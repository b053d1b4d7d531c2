"""Label, template and text files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.errors import InputError, LabelError
from cloob_cli.inference.labels import read_labels, read_templates, read_texts


def parsed(folder: Path, text: str | bytes) -> list[tuple[str, ...]]:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    labels = read_labels(path)
    assert all(label.names[0] == label.name for label in labels)
    return [label.names for label in labels]


def test_labels_synonyms_and_comments(tmp_path: Path) -> None:
    text = "# animals\ncat\n\n  dog :  puppy | hound|  # the friend\nbird: fowl\r\nC# and #5\nkeycap #\n"
    assert parsed(tmp_path, text) == [
        ("cat",),
        ("dog", "puppy", "hound"),
        ("bird", "fowl"),
        ("C# and #5",),
        ("keycap #",),
    ]


def test_a_bar_without_colon_lists_names(tmp_path: Path) -> None:
    assert parsed(tmp_path, "cat | kitten | feline") == [("cat", "kitten", "feline")]


def test_colons_of_names_stay_where_they_would_repeat_a_label(tmp_path: Path) -> None:
    assert parsed(tmp_path, "keycap: 1\nkeycap: 2\ndog: puppy | hound\n") == [
        ("keycap: 1",),
        ("keycap: 2",),
        ("dog", "puppy", "hound"),
    ]


def test_a_colon_without_space_is_part_of_the_name(tmp_path: Path) -> None:
    assert parsed(tmp_path, "12:30\nratio 1:2") == [("12:30",), ("ratio 1:2",)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_line_ends_of_every_system_and_no_others(tmp_path: Path, end: str, mark: str) -> None:
    path = tmp_path / "lines.txt"
    for last in ("", end):
        path.write_bytes((mark + end.join(["{c} cat", "", "{c} big\u2028dog", "{c} a\x85b\vc"]) + last).encode())
        expected = ["{c} cat", "{c} big\u2028dog", "{c} a\x85b\vc"]
        assert [label.name for label in read_labels(path)] == read_templates(path) == list(read_texts(path)) == expected
    path.write_bytes(end.join(["cat", "dog", "caf"]).encode() + b"\xe9")
    with pytest.raises(InputError, match="line 3: is not UTF-8"):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no label"),
        (b"\n  \n# only a comment\n", "holds no label"),
        (b"cat\ndog\ncat\n", r"line 3: the label 'cat' stands already on line 1"),
        (b"cat: a | b\ncat: c | d\n", r"line 2: the label 'cat' stands already on line 1"),
        (b": a | b\n", "line 1: no label before the colon"),
        (b"cat\ncaf\xe9\n", "line 2: is not UTF-8"),
        ("cat\n".encode("utf-16"), "line 1: is not UTF-8"),
        ("cat\n".encode("utf-16-le"), "line 1: holds a null character"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(LabelError, match=message) as caught:
        parsed(tmp_path, content)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "missing.txt")
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path)


def test_a_tree_may_stand_on_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("animal > bird > robin: redbreast\nbird > crane\nthing\nthing > animal\na \\> b\n")
    labels = read_labels(path, ["crane > baby crane"])
    assert [label.path for label in labels] == [
        ("thing", "animal", "bird", "robin"),
        ("thing", "animal", "bird", "crane"),
        ("thing",),
        ("thing", "animal"),
        ("a > b",),
        ("thing", "animal", "bird", "crane", "baby crane"),
    ]
    assert labels[0].names == ("robin", "redbreast")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "animal > crane > chick\nmachine > crane > hook",
            "line 2: 'crane' stands below 'machine', and elsewhere below",
        ),
        ("animal > crane\nmachine > crane", "line 2: the label 'crane' stands already on line 1"),
        ("a > b > a", "line 1: 'a' and 'a' stand below each other"),
        ("a > b\nb > c\nc > a", "line 1: .b. and .b. stand below each other"),
        ("animal >", "nothing stands beside a >"),
        ("> bird", "nothing stands beside a >"),
        ("animal > > bird", "nothing stands beside a >"),
    ],
)
def test_trees_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(content)
    with pytest.raises(LabelError, match=message):
        read_labels(path)


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="\ufeff"), min_size=1)
# (A label that ends in a backslash is the one that cannot be written: it would take the colon behind it.)
WORDS = st.lists(NAMES, min_size=1, max_size=4).map(" ".join).filter(lambda name: not name.endswith("\\"))


def escaped(name: str) -> str:
    return "".join("\\" + c if c in ":|#>" else c for c in name)


@given(st.dictionaries(WORDS, st.lists(WORDS, max_size=3), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_every_name_can_be_written(classes: dict[str, list[str]], line_end: str) -> None:
    lines = [f"{escaped(name)}: {' | '.join(map(escaped, others))} |" for name, others in classes.items()]
    with tempfile.TemporaryDirectory() as folder:
        found = parsed(Path(folder), line_end.join(lines))
    assert found == [tuple(dict.fromkeys([name, *others])) for name, others in classes.items()]


@given(st.binary() | st.text(alphabet="ab:|# \\\n\r").map(str.encode))
def test_wild_bytes_are_labels_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = parsed(Path(folder), content)
        except LabelError:
            return
    names = [names[0] for names in found]
    assert names
    assert len(set(names)) == len(names)
    assert all(name == name.strip() and name for entry in found for name in entry)


def test_templates(tmp_path: Path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("# ours\na photo of {c}\n{} icon\n\na photo of {c}\n", encoding="utf-8")
    assert read_templates(path) == ["a photo of {c}", "{} icon"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# none\n", "holds no template"),
        (b"{c}\na photo\n", "line 2: no {c} in the template 'a photo'"),
        (b"\xff\xfe", "line 1: is not UTF-8"),
    ],
)
def test_template_files_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "templates.txt"
    path.write_bytes(content)
    with pytest.raises(LabelError, match=message):
        read_templates(path)


def test_texts_keep_everything_but_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("# a heading: x | y\n\n  ein Käfer \n".encode())
    assert list(read_texts(path)) == ["# a heading: x | y", "ein Käfer"]
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(InputError, match="line 2: is not UTF-8"):
        list(read_texts(path))
