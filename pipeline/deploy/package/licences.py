"""Licences as they are written in tables of data and of teachers: what a hub calls them, what they forbid."""

from __future__ import annotations

import re

OTHER = "other"
# How model hubs spell the licences that occur; the key is the SPDX identifier in lower case.
_HUB_NAMES = {
    "apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "bsd-2-clause": "bsd-2-clause",
    "isc": "isc", "cc0-1.0": "cc0-1.0", "gpl-2.0": "gpl-2.0", "gpl-2.0-only": "gpl-2.0",
    "gpl-2.0-or-later": "gpl-2.0", "gpl-3.0": "gpl-3.0", "gpl-3.0-only": "gpl-3.0", "gpl-3.0-or-later": "gpl-3.0",
    "agpl-3.0": "agpl-3.0", "lgpl-3.0": "lgpl-3.0", "unlicense": "unlicense", "openrail": "openrail",
}  # fmt: skip
_CREATIVE_COMMONS = re.compile(r"^cc-by(?:-(?:nc|sa|nd|nc-sa|nc-nd))?-(?:2\.0|2\.5|3\.0|4\.0)$")
# Apart from these words nothing is guessed: a text that forbids in other words is shown as it stands.
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial|(research|academic|educational)[\w ,-]* only", re.I)


def hub_licence(text: str) -> str:
    """Return the identifier that model hubs use for ``text``, or ``other``.

    Example:
        >>> hub_licence("CC BY-NC 4.0"), hub_licence("a contract")
        ('cc-by-nc-4.0', 'other')
    """
    spelled = re.sub(r"[\s_]+", "-", text.strip().lower()).removesuffix("-international")
    if spelled in _HUB_NAMES:
        return _HUB_NAMES[spelled]
    return spelled if _CREATIVE_COMMONS.match(spelled) else OTHER


def is_non_commercial(text: str) -> bool:
    """Whether ``text`` says in the usual words that commercial use is forbidden."""
    return _NON_COMMERCIAL.search(text.replace("_", "-")) is not None


def legal_text(text: str) -> str | None:
    """Return where the text of a Creative Commons licence stands; None for any other."""
    name = hub_licence(text)
    if name == "cc0-1.0":
        return "https://creativecommons.org/publicdomain/zero/1.0/legalcode"
    if not name.startswith("cc-by"):
        return None
    kind, _, number = name.removeprefix("cc-").rpartition("-")
    return f"https://creativecommons.org/licenses/{kind}/{number}/legalcode"


def parts(text: str) -> tuple[str, ...]:
    """Return the single licences of a row's text: a mixture of clips carries ``A + B``."""
    return tuple(part.strip() for part in text.split(" + ") if part.strip())
