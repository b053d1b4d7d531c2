"""Keywords in XMP: a new packet, or an existing one with keywords added and everything else as it was.

Sources: ISO 16684-1 (XMP: data model, serialization and core properties) for dc:subject, an unordered array of text;
Adobe Lightroom's namespace for lr:hierarchicalSubject, the same with "animal|bird|robin" for a keyword in a tree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from xml.dom import minidom
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from cloob_cli.errors import DataError

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_LR = "http://ns.adobe.com/lightroom/1.0/"
_META = "adobe:ns:meta/"
_XMLNS = "http://www.w3.org/2000/xmlns/"

LARGEST = 16 << 20  # bytes of a sidecar that is read: real ones, with previews in them, have less than a megabyte
_DEEPEST = 100  # levels of elements
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2

_NEW = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def add_keywords(packet: bytes | None, keywords: Sequence[Sequence[str]]) -> bytes:
    """Add keywords to an XMP packet, or to a new one.

    Args:
        packet: the bytes of an XML file; None begins anew.
        keywords: each a path from the root of a tree of labels: ["animal", "bird"], or just ["bird"].

    Returns:
        UTF-8. dc:subject holds every name of every path, lr:hierarchicalSubject every path; what stands there already
        is not repeated. Where nothing is new, the bytes of `packet` as they were.

    Raises:
        DataError: `packet` is not XMP, or is what no program of good will writes: a document type (the door to entity
            bombs and to other files), more than `LARGEST` bytes, elements hundreds deep.
    """
    if packet is not None:
        _check(packet)
    document = minidom.parseString(_NEW.encode() if packet is None else packet)
    try:
        rdf = _rdf(document)
        names = dict.fromkeys(_text(name) for path in keywords for name in path)
        paths = dict.fromkeys("|".join(_text(name).replace("|", "/") for name in path) for path in keywords)
        changed = _add(document, rdf, _DC, "dc:subject", names)
        changed = _add(document, rdf, _LR, "lr:hierarchicalSubject", paths) or changed
        if packet is not None and not changed:
            return packet
        # Version and encoding are what the file declared; what is written is always UTF-8.
        declaration = ['<?xml version="1.0" encoding="UTF-8"?>'] if document.version else []
        return "\n".join([*declaration, *map(_markup, document.childNodes), ""]).encode()
    finally:
        document.unlink()


def read_keywords(packet: bytes) -> tuple[list[str], list[str]]:
    """The texts of dc:subject and of lr:hierarchicalSubject.

    Raises:
        DataError: as in `add_keywords`.
    """
    _check(packet)
    rdf = _rdf(minidom.parseString(packet))
    subject, tree = _property(rdf, _DC, "subject"), _property(rdf, _LR, "hierarchicalSubject")
    return [_content(li) for li in _items(subject)], [_content(li) for li in _items(tree)]


def _check(packet: bytes) -> None:
    if len(packet) > LARGEST:
        raise DataError(f"more than {LARGEST >> 20} MiB")
    depth = 0

    def begin(*_: object) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"elements more than {_DEEPEST} deep")

    def end(*_: object) -> None:
        nonlocal depth
        depth -= 1

    def refuse(*_: object) -> None:
        raise DataError("a document type declaration, which XMP does not have")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet, True)
    except (expat.ExpatError, ValueError, LookupError) as problem:
        raise DataError(f"not XML: {problem}") from None


def _rdf(document: minidom.Document) -> minidom.Element:
    root = document.documentElement
    assert root is not None
    places = [root]
    if root.namespaceURI == _META:  # x:xmpmeta, in old files x:xapmeta
        places = list(_children(root))
    found = [place for place in places if (place.namespaceURI, place.localName) == (_RDF, "RDF")]
    if len(found) != 1:
        raise DataError("no XMP: it has no rdf:RDF")
    return found[0]


def _add(document: minidom.Document, rdf: minidom.Element, uri: str, name: str, texts: Iterable[str]) -> bool:
    """Add to the array `name` what it lacks of `texts`; True where that was something."""
    found = _property(rdf, uri, name.partition(":")[2])
    array = found and _array(found)
    present = {_content(li) for li in _items(found)}
    missing = [text for text in texts if text not in present]
    if not missing:
        return False
    if found is None:
        found = document.createElementNS(uri, name)
        found.setAttributeNS(_XMLNS, f"xmlns:{name.partition(':')[0]}", uri)
        _description(document, rdf).appendChild(found)
    if array is None:
        array = _rdf_element(document, rdf, "Bag")
        plain = _content(found).strip()
        while found.firstChild is not None:
            found.removeChild(found.firstChild)
        if plain:  # text where an array belongs, as careless programs write it
            missing = list(dict.fromkeys([plain, *missing]))
        found.appendChild(array)
    for text in missing:
        item = _rdf_element(document, rdf, "li")
        item.appendChild(document.createTextNode(text))
        array.appendChild(item)
    return True


def _rdf_element(document: minidom.Document, rdf: minidom.Element, name: str) -> minidom.Element:
    """A new element of RDF's namespace with the prefix that the file has for it."""
    if rdf.prefix:
        return document.createElementNS(_RDF, f"{rdf.prefix}:{name}")
    element = document.createElementNS(_RDF, f"rdf:{name}")  # there it is the one without prefix
    element.setAttributeNS(_XMLNS, "xmlns:rdf", _RDF)
    return element


def _description(document: minidom.Document, rdf: minidom.Element) -> minidom.Element:
    for element in _children(rdf):
        if (element.namespaceURI, element.localName) == (_RDF, "Description"):
            return element
    created = _rdf_element(document, rdf, "Description")
    created.setAttributeNS(_RDF, f"{created.prefix}:about", "")
    rdf.appendChild(created)
    return created


def _property(rdf: minidom.Element, uri: str, name: str) -> minidom.Element | None:
    for description in _children(rdf):
        for element in _children(description):
            if (element.namespaceURI, element.localName) == (uri, name):
                return element
    return None


def _array(found: minidom.Element) -> minidom.Element | None:
    kinds = {"Bag", "Seq", "Alt"}
    return next((c for c in _children(found) if c.namespaceURI == _RDF and c.localName in kinds), None)


def _items(found: minidom.Element | None) -> list[minidom.Element]:
    array = _array(found) if found is not None else None
    return [] if array is None else [c for c in _children(array) if (c.namespaceURI, c.localName) == (_RDF, "li")]


def _children(element: minidom.Element) -> Iterator[minidom.Element]:
    return (node for node in element.childNodes if isinstance(node, minidom.Element))


def _content(element: minidom.Element) -> str:
    texts = (minidom.Text, minidom.CDATASection)
    return "".join(node.data for node in element.childNodes if isinstance(node, texts))


def _markup(node: minidom.Node) -> str:
    """A node as XML. minidom's own of Python 3.11 loses line breaks in attributes, and a bare carriage return."""
    if isinstance(node, minidom.Element):
        # In the file's order, with the characters that a reader would make into spaces as references.
        start = "".join(f" {name}={quoteattr(value)}" for name, value in node.attributes.items())
        inner = "".join(map(_markup, node.childNodes))
        return f"<{node.tagName}{start}>{inner}</{node.tagName}>" if inner else f"<{node.tagName}{start}/>"
    if isinstance(node, minidom.Text) and not isinstance(node, minidom.CDATASection):
        return escape(node.data, {"\r": "&#13;"})
    return str(node.toxml())


def _text(name: str) -> str:
    return _NOT_XML.sub("\ufffd", name)
