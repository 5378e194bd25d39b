"""How the facts about data sets are shown: as text for people, as values for JSON."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from distrib.cli.display import visible
from distrib.wording import plural, size

if TYPE_CHECKING:
    from distrib.shards.inspection import DatasetFacts, Lengths, NarrowLine
    from distrib.shards.verification import Damage

_MODES = {"1": "bitonal", "L": "grey", "RGB": "colour"}
_LABEL = 14
_BAR = 40
_NARROW_SHOWN = 5
_LANGUAGES_SHOWN = 20
_DAMAGES_SHOWN = 200


def render_facts(facts: DatasetFacts) -> str:
    """What one or several data sets hold, their alphabet apart."""
    rows = [
        ("lines", _lines(facts)),
        ("shards", f"{facts.shards:,}, {size(facts.bytes)}"),
        ("line type", " and ".join(facts.line_type)),
        ("images", _images(facts)),
        ("splits", _counted(facts.splits)),
        ("languages", _languages(facts.languages)),
        ("duplicates", _duplicates(facts)),
        *_sizes(facts),
        *(("", bar) for bar in _bars(facts.input_widths)),
        ("too narrow", _narrow(facts)),
        *(("", _narrow_line(example)) for example in facts.examples[:_NARROW_SHOWN]),
        *((("problems" if not number else ""), visible(each)) for number, each in enumerate(facts.problems)),
    ]
    body = [f"  {label:<{_LABEL}}{text}".rstrip() for label, text in rows if text]
    return "\n".join([click.style(visible(facts.name), bold=True), *body])


def render_alphabet(total: DatasetFacts, parts: Sequence[DatasetFacts]) -> str:
    """A table of all characters, commonest first, and in how many data sets they are where not in all."""
    head = plural(len(total.alphabet), "different character")
    lines = [click.style(f"alphabet: {head}", bold=True)]
    width = max((len(f"{count:,}") for count in total.alphabet.values()), default=0)
    for character, count in sorted(total.alphabet.items(), key=lambda item: (-item[1], item[0])):
        found = sum(character in part.alphabet for part in parts)
        note = f"  (in {found} of {len(parts)} data sets)" if found < len(parts) else ""
        code = f"U+{ord(character):04X}"
        lines.append(f"  {count:>{width},}  {code:<8}  {_shape(character)}  {_name(character)}{note}")
    return "\n".join(lines)


def render_damages(damages: Sequence[Damage]) -> str:
    """What ``--verify`` found."""
    if not damages:
        return "verified: every shard, checksum and image is as it should be"
    lines = [click.style(f"damaged: {len(damages):,}", bold=True)]
    for damage in damages[:_DAMAGES_SHOWN]:
        place = visible(damage.shard)
        if damage.line is not None:
            names = " ".join(visible(name) for name in (damage.source, damage.line_id) if name)
            place += f" line {damage.line}" + (f" ({names})" if names else "")
        lines.append(f"  {place}: {visible(damage.reason)}")
    if len(damages) > _DAMAGES_SHOWN:
        lines.append(f"  and {len(damages) - _DAMAGES_SHOWN:,} more, which --json lists")
    return "\n".join(lines)


def facts_json(facts: DatasetFacts) -> dict[str, Any]:
    """The facts as values of JSON."""
    several: dict[str, Sequence[Any]] = {
        "line_type": facts.line_type,
        "image_mode": facts.im_mode,
        "source_mode": facts.source_mode,
        "normalized_height": facts.normalized_height,
        "legacy_polygons": facts.legacy_polygons,
    }
    return {
        "name": facts.name,
        **{name: values[0] if len(values) == 1 else list(values) for name, values in several.items()},
        "lines": facts.lines,
        "empty": facts.empty,
        "characters": facts.characters,
        "shards": facts.shards,
        "bytes": facts.bytes,
        "splits": dict(facts.splits),
        "languages": None if facts.languages is None else dict(facts.languages),
        "duplicates": {"key": facts.same_key, "image_and_text": facts.same_content},
        "widths": _lengths_json(facts.widths),
        "heights": _lengths_json(facts.heights),
        "input_widths": {**_lengths_json(facts.input_widths), "estimated": facts.estimated},
        "unmeasured": facts.unmeasured,
        "too_narrow": {
            "lines": facts.narrow,
            "estimated": facts.narrow_estimated,
            "examples": [vars(example) for example in facts.examples],
        },
        "alphabet": [
            {
                "character": character,
                "code_point": f"U+{ord(character):04X}",
                "name": _name(character),
                "count": count,
            }
            for character, count in sorted(facts.alphabet.items())
        ],
        "problems": list(facts.problems),
    }


def _lengths_json(lengths: Lengths) -> dict[str, Any]:
    return {
        "percentiles": {str(percent): length for percent, length in lengths.percentiles().items()},
        "histogram": [list(stretch) for stretch in lengths.histogram()],
    }


def _lines(facts: DatasetFacts) -> str:
    text = f"{facts.lines:,} of {plural(facts.characters, 'character')}"
    return text + (f"; {facts.empty:,} without text" if facts.empty else "")


def _images(facts: DatasetFacts) -> str:
    text = " and ".join(_MODES.get(mode, mode) for mode in facts.im_mode)
    heights = [height for height in facts.normalized_height if height]
    if 0 in facts.normalized_height:
        text += ", as cut"
    if heights:
        text += f"{' and' if 0 in facts.normalized_height else ','} normalised to a height of "
        text += " and ".join(str(height) for height in heights)
        sources = " and ".join(_MODES.get(mode, mode) for mode in facts.source_mode)
        text += f" (cut as {sources})"
    return text + (", legacy polygons" if any(facts.legacy_polygons) else "")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count) or "none"


def _languages(languages: Mapping[str, int] | None) -> str:
    if languages is None:
        return "not recorded"
    common = sorted(languages.items(), key=lambda item: (-item[1], item[0]))
    shown = _counted({visible(name): count for name, count in common[:_LANGUAGES_SHOWN]})
    rest = len(common) - _LANGUAGES_SHOWN
    return shown + (f" and {rest} more" if rest > 0 else "")


def _duplicates(facts: DatasetFacts) -> str:
    if not facts.same_key and not facts.same_content:
        return "none"
    return (
        f"{plural(facts.same_content, 'line')} with image and text of an earlier one, "
        f"{facts.same_key:,} with its key"
    )


def _sizes(facts: DatasetFacts) -> list[tuple[str, str]]:
    """Percentiles in pixels, one column each."""
    sizes = {"width": facts.widths, "height": facts.heights, "input width": facts.input_widths}
    found = {label: lengths.percentiles() for label, lengths in sizes.items() if lengths.percentiles()}
    if not found:
        return [("width", "not known")]
    names = {0: "least", 50: "median", 100: "most"}
    heads = [names.get(percent, f"{percent} %") for percent in found["width"]]
    rows = [("pixels", heads)]
    rows += [(label, [f"{length:,}" for length in row.values()]) for label, row in found.items()]
    columns = [max(len(row[column]) for _, row in rows) for column in range(len(heads))]
    table = {
        label: "  ".join(f"{cell:>{width}}" for cell, width in zip(row, columns, strict=True))
        for label, row in rows
    }
    return [
        (label, text + (_certainty(facts) if label == "input width" else "")) for label, text in table.items()
    ]


def _certainty(facts: DatasetFacts) -> str:
    notes = []
    if facts.estimated:
        notes.append(f"{facts.estimated:,} estimated")
    if facts.unmeasured:
        notes.append(f"{facts.unmeasured:,} lines without a readable image header")
    return f"  ({', '.join(notes)})" if notes else ""


def _bars(lengths: Lengths) -> Iterable[str]:
    stretches = lengths.histogram()
    most = max((lines for *_, lines in stretches), default=0)
    ends, counts = (len(f"{number:,}") for number in (stretches[-1][1] if stretches else 0, most))
    for first, last, lines in stretches:
        bar = "#" * -(-lines * _BAR // most)
        yield f"{first:>{ends},} to {last:>{ends},}  {lines:>{counts},}  {bar}"


def _narrow(facts: DatasetFacts) -> str:
    if not facts.narrow:
        return "none: every line has as many output steps as its characters need"
    text = f"{plural(facts.narrow, 'line')} with fewer output steps than the characters need"
    return text + (f" ({facts.narrow_estimated:,} by estimate)" if facts.narrow_estimated else "")


def _narrow_line(example: NarrowLine) -> str:
    names = " ".join(visible(name) for name in (example.source, example.line_id) if name)
    place = f"line {example.line}" + (f" ({names})" if names else "")
    return f"{place}: {'' if example.exact else 'about '}{example.steps} for {example.needed}"


def _shape(character: str) -> str:
    """A character in two columns: on a dotted circle if it combines, blank if it has no shape of its own."""
    category = unicodedata.category(character)
    if category[0] in "CZ":
        return "  "
    if category[0] == "M":
        return f"\u25cc{character} "
    return character if unicodedata.east_asian_width(character) in "WF" else f"{character} "


def _name(character: str) -> str:
    kinds = {"Cc": "control character", "Co": "private use", "Cs": "surrogate", "Cn": "not assigned"}
    return unicodedata.name(character, kinds.get(unicodedata.category(character), "without a name"))
