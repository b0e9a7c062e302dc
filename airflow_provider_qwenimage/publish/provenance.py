"""Writes into the file of an image that a generative model made it, and on request how, as XMP metadata. No I/O.

The properties are those of the IPTC for images of generative models. An image whose file has a C2PA manifest already
says it, with a signature that any change would break; it stays as it came.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage._version import __version__
from airflow_provider_qwenimage.contract import RANDOM_SEED
from airflow_provider_qwenimage.publish.xmp_in_files import find_xmp, put_xmp
from airflow_provider_qwenimage.publish.xmp_packets import Property, add_properties, packet_of, value_in
from airflow_provider_qwenimage.storage.images import MarkedImage
from airflow_provider_qwenimage.text.messages import printable, shorten

if TYPE_CHECKING:
    import pendulum

    from airflow_provider_qwenimage.contract import TaskSnapshot
    from airflow_provider_qwenimage.rules.image_identity import ImageIdentity

log = logging.getLogger(__name__)

# The IPTC's term for "created by a model that was trained on sampled content".
TRAINED_ALGORITHMIC_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# "A composite of several elements, at least one of which a model made": a contact sheet.
COMPOSITE_SYNTHETIC = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
_MODEL = "Qwen-Image-2512"
_IPTC = ("http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "Iptc4xmpExt")
_XMP = ("http://ns.adobe.com/xap/1.0/", "xmp")
_DUBLIN_CORE = ("http://purl.org/dc/elements/1.1/", "dc")
# Of this package: the standards have no property for these.
_OWN = ("urn:airflow-provider-qwenimage:xmp:1.0/", "qwenimage")
_SOURCE_TYPE = Property(*_IPTC, "DigitalSourceType", TRAINED_ALGORITHMIC_MEDIA)
_SYSTEM = Property(*_IPTC, "AISystemUsed", _MODEL)
_TOOL = Property(*_XMP, "CreatorTool", f"airflow-provider-qwenimage {__version__}")
# A manifest may also be stored elsewhere, under the URL that this property has.
_REMOTE_MANIFEST = "{http://purl.org/dc/terms/}provenance"
_REASON_CHARACTERS = 300
# A batch may have thousands of images that cannot be marked.
_MOST_REASONS = 5
_SIGNED = (
    "it has a C2PA manifest, which says where it comes from, with a signature that any change of the file would break"
)


class ProvenanceMark:
    """Marks the files of images; see the argument ``provenance`` of the operators.

    Args:
        provenance: ``mark``, or ``full`` to write the prompt, the seed, the DAG and the run as well.
    """

    def __init__(self, provenance: str) -> None:
        self._provenance = provenance
        # Each is logged once.
        self._logged: set[str] = set()

    def __call__(
        self,
        content: bytes,
        output_format: str,
        snapshot: TaskSnapshot,
        identity: ImageIdentity,
        made_by: Mapping[str, Any],
    ) -> MarkedImage:
        """Return the file of an image with its mark; or as it is, with the reason, if it cannot have one.

        Args:
            content: The bytes of the file, verified.
            output_format: ``jpeg``, ``png`` or ``webp``.
            snapshot: The snapshot of its image task.
            identity: The request.
            made_by: The Airflow task that submitted it; see `made_by.description_of`.
        """
        try:
            properties = list(_properties(self._provenance, snapshot, identity, made_by))
            marked = _marked(content, output_format, properties)
        except Exception as error:  # noqa: BLE001  the image is paid: it is stored without a mark
            reason = shorten(printable(str(error)), _REASON_CHARACTERS)
            return self._unmarked(content, snapshot, reason)
        return MarkedImage(marked, {"provenance": self._provenance})

    def _unmarked(self, content: bytes, snapshot: TaskSnapshot, reason: str) -> MarkedImage:
        if reason not in self._logged and len(self._logged) < _MOST_REASONS:
            self._logged.add(reason)
            log.warning(
                "The image of image task %s is stored as it came, without a mark of its provenance: %s.",
                snapshot.task_id,
                reason,
            )
        return MarkedImage(content, {"provenance": None, "not_marked_because": reason})


def mark_composite(jpeg: bytes) -> bytes:
    """Return a JPEG that this package has composed of generated images, with a mark that says so."""
    source_type = Property(*_IPTC, "DigitalSourceType", COMPOSITE_SYNTHETIC)
    return put_xmp(jpeg, "jpeg", find_xmp(jpeg, "jpeg"), packet_of([source_type, _SYSTEM, _TOOL]))


def _marked(content: bytes, output_format: str, properties: list[Property]) -> bytes:
    place = find_xmp(content, output_format)
    if place.is_signed or (place.packet is not None and value_in(place.packet, _REMOTE_MANIFEST) is not None):
        raise ValueError(_SIGNED)
    if place.packet is None:
        return put_xmp(content, output_format, place, packet_of(properties))
    stated = value_in(place.packet, _SOURCE_TYPE.key)
    if stated is not None and stated != TRAINED_ALGORITHMIC_MEDIA:
        raise ValueError(f"it says already that its digital source type is {stated!r}")
    return put_xmp(content, output_format, place, add_properties(place.packet, properties))


def _properties(
    provenance: str, snapshot: TaskSnapshot, identity: ImageIdentity, made_by: Mapping[str, Any]
) -> Iterator[Property]:
    """Yield what is written: nothing that changes if a killed task stores the image again."""
    yield _SOURCE_TYPE
    yield _SYSTEM
    yield _TOOL
    if snapshot.created_at is not None:
        yield Property(*_XMP, "CreateDate", _date(snapshot.created_at))
    yield Property(*_DUBLIN_CORE, "identifier", snapshot.task_id)
    if provenance != "full":
        return
    request = identity.request
    yield Property(*_DUBLIN_CORE, "description", request.prompt, is_in_languages=True)
    yield Property(*_IPTC, "AIPromptInformation", request.prompt)
    if request.seed != RANDOM_SEED:
        yield Property(*_OWN, "Seed", str(request.seed))
    for name, field in (("DagId", "dag_id"), ("RunId", "run_id"), ("TaskId", "task_id")):
        if made_by.get(field) is not None:
            yield Property(*_OWN, name, str(made_by[field]))


def _date(time: pendulum.DateTime) -> str:
    """Return a time in UTC; with its own offset, if it is beyond the first or the last year there."""
    with suppress(OverflowError):
        time = time.in_timezone("UTC")
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
