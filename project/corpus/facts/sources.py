"""Facts from pycountry (ISO 3166, 4217, 639), countryinfo and mendeleev, mended by `overrides.csv`.

ISO's tables decide. countryinfo is stale, so its currencies count only where all are active in ISO 4217, its
borders only where both countries list each other, and its populations and languages not at all. Of mendeleev only numbers
and classes are taken, never its prose. mendeleev's package takes 11-15 s to import, its SQLite file 5 ms to read: the file
is read directly, so that there is nothing to cache.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from project.answers import normalise_answer
from project.corpus.facts.table import Entity, Fact, FactTable, with_groups
from project.errors import InputError
from project.records import Row

REGIONS_PER_COUNTRY = 25
OVERRIDES = Path(__file__).with_name("overrides.csv")
FAMILIES = {"Alkali metals", "Alkaline earth metals", "Halogens", "Lanthanides", "Actinides", "Noble gases"}
"""The families of elements on whose members all tables agree; heavier elements than `LAST_MEASURED` have none."""
LAST_MEASURED = 103
_PLAIN_NAME = re.compile(r"[^\W\d_][^\d_,()\[\]/*;]{2,39}")
ELEMENTS_QUERY = """
select e.atomic_number, e.symbol, e.name, e.period, e.group_id, e.block, s.name, e.discovery_year, e.en_pauling,
       e.atomic_weight, e.is_radioactive, (select case when count(*) = 1 then max(p.melting_point) end
         from phasetransitions p where p.atomic_number = e.atomic_number and p.is_sublimation_point is null)
from elements e left join series s on s.id = e.series_id order by e.atomic_number
"""


def load_table() -> FactTable:
    """Return the table of all facts, each entity with its group.

    Raises:
        InputError: a source package is missing, or its data has another layout than the one read here.
    """
    facts: list[Fact] = []
    overrides = _read_overrides()
    entities = {e.id: e for e in (*_countries(facts, overrides), *_currencies(facts), *_languages(facts), *_elements(facts))}
    facts = _mended(facts, overrides)
    used = {f.target for f in facts if f.aspect == "currency"}
    entities = {ident: e for ident, e in entities.items() if e.kind != "currency" or ident in used}
    taken = {normalise_answer(name) for e in entities.values() for name in (e.name, *e.aliases)}
    taken |= {normalise_answer(f.value) for f in facts if f.aspect == "capital"}
    for region in _regions(facts, entities, taken):
        entities[region.id] = region
    facts = [_named(f, entities) for f in facts if f.entity in entities]
    return FactTable(with_groups(entities.values(), facts), facts)


def _read_overrides() -> dict[tuple[str, str], tuple[str, str]]:
    """Return (value, source) by (entity, aspect); an empty value leaves the fact out."""
    with OVERRIDES.open(encoding="utf-8", newline="") as stream:
        return {(row["entity"], row["aspect"]): (row["value"], row["source"]) for row in csv.DictReader(stream)}


def _package_file(package: str, *parts: str) -> Path:
    spec = find_spec(package)
    path = Path(spec.origin).parent.joinpath(*parts) if spec and spec.origin else None
    if path is None or not path.exists():
        raise InputError(f"the data of the package {package} is not installed; run 'pip install {package}'")
    return path


def _mended(facts: list[Fact], overrides: dict[tuple[str, str], tuple[str, str]]) -> list[Fact]:
    kept = [f for f in facts if (f.entity, f.aspect) not in overrides]
    kept = [f for f in kept if f.aspect != "border" or (f.target, "border") not in overrides]
    for (entity, aspect), (value, source) in overrides.items():
        if value and aspect != "name":
            target = f"currency:{value}" if aspect == "currency" else ""
            number = float(value) if value.isdigit() else None
            short = (value.partition(",")[0],) if "," in value else ()
            kept.append(Fact(entity, aspect, value, f"override: {source}", short, target, number))
    return kept


def _named(fact: Fact, entities: dict[str, Entity]) -> Fact:
    """Write a fact whose value is an entity with that entity's name and aliases."""
    if not fact.target:
        return fact
    target = entities[fact.target]
    codes = (target.id.partition(":")[2],) if target.kind == "currency" else ()
    return replace(fact, value=target.name, aliases=(*target.aliases, *fact.aliases, *codes))


