"""What holds for the page whatever it shows."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def fits_and_is_accessible(page: Page, name: str) -> None:
    """It is no wider than the window, and has no serious fault of accessibility.

    Args:
        name: what the page shows, for the message.
    """
    wide, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner, name
    results = Axe().run(page, options={"runOnly": {"type": "tag", "values": RULES}})
    assert len(results.response["passes"]) > 10
    found = [v for v in results.response["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], [node["html"] for node in v["nodes"]]) for v in found] == [], name
