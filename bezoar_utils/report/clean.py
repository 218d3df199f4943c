"""What may appear on a page of the report, no matter who wrote it: a model, a library or a notebook. Source: ours.

bleach removes everything that could run or load something; BeautifulSoup then completes what remains.
"""

import re

from bs4 import BeautifulSoup

HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
INLINE = """a b blockquote br caption code dd del details div dl dt em figcaption figure hr i img li ol p pre
s small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()
CSV = re.compile(r"data:text/csv;base64,[A-Za-z0-9+/]+={0,2}")
# bleach would keep the text between these tags
WITH_CONTENT = re.compile(r"(?is)<(script|style|svg|math|iframe|object|template)\b.*?(</\1\s*>|$)")


def clean_prose(markup: str) -> str:
    """`clean_output`, but headings stay, and each gets an id made from its words."""
    tree = _complete_tables(_without_ids(_tree(markup, INLINE + HEADINGS)))
    for heading in tree.find_all(HEADINGS):
        heading["id"] = "to-" + re.sub(r"[^a-z0-9]+", "-", heading.get_text().lower()).strip("-")
    return str(tree)


def clean_output(markup: str) -> str:
    """Only harmless tags and attributes stay: images as embedded PNG, downloads as embedded csv. Scripts, styles and drawings go
    together with their content, headings and ids too, so that what a cell has printed cannot pose as a part of the page."""
    return str(_complete_tables(_without_ids(_tree(markup, INLINE))))


def contents(markup: str) -> list[dict]:
    """`id` and `text` of each second-level heading that has an id, in order: the table of contents of a page."""
    headings = BeautifulSoup(markup, "html.parser").find_all("h2", id=True)
    return [{"id": heading["id"], "text": heading.get_text()} for heading in headings]


def _tree(markup: str, tags: list[str]) -> BeautifulSoup:
    from bleach.sanitizer import Cleaner

    cleaner = Cleaner(tags=tags, attributes=_allowed, protocols=["http", "https", "data"], strip=True)
    whole = str(markup).encode(errors="replace").decode()  # half a surrogate pair cannot be written to a page
    harmless = cleaner.clean(WITH_CONTENT.sub("", whole))
    return _paired_downloads(BeautifulSoup(harmless, "html.parser", multi_valued_attributes=None))


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img":
        return name in ("alt", "width", "height") or (name == "src" and value.startswith("data:image/png;base64,"))
    if tag == "a" and name == "download":
        return bool(re.fullmatch(r"[a-z0-9-]+\.csv", value))
    if tag == "a" and name == "href":
        return value.startswith(("http://", "https://", "#")) or bool(CSV.fullmatch(value))
    if tag == "a":
        return name in ("id", "class")
    return name in ("class", "id", "scope", "colspan", "rowspan")


def _paired_downloads(tree: BeautifulSoup) -> BeautifulSoup:
    """Embedded csv can only be downloaded, and nothing else can."""
    for link in tree.find_all("a"):
        embedded = link.get("href", "").startswith("data:")
        if embedded and not link.has_attr("download"):
            del link["href"]
        if not embedded:
            link.attrs.pop("download", None)
    return tree


def _complete_tables(tree: BeautifulSoup) -> BeautifulSoup:
    """Header cells say whether they head a column or a row; a wide table scrolls within the page."""
    for cell in tree.find_all("th"):
        cell.attrs.setdefault("scope", "col" if cell.find_parent("thead") else "row")
    for table in tree.find_all("table"):
        if table.parent.get("class") != "scroll":
            table.wrap(tree.new_tag("div", attrs={"class": "scroll"}))
    return tree


def _without_ids(tree: BeautifulSoup) -> BeautifulSoup:
    for tag in tree.find_all(id=True):
        del tag["id"]
    return tree
