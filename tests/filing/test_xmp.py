"""Keywords in XMP: what is added, what stays, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloob_cli.errors import DataError
from cloob_cli.filing.xmp import add_keywords, read_keywords

# As a photo manager writes it: its own prefix for dc, a rating, a line break in an attribute, a comment, CDATA.
EXISTING = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Photo 1.0">
 <r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <r:Description r:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"
    xmlns:p="urn:p" p:note="a&#10;b &lt;">
   <d:subject xmlns:d="http://purl.org/dc/elements/1.1/"><r:Bag><r:li>holiday</r:li><r:li>cat</r:li></r:Bag></d:subject>
   <p:text><![CDATA[<kept>]]></p:text>
  </r:Description>
 </r:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
""".encode()
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def test_a_new_packet_holds_all_names_and_the_paths() -> None:
    packet = add_keywords(None, [["animal", "bird", "robin"], ["roof"]])
    assert read_keywords(packet) == (["animal", "bird", "robin", "roof"], ["animal|bird|robin", "roof"])
    assert packet.startswith('<?xpacket begin="\ufeff"'.encode())


def test_what_stands_in_a_sidecar_stays() -> None:
    merged = add_keywords(EXISTING, [["cat"], ["roof"]])
    assert read_keywords(merged) == (["holiday", "cat", "roof"], ["cat", "roof"])
    before, after = ElementTree.fromstring(EXISTING), ElementTree.fromstring(merged)
    old, new = before.find(f".//{RDF}Description"), after.find(f".//{RDF}Description")
    assert old is not None
    assert new is not None
    assert new.attrib == old.attrib
    assert new.attrib["{urn:p}note"] == "a\nb <"
    assert new.findtext("{urn:p}text") == "<kept>"
    for kept in (
        b"<!-- by hand -->",
        b'x:xmptk="Photo 1.0"',
        b"<![CDATA[<kept>]]>",
        b'<?xpacket end="w"?>',
        b"d:subject",
    ):
        assert kept in merged


def test_nothing_new_changes_no_byte() -> None:
    merged = add_keywords(EXISTING, [["cat"]])
    assert merged != EXISTING  # the tree's keyword was missing
    assert add_keywords(merged, [["cat"]]) == merged


def test_an_array_is_made_where_there_is_none() -> None:
    empty = b'<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    assert read_keywords(add_keywords(empty, [["a"]])) == (["a"], ["a"])
    plain = EXISTING.replace(b"<r:Bag><r:li>holiday</r:li><r:li>cat</r:li></r:Bag>", b"holiday")
    assert read_keywords(add_keywords(plain, [["a"]])) == (["holiday", "a"], ["a"])


@given(st.lists(st.text(min_size=1), min_size=1, max_size=3))
def test_any_name_becomes_well_formed_xml(path: list[str]) -> None:
    names, [tree] = read_keywords(add_keywords(None, [path]))
    allowed = [
        "".join(
            c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd"
            for c in name
        )
        for name in path
    ]
    assert names == list(dict.fromkeys(allowed))
    assert tree == "|".join(name.replace("|", "/") for name in allowed)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><a>&c;</a>', "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        (b"<a>" * 101 + b"</a>" * 101, "deep"),
        (b"<html/>", "no rdf:RDF"),
        (b"", "not XML"),
        (b"\x89PNG\r\n", "not XML"),
        (EXISTING[:-90], "not XML"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>", "not XML"),
        (b" " * ((16 << 20) + 1), "16 MiB"),
    ],
)
def test_what_is_no_sidecar_is_refused(packet: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        add_keywords(packet, [["a"]])
    assert "\n" not in caught.value.message


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed (libimage-exiftool-perl)")
def test_exiftool_reads_the_keywords(tmp_path: Path) -> None:
    path = tmp_path / "a.xmp"
    for packet, subjects in ((None, []), (EXISTING, ["holiday", "cat"])):
        path.write_bytes(add_keywords(packet, [["animal", "Käfer & <Co>"]]))
        command = ["exiftool", "-j", "-XMP-dc:Subject", "-XMP-lr:HierarchicalSubject", "-XMP-xmp:Rating", str(path)]
        [found] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        assert found["Subject"] == [*subjects, "animal", "Käfer & <Co>"]
        assert found["HierarchicalSubject"] == "animal|Käfer & <Co>"  # of one alone it makes no list
        assert found.get("Rating") == (4 if packet else None)
