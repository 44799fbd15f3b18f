"""Runs side by side as one HTML page that needs nothing beside itself: no network, no script."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from project.tracking.curves import colour, svg
from project.tracking.store import shown_uri, tracking_uri

if TYPE_CHECKING:
    from project.tracking.compare import Comparison

TEMPLATE = Path(__file__).with_name("compare.jinja")


def page(comparison: Comparison) -> str:
    """Return the page of a comparison; every name and value in it is escaped."""
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    figures = [
        {"metric": curves.metric, "svg": Markup(svg(curves)), "drawn": [bool(curve) for curve in curves.of]}
        for curves in comparison.curves
    ]
    return template.render(
        runs=[{"name": name, "colour": colour(place)} for place, name in enumerate(comparison.names)],
        sections={
            "What they cost": comparison.costs,
            "Metrics, with 95 % intervals": comparison.metrics(),
            "Parameters that differ": comparison.parameters,
            "Digests of their data": comparison.datasets,
            "Where they come from": comparison.origins,
        },
        paired=comparison.paired_rows(),
        figures=figures,
        store=shown_uri(tracking_uri()),
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
