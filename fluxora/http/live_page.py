"""GET /live: the newest events of the log in a browser, and the files that the page is made of.

`static/live/follow.js` is also the example of how a browser follows the log.
"""

from __future__ import annotations

from fluxora.errors import NotFound
from fluxora.http import pages
from fluxora.http.backend import Backend
from fluxora.http.exchange import Reply, Request

_PAGE = pages.page("live/index.html")
_FILES = {
    "page.js": pages.small("live/page.js", pages.JAVASCRIPT),
    "follow.js": pages.small("live/follow.js", pages.JAVASCRIPT),
    "page.css": pages.small("live/page.css", pages.CSS),
}


def page(request: Request, _backend: Backend) -> Reply:
    """The page; what it shows comes from /ws/streams or /api/events/stream."""
    return pages.answer(request, _PAGE)


def asset(request: Request, _backend: Backend) -> Reply:
    """A file of the page.

    Raises:
        NotFound: the page has no such file.
    """
    file = _FILES.get(request.params["file"])
    if file is None:
        raise NotFound("The page has no such file")
    return pages.answer(request, file)
