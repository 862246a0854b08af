"""Requests and answers in JSON; FastAPI reads the OpenAPI description from the same classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from cskt.data.sentences import MAX_SENTENCE_CHARACTERS, check_wording
from cskt.errors import CsktError
from cskt.gallery.columns import MAX_COLUMNS, Kind
from cskt.gallery.options import SearchOptions
from cskt.gallery.query import Query
from cskt.gallery.stores.base import MAX_ID_CHARACTERS
from cskt.service.http_errors import ServiceError
from cskt.service.settings import ServiceSettings

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BREAK = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _sentence(text: str) -> str:
    if len(text) > MAX_SENTENCE_CHARACTERS:
        raise too_much("a sentence", MAX_SENTENCE_CHARACTERS, "characters", len(text))
    check_wording(text)
    return text


def _filter(text: str) -> str:
    if not text.strip():
        raise CsktError("the filter is empty; leave it out")
    if _CONTROL.search(text):
        raise CsktError("the filter contains a control character; remove it")
    return text


def _one_line(text: str) -> str:
    if _BREAK.search(text):
        raise CsktError("the text contains a control character or a line break; remove it")
    return text


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 10.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def too_much(subject: str, limit: int, unit: str, number: int) -> ServiceError:
    """Return the refusal of a request beyond a limit; a validator raises it as it is, unlike a `CsktError`."""
    return ServiceError(422, "too_much", f"{subject} is limited to {limit:,} {unit}, not {number:,}")


Whole: TypeAlias = Annotated[int, BeforeValidator(_whole)]
Sentence: TypeAlias = Annotated[
    str,
    Field(json_schema_extra={"format": "sentence", "maxLength": MAX_SENTENCE_CHARACTERS}),
    AfterValidator(_sentence),
]
Filter: TypeAlias = Annotated[str, Field(json_schema_extra={"format": "filter"}), AfterValidator(_filter)]
ImageId: TypeAlias = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID_CHARACTERS, json_schema_extra={"format": "image-id"}),
    AfterValidator(_one_line),
]
ImageFile: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        json_schema_extra={"format": "image-file"},
        description="An image file's bytes in base64, plain or as a data: URL (data:image/png;base64,...).",
    ),
]
Weight: TypeAlias = Annotated[float, Field(gt=0, le=100)]
MetadataValue: TypeAlias = bool | int | float | str
TIMES = "Times are ISO 8601 in UTC, such as 2026-01-31T12:00:00Z."
MAX_MARKS = 10_000
MAX_DELETED = 1000


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


def with_zones(values: Mapping[str, MetadataValue], kinds: Mapping[str, Kind]) -> dict[str, MetadataValue]:
    """Return metadata as they are answered; see `with_zone`."""
    return {name: with_zone(value, kinds.get(name)) for name, value in values.items()}


def with_zone(value: MetadataValue | None, kind: Kind | None) -> Any:
    """Return a value as it is answered: a time of a store, `2026-01-31T12:00:00`, gets the Z of UTC."""
    return f"{value}Z" if kind == "time" and value is not None else value


def _require_a_part(schema: dict[str, Any]) -> None:
    """Require a string for one of the three keys that may be left out or null."""
    schema["anyOf"] = [
        {"required": [name], "properties": {name: schema["properties"][name]["anyOf"][0]}}
        for name in ("text", "image", "like")
    ]


class SearchRequest(_Request):
    """A sentence, a picture, a crop of the gallery, or several of them."""

    model_config = ConfigDict(json_schema_extra=_require_a_part)

    text: Sentence | None = None
    image: ImageFile | None = None
    like: ImageId | None = Field(None, description="More like this crop of the gallery.")
    exclude: list[Sentence] = Field([], description="Sentences to move away from.")
    text_weight: Weight = Query.text_weight
    image_weight: Weight = Query.image_weight
    exclude_weight: Weight = Query.exclude_weight
    where: Filter | None = Field(None, description="A filter such as: camera = 'c3' AND time > '2026-01-01'")
    k: Whole = Field(SearchOptions.k, ge=1)
    offset: Whole = Field(SearchOptions.offset, ge=0)
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="Threshold; the calibrated one, if any, where it is left out; -1 for none."
    )
    group_by: Annotated[str, Field(json_schema_extra={"format": "column"})] | None = Field(
        None, description="A metadata column; the best crop of each of its values is shown."
    )
    histogram: bool = Field(False, description="Also count the crops of the gallery by score.")

    @model_validator(mode="after")
    def _check(self) -> SearchRequest:
        if self.text is None and self.image is None and self.like is None:  # as `Query` checks, in the words of JSON
            raise CsktError("give text, image or like")
        return self

    def check_limits(self, settings: ServiceSettings) -> None:
        """Refuse what is too much for one request."""
        for name, number, limit, unit in (
            ("exclude", len(self.exclude), settings.max_exclude, "sentences"),
            ("where", len(self.where or ""), settings.where_characters, "characters"),
            ("k", self.k, settings.max_k, "hits"),
            ("offset", self.offset, settings.max_offset, "hits"),
        ):
            if number > limit:
                raise too_much(name, limit, unit, number)

    def audit_fields(self) -> dict[str, Any]:
        """Return what the audit log records of the request: everything that chooses the crops, but no picture."""
        facts = self.model_dump(include={"text", "like", "exclude", "where", "k"})
        return facts | {"image": None if self.image is None else True, "offset": self.offset or None}

    def query(self, image: Tensor | None) -> Query:
        """Return the query, with its decoded picture."""
        weights = self.text_weight, self.image_weight, self.exclude_weight
        return Query(self.text, image, self.like, tuple(self.exclude), *weights)


class ExplainRequest(_Request):
    """A crop, and the sentence that explains it."""

    text: Sentence
    image_id: ImageId


class CropUpload(_Request):
    """A crop for the gallery; one of the same name is replaced."""

    image_id: ImageId
    image: ImageFile
    metadata: dict[str, MetadataValue | None] = Field(
        {}, max_length=MAX_COLUMNS, description="A time without a zone is taken as UTC; null takes a value back."
    )


class AddRequest(_Request):
    """Crops to add."""

    crops: list[CropUpload] = Field(min_length=1)

    def check_limits(self, settings: ServiceSettings) -> None:
        """See `SearchRequest.check_limits`."""
        if len(self.crops) > settings.crops_per_request:
            raise too_much("crops", settings.crops_per_request, "crops", len(self.crops))


class MarkedHit(_Request):
    """A hit that somebody marked as right or wrong."""

    text: Sentence
    image_id: ImageId
    right: bool


class ExportRequest(_Request):
    """Marked hits, to be exported as a file."""

    format: Literal["csv", "jsonl"]
    marks: list[MarkedHit] = Field(max_length=MAX_MARKS)


class SessionRequest(_Request):
    """The token or a key, of a browser."""

    token: str = Field(min_length=1, max_length=1000)


class ErrorFacts(_Answer):
    """An error; `request_id` is also in the log."""

    code: str
    message: str
    request_id: str


class ErrorAnswer(_Answer):
    """Every error has this form."""

    error: ErrorFacts


class HitAnswer(_Answer):
    """A crop that was found."""

    image_id: str
    score: float
    rank: int
    group_size: int
    metadata: Mapping[str, MetadataValue] = Field(description=TIMES)


class HistogramAnswer(_Answer):
    """Number of crops that score between neighbouring edges."""

    edges: list[float]
    counts: list[int]


class SearchAnswer(_Answer):
    """Hits, best first."""

    hits: list[HitAnswer]
    # API name since 0.1; equals `min_score` elsewhere.
    cut_off: float | None = Field(description="The threshold: lowest score of a hit; null without one.")
    histogram: HistogramAnswer | None
    warnings: list[str] = Field(
        description="What the model misses in the sentences: ends that are cut off, words that it has never seen."
    )
    seconds: float


class WordHeat(_Answer):
    """Heat map of a word: rows of patches, from 0 to 1."""

    word: str
    heat: list[list[float]]


class ExplainAnswer(_Answer):
    """Heat maps of a sentence and its words over a crop."""

    score: float
    rows: int
    columns: int
    sentence: list[list[float]]
    words: list[WordHeat]
    warnings: list[str] = Field(description="What the model misses in the sentence.")


class CropAnswer(_Answer):
    """Facts of a crop."""

    image_id: str
    width: int
    height: int
    num_bytes: int
    sha256: str
    metadata: Mapping[str, MetadataValue] = Field(description=TIMES)


class ValueCount(_Answer):
    """A value of a column and the number of crops that have it."""

    value: MetadataValue
    count: int


class ColumnAnswer(_Answer):
    """A metadata column, as filters need it."""

    name: str
    kind: Kind
    values: list[ValueCount] = Field(description="Most frequent first; empty where there are too many.")
    minimum: MetadataValue | None = Field(description=TIMES)
    maximum: MetadataValue | None = Field(description=TIMES)


class ModelAnswer(_Answer):
    """The model that searches."""

    name: str
    warning: str | None


class Limits(_Answer):
    """Limits of one request."""

    k: int
    sentence_characters: int
    image_bytes: int


class GalleryAnswer(_Answer):
    """Facts of the gallery that a page needs before the first search."""

    name: str
    count: int
    model: ModelAnswer
    columns: list[ColumnAnswer]
    cut_off: float | None  # API name since 0.1; the calibrated `min_score`
    limits: Limits
    writable: bool = Field(description="Whether crops can be added and deleted, with a key.")
    token_needed: bool = Field(description="Whether reading needs a key.")


class Unreadable(_Answer):
    """A crop that was not added."""

    image_id: str
    reason: str


class AddAnswer(_Answer):
    """Result of adding crops."""

    added: int
    replaced: int
    unreadable: list[Unreadable]


class RemoveAnswer(_Answer):
    """Number of crops that were removed."""

    removed: int


class SessionAnswer(_Answer):
    """A browser is signed in."""

    seconds: int = Field(description="Time until the session ends, at the latest when the service stops.")


class HealthAnswer(_Answer):
    """The service answers queries."""

    status: Literal["ok"]