def _countries(facts: list[Fact], overrides: dict[tuple[str, str], tuple[str, str]]) -> Iterator[Entity]:
    import pycountry

    info = _country_info()
    iso = "pycountry: ISO 3166-1"
    by_alpha3 = {c.alpha_3: f"country:{c.alpha_2}" for c in pycountry.countries}
    borders = {f"country:{code}": [by_alpha3.get(b, b) for b in row.get("borders") or []] for code, row in info.items()}
    for country in sorted(pycountry.countries, key=lambda c: str(c.alpha_2)):
        ident, more = f"country:{country.alpha_2}", info.get(country.alpha_2, {})
        official = getattr(country, "official_name", "")
        name, _ = overrides.get((ident, "name"), (getattr(country, "common_name", country.name), ""))
        aliases = (country.name, official, str(more.get("name") or ""))
        yield Entity(ident, name, tuple(dict.fromkeys(a for a in aliases if a and a != name)))
        facts += [Fact(ident, a, getattr(country, f), iso) for a, f in (("alpha2", "alpha_2"), ("alpha3", "alpha_3"))]
        facts.append(Fact(ident, "numeric", country.numeric, iso))
        if official and official != name:
            facts.append(Fact(ident, "official_name", official, iso))
        facts += _country_facts(ident, more)
        facts += _border_facts(ident, borders)


