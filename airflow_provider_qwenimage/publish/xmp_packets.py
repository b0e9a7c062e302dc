"""Writes XMP packets, the metadata that image programs read, and adds properties to packets that exist. No I/O.

A packet that exists keeps every byte apart from the padding at its end: properties are inserted as text, and the result
is read again as XML. A property that it has already is not added.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_META = "adobe:ns:meta/"
# The marks that let programs find a packet in a file of any format: XMP, part 1, 7.3.2.
_HEADER = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
_TRAILER = '<?xpacket end="w"?>'
# Far more than programs write; a larger one is not read.
MAX_PACKET_BYTES = 1024 * 1024
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_END_OF_RDF = re.compile(rb"</(?:[\w.-]+:)?RDF\s*>")


@dataclass(frozen=True)
class Property:
    """A property of an image.

    Attributes:
        namespace: The URI of its namespace.
        prefix: The usual prefix of that namespace.
        name: Its name.
        value: Its text.
        is_in_languages: Whether its type is a text in several languages, of which this is the default.
    """

    namespace: str
    prefix: str
    name: str
    value: str
    is_in_languages: bool = False

    @property
    def key(self) -> str:
        """Its name as `ElementTree` spells it."""
        return f"{{{self.namespace}}}{self.name}"


def packet_of(properties: Sequence[Property]) -> bytes:
    """Return a packet with these properties; no two of them have the same name."""
    lines = [
        _HEADER,
        f'<x:xmpmeta xmlns:x="{_META}">',
        f'<rdf:RDF xmlns:rdf="{RDF}">',
        _described(properties, about=""),
        "</rdf:RDF>",
        "</x:xmpmeta>",
        _TRAILER,
    ]
    return "\n".join(lines).encode()


def add_properties(packet: bytes, properties: Sequence[Property]) -> bytes:
    """Return a packet with the properties that it does not have yet.

    Args:
        packet: The packet, in UTF-8.
        properties: The properties, in the order in which they are written.

    Raises:
        ValueError: If it is not a packet that can be read.
    """
    before = _properties_in(packet)
    added = [one for one in properties if one.key not in before]
    if not added:
        return packet
    ends = list(_END_OF_RDF.finditer(packet))
    if not ends:
        if before:
            raise ValueError("the XMP packet has no end of its properties")
        return packet_of(properties)
    at = ends[-1].start()
    described = _described(added, about=_about_in(packet)).encode()
    merged = packet[:at] + described + b"\n" + _without_padding(packet[at:])
    if sorted(_properties_in(merged)) != sorted([*before, *(one.key for one in added)]):
        raise ValueError("the XMP packet has its properties in another place than at its end")
    return merged


def _without_padding(rest: bytes) -> bytes:
    """Return the end of a packet without the spaces that programs leave for others to fill."""
    before, trailer, after = rest.rpartition(b"<?xpacket end")
    return before.rstrip() + b"\n" + trailer + after if trailer else rest


def value_in(packet: bytes, key: str) -> str | None:
    """Return the text of a property of a packet, by its name as `ElementTree` spells it; None if it has none.

    Raises:
        ValueError: If it is not a packet that can be read.
    """
    for description in _descriptions(packet):
        if key in description.attrib:
            return description.attrib[key]
        if (found := description.find(key)) is not None:
            return found.get(f"{{{RDF}}}resource") or "".join(found.itertext()).strip()
    return None


def _properties_in(packet: bytes) -> list[str]:
    """Return the names of the properties of a packet."""
    about = f"{{{RDF}}}about"
    return [
        name
        for description in _descriptions(packet)
        for name in (*description.attrib, *(child.tag for child in description))
        if name not in (about, "about")
    ]


def _about_in(packet: bytes) -> str:
    """Return what a packet is about: all of its descriptions must say the same."""
    for description in _descriptions(packet):
        about = description.get(f"{{{RDF}}}about")
        if about is not None:
            return about
    return ""


def _descriptions(packet: bytes) -> Iterable[Element]:
    if len(packet) > MAX_PACKET_BYTES:
        raise ValueError(f"the XMP packet has more than {MAX_PACKET_BYTES} bytes")
    # Nothing that declares entities is parsed.
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet or b"\0" in packet:
        raise ValueError("the XMP packet is not plain XML in UTF-8")
    # Few images come with metadata.
    from xml.etree import ElementTree as ET

    try:
        packet.decode()
        root = ET.fromstring(packet.strip(b" \t\r\n\xef\xbb\xbf"))  # noqa: S314  without a DOCTYPE
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"the XMP packet is not XML in UTF-8 ({error})") from error
    rdf = root if root.tag == f"{{{RDF}}}RDF" else root.find(f"{{{RDF}}}RDF")
    if rdf is None:
        raise ValueError("the XMP packet has no RDF")
    return rdf.findall(f"{{{RDF}}}Description")


def _described(properties: Sequence[Property], about: str) -> str:
    namespaces = {one.prefix: one.namespace for one in properties} | {"rdf": RDF}
    declared = "".join(f' xmlns:{prefix}="{uri}"' for prefix, uri in sorted(namespaces.items()))
    lines = [f"<rdf:Description rdf:about={quoteattr(about)}{declared}>"]
    for one in properties:
        text = escape(_NOT_IN_XML.sub("\ufffd", one.value), {"\r": "&#13;"})
        if one.is_in_languages:
            text = f'<rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt>'
        lines.append(f"<{one.prefix}:{one.name}>{text}</{one.prefix}:{one.name}>")
    return "\n".join([*lines, "</rdf:Description>"])