def _country_info() -> dict[str, Row]:
    """Return countryinfo's rows by ISO code; of two rows for one country the one with an area."""
    rows: dict[str, Row] = {}
    for path in sorted(_package_file("countryinfo", "data").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        code = (row.get("ISO") or {}).get("alpha2", "")
        if code and (code not in rows or row.get("area")):
            rows[code] = row
    return rows


def _country_facts(ident: str, row: Row) -> Iterator[Fact]:
    import pycountry

    source = "countryinfo"
    if capital := row.get("capital"):
        yield Fact(ident, "capital", capital, source)
    currencies = row.get("currencies") or []
    active = {c.alpha_3: c.name for c in pycountry.currencies}
    if all(code in active for code in currencies):
        for code in currencies:
            demonym = row.get("demonym") or ""
            own = demonym.isalpha() and active[code].isalpha() and code != "EUR"
            full = (f"{demonym} {active[code]}",) if own else ()  # "Mongolian Tugrik", not "Malaysian Malaysian Ringgit"
            yield Fact(ident, "currency", code, source, full, f"currency:{code}")
    for aspect, name in (("continent", "region"), ("subregion", "subregion")):
        if row.get(name):
            yield Fact(ident, aspect, row[name], source)
    area = row.get("area") or 0
    if area >= 10 and area == int(area):
        aliases = (str(area), f"{area:,} km2", f"{area:,} square kilometres")
        yield Fact(ident, "area", f"{area:,}", source, aliases, number=float(area))
    codes = row.get("callingCodes") or []
    if len(codes) == 1 and re.fullmatch(r"\d{1,3}", codes[0]):
        yield Fact(ident, "calling_code", f"+{codes[0]}", source, (codes[0],))
    domains = [d for d in row.get("tld") or [] if re.fullmatch(r"\.[a-z]{2}", d)]
    if len(domains) == 1:
        yield Fact(ident, "domain", domains[0], source)


def _border_facts(ident: str, borders: dict[str, list[str]]) -> Iterator[Fact]:
    """Yield borders that both countries list; `only_neighbour` where there is one and no list disagrees."""
    mine = borders.get(ident, [])
    mutual = [other for other in mine if ident in borders.get(other, [])]
    for other in mutual:
        yield Fact(ident, "border", other, "countryinfo", target=other)
    claims = [other for other, theirs in borders.items() if ident in theirs]
    if len(mutual) == len(mine) == len(claims) == 1:
        yield Fact(ident, "only_neighbour", mutual[0], "countryinfo", target=mutual[0])


def _regions(facts: list[Fact], entities: dict[str, Entity], taken: set[str]) -> Iterator[Entity]:
    """Yield at most 25 regions a country, top level first, whose names are plain and stand for nothing else."""
    import pycountry

    rows = sorted(pycountry.subdivisions, key=lambda s: (s.parent_code is not None, s.code))
    names = Counter(normalise_answer(s.name) for s in rows)
    counts: Counter[str] = Counter()
    for row in rows:
        country, key = f"country:{row.country_code}", normalise_answer(row.name)
        plain = _PLAIN_NAME.fullmatch(row.name) and _PLAIN_NAME.fullmatch(row.type) and names[key] == 1
        if not plain or key in taken or country not in entities or counts[country] >= REGIONS_PER_COUNTRY:
            continue
        counts[country] += 1
        ident, source = f"region:{row.code}", "pycountry: ISO 3166-2"
        yield Entity(ident, row.name)
        facts.append(Fact(ident, "country", country, source, target=country))
        facts.append(Fact(ident, "type", row.type.lower(), source))
        facts.append(Fact(ident, "code", row.code, source))


def _currencies(facts: list[Fact]) -> Iterator[Entity]:
    import pycountry

    for row in sorted(pycountry.currencies, key=lambda c: str(c.alpha_3)):
        ident = f"currency:{row.alpha_3}"
        yield Entity(ident, row.name)
        facts.append(Fact(ident, "code", row.alpha_3, "pycountry: ISO 4217"))
        facts.append(Fact(ident, "numeric", row.numeric, "pycountry: ISO 4217"))


def _languages(facts: list[Fact]) -> Iterator[Entity]:
    import pycountry

    types = {"L": "living", "H": "historical", "C": "constructed", "E": "extinct"}
    for row in sorted(pycountry.languages, key=lambda r: str(r.alpha_3)):
        if not hasattr(row, "alpha_2"):
            continue
        ident, source = f"language:{row.alpha_2}", "pycountry: ISO 639"
        name = re.sub(r" \(.*\)", "", row.name)
        yield Entity(ident, name, (row.name,) if name != row.name else ())
        facts.append(Fact(ident, "alpha2", row.alpha_2, source))
        facts.append(Fact(ident, "alpha3", row.alpha_3, source))
        facts.append(Fact(ident, "type", types[row.type], source))


def _elements(facts: list[Fact]) -> Iterator[Entity]:
    path = _package_file("mendeleev", "elements.db")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            rows = connection.execute(ELEMENTS_QUERY).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read ({error}); install the version of mendeleev in the lock file") from error
    for row in rows:
        yield Entity(f"element:{row[1]}", row[2])
        facts += _element_facts(*row)


def _element_facts(
    number: int,
    symbol: str,
    name: str,
    period: int,
    group: int | None,
    block: str,
    family: str,
    *measured: Any,  # noqa: ANN401
) -> Iterator[Fact]:
    """Yield an element's facts; `measured` is (discovery year, electronegativity, atomic weight, radioactive, melting K)."""
    del name
    ident, source = f"element:{symbol}", "mendeleev"
    year, negativity, weight, radioactive, melting = measured
    yield Fact(ident, "symbol", symbol, source)
    yield Fact(ident, "number", str(number), source, number=float(number))
    yield Fact(ident, "period", str(period), source, (f"period {period}",))
    yield Fact(ident, "block", f"{block}-block", source, (block, f"{block} block"))
    if group:
        yield Fact(ident, "group", str(group), source, (f"group {group}",))
    if year:
        yield Fact(ident, "discovery_year", str(year), source, number=float(year))
    if number > LAST_MEASURED:
        return
    if family in FAMILIES:
        yield Fact(ident, "family", family.lower(), source, (family.lower().removesuffix("s"),))
    if negativity:
        yield Fact(ident, "electronegativity", f"{negativity:.2f}", source, (f"{negativity:g}",), number=negativity)
    if not radioactive:
        yield Fact(ident, "weight", f"{weight:.2f}", source, (f"{weight:g}",), number=weight)
    if melting and number < 93:
        value = f"{melting:.0f}"
        yield Fact(ident, "melting_point", value, source, (f"{value} K", f"{value} kelvin"), number=round(melting, 1))
